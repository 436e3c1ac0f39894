"""Equalize: scale channels so that one scale per tensor serves them all, without changing the network.

Weights have a scale for each output channel already, so what this improves are activations: a channel that uses a tenth
of its tensor's range loses three bits. Enlarging it costs precision of the weights that read it, if they share a scale
with columns that did not grow. How far to go is decided for each set of tensors that are tied together by the noise
that rounding is expected to add to the outputs of the layers that read them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
from onnx import NodeProto

from edgebuild.stages.quantize.channels import Channels, channel_axis, columns
from edgebuild.stages.quantize.graph import Array, Graph, optional_input

_LARGEST = 256.0
"""No channel is scaled by more than this, or less than its inverse."""
_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
REACH = 2.0
_REACHED = 0.98
"""A channel that comes this near to a Clip's bound is cut off by it, and keeps its scale."""


class ChannelStatistics:
    """Smallest, largest and mean square value of each channel of a tensor; watches a stream of samples.

    `low` and `high` are how far a channel may reach on other samples: its extremes, and REACH times the standard
    deviation of the samples' extremes beyond them. Once channels are equalized all of them are at their limit, so
    that on the next samples some would leave a range that holds the extremes alone.
    """

    def __init__(self) -> None:
        self._low, self._high = _Extremes(np.minimum), _Extremes(np.maximum)
        self._square: Array | None = None
        self._count = 0

    def observe(self, values: Array, low: float, high: float) -> None:  # noqa: ARG002 - the protocol's signature
        """Takes the values of one sample."""
        axis = channel_axis(values.ndim)
        assert axis is not None
        rows = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
        self._low.add(rows.min(axis=1))
        self._high.add(rows.max(axis=1))
        square = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        self._square = square if self._square is None else self._square + square
        self._count += rows.shape[1]

    @property
    def low(self) -> Array:
        """Float64 [C]."""
        return np.minimum(self._low.reached - REACH * self._low.deviation(), self._low.reached)

    @property
    def high(self) -> Array:
        """Float64 [C]."""
        return self._high.reached + REACH * self._high.deviation()

    @property
    def seen(self) -> tuple[Array, Array]:
        """The extremes themselves, float64 [C]."""
        return self._low.reached, self._high.reached

    @property
    def square(self) -> Array:
        """The mean square of each channel, float64 [C]."""
        assert self._square is not None
        return np.asarray(self._square / self._count)


class _Extremes:
    """The extremes of each channel over samples, and how much those of single samples vary."""

    def __init__(self, worse: np.ufunc) -> None:
        self._worse = worse
        self.reached: Array = np.zeros(0)
        self._sum: Array = np.zeros(0)
        self._square: Array = np.zeros(0)
        self._count = 0

    def add(self, found: Array) -> None:
        found = found.astype(np.float64)
        self.reached = found if not self._count else self._worse(self.reached, found)
        self._sum = found if not self._count else self._sum + found
        self._square = found**2 if not self._count else self._square + found**2
        self._count += 1

    def deviation(self) -> Array:
        mean = self._sum / self._count
        return np.sqrt(np.maximum(self._square / self._count - mean**2, 0.0))


def watched(graph: Graph, channels: Channels) -> list[str]:
    """The tensors whose statistics `equalize` needs."""
    names = [n for node in channels.producers for n in (node.output[0],)]
    names += [node.input[0] for node in channels.consumers]
    names += [name for name in channels.limits if name in channels.classes]
    known = {name for node in graph.nodes for name in node.output}
    return [name for name in dict.fromkeys(names) if name in known]


def equalize(graph: Graph, channels: Channels, seen: Mapping[str, ChannelStatistics]) -> dict[str, Array]:
    """Rewrites the weights of `graph`. Returns the factor of each channel, by tensor, where it is not 1."""
    bounds = _Bounds(channels, seen)
    factors = np.ones(len(channels.free))
    for part in _tied(channels, seen):
        factors[part.classes] = part.best(graph, bounds)
    _apply(graph, channels, factors)
    return {n: factors[c].astype(np.float32) for n, c in channels.classes.items() if (factors[c] != 1).any()}


class _Bounds:
    """For each class: what its channels use of a tensor's range, and how far they may grow."""

    def __init__(self, channels: Channels, seen: Mapping[str, ChannelStatistics]) -> None:
        size = len(channels.free)
        self.used = np.zeros(size)
        self.most = np.where(channels.free, _LARGEST, 1.0)
        self.least = 1 / self.most
        for name, statistics in seen.items():
            if name in channels.classes:
                reach = np.maximum(np.abs(statistics.low), np.abs(statistics.high))
                np.maximum.at(self.used, channels.classes[name], reach)
        for name, limit in channels.limits.items():
            if name in channels.classes and name in seen:
                self._limit(channels.classes[name], seen[name], limit)

    def _limit(self, classes: Array, statistics: ChannelStatistics, limit: float) -> None:
        """Clip cuts an enlarged channel off earlier: it may grow until its calibrated values reach the bound."""
        seen, high = statistics.seen[1], np.maximum(statistics.high, 1e-9)
        room = np.where(seen >= _REACHED * limit, 1.0, np.maximum(limit / high, 1.0))
        np.minimum.at(self.most, classes, room)
        np.maximum.at(self.least, classes, 1.0)


@dataclass(frozen=True)
class _Part:
    """Classes that share a tensor, directly or through others; the tensors, and the layers that read them."""

    classes: Array
    tensors: tuple[str, ...]
    readers: tuple[NodeProto, ...]
    channels: Channels
    seen: Mapping[str, ChannelStatistics]

    def best(self, graph: Graph, bounds: _Bounds) -> Array:
        """The factors of `classes` with the least expected noise."""
        tried = [self._factors(graph, bounds, a, b) for a in _EXPONENTS for b in _EXPONENTS]
        noise = [self._noise(graph, f) for f in tried]
        found: Array = tried[int(np.argmin(noise))]
        return found

    def _factors(self, graph: Graph, bounds: _Bounds, by_range: float, by_weight: float) -> Array:
        """(R / r)^a · (w / W)^b: small ranges grow, columns of large weights grow with them."""
        used = bounds.used[self.classes]
        weight = self._column_sizes(graph)[self.classes]
        ratio = used.max(initial=0.0) / np.maximum(used, used.max(initial=0.0) / _LARGEST + 1e-12)
        heavy = np.where(weight > 0, weight / max(weight.max(initial=0.0), 1e-12), 1.0)
        factors = ratio**by_range * np.maximum(heavy, 1e-3) ** by_weight
        factors /= np.exp(np.log(factors).mean()) if not self._is_bounded(bounds) else 1.0
        return np.clip(factors, bounds.least[self.classes], bounds.most[self.classes])

    def _is_bounded(self, bounds: _Bounds) -> bool:
        return bool((bounds.most[self.classes] < _LARGEST).any())

    def _column_sizes(self, graph: Graph) -> Array:
        """For each class the largest weight that reads it, relative to the largest of that row."""
        found = np.zeros(len(self.channels.free))
        for node in self.readers:
            weight = np.abs(graph.constants[node.input[1]]).astype(np.float64)
            rows = weight.reshape(*weight.shape[:2], -1).max(axis=2)
            rows /= np.maximum(rows.max(axis=1, keepdims=True), 1e-12)
            np.maximum.at(found, self.channels.classes[node.input[0]][columns(node, weight)], rows)
        return found

    def _noise(self, graph: Graph, factors: Array) -> float:
        """Variance that rounding adds to the outputs of the readers, each relative to its signal's."""
        every = np.ones(len(self.channels.free))
        every[self.classes] = factors
        return sum(self._layer_noise(graph, node, every) for node in self.readers)

    def _layer_noise(self, graph: Graph, node: NodeProto, every: Array) -> float:
        scale, seen = every[self.channels.classes[node.input[0]]], self.seen[node.input[0]]
        weight = graph.constants[node.input[1]].astype(np.float64)
        flat = weight.reshape(*weight.shape[:2], -1)
        read = columns(node, weight)
        energy, signal = (flat**2).sum(axis=2), seen.square[read]
        width = max((seen.high * scale).max(), 0.0) - min((seen.low * scale).min(), 0.0)
        rounding = (width / 255) ** 2 / 12 * energy / scale[read] ** 2
        largest = (np.abs(flat).max(axis=2) / scale[read]).max(axis=1, keepdims=True)
        coarse = (largest / 127) ** 2 / 12 * flat.shape[2] * signal * scale[read] ** 2
        total = np.maximum((energy * signal).sum(), 1e-30)
        return float((rounding + coarse).sum() / total)


def _tied(channels: Channels, seen: Mapping[str, ChannelStatistics]) -> Iterable[_Part]:
    """The parts that can be scaled independently of each other."""
    names = [name for name in channels.classes if channels.free[channels.classes[name]].any()]
    group: dict[int, int] = {}
    members: dict[int, list[str]] = {}
    numbers = count()
    for name in names:
        classes = [int(c) for c in np.unique(channels.classes[name]) if channels.free[c]]
        known = {group[c] for c in classes if c in group}
        target = min(known, default=next(numbers))
        joined = [name, *(n for k in sorted(known) for n in members.pop(k))]
        members[target] = joined
        for tensor in joined:
            for c in np.unique(channels.classes[tensor]):
                if channels.free[c]:
                    group[int(c)] = target
    for number, tensors in members.items():
        inside = set(tensors)
        readers = tuple(n for n in channels.consumers if n.input[0] in inside and n.input[0] in seen)
        if readers:
            classes = np.array(sorted(c for c, g in group.items() if g == number))
            yield _Part(classes, tuple(tensors), readers, channels, seen)


def growth(seen: ChannelStatistics, factors: Array) -> float:
    """How far beyond its extremes a tensor may reach on other samples, its channels multiplied by `factors` [C]."""
    low, high = seen.seen
    extremes = max(float((high * factors).max()), float((-low * factors).max()))
    reach = max(float((seen.high * factors).max()), float((-seen.low * factors).max()))
    return reach / extremes if extremes > 0 else 1.0


def _apply(graph: Graph, channels: Channels, factors: Array) -> None:
    for node in channels.consumers:
        scale = factors[channels.classes[node.input[0]]]
        weight = graph.constants[node.input[1]]
        read = scale[columns(node, weight)].reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
        graph.constants[node.input[1]] = (weight.astype(np.float64) / read).astype(np.float32)
    for node in channels.producers:
        scale = factors[channels.classes[node.output[0]]]
        for name in filter(None, (node.input[1], optional_input(node, 2))):
            value = graph.constants[name].astype(np.float64)
            graph.constants[name] = (value * scale.reshape(-1, *(1,) * (value.ndim - 1))).astype(np.float32)

"""Equalize: scale channels so that one scale per tensor serves them all, without changing the network.

Weights have a scale for each output channel already, so what this improves are activations: a channel that uses a tenth
of its tensor's range loses three bits. Enlarging it costs precision of the weights that read it, if they share a scale
with columns that did not grow. How far to go is decided for each set of tensors that are tied together by the noise
that rounding is expected to add to the outputs of the layers that read them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from edgebuild.stages.quantize.channels import Channels, channel_axis, columns, components
from edgebuild.stages.quantize.graph import Array, Graph, optional_input

_LARGEST = 256.0
"""No channel is scaled by more than this, or less than its inverse."""
_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
REACH = 2.0
_REACHED = 0.98
"""A channel that comes this near to a Clip's bound is cut off by it, and keeps its scale."""

_WORSE = 1.5
"""Factors of an earlier training serve while they add at most so many times the noise that new ones would."""
_HELD_BACK = (1.0, 0.97, 0.9, 0.75, 0.5)
"""The part of the channels that keep their factors, from all to half."""


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
    for classes, nodes in _tied(channels, seen):
        part = _Part(classes, [_Reader.of(graph, n, channels, seen, classes) for n in nodes], bounds)
        factors[classes] = part.best()
    return _applied(graph, channels, factors)


def equalize_as(
    graph: Graph, channels: Channels, seen: Mapping[str, ChannelStatistics], chosen: Mapping[str, Array]
) -> dict[str, Array]:
    """The same with factors that were chosen for an earlier training of the network, by tensor, where they still serve.

    A channel that would now reach a Clip's bound grows less.
    """
    bounds = _Bounds(channels, seen)
    factors = np.ones(len(channels.free))
    for name, classes in channels.classes.items():
        if name in chosen:
            factors[classes] = chosen[name]
    factors = np.where(channels.free, np.clip(factors, bounds.least, bounds.most), 1.0)
    for classes, nodes in _tied(channels, seen):
        part = _Part(classes, [_Reader.of(graph, n, channels, seen, classes) for n in nodes], bounds)
        factors[classes] = part.serving(factors[classes])
    return _applied(graph, channels, factors)


def _applied(graph: Graph, channels: Channels, factors: Array) -> dict[str, Array]:
    """Rounded to float32 first: what is kept of them gives the same weights again."""
    whole = factors.astype(np.float32)
    _apply(graph, channels, whole.astype(np.float64))
    return {n: whole[c] for n, c in channels.classes.items() if (whole[c] != 1).any()}


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
class _Reader:
    """A layer that reads channels of a part: what its weights and its input make of a choice of factors.

    `channels` [C] are the positions of the input's channels among the part's classes, one beyond the last for those
    that keep the factor 1; `read` [O, I/groups] those that the columns of its weights [O, I/groups, products] read.
    `size` and `energy` [O, I/groups] are the largest weight of each column and the sum of their squares.
    """

    channels: Array
    read: Array
    size: Array
    energy: Array
    products: int
    seen: ChannelStatistics
    signal: Array

    @classmethod
    def of(
        cls,
        graph: Graph,
        node: NodeProto,
        channels: Channels,
        seen: Mapping[str, ChannelStatistics],
        classes: Array,
    ) -> "_Reader":
        """What `node` is to the part of these classes, which are sorted."""
        own = channels.classes[node.input[0]]
        place = np.minimum(np.searchsorted(classes, own), len(classes) - 1)
        inside = np.where(classes[place] == own, place, len(classes))
        weight = graph.constants[node.input[1]]
        flat = weight.reshape(*weight.shape[:2], -1).astype(np.float64)
        read, statistics = columns(node, weight), seen[node.input[0]]
        size, energy = np.abs(flat).max(axis=2), (flat**2).sum(axis=2)
        return cls(inside, inside[read], size, energy, flat.shape[2], statistics, statistics.square[read])

    def heaviest(self, count: int) -> Array:
        """For each of `count` classes the largest weight that reads it, relative to the largest of that row."""
        rows = self.size / np.maximum(self.size.max(axis=1, keepdims=True), 1e-12)
        found = np.zeros(count + 1)
        np.maximum.at(found, self.read, rows)
        return found[:count]

    def noise(self, factors: Array) -> float:
        """Variance that rounding adds to the outputs, relative to the signal's."""
        every = np.append(factors, 1.0)
        scale, read = every[self.channels], every[self.read]
        width = max((self.seen.high * scale).max(), 0.0) - min((self.seen.low * scale).min(), 0.0)
        rounding = (width / 255) ** 2 / 12 * self.energy / read**2
        largest = (self.size / read).max(axis=1, keepdims=True)
        coarse = (largest / 127) ** 2 / 12 * self.products * self.signal * read**2
        total = np.maximum((self.energy * self.signal).sum(), 1e-30)
        return float((rounding + coarse).sum() / total)


@dataclass(frozen=True)
class _Part:
    """Classes that share a tensor, directly or through others, sorted; and the layers that read them."""

    classes: Array
    readers: Sequence[_Reader]
    bounds: _Bounds

    def best(self) -> Array:
        """The factors of `classes` with the least expected noise."""
        size = len(self.classes)
        weight = np.max([r.heaviest(size) for r in self.readers], axis=0)
        tried = [self._factors(weight, a, b) for a in _EXPONENTS for b in _EXPONENTS]
        return tried[int(np.argmin([self._noise(factors) for factors in tried]))]

    def serving(self, kept: Array) -> Array:
        """`kept`, chosen for another training; or, where these add much more noise than the best ones, with the
        channels held back that are now far larger than the others. A factor that changes is a column of weights that
        changes.
        """
        best = self.best()
        enough = _WORSE * self._noise(best)
        reach = np.maximum(self.bounds.used[self.classes] * kept, 1e-30)
        for part in _HELD_BACK:
            tried = kept * np.minimum(np.quantile(reach, part) / reach, 1.0)
            tried = np.clip(tried, self.bounds.least[self.classes], self.bounds.most[self.classes])
            if self._noise(tried) <= enough:
                return np.asarray(tried)
        return best

    def _noise(self, factors: Array) -> float:
        return sum(reader.noise(factors) for reader in self.readers)

    def _factors(self, weight: Array, by_range: float, by_weight: float) -> Array:
        """(R / r)^a · (w / W)^b: small ranges grow, columns of large weights grow with them."""
        bounds, used = self.bounds, self.bounds.used[self.classes]
        widest = used.max(initial=0.0) or 1.0  # 0: nothing but zeros was seen
        ratio = widest / np.maximum(used, widest / _LARGEST + 1e-12)
        heavy = np.where(weight > 0, weight / max(weight.max(initial=0.0), 1e-12), 1.0)
        factors = ratio**by_range * np.maximum(heavy, 1e-3) ** by_weight
        factors /= np.exp(np.log(factors).mean()) if not self._is_bounded() else 1.0
        return np.asarray(np.clip(factors, bounds.least[self.classes], bounds.most[self.classes]))

    def _is_bounded(self) -> bool:
        return bool((self.bounds.most[self.classes] < _LARGEST).any())


def _tied(channels: Channels, seen: Mapping[str, ChannelStatistics]) -> Iterable[tuple[Array, list[NodeProto]]]:
    """The classes that can be scaled independently of the others, with the layers that read them."""
    free = {name: found[channels.free[found]] for name, found in channels.classes.items()}
    free = {name: found for name, found in free.items() if found.size}
    ends = [(np.full(found.size, found[0]), found) for found in free.values()]
    part = components(len(channels.free), [a for a, _ in ends], [b for _, b in ends])
    readers: dict[int, list[NodeProto]] = {}
    for node in channels.consumers:
        if node.input[0] in free and node.input[0] in seen:
            readers.setdefault(int(part[free[node.input[0]][0]]), []).append(node)
    order = np.argsort(part, kind="stable")
    first, last = (np.searchsorted(part[order], list(readers), side) for side in ("left", "right"))
    for start, stop, nodes in zip(first, last, readers.values(), strict=True):
        yield order[start:stop], nodes


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

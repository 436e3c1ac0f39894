"""Ranges of tensors that only functions of one value read: what counts is the error behind the function.

Sigmoid, SiLU, HardSwish and their like are flat where many values lie. Below −6 SiLU gives nothing but −0.01 and
less, yet convolutions in front of it reach −100; whoever keeps that range has no steps left for what lies around 0.
A range may leave out what the function maps to nearly the same value, and among such ranges the one with the least
error behind the function is taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebuild.core import ort
from edgebuild.stages.quantize.boundaries import Boundaries
from edgebuild.stages.quantize.graph import Array, Graph, Types, key
from edgebuild.stages.quantize.observers import LEVELS, Histogram, Range
from edgebuild.stages.quantize.operators import SCALAR_BINARY, UNARY

_SHARES = np.array([1.0, 0.85, 0.7, 0.6, 0.5, 0.4, 0.32, 0.25, 0.2, 0.16, 0.12, 0.09, 0.07, 0.05, 0.035, 0.025])
"""Of each end of the range, what is tried."""
_POINTS = 4096
_ALLOWED = 1.0
"""How far cutting off may move a function's value, in steps of its own range."""


@dataclass(frozen=True)
class Function:
    """The nodes between a tensor and what is rounded behind them; `results` are those tensors."""

    nodes: tuple[NodeProto, ...]
    results: tuple[str, ...]

    def of(self, graph: Graph, source: str, values: Array) -> list[Array]:
        """The results for `values` [N], each [N]."""
        used = {n for node in self.nodes for n in node.input if n in graph.constants}
        float_type = TensorProto.FLOAT
        model = helper.make_model(
            helper.make_graph(
                list(self.nodes),
                "function",
                [helper.make_tensor_value_info(source, float_type, [len(values)])],
                [helper.make_tensor_value_info(name, float_type, None) for name in self.results],
                [numpy_helper.from_array(graph.constants[n], n) for n in sorted(used)],
            ),
            opset_imports=[helper.make_opsetid("", graph.opset)],
            ir_version=10,
        )
        found = ort.session(model).run(list(self.results), {source: values.astype(np.float32)})
        return [np.asarray(f, np.float64).reshape(-1) for f in found]


def functions(graph: Graph, types: Types, quantized: frozenset[str], boundaries: Boundaries) -> dict[str, Function]:
    """The function of each rounded tensor that nothing but one of one value reads."""
    found = {}
    order = {key(node): i for i, node in enumerate(graph.nodes)}
    for tensor in boundaries.groups:
        inside = sorted(_inside(graph, types, quantized, boundaries, tensor), key=lambda n: order[key(n)])
        if inside and tensor not in graph.outputs:
            results = [n.output[0] for n in inside if n.output[0] in boundaries.groups]
            found[tensor] = Function(tuple(inside), tuple(results))
    return {tensor: function for tensor, function in found.items() if function.results}


def _inside(
    graph: Graph, types: Types, quantized: frozenset[str], boundaries: Boundaries, tensor: str
) -> list[NodeProto]:
    """The nodes between a tensor and the next ones that are rounded; empty if another operator reads it."""
    reached, found, waiting = {tensor}, dict[str, NodeProto](), graph.consumers(tensor)
    while waiting:
        node = waiting.pop()
        elementwise = node.op_type in UNARY | SCALAR_BINARY and key(node) in quantized and len(node.output) == 1
        if not elementwise or not types.same_shape(tensor, node.output[0]):
            return []
        if key(node) not in found and node.output[0] not in boundaries.groups:
            reached.add(node.output[0])
            waiting.extend(graph.consumers(node.output[0]))
        found[key(node)] = node
    return list(found.values()) if all(set(graph.data_inputs(n)) <= reached for n in found.values()) else []


class Refined:
    """The histogram of a tensor together with the values that its function gives."""

    def __init__(self, histogram: Histogram, function: Function, graph: Graph, source: str) -> None:
        counts, centres = histogram.counts().astype(np.float64), histogram.centres()
        held = np.flatnonzero(counts)
        self._counts, self._centres = counts[held], centres[held]
        extremes = histogram.extremes.range() or (0.0, 0.0)
        self._points = np.linspace(min(extremes[0], 0.0), max(extremes[1], 0.0), _POINTS)
        self._values = function.of(graph, source, self._points)
        self._steps = [max(float(np.ptp(v)) / LEVELS, 1e-30) for v in self._values]

    def range(self, found: Range) -> Range:
        """A range inside of `found` that loses no more than a step of any result, with the least error behind it."""
        low, high = min(found[0], 0.0), max(found[1], 0.0)
        lows = [low * s for s in _SHARES if self._is_flat(low * s, low)] if low < 0 else [low]
        highs = [high * s for s in _SHARES if self._is_flat(high * s, high)] if high > 0 else [high]
        tried = [(a, b) for a in lows for b in highs]
        errors = [self._error(a, b) for a, b in tried]
        return tried[int(np.argmin(errors))] if tried and np.isfinite(errors).all() else found

    def _is_flat(self, end: float, limit: float) -> bool:
        """Whether the function hardly changes from `end` to the limit, and beyond as far as values were seen."""
        beyond = self._points <= end if limit < 0 else self._points >= end
        return all(
            float(np.abs(v[beyond] - np.interp(end, self._points, v)).max(initial=0.0)) <= _ALLOWED * step
            for v, step in zip(self._values, self._steps, strict=True)
        )

    def _error(self, low: float, high: float) -> float:
        step = (high - low) / LEVELS
        if step <= 0:
            return float("inf")
        q = np.clip(np.rint(self._centres / step), np.rint(low / step), np.rint(high / step)) * step
        total = 0.0
        for values, unit in zip(self._values, self._steps, strict=True):
            moved = np.interp(q, self._points, values) - np.interp(self._centres, self._points, values)
            total += float((self._counts * np.square(moved / unit)).sum())
        return total


def narrowed(refined: Iterable[Refined], found: Range) -> Range:
    """The widest of what serves each tensor of a group."""
    ranges = [r.range(found) for r in refined]
    return min(r[0] for r in ranges), max(r[1] for r in ranges)


__all__ = ["Function", "Refined", "functions", "narrowed"]

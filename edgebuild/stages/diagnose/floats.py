"""What the float network itself shows on the samples: per channel at every layer, at bounded functions, at the input.

Here faults are found that no choice of scales can mend: data that the network was not trained on, a channel far larger
than its neighbours, a function that is always at its ceiling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from edgebuild.stages.diagnose.graph import Array, Graph, attribute, channels
from edgebuild.stages.diagnose.measure import Moments
from edgebuild.stages.diagnose.switch import Sample, ran, session, with_outputs

_BOUNDED = {"Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "HardSigmoid": (0.0, 1.0)}
_NEAR = 1e-2  # of the span: a bounded function is called saturated so close to its end


@dataclass(frozen=True)
class Bounded:
    """A function with a ceiling, by its node; `low` is -inf for one without a floor that says something."""

    node: NodeProto
    source: str
    low: float
    high: float
    rectifies: bool  # its floor is a Relu's: being there is what it is for


@dataclass
class Ends:
    """How many outputs lie at the floor, at the ceiling, and between."""

    bounded: Bounded
    at_low: int = 0
    at_high: int = 0
    count: int = 0

    def add(self, values: Array) -> None:
        """One sample's outputs."""
        span = self.bounded.high - self.bounded.low if np.isfinite(self.bounded.high) else 0.0
        near = _NEAR * span
        self.at_low += int(np.count_nonzero(values <= self.bounded.low + (0 if self.bounded.rectifies else near)))
        if np.isfinite(self.bounded.high):
            at = self.bounded.high - (1e-6 * span if self.bounded.rectifies else near)
            self.at_high += int(np.count_nonzero(values >= at))
        self.count += values.size


class Network:
    """Float statistics of one graph over the samples."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = Graph(model)
        self.layers = self.graph.layers()
        self.norms = [n for n in self.graph.nodes if n.op_type == "BatchNormalization" and self._statistics(n)]
        self.bounded = [b for n in self.graph.nodes if (b := _bounded(self.graph, n)) is not None]
        self.moments: dict[str, Moments] = {}
        self.ends = {b.node.output[0]: Ends(b) for b in self.bounded}
        self.entry = [n.input[0] for n in self.first_layers()]

    def first_layers(self) -> list[NodeProto]:
        """The layers that no other layer feeds."""
        made = {n.output[0] for n in self.layers}
        return [n for n in self.layers if not self.graph.ancestors(n.input[0]) & made]

    def observe(self, samples: Sequence[Sample]) -> None:
        """Runs the graph; memory does not grow with the number of samples."""
        sums = [n.output[0] for n in self.graph.nodes if n.op_type == "Add" and self.graph.is_float(n.output[0])]
        watched = [
            *(n.output[0] for n in self.layers),
            *(name for n in self.norms for name in (n.input[0], n.output[0])),
            *sums,
            *self.entry,
        ]
        ends = list(self.ends)
        names = [n for n in dict.fromkeys([*watched, *ends]) if n not in self.graph.inputs]
        runner = session(with_outputs(self.graph.model, names))
        for sample in samples:
            values = dict(zip(names, ran(runner, names, sample), strict=True)) | sample
            for name in dict.fromkeys(watched):
                if values[name].size and values[name].dtype.kind in "fui":
                    rows = channels(values[name].astype(np.float32, copy=False))
                    self.moments.setdefault(name, Moments.of(len(rows))).add(rows)
            for name in ends:
                self.ends[name].add(values[name])

    def norm_statistics(self, node: NodeProto) -> tuple[Array, Array]:
        """Running mean and variance."""
        mean, variance = (self.graph.constants[node.input[i]].astype(np.float64) for i in (3, 4))
        return mean, variance

    def _statistics(self, node: NodeProto) -> bool:
        return all(name in self.graph.constants for name in node.input[1:5])


def _bounded(graph: Graph, node: NodeProto) -> Bounded | None:
    data = graph.data_inputs(node)
    if len(data) != 1 or not graph.is_float(node.output[0]) or not _between_layers(graph, node):
        return None
    if node.op_type in _BOUNDED:
        gates_itself = any(data[0] in n.input and n.op_type == "Mul" for n in graph.consumers(node.output[0]))
        return None if gates_itself else Bounded(node, data[0], *_BOUNDED[node.op_type], rectifies=False)
    if node.op_type == "Relu":
        return Bounded(node, data[0], 0.0, float("inf"), rectifies=True)
    if node.op_type == "Clip":
        low, high = (_bound(graph, node, i, d) for i, d in ((1, -np.inf), (2, np.inf)))
        if np.isfinite(low) and low < high:
            return Bounded(node, data[0], low, high, rectifies=True)
    if node.op_type == "Min" and (other := [graph.constants[n] for n in node.input if n in graph.constants]):
        return Bounded(node, data[0], 0.0, float(np.min(other[0])), rectifies=True) if other[0].size == 1 else None
    return None


def _bound(graph: Graph, node: NodeProto, position: int, default: float) -> float:
    value: Any = graph.constants.get(node.input[position]) if len(node.input) > position else None
    if value is None:
        return float(attribute(node, ("", "min", "max")[position], default))
    return float(value.reshape(-1)[0]) if value.size else default


def _between_layers(graph: Graph, node: NodeProto) -> bool:
    """Whether a layer lies before and another one behind: what a network ends with may well be at its ceiling."""
    before = any(graph.weight(n) is not None for name in graph.ancestors(node.input[0]) if (n := graph.producer(name)))
    stack, seen = [node.output[0]], set()
    while before and stack:
        name = stack.pop()
        for reader in graph.consumers(name):
            if graph.weight(reader) is not None:
                return True
            fresh = [o for o in reader.output if o not in seen]
            seen.update(fresh)
            stack += fresh
    return False

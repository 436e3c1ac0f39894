"""What calibration knows of one float network: which tensors are rounded, and how their values are distributed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from edgebuild.stages.quantize.boundaries import Boundaries, find_boundaries
from edgebuild.stages.quantize.channels import channel_axis
from edgebuild.stages.quantize.graph import Array, Graph, key
from edgebuild.stages.quantize.insert import Known, Parameters, insert
from edgebuild.stages.quantize.observers import Histogram, MovingAverage, Watcher
from edgebuild.stages.quantize.rounding import Moments
from edgebuild.stages.quantize.select import Selection, select
from edgebuild.stages.quantize.weights import Layer, Rounded

_OPSET_OF_WORDS = 21
"""The first in which QuantizeLinear gives uint16."""


class Statistics(Watcher):
    """A tensor's histogram and the moving averages of its extremes; its channels multiplied by `factors` first."""

    def __init__(self, factors: Array | None = None, growth: float = 1.0) -> None:
        self.growth = growth
        self.histogram = Histogram()
        self.average = MovingAverage()
        self._factors = factors

    def observe(self, values: Array, low: float, high: float) -> None:
        """Takes the values of one sample."""
        if self._factors is not None:
            axis = channel_axis(values.ndim)
            assert axis is not None
            values = values * self._factors.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
            low, high = float(values.min()), float(values.max())
        self.histogram.observe(values, low, high)
        self.average.observe(values, low, high)


@dataclass
class Network:
    """A folded float graph with the statistics of its tensors.

    `factors`: what its channels are multiplied by in comparison with the network that is run for calibration, by
    tensor. `statistics` and `moments` (by the node's key) are filled while samples are seen. `growth`: how far beyond
    its extremes a tensor may reach on other samples. `layers`: weights that an update has rounded already, by the
    node's key. `rounded`, `functions` and `refined` keep what was computed for one of its plans.
    """

    graph: Graph
    factors: Mapping[str, Array]
    statistics: dict[str, Statistics]
    moments: Mapping[str, Moments]
    growth: dict[str, float]
    rounded: Rounded = field(default_factory=Rounded)
    layers: dict[str, Layer] = field(default_factory=dict)
    functions: dict[frozenset[str], Any] = field(default_factory=dict)
    refined: dict[tuple[object, ...], Any] = field(default_factory=dict)

    def plan(self, floating: frozenset[str] = frozenset()) -> "Plan":
        """What is rounded when the nodes with the keys `floating` stay float32."""
        graph = self.graph.copy()
        types = graph.types()
        selection = select(graph, types, floating)
        return Plan(self, selection, find_boundaries(graph, types, selection.quantized))

    def unseen(self, plan: "Plan") -> dict[str, Statistics]:
        """New watchers of the tensors that the plan rounds and that were not watched; they become part of this."""
        needed = {t for sources in plan.boundaries.sources.values() for t in sources} - self.statistics.keys()
        new = {t: Statistics(self.factors.get(t), self.growth.get(t, 1.0)) for t in sorted(needed)}
        self.statistics |= new
        return new


@dataclass(frozen=True)
class Plan:
    """The operators of a network that run as integers, and the tensors between them."""

    network: Network
    selection: Selection
    boundaries: Boundaries

    def model(self, parameters: Parameters) -> onnx.ModelProto:
        """The QDQ model with these scales and zero points, by group."""
        network = self.network
        graph = network.graph.copy()
        known = Known(network.moments, network.rounded, network.layers)
        insert(graph, self.selection.quantized, self.boundaries, parameters, known)
        return graph.to_model(opset=_OPSET_OF_WORDS if any(p.bits == 16 for p in parameters.values()) else 0)

    def readers(self, group: str) -> Iterable[onnx.NodeProto]:
        """The quantized nodes that read the tensors of a group."""
        nodes = {key(n): n for t in self.boundaries.members[group] for n in self.network.graph.consumers(t)}
        return [n for k, n in nodes.items() if k in self.selection.quantized]

"""QDQ ONNX → a straight list of kernel calls.

Two passes: from the outputs backwards, find which tensors are needed as integers and which as float32 (`_demand`);
then, in the graph's order, emit each of them once (`value`).
"""

from dataclasses import dataclass, field

import numpy as np
import onnx

from edgebuild.core.errors import CompileError
from edgebuild.kernels.isa import Isa
from edgebuild.stages.compile.attention import AttentionLowering
from edgebuild.stages.compile.clusters import Cluster, is_activation, match, match_float
from edgebuild.stages.compile.floats import FloatLowering, dequantized
from edgebuild.stages.compile.graph import Graph, Node, stored
from edgebuild.stages.compile.moves import Mover
from edgebuild.stages.compile.values import Emitter, Value, row_major

BUG = "this is a bug in edgebuild's lowering; please report it with the model"


@dataclass(frozen=True)
class Lowered:
    """Kernel calls with the values of inputs and outputs, in the model's order, row-major, each in storage of its
    own.
    """

    emitter: Emitter
    inputs: tuple[tuple[str, Value], ...]
    outputs: tuple[tuple[str, Value], ...]

    @property
    def kept(self) -> frozenset[int]:
        """Storages that the caller reads or writes."""
        return frozenset(v.storage for _, v in (*self.inputs, *self.outputs))


def lower(model: onnx.ModelProto, isa: Isa) -> Lowered:
    return _Driver(Graph(model), Emitter(isa)).run()


@dataclass
class _Driver:
    graph: Graph
    emit: Emitter
    values: dict[str, Value] = field(default_factory=dict)
    clusters: dict[str, Cluster] = field(default_factory=dict)
    demands: dict[str, int] = field(default_factory=dict)

    def run(self) -> Lowered:
        mover = Mover(self.graph, self.emit)
        self.integers = AttentionLowering(self.graph, self.emit, mover)
        self.floats = FloatLowering(self.graph, self.emit, mover, self.value, self.demands, self.clusters)
        inputs = tuple((n, self.emit.tensor(n, self.graph.dtype(n), self.graph.shape(n))) for n in self.graph.inputs)
        self.values.update(inputs)
        self._demand()
        for node in self.graph.nodes:
            self._emit(node)
        outputs = tuple((n, self._output(n, {v.storage for _, v in inputs})) for n in self.graph.outputs)
        return Lowered(self.emit, inputs, outputs)

    def _demand(self) -> None:
        """Count who needs each tensor; a node that nobody needs is never emitted."""
        pending = list(self.graph.outputs)
        while pending:
            name = pending.pop()
            self.demands[name] = self.demands.get(name, 0) + 1
            if self.demands[name] == 1:
                pending += self._needs(name)

    def _needs(self, name: str) -> list[str]:
        node = self.graph.producers.get(name)
        if node is None or self.graph.constant(name) is not None:
            return []
        cluster = (match if node.op == "QuantizeLinear" else match_float)(self.graph, node)
        if cluster is not None:
            self.clusters[name] = cluster
            sources = (self.graph.producers[s] for s in cluster.sources)
            return [s.inputs[0] for s in sources if self.graph.constant(s.inputs[0]) is None]
        if not self.floats.supports(node):
            raise node.unsupported("this operator is not supported")
        data = node.inputs[:1] if node.op in ("QuantizeLinear", "DequantizeLinear") else node.inputs
        return [i for i in data if i and self.graph.constant(i) is None]

    def _emit(self, node: Node) -> None:
        """Emit a node that is needed, unless it will become part of the map of its only reader."""
        wanted = [o for o in node.outputs if o in self.demands and o not in self.values]
        if wanted and not self._inlined(node):
            self.value(wanted[0])

    def _inlined(self, node: Node) -> bool:
        """Nodes that become part of their one reader wait until it asks for them."""
        name = node.outputs[0]
        return (
            self.floats.waits(node)
            and name not in self.clusters
            and self.demands[name] == 1
            and (name not in self.graph.outputs)
        )

    def value(self, name: str) -> Value:
        """The value of a tensor, emitted on first use."""
        if name in self.values:
            return self.values[name]
        constant = self._constant(name)
        if constant is not None:
            self.values[name] = self.emit.constant(name, constant)
        elif name in self.clusters:
            cluster = self.clusters[name]
            self.values[name] = self.integers.lower(cluster, [self._source(s) for s in cluster.sources])
        else:
            self.values.update(self.floats.lower(self.graph.producers[name]))
        return self.values[name]

    def _constant(self, name: str) -> np.ndarray | None:
        value = self.graph.constant(name)
        node = self.graph.producers.get(name)
        if value is None and node is not None and node.op == "DequantizeLinear" and not is_activation(self.graph, name):
            return dequantized(self.graph, node)
        return None if value is None else stored(value)

    def _source(self, name: str) -> Value:
        """The quantized value in front of a DequantizeLinear."""
        node = self.graph.producers[name]
        if self.graph.constant(node.inputs[0]) is not None:
            return self.integers.constant_operand(name)
        return self.value(node.inputs[0])

    def _output(self, name: str, taken: set[int]) -> Value:
        """A graph output: row-major, in the arena, sharing its bytes with no input and no other output."""
        value = self.value(name)
        order = row_major(len(value.shape))
        shared = value.storage in taken or self.emit.storages[value.storage].data is not None
        if shared or not value.has_order(order):
            out = self.emit.tensor(f"{name}:output", value.dtype, value.shape)
            self.floats.mover.copy("layout", f"{name}:output", value, out)
            value = out
        taken.add(value.storage)
        if value.dtype != self.graph.dtype(name):
            raise CompileError(f"output {name} came out as {value.dtype}, the model says {self.graph.dtype(name)}", BUG)
        return value.seen(value.shape, order)

"""Writes the QDQ form of SPEC section 9."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, helper

from edgebuild.stages.quantize.boundaries import Boundaries
from edgebuild.stages.quantize.graph import Graph, key, optional_input
from edgebuild.stages.quantize.operators import is_weighted
from edgebuild.stages.quantize.parameters import Affine
from edgebuild.stages.quantize.rounding import Moments
from edgebuild.stages.quantize.weights import Layer, Rounded, Weights

Parameters = Mapping[str, Affine]
_TYPES = {8: np.uint8, 16: np.uint16}


@dataclass(frozen=True)
class _Names:
    """Tensors of one Q/DQ pair around the float tensor of this name."""

    floating: str
    quantized: str
    dequantized: str


@dataclass(frozen=True)
class Known:
    """What is known of layers: `moments` of their inputs and `layers` that are rounded already, by the node's key;
    `rounded`: integers that were computed before.
    """

    moments: Mapping[str, Moments]
    rounded: Rounded
    layers: Mapping[str, Layer]


def insert(
    graph: Graph,
    quantized: frozenset[str],
    boundaries: Boundaries,
    parameters: Parameters,
    known: Known,
) -> None:
    """Puts Q/DQ at every boundary and replaces weights. `parameters` by the group's name."""
    _Writer(graph, quantized, boundaries.groups, parameters, known).run()


class _Writer:
    def __init__(
        self,
        graph: Graph,
        quantized: frozenset[str],
        groups: dict[str, str],
        parameters: Parameters,
        known: Known,
    ) -> None:
        self.graph, self.quantized, self.groups = graph, quantized, groups
        self.parameters, self.known = parameters, known
        self.written: set[str] = set()
        self.names = {t: self._names(t) for t in groups}

    def _names(self, tensor: str) -> _Names:
        """A graph output keeps its name on the dequantized side when a quantized operator makes it."""
        if tensor in self.graph.outputs and self._made_by_quantized(tensor):
            return _Names(f"{tensor}_float", f"{tensor}_quantized", tensor)
        return _Names(tensor, f"{tensor}_quantized", f"{tensor}_dequantized")

    def _made_by_quantized(self, tensor: str) -> bool:
        producer = self.graph.producer(tensor)
        return producer is not None and producer.output[0] in self.quantized

    def run(self) -> None:
        nodes: list[NodeProto] = []
        for tensor in self.graph.inputs:
            nodes.extend(self._pair(tensor))
        for node in list(self.graph.nodes):
            quantized = node.output[0] in self.quantized
            nodes.extend(self._weights(node) if quantized and is_weighted(self.graph, node) else ())
            outputs = list(node.output)
            self._rewire(node, quantized=quantized)
            nodes.append(node)
            for tensor in outputs:
                nodes.extend(self._pair(tensor))
        self.graph.nodes = nodes
        self.graph.reindex()

    def _rewire(self, node: NodeProto, *, quantized: bool) -> None:
        for i, tensor in enumerate(node.input):
            if tensor in self.names and (quantized or self._made_by_quantized(tensor)):
                node.input[i] = self.names[tensor].dequantized
        for i, tensor in enumerate(node.output):
            if tensor in self.names:
                node.output[i] = self.names[tensor].floating

    def _pair(self, tensor: str) -> list[NodeProto]:
        if tensor not in self.names:
            return []
        group, names = self.groups[tensor], self.names[tensor]
        scale, zero_point = f"{group}_scale", f"{group}_zero_point"
        if group not in self.written:
            self.written.add(group)
            chosen = self.parameters[group]
            self.graph.constants[scale] = np.asarray(chosen.scale, np.float32)
            self.graph.constants[zero_point] = np.asarray(chosen.zero_point, _TYPES[chosen.bits])
        return [
            helper.make_node(
                "QuantizeLinear",
                [names.floating, scale, zero_point],
                [names.quantized],
                name=f"{tensor}_QuantizeLinear",
            ),
            helper.make_node(
                "DequantizeLinear",
                [names.quantized, scale, zero_point],
                [names.dequantized],
                name=f"{tensor}_DequantizeLinear",
            ),
        ]

    def _weights(self, node: NodeProto) -> list[NodeProto]:
        name, bias = node.input[1], optional_input(node, 2)
        axis = 1 if node.op_type == "MatMul" else 0
        s_x = self.parameters[self.groups[node.input[0]]].scale
        offsets = self.graph.constants[bias] if bias else None
        known, value = self.known, self.graph.constants[name]
        weights = known.layers.get(key(node)) or Weights(
            name, value, axis, offsets, s_x, known.moments.get(key(node)), known.rounded
        )
        nodes = [self._constant_dequantize(name, weights.q, weights.scale, axis)]
        node.input[1] = nodes[0].output[0]
        if bias and weights.bias is not None:
            nodes.append(self._constant_dequantize(bias, weights.bias, weights.bias_scale, 0))
            node.input[2] = nodes[1].output[0]
        return nodes

    def _constant_dequantize(self, name: str, q: np.ndarray, scale: np.ndarray, axis: int) -> NodeProto:
        q_name = self.graph.add_constant(f"{name}_quantized", q)
        base = q_name.removesuffix("_quantized") if q_name.endswith("_quantized") else q_name
        scale_name = self.graph.add_constant(f"{base}_scale", scale)
        zero_name = self.graph.add_constant(f"{base}_zero_point", np.zeros(scale.shape, q.dtype))
        return helper.make_node(
            "DequantizeLinear",
            [q_name, scale_name, zero_name],
            [f"{base}_dequantized"],
            name=f"{base}_DequantizeLinear",
            axis=axis,
        )

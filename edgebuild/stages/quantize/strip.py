"""The float32 network behind a QDQ graph: what it would compute if no activation were rounded."""

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from edgebuild.stages.quantize.graph import Array, Graph, attributes, optional_input


def without_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """A checked QDQ model without Q/DQ of activations, weights and biases dequantized; all tensors keep their names.

    The result of a Q/DQ pair is its input, under both names. Integers that the graph takes or gives stay what they are.
    """
    graph = Graph(model)
    for node in list(graph.nodes):
        if node.op_type == "DequantizeLinear" and (stored := graph.constant(node.input[0])) is not None:
            graph.constants[node.output[0]] = _dequantized(graph, node, stored)
            graph.remove(node)
    rounding = [node for node in graph.nodes if node.op_type == "QuantizeLinear"]
    kept = {node.output[0] for node in rounding if not _is_inside(graph, node)}
    made = {node.output[0]: node.input[0] for node in rounding}
    for node in graph.nodes:
        if node.op_type == "DequantizeLinear" and node.input[0] in made:
            source = node.input[0] if node.input[0] not in kept else made[node.input[0]]
            _pass_on(node, source)
    for node in rounding:
        if node.output[0] not in kept:
            _pass_on(node, node.input[0])
    graph.reindex()
    return _declared(graph)


def _is_inside(graph: Graph, node: NodeProto) -> bool:
    """Whether nothing but DequantizeLinear sees what this QuantizeLinear makes."""
    name = node.output[0]
    return name not in graph.outputs and all(n.op_type == "DequantizeLinear" for n in graph.consumers(name))


def _pass_on(node: NodeProto, source: str) -> None:
    """A node that only hands `source` on: the name of its output may be a graph output."""
    node.op_type = "Identity"
    node.input[:] = [source]
    del node.attribute[:]


def _dequantized(graph: Graph, node: NodeProto, stored: Array) -> Array:
    scale = graph.constants[node.input[1]].astype(np.float64)
    zero = graph.constant(optional_input(node, 2))
    shape = [1] * stored.ndim
    if scale.size > 1:
        shape[attributes(node).get("axis", 1)] = -1
    offset = 0.0 if zero is None else zero.astype(np.float64).reshape(shape if zero.size > 1 else ())
    factor = scale.reshape(shape if scale.size > 1 else ())
    return np.asarray((stored.astype(np.float64) - offset) * factor, np.float32)


def _declared(graph: Graph) -> onnx.ModelProto:
    """Types of inner values are inferred anew: what was uint8 is float32 now."""
    model = graph.to_model()
    known = {t.name for t in model.graph.initializer}
    added = {n for node in graph.nodes for n in node.input if n in graph.constants} - known
    model.graph.initializer.extend(numpy_helper.from_array(graph.constants[n], n) for n in sorted(added))
    return model

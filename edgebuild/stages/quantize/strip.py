"""The float32 network behind a QDQ graph: what it would compute if no activation were rounded."""

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from edgebuild.stages.quantize.graph import Array, Graph, attributes, optional_input


def without_rounding(model: onnx.ModelProto) -> onnx.ModelProto:
    """A checked QDQ model without Q/DQ of activations, weights and biases dequantized; all tensors keep their names.

    The result of a Q/DQ pair is its input, under both names.
    """
    graph = Graph(model)
    for node in list(graph.nodes):
        if node.op_type == "DequantizeLinear" and (stored := graph.constant(node.input[0])) is not None:
            graph.constants[node.output[0]] = _dequantized(graph, node, stored)
            graph.remove(node)
    for node in list(graph.nodes):
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            _pass_on(node)
    graph.reindex()
    return _declared(graph)


def _pass_on(node: NodeProto) -> None:
    """A node that only hands its input on: the name of its output may be a graph output."""
    node.op_type = "Identity"
    del node.input[1:]
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

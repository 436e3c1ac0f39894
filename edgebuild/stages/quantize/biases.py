"""Biases of a graph that came quantized, in the units of SPEC section 9: input scale times weight scale."""

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from edgebuild.stages.quantize.graph import Array, Graph, optional_input

_LAYERS = frozenset({"Conv", "Gemm"})
_SAME = 1e-6
_LARGEST = 1 << 30


def with_fitting_biases(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with each int32 bias rounded anew where its scale is not float32(input scale * weight scale).

    Other tools, and people who correct a scale by hand, leave the bias behind; its value is kept, its integers are not.
    """
    graph = Graph(model)
    changed: dict[str, Array] = {}
    for node in graph.nodes:
        if node.op_type in _LAYERS and optional_input(node, 2):
            changed |= _bias(graph, node)
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name], tensor.name))
    return result


def _bias(graph: Graph, node: NodeProto) -> dict[str, Array]:
    """New integers and scale of a layer's bias, by their names; empty where they fit, or where others read them too."""
    reads = [graph.producer(name) for name in node.input[:3]]
    if any(r is None or r.op_type != "DequantizeLinear" for r in reads):
        return {}
    names = [(r.input[0], r.input[1]) for r in reads if r is not None]
    scales = [graph.constant(scale) for _, scale in names]
    integers = graph.constant(names[2][0])
    if any(s is None for s in scales) or integers is None or integers.dtype != np.int32:
        return {}
    x, w, own = (np.asarray(s, np.float64).reshape(-1) for s in scales)
    expected = np.asarray(x * w, np.float32)
    if np.allclose(own, expected, rtol=_SAME, atol=0) or any(len(graph.consumers(n)) > 1 for n in names[2]):
        return {}
    values = integers.reshape(-1) * own / expected.astype(np.float64)
    rounded = np.clip(np.rint(values), -_LARGEST, _LARGEST).astype(np.int32)
    return {names[2][0]: rounded, names[2][1]: np.broadcast_to(expected, rounded.shape).copy()}

"""Checks of a graph that holds Q/DQ already: is it the form that SPEC section 9 describes?"""

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto

from edgebuild.core.errors import ModelError
from edgebuild.stages.quantize.graph import Array, Graph, optional_input

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ACTIVATIONS = frozenset(np.dtype(t) for t in (np.uint8, np.uint16, np.int16))
_HINT = "quantize activations to uint8 per tensor and weights to symmetric int8, or give the float model"


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the model holds any QuantizeLinear or DequantizeLinear."""
    return any(n.op_type in _QDQ for n in model.graph.node)


def verify(model: onnx.ModelProto) -> None:
    """ModelError naming the node whose scale or zero point is not of SPEC section 9."""
    graph = Graph(model)
    for node in graph.nodes:
        if node.op_type in _QDQ:
            _verify_node(graph, node)


def _verify_node(graph: Graph, node: NodeProto) -> None:
    where = f"{node.op_type} {node.name!r}"
    scale, zero = graph.constant(optional_input(node, 1)), graph.constant(optional_input(node, 2))
    if scale is None or (optional_input(node, 2) and zero is None):
        raise ModelError(f"{where}: scale or zero point is computed at run time", "quantize statically")
    if scale.dtype != np.float32 or not np.isfinite(scale).all() or (scale <= 0).any():
        raise ModelError(f"{where}: scales must be positive float32 numbers", _HINT)
    source = graph.constant(node.input[0])
    if source is None or node.op_type == "QuantizeLinear":
        _verify_activation(where, scale, zero)
    elif source.dtype not in {np.dtype(np.int8), np.dtype(np.int32)} or (zero is not None and zero.any()):
        raise ModelError(f"{where}: constant of {source.dtype} is not symmetric int8 or int32", _HINT)


def _verify_activation(where: str, scale: Array, zero: Array | None) -> None:
    if scale.size != 1:
        raise ModelError(f"{where}: an activation has {scale.size} scales, one is supported", _HINT)
    if zero is not None and zero.dtype not in _ACTIVATIONS:
        raise ModelError(f"{where}: an activation is {zero.dtype}; uint8, uint16 and int16 are supported", _HINT)


def share_parameters(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one name for equal parameters of activations.

    Other tools name each scale on its own; later stages take tensors for alike by the names of their parameters, so
    that what they build depends on no value.
    """
    shared = onnx.ModelProto()
    shared.CopyFrom(model)
    constants = Graph(model).constants
    first: dict[bytes, list[str]] = {}
    for node in shared.graph.node:
        pair = list(node.input[1:])
        if node.op_type in _QDQ and node.input[0] not in constants and all(name in constants for name in pair):
            values = b"".join(constants[name].dtype.str.encode() + constants[name].tobytes() for name in pair)
            node.input[1:] = first.setdefault(values, pair)
    return shared


def activation_tensors(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Name, scale, zero point and representable range of every QuantizeLinear's input."""
    graph = Graph(model)
    found = []
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear":
            scale = float(graph.constants[node.input[1]].reshape(-1)[0])
            zero = graph.constant(optional_input(node, 2))
            z = 0 if zero is None else int(zero.reshape(-1)[0])
            ends = np.iinfo(np.uint8 if zero is None else zero.dtype)
            low, high = ((int(end) - z) * scale for end in (ends.min, ends.max))
            found.append({"name": node.input[0], "scale": scale, "zero_point": z, "min": low, "max": high})
    return found

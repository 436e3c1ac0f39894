"""A read-only view of a QDQ ONNX graph: who produces what, constants as arrays, shapes and dtypes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from edgebuild.core.errors import ModelError

_DTYPES = {
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.BOOL: "bool",
}


ACTIVATIONS = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int16))
_WORDS = {onnx.TensorProto.UINT16, onnx.TensorProto.INT16}


@dataclass(frozen=True)
class Quant:
    """Affine parameters of a quantized tensor, x = scale · (q − zero), as it lies in memory: uint8, or with 16 bits
    int16 (uint16 less 2^15).
    """

    scale: float
    zero: int
    dtype: str = "uint8"

    @property
    def wide(self) -> bool:
        """Whether the tensor has 16 bits."""
        return self.dtype != "uint8"

    @property
    def least(self) -> int:
        """The smallest q."""
        return int(np.iinfo(self.dtype).min)

    @property
    def most(self) -> int:
        """The largest q."""
        return int(np.iinfo(self.dtype).max)

    @property
    def span(self) -> int:
        """The largest |q − zero|."""
        return self.most - self.least


def stored(array: np.ndarray) -> np.ndarray:
    """A constant as it lies in memory."""
    return (array.astype(np.int32) - 2**15).astype(np.int16) if array.dtype == np.uint16 else array


class Node:
    """An ONNX node with its attributes as Python values."""

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.proto = proto
        self.op = proto.op_type
        self.name = proto.name or (proto.output[0] if proto.output else proto.op_type)
        self.inputs = list(proto.input)
        self.outputs = list(proto.output)
        self.attrs: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute}

    def input(self, index: int) -> str:
        """Name of an input, empty where an optional input is absent."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def text(self, name: str, default: str) -> str:
        value = self.attrs.get(name, default)
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def unsupported(self, why: str) -> ModelError:
        return ModelError(
            f"{self.name}: {self.op}: {why}",
            "replace the layer, or the part of the handler, that it comes from by supported operators",
        )


class Graph:
    """The model's main graph with inferred shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        try:
            inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        except shape_inference.InferenceError as error:
            raise ModelError(
                f"the model's shapes do not fit together: {str(error).strip()}", "export it again"
            ) from error
        graph = inferred.graph
        self.opset = max((i.version for i in inferred.opset_import if i.domain in ("", "ai.onnx")), default=1)
        self.nodes = [Node(n) for n in graph.node]
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.inputs = [v.name for v in graph.input if v.name not in self.constants]
        self.outputs = [v.name for v in graph.output]
        self._types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
        self.producers = {name: node for node in self.nodes for name in node.outputs if name}
        self._share_dequantized()
        self._check_words()

    def _share_dequantized(self) -> None:
        """Some tools give each reader a DequantizeLinear of its own: all readers take the first one."""
        first: dict[tuple[object, ...], str] = {}
        same: dict[str, str] = {}
        for node in self.nodes:
            if node.op == "DequantizeLinear":
                key = (*node.inputs, node.attrs.get("axis", 1))
                same[node.outputs[0]] = first.setdefault(key, node.outputs[0])
        for node in self.nodes:
            node.inputs = [same.get(name, name) for name in node.inputs]

    def _check_words(self) -> None:
        """16-bit integers are quantized activations and nothing else: in memory they are not what ONNX says."""
        words = {n for n, kind in self._types.items() if kind.elem_type in _WORDS and self.constant(n) is None}
        for node in self.nodes:
            data = node.inputs[:1] if node.op == "DequantizeLinear" else []
            made = node.outputs if node.op == "QuantizeLinear" else []
            if words.intersection(node.inputs) - set(data) or words.intersection(node.outputs) - set(made):
                raise node.unsupported("16-bit integers other than between QuantizeLinear and DequantizeLinear")

    @cached_property
    def consumers(self) -> dict[str, list[Node]]:
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.constants:
            return tuple(self.constants[name].shape)
        dims = self._type(name).shape.dim
        if any(not d.HasField("dim_value") or d.dim_value <= 0 for d in dims):
            raise ModelError(f"tensor {name} has a dynamic or empty shape", "export the model with fixed shapes")
        return tuple(d.dim_value for d in dims)

    def dtype(self, name: str) -> str:
        if name in self.constants:
            return str(self.constants[name].dtype)
        code = self._type(name).elem_type
        if code in _WORDS and name in self.producers:
            return "int16"
        if code not in _DTYPES:
            raise ModelError(
                f"tensor {name} has the type {onnx.TensorProto.DataType.Name(code)}, which is not supported",
                f"supported are {', '.join(_DTYPES.values())}; export the model in float32",
            )
        return _DTYPES[code]

    def _type(self, name: str) -> Any:
        if name not in self._types:
            raise ModelError(f"the shape of tensor {name} is not known", "run onnx.shape_inference on the model")
        return self._types[name]

    def constant(self, name: str) -> np.ndarray | None:
        """Value of a constant, also behind an Identity."""
        if name in self.constants:
            return self.constants[name]
        node = self.producers.get(name)
        if node is not None and node.op == "Identity":
            return self.constant(node.inputs[0])
        if node is not None and node.op == "Constant" and "value" in node.attrs:
            return np.asarray(numpy_helper.to_array(node.attrs["value"]))
        return None

    def need_constant(self, node: Node, index: int) -> np.ndarray:
        value = self.constant(node.input(index))
        if value is None:
            raise node.unsupported(f"input {node.input(index) or index} must be a constant")
        return value

    def quant(self, node: Node) -> Quant:
        """Parameters of a QuantizeLinear or DequantizeLinear of activations."""
        scale = self.need_constant(node, 1)
        zero = np.asarray(self.constant(node.input(2)) if node.input(2) else np.uint8(0))
        if zero.dtype not in ACTIVATIONS or scale.size != 1 or zero.size != 1:
            raise node.unsupported("activations must be quantized per tensor to uint8, uint16 or int16")
        place = stored(zero)
        name = node.inputs[0] if node.op == "DequantizeLinear" else node.outputs[0]
        if self.constant(name) is None and self.dtype(name) != place.dtype:
            raise node.unsupported("a tensor of 16 bits needs a zero point of its type")
        return Quant(float(np.float64(scale.reshape(()))), int(place.reshape(())), str(place.dtype))

"""An ONNX graph as the diagnosis reads it: never edited, indexed by tensor."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]
Named = Callable[[str], tuple[str, str]]
"""Layer and operator behind a tensor."""

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
AFFINE = frozenset({"Add", "Div", "Mul", "Sub"})
_SMALL_WEIGHT = 16
_ELEMENTWISE = frozenset({
    "BatchNormalization", "Cast", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu",
    "Max", "Min", "Mish", "PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Swish", "Tanh",
})  # fmt: skip
_MOVES = frozenset({"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


class Graph:
    """Nodes in topological order, constants as arrays, shapes as far as inference knows them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        graph = self.model.graph
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.nodes: list[NodeProto] = []
        for node in graph.node:
            value = _value(node)
            if value is None:
                self.nodes.append(node)
            else:
                self.constants[node.output[0]] = value
        self.inputs = [i.name for i in graph.input if i.name not in self.constants]
        self.outputs = [o.name for o in graph.output]
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self._consumers.setdefault(name, []).append(node)
        self._types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
        self._order = {id(node): position for position, node in enumerate(self.nodes)}

    def producer(self, name: str) -> NodeProto | None:
        """The node that writes the tensor; None for inputs and constants."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[NodeProto]:
        """The nodes that read the tensor, in order."""
        return self._consumers.get(name, [])

    def position(self, name: str) -> float:
        """Where the tensor's producer stands in the order of execution, 0..1; -1 for inputs."""
        node = self._producers.get(name)
        return -1.0 if node is None else self._order[id(node)] / len(self.nodes)

    def data_inputs(self, node: NodeProto) -> list[str]:
        """The inputs that are computed at run time."""
        return [name for name in node.input if name and name not in self.constants]

    def elements(self, name: str) -> int:
        """The number of elements by the static shape; 0 where it is not known."""
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape"):
            return 0
        sizes = [d.dim_value for d in kind.shape.dim]
        return int(np.prod(sizes)) if all(size > 0 for size in sizes) else 0

    def is_float(self, name: str) -> bool:
        """Whether the tensor is float32 as far as is known."""
        kind = self._types.get(name)
        return kind is not None and kind.elem_type == onnx.TensorProto.FLOAT

    def is_bytes(self, name: str) -> bool:
        """Whether the tensor is uint8."""
        kind = self._types.get(name)
        return kind is not None and kind.elem_type == onnx.TensorProto.UINT8

    def weight(self, node: NodeProto) -> Array | None:
        """The constant weights of a layer with the output channels first; None for another operator."""
        if node.op_type not in WEIGHTED or len(node.input) < 2 or node.input[0] in self.constants:
            return None
        value = self.constants.get(node.input[1])
        if value is None or value.ndim < 2:
            return None
        if node.op_type == "MatMul":
            return np.swapaxes(value, -1, 0) if value.ndim == 2 else None
        if node.op_type == "Gemm" and not attribute(node, "transB", 0):
            return value.T
        return np.swapaxes(value, 0, 1) if node.op_type == "ConvTranspose" else value

    def layers(self) -> list[NodeProto]:
        """The layers with weights, without the matrices of preprocessing (a colour matrix, a filter bank)."""
        found = [n for n in self.nodes if self.weight(n) is not None]
        convolutions = {n.output[0] for n in found if "Conv" in n.op_type}
        ancestors = self._feeding(convolutions)
        kept: list[NodeProto] = []
        for node in found:
            weight = self.weight(node)
            before = self.ancestors(node.input[0])
            early = not any(n.output[0] in before for n in kept)
            small = weight is not None and weight.size <= _SMALL_WEIGHT
            if not (early and (small or (node.op_type == "MatMul" and node.output[0] in ancestors))):
                kept.append(node)
        return kept

    def ancestors(self, name: str) -> set[str]:
        """The tensor and all that it is computed from."""
        return self._feeding({name}) | {name}

    def _feeding(self, names: set[str]) -> set[str]:
        found: set[str] = set()
        stack = list(names)
        while stack:
            node = self._producers.get(stack.pop())
            for name in node.input if node is not None else ():
                if name and name not in found:
                    found.add(name)
                    stack.append(name)
        return found

    def layer_of(self, name: str) -> NodeProto | None:
        """The operator that makes a tensor, seen through functions of one tensor and through moves."""
        node = self._producers.get(name)
        while node is not None and node.op_type in _ELEMENTWISE | _MOVES | {"QuantizeLinear", "DequantizeLinear"}:
            data = self.data_inputs(node)
            before = self._producers.get(data[0]) if len(data) == 1 else None
            if before is None:
                return node
            node = before
        return node

    def chain(self, name: str) -> Iterator[NodeProto]:
        """The nodes that make a tensor, the last first, as long as each has one tensor that it computes from."""
        node = self._producers.get(name)
        while node is not None:
            yield node
            data = self.data_inputs(node)
            if len(data) != 1:
                return
            node = self._producers.get(data[0])


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """An attribute's value."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def title(node: NodeProto | None, fallback: str) -> str:
    """What a layer is called: its node's name, else its first output."""
    return fallback if node is None else str(node.name or node.output[0])


def channels(values: Array) -> Array:
    """Values as [channels, rest]: axis 1 of feature maps, the last axis of everything else."""
    if values.ndim <= 1:
        return values.reshape(-1, 1)
    axis = 1 if values.ndim >= 4 else values.ndim - 1
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _value(node: NodeProto) -> Array | None:
    if node.op_type != "Constant" or not node.attribute:
        return None
    given = helper.get_attribute_value(node.attribute[0])
    if isinstance(given, onnx.TensorProto):
        return np.asarray(numpy_helper.to_array(given))
    if isinstance(given, (bytes, onnx.SparseTensorProto)):
        return None
    return np.asarray(given, np.float32 if "float" in node.attribute[0].name else np.int64)

"""The ONNX graph as the interpreter reads it; the only module here that imports onnx."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgebuild.core.errors import ModelError
from edgebuild.reference.values import Array

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Node:
    """One operator; absent optional inputs are empty names, attributes are Python values (tensors: arrays)."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    proto: "onnx.NodeProto | None" = None


@dataclass(frozen=True)
class Model:
    """Nodes in topological order, constants by name, and the graph's inputs with NumPy dtype and shape."""

    nodes: tuple[Node, ...]
    constants: dict[str, Array]
    inputs: dict[str, tuple[Any, tuple[int, ...]]]
    outputs: tuple[str, ...]
    opset: int


def read(proto: "onnx.ModelProto") -> Model:
    """Reads a model with static input shapes and inline initializers; ModelError for anything else."""
    from onnx import helper, numpy_helper  # noqa: PLC0415 - heavy

    constants = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    inputs = {}
    for value in proto.graph.input:
        if value.name in constants:
            continue
        tensor = value.type.tensor_type
        if any(not d.HasField("dim_value") for d in tensor.shape.dim):
            raise ModelError(f"input {value.name!r} has a dynamic shape", "fix the shape before the model is quantized")
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        inputs[value.name] = (dtype, tuple(d.dim_value for d in tensor.shape.dim))
    nodes = tuple(_node(n) for n in proto.graph.node)
    opset = max((i.version for i in proto.opset_import if i.domain in ("", "ai.onnx")), default=1)
    return Model(nodes, constants, inputs, tuple(o.name for o in proto.graph.output), opset)


def _node(proto: "onnx.NodeProto") -> Node:
    from onnx import AttributeProto, helper, numpy_helper  # noqa: PLC0415 - heavy

    attributes = {
        a.name: numpy_helper.to_array(a.t) if a.type == AttributeProto.TENSOR else helper.get_attribute_value(a)
        for a in proto.attribute
    }
    name = proto.name or (proto.output[0] if proto.output else "")
    return Node(proto.op_type, name, tuple(proto.input), tuple(proto.output), attributes, proto)

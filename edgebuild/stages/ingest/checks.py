"""What is wrong with a model, said with the layer and the tensor that it is about.

`check_graph` looks at a file as it was read, before anything of it is used; `check_layers` at a normalized graph, at
what neither onnx.checker nor shape inference looks at. onnx.checker has the last word on both.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.numpy_helper
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import MAX_TENSOR

STANDARD_DOMAINS = ("", "ai.onnx")
MAX_OPSET = onnx.defs.onnx_opset_version()
CONVERTED = 18
"""The opset that older models are converted to."""
_MOST_PORTS = 200
_LONGEST_NAME = 200
_MOST_AXES = 64
_LARGEST_WINDOW = 1 << 16  # of kernels, strides, dilations and pads
_AGAIN = "export the model again"
_BYTES = {code: onnx.helper.tensor_dtype_to_np_dtype(code).itemsize for code in TensorProto.DataType.values()
          if code not in (TensorProto.UNDEFINED, TensorProto.STRING)}  # fmt: skip
_PACKED = frozenset({"INT4", "UINT4", "FLOAT4E2M1", "INT2", "UINT2"})  # several elements in a byte
_AUTO_PADS = (b"NOTSET", b"SAME_UPPER", b"SAME_LOWER", b"VALID")
_INFERENCE = re.compile(r"\(op_type:(?P<op>[^,]*), node name: (?P<name>.*?)\): (?P<what>[^\n]*)", re.DOTALL)
_TAG = re.compile(r"\[(Shape|Type)InferenceError\] ?|Inference error\(s\): ")

Array = np.ndarray[Any, Any]


def where(node: NodeProto) -> str:
    """A node in a message: operator and layer."""
    name = node.name or next(iter(node.output), "")
    return f"{node.op_type} '{name if len(name) <= _LONGEST_NAME else f'{name[:_LONGEST_NAME]}…'}'"


def check_graph(model: ModelProto, name: str) -> None:
    """Raises ModelError, starting with `name`."""
    _check_ports(model.graph, name)
    _check_opset(model, name)
    for tensor in model.graph.initializer:
        _check_tensor(tensor, name)
    _check_names(model.graph, name)
    _check_operators(model, name)
    _check_absent(model, name)
    _check_axes(model.graph, name)
    _check_order(model.graph, name)
    _check_training(model.graph, name)
    _check_rest(model, name)


def check_text(model: ModelProto, name: str) -> None:
    """Protobuf hands text that is no UTF-8 on as bytes, which nothing expects. Raises ModelError."""
    wrong = next((text for text in _texts(model) if isinstance(text, bytes)), None)
    if wrong is not None:
        shown = wrong[:_LONGEST_NAME].decode(errors="backslashreplace")
        raise ModelError(f"{name}: a name in it is no UTF-8 ('{shown}')", "export or download the file again")


def _texts(message: Any) -> Iterator[str | bytes]:
    """Every text of a message; of a tensor, whose values may be large, what stands beside them."""
    if isinstance(message, TensorProto):
        yield message.name
        yield from (text for entry in message.external_data for text in (entry.key, entry.value))
        return
    for field, value in message.ListFields():
        many = value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
        if field.type == field.TYPE_MESSAGE:
            for part in many:
                yield from _texts(part)
        elif field.type == field.TYPE_STRING:
            yield from many


def inference_error(reason: Exception, name: str) -> ModelError:
    """What shape inference says, about the first layer that it names."""
    text = str(reason)
    found = _INFERENCE.search(text)
    said = _TAG.sub("", found["what"] if found else text).strip() or type(reason).__name__
    layer = f"{found['op']} '{found['name']}': " if found else ""
    first = said.splitlines()[0]
    return ModelError(f"{name}: {layer}shapes or types do not fit: {first}", f"{_AGAIN} with static shapes, in float32")


def check_layers(model: ModelProto, name: str) -> None:
    """Raises ModelError for a layer whose parts do not fit, as far as shapes are known."""
    known = Known(model.graph)
    for node in model.graph.node:
        check = _LAYERS.get(node.op_type) if node.domain in STANDARD_DOMAINS else None
        problem = check(known, node) if check else ""
        if problem:
            raise ModelError(f"{name}: {where(node)}: {problem}", _AGAIN)
        for output in node.output:
            shape = known.shape(output)
            if shape is not None and any(dim <= 0 for dim in shape):
                raise ModelError(
                    f"{name}: {where(node)} gives a tensor of shape {list(shape)}, which has no elements",
                    f"{_AGAIN} with a larger input",
                )


class Known:
    """Shapes and constants of a graph."""

    def __init__(self, graph: GraphProto) -> None:
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        values = (*graph.input, *graph.value_info, *graph.output)
        self._shapes = {v.name: v.type.tensor_type.shape for v in values if v.type.tensor_type.HasField("shape")}

    def shape(self, name: str) -> tuple[int, ...] | None:
        """None where it is not known as a whole."""
        if name in self._constants:
            return tuple(self._constants[name].dims)
        found = self._shapes.get(name)
        if found is None or any(not dim.HasField("dim_value") for dim in found.dim):
            return None
        return tuple(dim.dim_value for dim in found.dim)

    def constant(self, node: NodeProto, place: int) -> Array | None:
        """The value of an input that is a constant."""
        tensor = self._constants.get(node.input[place]) if place < len(node.input) else None
        return None if tensor is None else np.asarray(onnx.numpy_helper.to_array(tensor))


# A file as it was read


def _check_ports(graph: GraphProto, name: str) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if not inputs:
        raise ModelError(f"{name}: the model has no input, so it always gives the same", "export it with its inputs")
    for kind, values in (("input", graph.input), ("output", graph.output)):
        twice = _repeated(value.name for value in values)
        if twice:
            raise ModelError(f"{name}: {kind} '{twice}' is listed twice", f"{_AGAIN}, each name once")
    if len(inputs) + len(graph.output) > _MOST_PORTS:
        raise ModelError(
            f"{name}: {len(inputs) + len(graph.output)} inputs and outputs; a bundle holds {_MOST_PORTS}",
            "export only the ones that are used",
        )
    for value in inputs:
        _check_input(value, name)


def _check_input(value: onnx.ValueInfoProto, name: str) -> None:
    kind = value.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise ModelError(
            f"{name}: input '{value.name}' is a {kind.removesuffix('_type')}, no tensor", "export it with tensors only"
        )
    if kind is None or value.type.tensor_type.elem_type == TensorProto.UNDEFINED:
        raise ModelError(f"{name}: input '{value.name}' has no type", _AGAIN)
    if value.type.tensor_type.elem_type not in TensorProto.DataType.values():
        raise ModelError(f"{name}: input '{value.name}' has a type unknown to ONNX", _AGAIN)
    if not value.type.tensor_type.HasField("shape"):
        raise ModelError(f"{name}: input '{value.name}' has no shape", "export the model with static shapes")
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0]
    if math.prod(dims) > MAX_TENSOR:
        raise ModelError(
            f"{name}: input '{value.name}' has the shape {dims}; the largest has {MAX_TENSOR} bytes",
            "use a smaller input",
        )


def _repeated(names: Iterable[str]) -> str:
    """A name that stands there twice, or nothing."""
    return next((name for name, count in Counter(names).items() if count > 1), "")


def _check_opset(model: ModelProto, name: str) -> None:
    versions = [opset.version for opset in model.opset_import if opset.domain in STANDARD_DOMAINS]
    uses = any(node.domain in STANDARD_DOMAINS for node in model.graph.node)
    if uses and not versions:
        raise ModelError(f"{name}: it does not say of which opset it is", f"export with opset_version={CONVERTED}")
    for version in versions:
        if version > MAX_OPSET:
            raise ModelError(
                f"{name}: opset {version} is newer than this edgebuild reads ({MAX_OPSET})",
                f"export with opset_version={CONVERTED}, or upgrade the package onnx",
            )
        if version < 1:
            raise ModelError(f"{name}: there is no opset {version}", f"export with opset_version={CONVERTED}")


def _check_tensor(tensor: TensorProto, name: str) -> None:
    what = f"{name}: weight '{tensor.name}'"
    if not tensor.name:
        raise ModelError(f"{name}: a weight has no name", _AGAIN)
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise ModelError(f"{what} has no type that ONNX knows ({tensor.data_type})", _AGAIN)
    kind, dims = TensorProto.DataType.Name(tensor.data_type), list(tensor.dims)
    if any(dim < 0 for dim in dims):
        raise ModelError(f"{what} has the shape {dims}", _AGAIN)
    needed = math.prod(dims) * _BYTES.get(tensor.data_type, 0)
    if tensor.HasField("raw_data") and kind not in _PACKED and len(tensor.raw_data) != needed:
        raise ModelError(f"{what}, {kind} {dims}, takes {needed} bytes and has {len(tensor.raw_data)}", _AGAIN)
    try:
        onnx.checker.check_tensor(tensor)
        onnx.numpy_helper.to_array(tensor)
    except Exception as reason:  # each kind of tensor fails in a way of its own
        raise ModelError(f"{what}, {kind} {dims}, cannot be read: {first_line(reason)}", _AGAIN) from reason


def _check_names(graph: GraphProto, name: str) -> None:
    """Everything is made once, before it is read."""
    twice = _repeated(tensor.name for tensor in graph.initializer)
    if twice:
        raise ModelError(f"{name}: weight '{twice}' is there twice", _AGAIN)
    makers: dict[str, str] = {value.name: "the model's input" for value in graph.input}
    makers |= {tensor.name: "a weight" for tensor in graph.initializer}
    for node in graph.node:
        for output in filter(None, node.output):
            if output in makers:
                raise ModelError(f"{name}: '{output}' is made twice, by {makers[output]} and {where(node)}", _AGAIN)
            makers[output] = where(node)
    makers |= {tensor.values.name: "a weight" for tensor in graph.sparse_initializer}
    for node in graph.node:
        missing = next((i for i in node.input if i and i not in makers), None)
        if missing is not None:
            raise ModelError(f"{name}: {where(node)} reads '{missing}', which nothing makes", _AGAIN)
    for value in graph.output:
        if value.name not in makers:
            raise ModelError(f"{name}: nothing makes output '{value.name}'", _AGAIN)


def _check_order(graph: GraphProto, name: str) -> None:
    """The graph has no cycle, and nodes stand behind what they read."""
    made = {*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer), ""}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        missing = next((name for name in node.input if name not in made), None)
        if missing is not None:
            ring = _cycle(graph, node)
            if ring:
                raise ModelError(f"{name}: the graph is cyclic: {' → '.join(ring)}", _AGAIN)
            raise ModelError(
                f"{name}: the graph is out of order: {where(node)} reads '{missing}' before it is made", _AGAIN
            )
        made.update(node.output)


def _cycle(graph: GraphProto, start: NodeProto) -> list[str]:
    """Nodes that read each other in a ring, found from `start` backwards; empty where there is none."""
    makers = {output: node for node in graph.node for output in node.output if output}
    path: list[NodeProto] = []
    left: dict[int, list[str]] = {}
    done: set[int] = set()
    node: NodeProto | None = start
    while node is not None:
        if id(node) not in left:
            left[id(node)] = [i for i in node.input if i in makers]
            path.append(node)
        following = makers[left[id(node)].pop()] if left[id(node)] else None
        if following is None:
            done.add(id(path.pop()))
            node = path[-1] if path else None
        elif id(following) in left and id(following) not in done:
            ring = path[[id(n) for n in path].index(id(following)) :][::-1]
            return [where(n) for n in (*ring, ring[0])][: _MOST_SHOWN + 1]
        elif id(following) not in done:
            node = following
    return []


_MOST_SHOWN = 5


def _check_operators(model: ModelProto, name: str) -> None:
    functions = {(function.domain, function.name) for function in model.functions}
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS), default=MAX_OPSET)
    for node in model.graph.node:
        if (node.domain, node.op_type) in functions:
            continue
        if node.domain not in STANDARD_DOMAINS:
            raise ModelError(
                f"{name}: operator {node.domain}::{node.op_type} of node '{node.name}' is not of ONNX's standard set",
                "export the model with standard operators, before any runtime's own optimization",
            )
        if not onnx.defs.has(node.op_type):
            raise ModelError(
                f"{name}: operator {node.op_type} of node '{node.name}' is unknown to ONNX",
                "export the model with standard operators",
            )
        if not onnx.defs.has(node.op_type, max_inclusive_version=opset):
            since = onnx.defs.get_schema(node.op_type).since_version
            raise ModelError(
                f"{name}: {where(node)} is not in opset {opset}, which the model says it is of",
                f"{_AGAIN}; the operator's newest form is of opset {since}",
            )


def _check_absent(model: ModelProto, name: str) -> None:
    """Only inputs that an operator can do without are absent."""
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS), default=MAX_OPSET)
    for node in model.graph.node:
        if all(node.input) or not onnx.defs.has(node.op_type, node.domain):
            continue
        formal = onnx.defs.get_schema(node.op_type, opset, "").inputs
        for place, given in enumerate(node.input):
            kind = formal[min(place, len(formal) - 1)] if formal else None
            if not given and kind is not None and kind.option != onnx.defs.OpSchema.FormalParameterOption.Optional:
                raise ModelError(f"{name}: {where(node)} has no input {place} ({kind.name})", _AGAIN)


def _check_axes(graph: GraphProto, name: str) -> None:
    """Before anything infers shapes: with some axes beyond all reason ONNX's own code reads outside of its memory."""
    for node in graph.node:
        for attribute in node.attribute:
            wide = [axis for axis in (attribute.i, *attribute.ints) if abs(axis) > _MOST_AXES]
            if attribute.name in ("axis", "axes", "perm") and wide:
                raise ModelError(f"{name}: {where(node)}: {attribute.name} holds {wide[0]}", _AGAIN)


def _check_training(graph: GraphProto, name: str) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    constants |= {node.output[0]: a.t for node in graph.node if node.op_type == "Constant"
                  for a in node.attribute if a.name == "value" and node.output}  # fmt: skip
    for node in graph.node:
        switch = constants.get(node.input[2]) if node.op_type == "Dropout" and len(node.input) > 2 else None
        drops = switch is not None and bool(np.any(onnx.numpy_helper.to_array(switch)))
        if drops or any(a.name == "training_mode" and a.i for a in node.attribute):
            raise ModelError(f"{name}: {where(node)} is in training mode", "export the model in evaluation mode")


def _check_rest(model: ModelProto, name: str) -> None:
    """What onnx.checker finds; outputs need no shape here, inference finds it."""
    open_ = [v.type.tensor_type for v in model.graph.output if not v.type.tensor_type.HasField("shape")]
    for kind in open_:
        kind.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as reason:
        said = first_line(reason)
        raise ModelError(f"{name}: is no valid ONNX model: {_faulty(model)}{said}", _AGAIN) from reason
    finally:
        for kind in open_:
            kind.ClearField("shape")


def _faulty(model: ModelProto) -> str:
    """The first node that the checker does not take on its own, for the message."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {opset.domain: opset.version for opset in model.opset_import}
    functions = {(function.domain, function.name) for function in model.functions}
    for node in model.graph.node:
        if (node.domain, node.op_type) in functions:
            continue
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError:
            return f"{where(node)}: "
    return ""


def first_line(reason: Exception) -> str:
    lines = [line.strip() for line in str(reason).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(reason).__name__


# Layers of a normalized graph


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _input(known: Known, node: NodeProto, place: int) -> tuple[int, ...] | None:
    return known.shape(node.input[place]) if place < len(node.input) and node.input[place] else None


def _conv(known: Known, node: NodeProto) -> str:
    x, w, b = (_input(known, node, place) for place in range(3))
    given = _attributes(node)
    group, turned = int(given.get("group", 1)), node.op_type == "ConvTranspose"
    if group < 1:
        return f"group is {group}"
    problem = _window(known, node)
    if problem:
        return problem
    if x is None or w is None:
        return ""
    if len(w) != len(x) or len(x) < 3:
        return f"the weight has the shape {list(w)}, the input {list(x)}"
    needed, outputs = (w[0], w[1] * group) if turned else (w[1] * group, w[0])
    if x[1] != needed or w[0] % group:
        return f"the input has {x[1]} channels, the weight {list(w)} with group {group} takes {needed}"
    if b is not None and b != (outputs,):
        return f"the bias has the shape {list(b)}, for {outputs} channels"
    if "kernel_shape" in given and tuple(given["kernel_shape"]) != w[2:]:
        return f"kernel_shape is {list(given['kernel_shape'])}, the weight has {list(w[2:])}"
    return ""


def _window(_: Known, node: NodeProto) -> str:
    """A pool, or a convolution as far as it is one."""
    given = _attributes(node)
    mode = given.get("auto_pad", b"NOTSET")
    if mode not in _AUTO_PADS:
        return f"auto_pad is '{mode.decode(errors='replace')}'"
    for part in ("kernel_shape", "strides", "dilations", "pads"):
        largest = max(given.get(part, ()), default=0)
        if largest > _LARGEST_WINDOW:
            return f"{part} holds {largest}; the most is {_LARGEST_WINDOW}"
    return ""


def _affine(known: Known, node: NodeProto) -> str:
    """Gain and offset of a normalization along the channels, or groups of them."""
    x, groups = _input(known, node, 0), _attributes(node).get("num_groups")
    for place in (1, 2):
        shape = _input(known, node, place)
        if x is not None and shape is not None and (len(x) < 3 or shape not in ((x[1],), (groups,))):
            return f"gain or offset has the shape {list(shape)}, the input {list(x)}"
    if x is not None and groups is not None and (groups < 1 or x[1] % groups):
        return f"{x[1]} channels cannot make {groups} groups"
    return ""


def _layer_norm(known: Known, node: NodeProto) -> str:
    x, axis = _input(known, node, 0), int(_attributes(node).get("axis", -1))
    if x is None:
        return ""
    if not -len(x) <= axis < len(x):
        return f"axis {axis} is outside of the shape {list(x)}"
    for place in (1, 2):
        shape = _input(known, node, place)
        if shape is not None and not _broadcasts(shape, x[axis % len(x) :]):
            return f"gain or offset of shape {list(shape)} does not broadcast to {list(x[axis % len(x) :])}"
    return ""


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(s in (1, n) for s, n in zip(shape[::-1], to[::-1], strict=False))


def _normalization(known: Known, node: NodeProto) -> str:
    variance = known.constant(node, 4)
    x = _input(known, node, 0)
    if variance is not None and (variance < 0).any():
        return f"a variance is negative ({float(variance.min()):g})"
    for place in range(1, 5):
        shape = _input(known, node, place)
        if x is not None and len(x) > 1 and shape not in (None, (x[1],)):
            return f"input {place} has the shape {list(shape or ())}, for {x[1]} channels"
    return ""


def _gather(known: Known, node: NodeProto) -> str:
    x, index = _input(known, node, 0), known.constant(node, 1)
    axis = int(_attributes(node).get("axis", 0))
    if x is None or index is None or not -len(x) <= axis < len(x):
        return ""
    size = x[axis]
    outside = index[(index < -size) | (index >= size)]
    return f"index {int(outside[0])} is outside of axis {axis}, which has {size}" if outside.size else ""


def _scale(known: Known, node: NodeProto) -> str:
    """QuantizeLinear and DequantizeLinear: scale and zero point have one value, or one for each index of the axis."""
    x, scale, zero = (_input(known, node, place) for place in range(3))
    if zero is not None and scale is not None and math.prod(zero) != math.prod(scale):
        return f"the zero point has the shape {list(zero)}, the scale {list(scale)}"
    if x is None or scale is None or math.prod(scale) == 1 or len(scale) != 1:
        return ""
    axis = int(_attributes(node).get("axis", 1))
    if not -len(x) <= axis < len(x):
        return f"axis {axis} is outside of the shape {list(x)}"
    return "" if x[axis] == scale[0] else f"{scale[0]} scales for {x[axis]} along axis {axis}"


def _slope(known: Known, node: NodeProto) -> str:
    x, slope = _input(known, node, 0), _input(known, node, 1)
    if x is None or slope is None:
        return ""
    return "" if _broadcasts(slope, x) else f"slopes of shape {list(slope)} do not broadcast to {list(x)}"


def _division(known: Known, node: NodeProto) -> str:
    divisor = known.constant(node, 1)
    return "" if divisor is None or divisor.dtype.kind not in "iuf" or divisor.all() else "divides by a constant 0"


def _reshape(known: Known, node: NodeProto) -> str:
    before, after = _input(known, node, 0), known.shape(node.output[0])
    if before is None or after is None or math.prod(before) == math.prod(after):
        return ""
    return f"{list(before)} cannot become {list(after)}"


def _steps(known: Known, node: NodeProto) -> str:
    steps = known.constant(node, 4)
    return "a step is 0" if steps is not None and not steps.all() else ""


_LAYERS: Mapping[str, Callable[[Known, NodeProto], str]] = {
    "AveragePool": _window,
    "BatchNormalization": _normalization,
    "Conv": _conv,
    "ConvTranspose": _conv,
    "DequantizeLinear": _scale,
    "Div": _division,
    "Gather": _gather,
    "GatherElements": _gather,
    "GroupNormalization": _affine,
    "InstanceNormalization": _affine,
    "LayerNormalization": _layer_norm,
    "LpPool": _window,
    "MaxPool": _window,
    "PRelu": _slope,
    "QuantizeLinear": _scale,
    "Reshape": _reshape,
    "Slice": _steps,
}

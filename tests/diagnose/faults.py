"""Faults as they happen, planted in ONNX graphs: what a report has to name first."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

AFFINE = {"Add", "Div", "Mul", "Sub"}


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model to plant in."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers by name."""
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def put(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Replaces an initializer's value."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))


def layers(model: onnx.ModelProto, least: int = 32) -> list[NodeProto]:
    """Conv and Gemm with weights of their own."""
    known = constants(model)
    return [n for n in model.graph.node if n.op_type in {"Conv", "Gemm"}
            and n.input[1] in known and known[n.input[1]].size >= least]  # fmt: skip


def pairs(model: onnx.ModelProto) -> list[NodeProto]:
    """The QuantizeLinear nodes of activations."""
    return [n for n in model.graph.node if n.op_type == "QuantizeLinear"]


def activation_scale(model: onnx.ModelProto, number: int, factor: float) -> tuple[onnx.ModelProto, set[str]]:
    """One scale times `factor`. Returns the tensors that have it."""
    result = copied(model)
    scale = pairs(result)[number].input[1]
    put(result, scale, constants(result)[scale] * np.float32(factor))
    return result, {n.input[0] for n in pairs(result) if n.input[1] == scale}


def weight_scale(
    model: onnx.ModelProto, number: int, factor: float, channel: int | None = None
) -> tuple[onnx.ModelProto, str]:
    """The scale of one layer's integers, of all channels or of one. Returns the layer's name."""
    result = copied(model)
    readers = {n.output[0]: n for n in result.graph.node if n.op_type == "DequantizeLinear"}
    nodes = [n for n in result.graph.node if n.op_type in {"Conv", "Gemm"} and n.input[1] in readers]
    scale = readers[nodes[number].input[1]].input[1]
    value = constants(result)[scale].copy()
    value[slice(None) if channel is None else channel] *= np.float32(factor)
    put(result, scale, value)
    return result, nodes[number].name


def large_channel(
    model: onnx.ModelProto, number: int, channel: int, factor: float, *, compensate: bool = False
) -> tuple[onnx.ModelProto, str]:
    """One output channel of a layer times `factor`, by its BatchNormalization where it has one; `compensate` divides
    the next layer's inputs. Returns the layer's name.
    """
    result = copied(model)
    node = layers(result)[number]
    norm = next(
        (n for n in result.graph.node if n.op_type == "BatchNormalization" and n.input[0] == node.output[0]), None
    )
    if norm is not None and compensate:
        _multiply(result, norm.input[1], channel, factor)
        _multiply(result, norm.input[2], channel, factor)
    else:
        transposed = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
        _multiply(result, node.input[1], channel, factor, axis=1 if transposed else 0)
        if len(node.input) > 2:
            _multiply(result, node.input[2], channel, factor)
    if compensate:
        reader = _next_layer(result, (norm or node).output[0])
        depthwise = constants(result)[reader.input[1]].shape[1] == 1
        _multiply(result, reader.input[1], channel, 1 / factor, axis=0 if depthwise else 1)
    return result, node.name


def saturated(model: onnx.ModelProto, number: int, *, by: str) -> tuple[onnx.ModelProto, str]:
    """A layer's bias or weights so large that the function behind it is at its ceiling. Returns the layer's name."""
    result = copied(model)
    node = layers(result)[number]
    norm = next(
        (n for n in result.graph.node if n.op_type == "BatchNormalization" and n.input[0] == node.output[0]), None
    )
    if by == "weights":
        put(result, node.input[1], constants(result)[node.input[1]] * np.float32(200))
        return result, node.name
    bias = norm.input[2] if norm is not None else node.input[2]
    put(result, bias, constants(result)[bias] + np.float32(40))
    return result, node.name


def normalized_twice(model: onnx.ModelProto) -> onnx.ModelProto:
    """The arithmetic between the graph's input and the first layer, applied a second time."""
    result = copied(model)
    chain = list(_affine_chain(result))[::-1]
    name = chain[-1].output[0]
    last = name
    new = []
    for step, node in enumerate(chain):
        again = NodeProto()
        again.CopyFrom(node)
        again.name, again.output[0] = f"{node.name}_again", f"{name}_again{step}"
        known = constants(result)
        position = next(i for i, n in enumerate(node.input) if n not in known)
        again.input[position] = last
        last = again.output[0]
        new.append(again)
    for node in result.graph.node:
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = last
    at = next(i for i, n in enumerate(result.graph.node) if n.output[0] == name)
    nodes = list(result.graph.node)
    result.graph.ClearField("node")
    result.graph.node.extend([*nodes[: at + 1], *new, *nodes[at + 1 :]])
    return result


def saturating(model: onnx.ModelProto) -> list[int]:
    """Numbers of the layers behind which a function has a ceiling."""
    readers: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def ends(name: str) -> bool:
        after = readers.get(name, [])
        if len(after) == 1 and after[0].op_type == "BatchNormalization":
            return ends(after[0].output[0])
        return len(after) == 1 and (after[0].op_type in {"Clip", "Sigmoid", "Tanh", "HardSigmoid"})

    return [i for i, node in enumerate(layers(model)) if ends(node.output[0])]


def _norm_behind(model: onnx.ModelProto, node: NodeProto) -> NodeProto | None:
    norms = (n for n in model.graph.node if n.op_type == "BatchNormalization")
    return next((n for n in norms if n.input[0] == node.output[0]), None)


def _multiply(model: onnx.ModelProto, name: str, channel: int, factor: float, axis: int = 0) -> None:
    value = constants(model)[name].copy()
    value[(slice(None),) * axis + (channel,)] *= np.float32(factor)
    put(model, name, value)


def _next_layer(model: onnx.ModelProto, name: str) -> NodeProto:
    """The layer that alone reads a tensor, behind Relu and Clip."""
    while True:
        (reader,) = [n for n in model.graph.node if name in n.input]
        if reader.op_type in {"Conv", "Gemm"}:
            return reader
        assert reader.op_type in {"Relu", "Clip", "Pad", "MaxPool"}, reader.op_type
        name = reader.output[0]


def _affine_chain(model: onnx.ModelProto) -> Iterator[NodeProto]:
    """The additions and multiplications by constants before the first layer, the last first."""
    known = constants(model)
    makers = {n.output[0]: n for n in model.graph.node}
    node = makers.get(layers(model)[0].input[0])
    while node is not None:
        data = [n for n in node.input if n and n not in known]
        if node.op_type in AFFINE and len(data) == 1 and len(node.input) == 2:
            yield node
        elif node.op_type in {"Resize", "ReduceSum", "MatMul"}:
            return
        node = makers.get(data[0]) if len(data) == 1 else None


def different_scale(model: onnx.ModelProto, number: int, factor: float) -> tuple[onnx.ModelProto, str]:
    """DequantizeLinear reads with another scale than QuantizeLinear wrote with. Returns the tensor."""
    result = copied(model)
    node = pairs(result)[number]
    reader = next(n for n in result.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == node.output[0])
    value = constants(result)[node.input[1]] * np.float32(factor)
    result.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"{node.input[1]}_other"))
    reader.input[1] = f"{node.input[1]}_other"
    return result, node.input[0]


def inserted(model: onnx.ModelProto, behind: str, steps: list[tuple[str, np.ndarray]]) -> onnx.ModelProto:
    """The model with more arithmetic behind the node of that name."""
    result = copied(model)
    nodes = list(result.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == behind)
    name = last = nodes[at].output[0]
    new = []
    for number, (kind, value) in enumerate(steps):
        result.graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), f"more{number}"))
        new.append(helper.make_node(kind, [last, f"more{number}"], [f"more_{number}"], name=f"more_{kind}_{number}"))
        last = f"more_{number}"
    for node in nodes[at + 1 :]:
        for i, read in enumerate(node.input):
            if read == name:
                node.input[i] = last
    result.graph.ClearField("node")
    result.graph.node.extend([*nodes[: at + 1], *new, *nodes[at + 1 :]])
    return result


def swapped_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """A handler that reverses the frame's last axis, BGR for RGB."""
    result = copied(model)
    frame = result.graph.input[0].name
    axis = len(result.graph.input[0].type.tensor_type.shape.dim) - 1
    for node in result.graph.node:
        for i, read in enumerate(node.input):
            if read == frame:
                node.input[i] = "swapped"
    result.graph.initializer.append(numpy_helper.from_array(np.array([2, 1, 0]), "swapped_order"))
    nodes = [helper.make_node("Gather", [frame, "swapped_order"], ["swapped"], axis=axis), *result.graph.node]
    result.graph.ClearField("node")
    result.graph.node.extend(nodes)
    return result

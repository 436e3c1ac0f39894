"""Operators in the form that later stages know: what exporters write out in parts as one node again, and transposed
convolutions and group normalizations by operators that have integer forms.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, helper

from edgebuild.stages.quantize.graph import Array, Graph, Types, attributes, integers, optional_input


def layer_norm(graph: Graph, types: Types, node: NodeProto) -> bool:
    """(x − mean) / √(mean of squares + ε), times a gain, plus an offset, over the last axis → LayerNormalization."""
    parts = _centred_by_deviation(graph, types, node)
    if parts is None:
        return False
    x, epsilon, nodes = parts
    shape = types.shape(x)
    if shape is None:
        return False
    nodes.append(node)
    gain = _constant_behind(graph, nodes, "Mul", shape[-1])
    offset = _constant_behind(graph, nodes, "Add", shape[-1]) if gain is not None else None
    inside = {id(n) for n in nodes}
    last = nodes[-1]
    if gain is None or any(id(r) not in inside for n in nodes[:-1] for r in graph.consumers(n.output[0])):
        return False
    if any(n.output[0] in graph.outputs for n in nodes[:-1]) or not types.same_shape(x, last.output[0]):
        return False
    out = last.output[0]
    constants = [
        graph.add_constant(f"{out}_{part}", v) for part, v in (("gain", gain), ("offset", offset)) if v is not None
    ]
    made = helper.make_node(
        "LayerNormalization", [x, *constants], [out], name=last.name, axis=-1, epsilon=float(epsilon)
    )
    graph.replace(nodes, [made])
    return True


def _centred_by_deviation(graph: Graph, types: Types, node: NodeProto) -> tuple[str, float, list[NodeProto]] | None:
    """(x, ε, the nodes before) of a Div that divides x − mean by its standard deviation."""
    if node.op_type != "Div":
        return None
    sub, root = _producer(graph, node.input[0], "Sub"), _producer(graph, node.input[1], "Sqrt")
    add = _producer(graph, root.input[0], "Add") if root is not None else None
    if sub is None or root is None or add is None:
        return None
    mean = _producer(graph, sub.input[1], "ReduceMean")
    names = graph.data_inputs(add)
    epsilon = next((graph.constants[n] for n in add.input if n in graph.constants), None)
    variance = _producer(graph, names[0], "ReduceMean") if len(names) == 1 else None
    square = graph.producer(variance.input[0]) if variance is not None else None
    if mean is None or variance is None or square is None or epsilon is None or epsilon.size != 1:
        return None
    if mean.input[0] != sub.input[0] or not _is_square(graph, square, sub.output[0]):
        return None
    if not all(_over_last(graph, types, n) for n in (mean, variance)):
        return None
    return sub.input[0], float(epsilon.reshape(())), [mean, sub, square, variance, add, root]


def _producer(graph: Graph, name: str, op: str) -> NodeProto | None:
    node = graph.producer(name)
    return node if node is not None and node.op_type == op else None


def _is_square(graph: Graph, node: NodeProto, name: str) -> bool:
    if node.op_type == "Mul":
        return list(node.input) == [name, name]
    exponent = graph.constant(node.input[1]) if node.op_type == "Pow" else None
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(())) == 2 and node.input[0] == name


def _over_last(graph: Graph, types: Types, node: NodeProto) -> bool:
    rank = len(types.shape(node.input[0]) or ())
    axes = integers(graph, node, 1, "axes")
    return (
        rank > 0
        and axes is not None
        and [a % rank for a in axes] == [rank - 1]
        and attributes(node).get("keepdims", 1) == 1
    )


def _constant_behind(graph: Graph, nodes: list[NodeProto], op: str, size: int) -> Array | None:
    """The constant [size] that the one reader of the last node multiplies by or adds; the reader joins the nodes."""
    reader = graph.only_consumer(nodes[-1].output[0])
    if reader is None or reader.op_type != op:
        return None
    value = next((graph.constants[n] for n in reader.input if n in graph.constants), None)
    if value is None or value.shape != (size,):
        return None
    nodes.append(reader)
    return value


def group_norm(graph: Graph, types: Types, node: NodeProto) -> bool:
    """Instance- and GroupNormalization: rows of the elements of a group are normalized, then scaled by channel."""
    shape = types.shape(node.input[0])
    if node.op_type not in {"InstanceNormalization", "GroupNormalization"} or shape is None:
        return False
    gain, offset = (graph.constant(name) for name in node.input[1:3])
    groups = shape[1] if node.op_type == "InstanceNormalization" else int(attributes(node)["num_groups"])
    if gain is None or offset is None or gain.size not in {groups, shape[1]}:
        return False
    out, size = node.output[0], int(np.prod(shape[1:])) // groups
    spatial = (-1, *(1,) * (len(shape) - 2))
    each = [np.repeat(v, shape[1] // v.size).reshape(spatial).astype(np.float32) for v in (gain, offset)]
    build = _Builder(graph, node.name, out)
    rows = build.reshape(node.input[0], (shape[0] * groups, size))
    ones = build.constant("ones", np.ones(size, np.float32))
    epsilon = float(attributes(node).get("epsilon", 1e-5))
    normal = build.node("LayerNormalization", [rows, ones], axis=-1, epsilon=epsilon)
    scaled = build.node("Mul", [build.reshape(normal, shape), build.constant("gain", each[0])])
    build.node("Add", [scaled, build.constant("offset", each[1])], output=out)
    graph.replace([node], build.nodes)
    return True


def transposed_conv(graph: Graph, types: Types, node: NodeProto) -> bool:
    """ConvTranspose: zeros between the pixels, then a Conv of stride 1 with the kernel turned around."""
    weight, bias = graph.constant(optional_input(node, 1)), optional_input(node, 2)
    shape, out_shape = types.shape(node.input[0]), types.shape(node.output[0])
    if node.op_type != "ConvTranspose" or weight is None or shape is None or out_shape is None:
        return False
    given, rank = attributes(node), len(shape) - 2
    strides, dilations = (list(given.get(k) or [1] * rank) for k in ("strides", "dilations"))
    kernel, group = weight.shape[2:], int(given.get("group", 1))
    before = _transposed_pads(given, shape[2:], out_shape[2:], kernel, strides, dilations)
    build = _Builder(graph, node.name, node.output[0])
    x, size = _spread(build, node.input[0], shape, strides)
    reach = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    first = [r - b for r, b in zip(reach, before, strict=True)]
    last = [o + r - n - f for o, r, n, f in zip(out_shape[2:], reach, size, first, strict=True)]
    if min(first) < 0 or min(last) < 0:
        x = _cropped(build, x, size, first, last)
    turned = weight.reshape(group, shape[1] // group, -1, *kernel).swapaxes(1, 2)
    turned = np.flip(turned.reshape(-1, shape[1] // group, *kernel), tuple(range(2, rank + 2)))
    operands = [x, build.constant("weight", np.ascontiguousarray(turned)), *([bias] if bias else [])]
    pads = [max(0, p) for p in (*first, *last)]
    build.node("Conv", operands, output=node.output[0], group=group, kernel_shape=list(kernel), dilations=dilations,
               pads=pads)  # fmt: skip
    graph.replace([node], build.nodes)
    return True


def _transposed_pads(
    given: dict[str, object],
    size: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[int]:
    """What a ConvTranspose cuts off before each axis."""
    mode = given.get("auto_pad", b"NOTSET")
    pads = given.get("pads")
    rank = len(size)
    if mode in (b"NOTSET", b"VALID") and "output_shape" not in given:
        return list(pads)[:rank] if isinstance(pads, list | tuple) else [0] * rank
    extra = [int(v) for v in given.get("output_padding") or [0] * rank]  # type: ignore[attr-defined]
    totals = [
        s * (n - 1) + e + (k - 1) * d + 1 - o
        for s, n, e, k, d, o in zip(strides, size, extra, kernel, dilations, out, strict=True)
    ]
    return [t // 2 if mode == b"SAME_UPPER" else t - t // 2 for t in totals]


def _spread(build: "_Builder", x: str, shape: tuple[int, ...], strides: list[int]) -> tuple[str, list[int]]:
    """(x with stride − 1 zeros behind every pixel, its spatial size)."""
    size = [n * s for n, s in zip(shape[2:], strides, strict=True)]
    if max(strides) == 1:
        return x, size
    apart = [part for n in shape[2:] for part in (n, 1)]
    wide = [part for s in strides for part in (0, s - 1)]
    pads = build.constant("zeros", np.array([0] * (2 + len(wide)) + [0, 0, *wide], np.int64))
    value = build.constant("zero", np.array(0, np.float32))
    x = build.node("Pad", [build.reshape(x, (*shape[:2], *apart)), pads, value])
    return build.reshape(x, (*shape[:2], *size)), size


def _cropped(build: "_Builder", x: str, size: list[int], first: list[int], last: list[int]) -> str:
    starts = [max(0, -f) for f in first]
    ends = [n - max(0, -b) for n, b in zip(size, last, strict=True)]
    axes = list(range(2, len(size) + 2))
    names = [build.constant(k, np.array(v, np.int64)) for k, v in (("starts", starts), ("ends", ends), ("axes", axes))]
    return build.node("Slice", [x, *names])


@dataclass
class _Builder:
    """Nodes and constants that replace one node; they are named after its output."""

    graph: Graph
    name: str
    stem: str

    def __post_init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def constant(self, part: str, value: Array) -> str:
        return self.graph.add_constant(f"{self.stem}_{part}", value)

    def reshape(self, x: str, shape: tuple[int, ...]) -> str:
        return self.node("Reshape", [x, self.constant("shape", np.array(shape, np.int64))])

    def node(self, op: str, inputs: list[str], output: str = "", **attrs: Any) -> str:
        output = output or f"{self.stem}_{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"{self.name}_{op}_{len(self.nodes)}", **attrs))
        return output

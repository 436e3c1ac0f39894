"""Rewrites that leave the float function as it is and the graph simpler to quantize.

Weighted operators end up as Conv with a bias or Gemm with transB = 1 and a bias; per-channel multiplications and
additions behind them are part of weights and bias, and those that stand alone inside the network become a depthwise
1 x 1 Conv, which has an exact integer form. Which rewrite applies depends on structure and shapes, never on values.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from edgebuild.stages.quantize.graph import (
    Array,
    Graph,
    Types,
    attributes,
    integers,
    key,
    optional_input,
    reach,
    set_attribute,
)
from edgebuild.stages.quantize.operators import weight_problem
from edgebuild.stages.quantize.patterns import group_norm, layer_norm, transposed_conv


class Facts(Types):
    """What rules ask about the graph as it was before they were applied."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.inferred())
        self._graph = graph

    @cached_property
    def inside(self) -> set[str]:
        """Keys of the nodes between weighted operators. What rules put between them lies between them too."""
        graph = self._graph
        weighted = {key(n) for n in graph.nodes if n.op_type in {"Conv", "Gemm"} and not weight_problem(graph, n)}
        return reach(graph, weighted) & reach(graph, weighted, forward=False)

    @cached_property
    def preprocessing(self) -> set[str]:
        """Keys of the nodes before the first Conv or Gemm, with a Conv behind them: their matrices are filter banks."""
        convs = {key(n) for n in self._graph.nodes if n.op_type == "Conv"}
        layers = convs | {key(n) for n in self._graph.nodes if n.op_type == "Gemm"}
        return reach(self._graph, convs, forward=False) - reach(self._graph, layers)


Rule = Callable[[Graph, Facts, NodeProto], bool]


def fold(model: onnx.ModelProto) -> onnx.ModelProto:
    """Applies the rules until none applies."""
    graph = Graph(model)
    for rules in (_RULES, _LATE_RULES):
        facts = Facts(graph)
        while any(_sweep(graph, facts, rule) for rule in rules):
            facts = Facts(graph)
    return graph.to_model()


def _sweep(graph: Graph, facts: Facts, rule: Rule) -> bool:
    """Tries the rule at every node; whether it applied anywhere."""
    applied = False
    for node in list(graph.nodes):
        applied = (_present(graph, node) and rule(graph, facts, node)) or applied
    return applied


def _present(graph: Graph, node: NodeProto) -> bool:
    return bool(node.output) and graph.producer(node.output[0]) is node


def _constant_node(graph: Graph, _: Types, node: NodeProto) -> bool:
    if node.op_type != "Constant" or node.output[0] in graph.outputs:
        return False
    given = attributes(node)
    if "value" in given:
        value = numpy_helper.to_array(given["value"])
    else:
        key = next(iter(given))
        value = np.asarray(given[key], np.float32 if "float" in key else np.int64)
    graph.constants[node.output[0]] = value
    graph.remove(node)
    return True


def _pass_through(graph: Graph, _: Types, node: NodeProto) -> bool:
    if node.op_type not in {"Identity", "Dropout"} or node.output[0] in graph.outputs:
        return False
    graph.bypass(node)
    return True


def _pad_into_conv(graph: Graph, types: Types, node: NodeProto) -> bool:
    """Zero padding of the spatial axes before a Conv becomes the Conv's own."""
    conv = graph.only_consumer(node.output[0]) if node.op_type == "Pad" else None
    amounts = _zero_padding(graph, types, node) if conv is not None and conv.op_type == "Conv" else None
    if conv is None or amounts is None:
        return False
    given = attributes(conv)
    if given.get("auto_pad", b"NOTSET") not in {b"NOTSET", b"VALID"}:
        return False
    pads = np.asarray(given.get("pads") or np.zeros(amounts.size, np.int64)) + amounts
    set_attribute(conv, "auto_pad", "NOTSET")
    set_attribute(conv, "pads", [int(p) for p in pads])
    graph.bypass(node)
    return True


def _zero_padding(graph: Graph, types: Types, node: NodeProto) -> Array | None:
    """How much a Pad adds before and after the spatial axes [2 * (rank - 2)]; None if it does anything else."""
    if attributes(node).get("mode", b"constant") != b"constant":
        return None
    value = graph.constant(optional_input(node, 2))
    shape, amounts = types.shape(node.input[0]), integers(graph, node, 1, "pads")
    if shape is None or amounts is None or (optional_input(node, 2) and (value is None or value.any())):
        return None
    full = np.zeros((2, len(shape)), np.int64)
    for i, axis in enumerate(integers(graph, node, 3, "axes") or range(len(shape))):
        full[:, axis % len(shape)] = amounts[i], amounts[i + len(amounts) // 2]
    spatial: Array = full[:, 2:].reshape(-1)
    return None if full[:, :2].any() or (full < 0).any() else spatial


def _normalization(graph: Graph, types: Types, node: NodeProto) -> bool:
    """BatchNormalization becomes Mul and Add by constants of shape [C, 1, ...]."""
    if node.op_type != "BatchNormalization" or attributes(node).get("training_mode", 0):
        return False
    values = [graph.constant(name) for name in node.input[1:5]]
    shape = types.shape(node.input[0])
    if shape is None or any(v is None for v in values):
        return False
    gamma, beta, mean, var = (np.asarray(v, np.float64) for v in values)
    factor = gamma / np.sqrt(var + attributes(node).get("epsilon", 1e-5))
    spatial = [-1] + [1] * (len(shape) - 2)
    out = node.output[0]
    scale = graph.add_constant(f"{out}_factor", factor.reshape(spatial).astype(np.float32))
    shift = graph.add_constant(f"{out}_shift", (beta - mean * factor).reshape(spatial).astype(np.float32))
    scaled = f"{out}_scaled"
    mul = helper.make_node("Mul", [node.input[0], scale], [scaled], name=f"{node.name}_Mul")
    add = helper.make_node("Add", [scaled, shift], [out], name=f"{node.name}_Add")
    graph.replace([node], [mul, add])
    return True


def _affine(graph: Graph, node: NodeProto) -> tuple[str, Array, Array] | None:
    """An Add, Sub, Mul or Div of one tensor and one constant as (tensor, factor, offset): tensor * factor + offset."""
    data = graph.data_inputs(node)
    if node.op_type not in {"Add", "Sub", "Mul", "Div"} or len(data) != 1:
        return None
    first = node.input[0] == data[0]
    value = graph.constant(node.input[1 if first else 0])
    if value is None or value.dtype != np.float32 or (node.op_type == "Div" and (not first or not value.all())):
        return None
    c, one, zero = value.astype(np.float64), np.ones(1), np.zeros(1)
    forms: dict[str, Callable[[], tuple[Array, Array]]] = {
        "Add": lambda: (one, c),
        "Sub": lambda: (one, -c) if first else (-one, c),
        "Mul": lambda: (c, zero),
        "Div": lambda: (1.0 / c, zero),
    }
    return (data[0], *forms[node.op_type]())


def _per_channel(value: Array, rank: int, channel_axis: int, channels: int) -> Array | None:
    """A constant that broadcasts over all axes but the channels' as a vector [channels]; None if it does not."""
    if value.ndim > rank:
        return None
    shape = [1] * (rank - value.ndim) + list(value.shape)
    if any(d != 1 for axis, d in enumerate(shape) if axis != channel_axis) or shape[channel_axis] not in {1, channels}:
        return None
    return np.broadcast_to(value.reshape(-1), (channels,))


def _channel_axis(graph: Graph, node: NodeProto, rank: int) -> int | None:
    """The channels' axis in the output of a Conv or Gemm whose weight (axis 0) and bias may be rewritten."""
    weight, bias = graph.constant(optional_input(node, 1)), optional_input(node, 2)
    if not _is_float(weight) or node.input[0] in graph.constants or (bias and graph.constant(bias) is None):
        return None
    if node.op_type == "Conv":
        return 1
    return rank - 1 if node.op_type == "Gemm" and attributes(node).get("transB", 0) else None


def _is_float(value: Array | None) -> bool:
    return value is not None and value.dtype == np.float32


def _affine_into_weights(graph: Graph, types: Types, node: NodeProto) -> bool:
    """Conv or Gemm, also with a Reshape that keeps the channels last, followed by a per-channel Mul or Add."""
    found = _affine(graph, node)
    last = graph.producer(found[0]) if found else None
    if found is None or last is None or graph.only_consumer(found[0]) is not node:
        return False
    shape, weighted = types.shape(found[0]), _behind_reshape(graph, types, last)
    axis = None if shape is None else _channel_axis(graph, weighted, len(shape))
    if axis is None or shape is None or not types.same_shape(found[0], node.output[0]):
        return False
    factor, offset = (_per_channel(v, len(shape), axis, shape[axis]) for v in found[1:])
    if factor is None or offset is None:
        return False
    _scale_weights(graph, weighted, factor, offset)
    last.output[0] = node.output[0]
    graph.replace([last, node], [last])
    return True


def _scalar_into_weights(graph: Graph, types: Types, node: NodeProto) -> bool:
    """A scalar Mul or Div, also behind moves and a product of two activations, becomes part of the layer before.

    Attention divides its scores by the root of a head's size; folded, the division costs nothing and rounds nothing.
    """
    found = _affine(graph, node)
    if node.op_type not in {"Mul", "Div"} or found is None or found[1].size != 1 or node.output[0] in graph.outputs:
        return False
    if not types.same_shape(found[0], node.output[0]):
        return False
    layer = _layer_before(graph, found[0], node)
    shape = types.shape(layer.output[0]) if layer is not None else None
    axis = _channel_axis(graph, layer, len(shape)) if layer is not None and shape else None
    if layer is None or shape is None or axis is None:
        return False
    ones = np.ones(shape[axis])
    _scale_weights(graph, layer, ones * found[1].reshape(()), 0 * ones)
    if node.input[0] != found[0]:
        node.input[0], node.input[1] = node.input[1], node.input[0]
    graph.bypass(node)
    return True


def _layer_before(graph: Graph, name: str, reader: NodeProto) -> NodeProto | None:
    """The weighted node that a tensor comes from through moves and products that nothing else reads."""
    node = graph.producer(name)
    while node is not None and graph.only_consumer(name) is reader:
        if node.op_type in {"Conv", "Gemm"}:
            return node
        product = node.op_type == "MatMul" and len(graph.data_inputs(node)) == 2 and node.input[0] != node.input[1]
        if not product and (node.op_type not in _SCALED_MOVES or graph.data_inputs(node) != [node.input[0]]):
            return None
        name, reader = node.input[0], node
        node = graph.producer(name)
    return None


def _behind_reshape(graph: Graph, types: Types, node: NodeProto) -> NodeProto:
    """The Gemm before a Reshape that keeps the last axis, else the node itself."""
    source = graph.producer(node.input[0]) if node.op_type == "Reshape" else None
    if source is None or source.op_type != "Gemm" or graph.only_consumer(node.input[0]) is not node:
        return node
    before, after = types.shape(node.input[0]), types.shape(node.output[0])
    return source if before and after and before[-1] == after[-1] else node


def _scale_weights(graph: Graph, node: NodeProto, factor: Array, offset: Array) -> None:
    weight = graph.constants[node.input[1]].astype(np.float64)
    bias = graph.constants[node.input[2]].astype(np.float64) if optional_input(node, 2) else np.zeros(len(factor))
    scaled = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    _set_input(graph, node, 1, _folded_name(node.input[1]), scaled)
    _set_input(graph, node, 2, _folded_name(optional_input(node, 2) or _bias_name(node)), bias * factor + offset)


def _bias_name(node: NodeProto) -> str:
    stem = node.input[1].removesuffix("_folded")
    return f"{stem.removesuffix('weight')}bias" if stem.endswith("weight") else f"{stem}_bias"


def _folded_name(name: str) -> str:
    return name if name.endswith("_folded") else f"{name}_folded"


def _set_input(graph: Graph, node: NodeProto, position: int, name: str, value: Array) -> None:
    """Gives the node a constant of its own; replaces the one it has when nobody else reads it."""
    old = optional_input(node, position)
    if old == name and len(graph.consumers(old)) == 1:
        graph.constants[name] = value.astype(np.float32)
    else:
        graph.set_input(node, position, graph.add_constant(name, value.astype(np.float32)))


def _depthwise(graph: Graph, facts: Facts, node: NodeProto) -> bool:
    """A per-channel Mul or Add between weighted operators becomes a depthwise 1 x 1 Conv."""
    found = _affine(graph, node)
    shape = facts.shape(node.output[0])
    if found is None or shape is None or len(shape) != 4 or not facts.same_shape(found[0], node.output[0]):
        return False
    producer = graph.producer(found[0])
    if producer is not None and producer.op_type == "Conv" and graph.only_consumer(found[0]) is node:
        return False  # becomes part of that Conv
    factor, offset = (_per_channel(v, 4, 1, shape[1]) for v in found[1:])
    if factor is None or offset is None or found[1].size == found[2].size or key(node) not in facts.inside:
        return False
    out = node.output[0]
    weight = graph.add_constant(f"{out}_weight", factor.reshape(-1, 1, 1, 1).astype(np.float32))
    bias = graph.add_constant(f"{out}_bias", offset.astype(np.float32))
    conv = helper.make_node(
        "Conv", [found[0], weight, bias], [out], name=node.name, group=shape[1], kernel_shape=[1, 1]
    )
    graph.replace([node], [conv])
    return True


def _matrix_product(graph: Graph, facts: Facts, node: NodeProto) -> bool:
    """MatMul with a constant matrix on the right becomes Gemm with transB = 1, between Reshapes if it has a batch."""
    value = graph.constant(node.input[1]) if node.op_type == "MatMul" else None
    if value is None or not _is_float(value) or value.ndim != 2 or key(node) in facts.preprocessing:
        return False
    shape, out = facts.shape(node.input[0]), facts.shape(node.output[0])
    if node.input[0] in graph.constants or shape is None or out is None or len(shape) < 2:
        return False
    weight = graph.add_constant(f"{node.input[1]}_transposed", np.ascontiguousarray(value.T))
    x, y = node.input[0], node.output[0]
    if len(shape) == 2:
        graph.replace([node], [helper.make_node("Gemm", [x, weight], [y], name=node.name, transB=1)])
        return True
    rows = graph.add_constant(f"{y}_rows", np.array([-1, shape[-1]], np.int64))
    back = graph.add_constant(f"{y}_shape", np.array(out, np.int64))
    new = [
        helper.make_node("Reshape", [x, rows], [f"{y}_matrix"], name=f"{node.name}_rows"),
        helper.make_node("Gemm", [f"{y}_matrix", weight], [f"{y}_product"], name=node.name, transB=1),
        helper.make_node("Reshape", [f"{y}_product", back], [y], name=f"{node.name}_shape"),
    ]
    graph.replace([node], new)
    return True


def _plain_gemm(graph: Graph, _: Types, node: NodeProto) -> bool:
    """Gemm with constant weights: transB = 1, alpha and beta in weights and bias, the bias a vector."""
    given = attributes(node)
    weight, bias = graph.constant(optional_input(node, 1)), graph.constant(optional_input(node, 2))
    if node.op_type != "Gemm" or weight is None or (optional_input(node, 2) and bias is None):
        return False
    alpha, beta, transposed = given.get("alpha", 1.0), given.get("beta", 1.0), given.get("transB", 0)
    channels = weight.shape[0 if transposed else 1]
    vector = None if bias is None else _per_channel(bias, 2, 1, channels)
    if bias is not None and vector is None:
        return False
    if transposed and alpha == 1.0 and beta == 1.0 and (bias is None or bias.shape == (channels,)):
        return False
    _set_input(graph, node, 1, f"{node.input[1]}_transposed" if not transposed else _folded_name(node.input[1]),
               alpha * (weight if transposed else weight.T))  # fmt: skip
    if vector is not None:
        _set_input(graph, node, 2, _folded_name(node.input[2]), beta * vector)
    kept = [a for a in node.attribute if a.name == "transA"]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute("transB", 1)])
    return True


def _with_bias(graph: Graph, _: Types, node: NodeProto) -> bool:
    """Whether an exporter writes a bias must not depend on its values."""
    weight = graph.constant(optional_input(node, 1))
    if node.op_type not in {"Conv", "Gemm"} or not _is_float(weight) or weight is None or optional_input(node, 2):
        return False
    _set_input(graph, node, 2, _bias_name(node), np.zeros(weight.shape[0]))
    return True


_SCALED_MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_RULES: list[Rule] = [
    _constant_node,
    _pass_through,
    layer_norm,
    group_norm,
    transposed_conv,
    _normalization,
    _pad_into_conv,
    _matrix_product,
    _plain_gemm,
    _affine_into_weights,
    _scalar_into_weights,
]
_LATE_RULES: list[Rule] = [_depthwise, _affine_into_weights, _with_bias]

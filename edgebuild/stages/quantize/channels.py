"""Which channels of which tensors can be scaled without changing what the network computes.

Relu, pooling, a residual Add and other operators that are homogeneous and keep channels apart hand a positive factor of
a channel on; a layer before them can bring it in (rows of its weights) and the layers behind take it out again (columns
of theirs). Channels that are tied to each other in this way form a class. A class that reaches anything else (a graph
input or output, Sigmoid, a constant that is added …) keeps the factor 1.

(Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, 2019, section 4.1, for two layers
in a row; here for any graph of them.)
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto

from edgebuild.stages.quantize.graph import Array, Graph, Types, attributes, integers, optional_input
from edgebuild.stages.quantize.operators import is_weighted, weight_problem

_HOMOGENEOUS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu", "MaxPool", "Relu"})
_GATES = frozenset({"HardSigmoid", "Sigmoid", "Softmax"})


@dataclass
class Channels:
    """`classes`: tensor → class of each channel, int64 [C]. `count` classes; `free` bool [count].

    `producers` and `consumers` are the weighted nodes (and LayerNormalization as a producer) with a class that is free;
    `limits`: the upper bounds of Clip by its output, which a channel that reaches them must keep.
    """

    classes: dict[str, Array]
    free: Array
    producers: list[NodeProto]
    consumers: list[NodeProto]
    limits: dict[str, float]


def find_channels(graph: Graph, types: Types) -> Channels:
    """The classes of a folded float graph."""
    ties = _Ties(graph, types)
    for node in graph.nodes:
        ties.visit(node)
    for name in (*graph.inputs, *graph.outputs):
        ties.fix(name)
    return ties.solved()


@dataclass
class _Ties:
    """Numbers every channel of every tensor, and collects which are equal and which must keep the factor 1."""

    graph: Graph
    types: Types
    first: dict[str, int] = field(default_factory=dict)
    total: int = 0
    left: list[Array] = field(default_factory=list)
    right: list[Array] = field(default_factory=list)
    fixed: list[Array] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)

    def channels(self, name: str) -> Array | None:
        """The numbers of the tensor's channels; None where it has no axis of channels."""
        count = self.count(name)
        if not count:
            return None
        if name not in self.first:
            self.first[name] = self.total
            self.total += count
        return np.arange(self.first[name], self.first[name] + count)

    def count(self, name: str) -> int:
        shape = self.types.shape(name)
        axis = channel_axis(len(shape)) if shape else None
        return 0 if shape is None or axis is None or not self.types.is_float(name) else shape[axis]

    def tie(self, a: Array, b: Array) -> None:
        self.left.append(a)
        self.right.append(b)

    def fix(self, name: str) -> None:
        found = self.channels(name)
        if found is not None:
            self.fixed.append(found)

    def visit(self, node: NodeProto) -> None:
        rule = _RULES.get(node.op_type)
        if rule is None or not rule(self, node):
            for name in (*self.graph.data_inputs(node), *filter(None, node.output)):
                self.fix(name)

    def solved(self) -> Channels:
        labels = components(self.total, self.left, self.right)
        names, compact = np.unique(labels, return_inverse=True)
        free = np.ones(len(names), bool)
        for found in self.fixed:
            free[compact[found]] = False
        classes = {name: compact[start : start + self.count(name)] for name, start in self.first.items()}
        weighted = [n for n in self.graph.nodes if _is_layer(self.graph, n)]
        norms = [n for n in self.graph.nodes if n.op_type == "LayerNormalization"]
        makes = [n for n in (*weighted, *norms) if _any_free(classes, free, n.output[0])]
        reads = [n for n in weighted if _any_free(classes, free, n.input[0])]
        return Channels(classes, free, makes, reads, self.limits)


def channel_axis(rank: int) -> int | None:
    """The axis of channels: images have it second, matrices and sequences last."""
    return {2: 1, 3: 2, 4: 1}.get(rank)


def columns(node: NodeProto, weight: Array) -> Array:
    """For each weight row [O] the input channels that its columns read, int64 [O, I/groups]."""
    group = int(attributes(node).get("group", 1))
    rows = np.arange(weight.shape[0]) // (weight.shape[0] // group)
    return np.asarray(rows[:, None] * weight.shape[1] + np.arange(weight.shape[1]))


def _any_free(classes: dict[str, Array], free: Array, name: str) -> bool:
    return name in classes and bool(free[classes[name]].any())


def components(total: int, left: list[Array], right: list[Array]) -> Array:
    """The smallest number that each number is connected with."""
    labels = np.arange(total)
    if not left:
        return labels
    a, b = np.concatenate(left), np.concatenate(right)
    while True:
        least = np.minimum(labels[a], labels[b])
        found = labels.copy()
        for side in (a, b):
            np.minimum.at(found, labels[side], least)
        found = found[found]
        if np.array_equal(found, labels):
            return labels
        labels = found


def _is_layer(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in {"Conv", "Gemm"} and is_weighted(graph, node) and not weight_problem(graph, node)


def _layer(ties: _Ties, node: NodeProto) -> bool:
    """A factor is taken out by the columns of weights and brought in by the rows, so both ends are free."""
    parameters = [name for name in node.input[1:] if name]
    if not _is_layer(ties.graph, node) or any(len(ties.graph.consumers(name)) > 1 for name in parameters):
        return False
    return ties.channels(node.input[0]) is not None and ties.channels(node.output[0]) is not None


def _same(ties: _Ties, node: NodeProto) -> bool:
    data = ties.graph.data_inputs(node)
    source, result = ties.channels(node.input[0]), ties.channels(node.output[0])
    if source is None or result is None or len(source) != len(result) or data != [node.input[0]]:
        return False
    if len(node.output) > 1 and any(node.output[1:]):
        return False
    ties.tie(source, result)
    return True


def _clip(ties: _Ties, node: NodeProto) -> bool:
    bounds = [ties.graph.constant(optional_input(node, i)) for i in (1, 2)]
    given = attributes(node)
    low = given.get("min") if bounds[0] is None else float(bounds[0].reshape(()))
    high = given.get("max") if bounds[1] is None else float(bounds[1].reshape(()))
    if low != 0.0 or not _same(ties, node):
        return False
    if high is not None:
        ties.limits[node.output[0]] = float(high)
    return True


def _spatial(ties: _Ties, node: NodeProto) -> bool:
    """An operator that keeps the axis of channels whole."""
    shapes = ties.types.shape(node.input[0]), ties.types.shape(node.output[0])
    if any(s is None or len(s) != 4 for s in shapes):
        return False
    return shapes[0][1] == shapes[1][1] and _same(ties, node)  # type: ignore[index]


def _mean(ties: _Ties, node: NodeProto) -> bool:
    shape, out = ties.types.shape(node.input[0]), ties.types.shape(node.output[0])
    axes = integers(ties.graph, node, 1, "axes")
    if shape is None or out is None or axes is None or len(shape) != 4 or {a % 4 for a in axes} != {2, 3}:
        return False
    return len(out) in {2, 4} and _same(ties, node)


def _pad(ties: _Ties, node: NodeProto) -> bool:
    value = ties.graph.constant(optional_input(node, 2))
    zero = not optional_input(node, 2) or (value is not None and not value.any())
    constant = attributes(node).get("mode", b"constant") == b"constant"
    amounts = integers(ties.graph, node, 1, "pads")
    shape = ties.types.shape(node.input[0])
    if not zero or not constant or amounts is None or shape is None or len(shape) != 4 or optional_input(node, 3):
        return False
    source, result = ties.channels(node.input[0]), ties.channels(node.output[0])
    if source is None or result is None or min(amounts) < 0:
        return False
    ties.tie(source, result[amounts[1] : amounts[1] + len(source)])
    return True


def _slice(ties: _Ties, node: NodeProto) -> bool:
    shape = ties.types.shape(node.input[0])
    parts = [integers(ties.graph, node, i, "") for i in (1, 2, 3, 4)]
    source, result = ties.channels(node.input[0]), ties.channels(node.output[0])
    if shape is None or source is None or result is None or parts[0] is None or parts[1] is None:
        return False
    axes = parts[2] or list(range(len(parts[0])))
    steps = parts[3] or [1] * len(parts[0])
    for start, end, axis, step in zip(parts[0], parts[1], axes, steps, strict=True):
        if axis % len(shape) == channel_axis(len(shape)):
            source = source[start:end:step]
    if len(source) != len(result):
        return False
    ties.tie(source, result)
    return True


def _concat(ties: _Ties, node: NodeProto) -> bool:
    shape = ties.types.shape(node.output[0])
    data = ties.graph.data_inputs(node)
    if shape is None or len(data) != len(node.input):
        return False
    parts, result = [ties.channels(name) for name in node.input], ties.channels(node.output[0])
    if result is None or any(p is None for p in parts):
        return False
    known = [p for p in parts if p is not None]
    along = int(attributes(node)["axis"]) % len(shape) == channel_axis(len(shape))
    for source, part in zip(known, _split(result, [len(p) for p in known]) if along else [result] * len(known),
                            strict=True):  # fmt: skip
        ties.tie(source, part)
    return True


def _divide(ties: _Ties, node: NodeProto) -> bool:
    """Split."""
    shape = ties.types.shape(node.input[0])
    source, parts = ties.channels(node.input[0]), [ties.channels(name) for name in node.output]
    if shape is None or source is None or any(p is None for p in parts):
        return False
    known = [p for p in parts if p is not None]
    along = int(attributes(node).get("axis", 0)) % len(shape) == channel_axis(len(shape))
    for result, part in zip(known, _split(source, [len(p) for p in known]) if along else [source] * len(known),
                            strict=True):  # fmt: skip
        ties.tie(part, result)
    return True


def _split(numbers: Array, sizes: list[int]) -> list[Array]:
    return [np.asarray(part) for part in np.split(numbers, np.cumsum(sizes)[:-1])]


def _add(ties: _Ties, node: NodeProto) -> bool:
    data = ties.graph.data_inputs(node)
    if len(data) != 2 or not all(ties.types.same_shape(name, node.output[0]) for name in data):
        return False
    ends = [ties.channels(name) for name in (*data, node.output[0])]
    if any(e is None for e in ends):
        return False
    for end in ends[:2]:
        ties.tie(end, ends[2])  # type: ignore[arg-type]
    return True


def _mul(ties: _Ties, node: NodeProto) -> bool:
    """A product with a gate: the gate keeps its size, the other operand hands its factor on."""
    gates = [n for n in node.input if (p := ties.graph.producer(n)) is not None and p.op_type in _GATES]
    data = ties.graph.data_inputs(node)
    if len(data) != 2 or len(gates) != 1:
        return False
    other = next(name for name in data if name != gates[0])
    source, result = ties.channels(other), ties.channels(node.output[0])
    if source is None or result is None or not ties.types.same_shape(other, node.output[0]):
        return False
    ties.fix(gates[0])
    ties.tie(source, result)
    return True


def _reshape(ties: _Ties, node: NodeProto) -> bool:
    """A change of shape that keeps the axis of channels, alone or last."""
    before, after = ties.types.shape(node.input[0]), ties.types.shape(node.output[0])
    if before is None or after is None:
        return False
    axes = channel_axis(len(before)), channel_axis(len(after))
    if None in axes:
        return False
    last = axes[0] == len(before) - 1 and axes[1] == len(after) - 1
    alone = all(d == 1 for shape, axis in ((before, axes[0]), (after, axes[1])) for i, d in enumerate(shape)
                if i not in {0, axis})  # fmt: skip
    same = before[axes[0]] == after[axes[1]]  # type: ignore[index]
    return same and (last or (alone and before[0] == after[0])) and _same(ties, node)


def _norm(ties: _Ties, node: NodeProto) -> bool:
    """LayerNormalization over the last axis alone: its gain and offset bring a factor in."""
    shape, gain = ties.types.shape(node.output[0]), ties.graph.constant(optional_input(node, 1))
    if shape is None or gain is None or gain.shape != shape[-1:] or channel_axis(len(shape)) != len(shape) - 1:
        return False
    if optional_input(node, 2) and ties.graph.constant(node.input[2]) is None:
        return False
    ties.fix(node.input[0])
    return ties.channels(node.output[0]) is not None


_Rule = Callable[[_Ties, NodeProto], bool]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(_HOMOGENEOUS, _same),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshape),
    "Add": _add,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _layer,
    "Gemm": _layer,
    "LayerNormalization": _norm,
    "Mul": _mul,
    "Pad": _pad,
    "ReduceMean": _mean,
    "Resize": _spatial,
    "Slice": _slice,
    "Split": _divide,
}

"""Channels first, where TensorFlow's channels last left Transpose nodes between convolutions.

Going through the graph once, every value that is the Transpose of another (its twin, channels first) is remembered.
An operator that only reads such values, and does not care about the order of axes, is computed on the twins, and what
it gives has a twin as well; a Transpose back to channels first then has its result already.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from edgebuild.stages.ingest.onnx import normalize

Array = np.ndarray[Any, Any]

_ELEMENTWISE = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Celu", "Clip", "DequantizeLinear", "Div", "Elu", "Equal", "Erf", "Exp", "Floor",
    "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "PRelu", "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Round",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tanh", "ThresholdedRelu", "Where",
})  # fmt: skip
_ALONG_AXIS = frozenset({"Concat", "LogSoftmax", "Softmax", "Split"})
_REDUCTIONS = frozenset({"ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"})


def channels_first(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model`, normalized, with fewer Transpose nodes; the same model where there are none to save."""
    if not _moves(model):
        return model
    turned = _Graph(model).turned()
    return normalize(turned, name) if _moves(turned) < _moves(model) else model


def _moves(model: onnx.ModelProto) -> int:
    return sum(node.op_type in ("Transpose", "Reshape") for node in model.graph.node)


@dataclass
class _Graph:
    """The graph while it is rewritten, node by node."""

    model: onnx.ModelProto
    nodes: list[NodeProto] = field(default_factory=list)
    twins: dict[str, str] = field(default_factory=dict)
    """By the name of a value with channels last: that of the same value with channels first."""

    def __post_init__(self) -> None:
        graph = self.model.graph
        values = (*graph.input, *graph.value_info, *graph.output)
        self.shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.kept = {value.name for value in graph.output}
        self.made: dict[str, Array] = {}

    def turned(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            if not (self._is_back(node) or self._twinned(node) or self._on_twins(node)):
                self.nodes.append(node)
        return self._model()

    def _is_back(self, node: NodeProto) -> bool:
        """A Transpose to channels first of what has a twin: its readers read the twin."""
        perm = _perm(node)
        if perm is None or perm != _to_first(len(perm)) or node.input[0] not in self.twins:
            return False
        twin, out = self.twins[node.input[0]], node.output[0]
        self.nodes.append(helper.make_node("Identity", [twin], [out], name=node.name))
        return True

    def _twinned(self, node: NodeProto) -> bool:
        """A Transpose to channels last, which gives its output a twin; and [N, 1, 1, C], which any layout fits."""
        perm, out = _perm(node), node.output[0]
        if perm is not None and perm == _to_last(len(perm)):
            self.twins[out] = node.input[0]
            self.nodes.append(node)
            return True
        shape = self.shapes.get(out, ())
        if node.op_type != "Reshape" or len(shape) not in (4, 5):
            return False
        source = self._mean_behind(node.input[0])
        if source is not None and all(side == 1 for side in shape[2:]):
            self.nodes.append(source(out))
            return True
        if not _is_pixel(shape):
            return False
        self.nodes.append(node)
        self.twins[out] = f"{out}.first"
        if source is not None:
            self.nodes.append(source(self.twins[out]))
        else:
            target = self._constant(f"{out}.first_shape", np.array([shape[0], shape[-1], *shape[1:-1]], np.int64))
            self.nodes.append(
                helper.make_node("Reshape", [node.input[0], target], [self.twins[out]], name=f"{node.name}.first")
            )
        return True

    def _mean_behind(self, name: str) -> Callable[[str], NodeProto] | None:
        """What makes the reduction that gave `name` keep its axes, if it went over all but batch and channels."""
        maker = next((node for node in reversed(self.nodes) if name in node.output), None)
        if maker is None or maker.op_type not in _REDUCTIONS or _integer(maker, "keepdims", 1):
            return None
        axes, shape = self._value(maker, 1), self._shape_of(maker.input[0])
        if axes is None or shape is None or sorted(a % len(shape) for a in axes) != list(range(2, len(shape))):
            return None
        inputs = list(maker.input)
        return lambda out: helper.make_node(maker.op_type, inputs, [out], name=f"{maker.name}.kept", keepdims=1)

    def _on_twins(self, node: NodeProto) -> bool:
        """Computes the node on its inputs' twins."""
        change = _CHANGES.get(node.op_type)
        joins = node.op_type in _ELEMENTWISE or node.op_type == "Concat"
        if change is None or not any(name in self.twins for name in (node.input if joins else node.input[:1])):
            return False
        first = NodeProto()
        first.CopyFrom(node)
        first.name = f"{node.name}.first"
        has_twins = change(self, node, first)
        if has_twins is None:
            return False
        if not has_twins:
            first.name = node.name
            self.nodes.append(first)
            return True
        first.output[:] = [f"{name}.first" for name in node.output]
        self.nodes.append(first)
        for name, twin in zip(node.output, first.output, strict=True):
            self.twins[name] = twin
            rank = len(self.shapes[name])
            turn = helper.make_node("Transpose", [twin], [name], name=f"{node.name}.last", perm=_to_last(rank))
            self.nodes.append(turn)
        return True

    # Changes of a node into one on twins: whether its outputs have twins, or None where it cannot be done.

    def elementwise(self, node: NodeProto, first: NodeProto) -> bool | None:
        rank = len(self.shapes.get(node.output[0], ()))
        names = [self._twin_of(name, rank) if name else "" for name in node.input]
        if rank < 3 or None in names or (_integer(node, "axis", 1) != 1 and self._is_per_axis(node)):
            return None
        first.input[:] = [name or "" for name in names]
        return True

    def along_axis(self, node: NodeProto, first: NodeProto) -> bool | None:
        rank = len(self.shapes[node.output[0]])
        if self.elementwise_inputs(node, first, 1 if node.op_type != "Concat" else len(node.input)) is None:
            return None
        axis = _integer(node, "axis", -1 if "Softmax" in node.op_type else 0)
        _set(first, "axis", _first_axis(axis, rank))
        return True

    def elementwise_inputs(self, node: NodeProto, first: NodeProto, count: int) -> bool | None:
        """Twins of the first `count` inputs; the others stay."""
        names = [self._twin_of(name, len(self.shapes[node.output[0]])) for name in node.input[:count]]
        if None in names:
            return None
        first.input[:count] = [name or "" for name in names]
        return True

    def reduction(self, node: NodeProto, first: NodeProto) -> bool | None:
        axes, rank = self._value(node, 1), len(self.shapes[node.input[0]])
        if axes is None:
            return None
        moved = [_first_axis(int(axis), rank) for axis in axes]
        kept = bool(_integer(node, "keepdims", 1))
        if not kept and not _in_order(moved, rank):
            return None
        self._use(first, self.twins[node.input[0]], 1, sorted(moved))
        return kept

    def squeeze(self, node: NodeProto, first: NodeProto) -> bool | None:
        axes, rank = self._value(node, 1), len(self.shapes[node.input[0]])
        moved = None if axes is None else [_first_axis(int(axis), rank) for axis in axes]
        if moved is None or not _in_order(moved, rank):
            return None
        self._use(first, self.twins[node.input[0]], 1, sorted(moved))
        return False

    def reshape(self, node: NodeProto, first: NodeProto) -> bool | None:
        """Of [N, 1, 1, C] the order of axes does not matter."""
        if not _is_pixel(self.shapes[node.input[0]]):
            return None
        first.input[0] = self.twins[node.input[0]]
        return False

    def pad(self, node: NodeProto, first: NodeProto) -> bool | None:
        rank, pads = len(self.shapes[node.input[0]]), self._value(node, 1)
        if pads is None or (len(node.input) > 3 and node.input[3]):
            return None
        order = _to_first(rank)
        self._use(first, self.twins[node.input[0]], 1, pads.reshape(2, rank)[:, order].reshape(-1))
        return True

    def slice(self, node: NodeProto, first: NodeProto) -> bool | None:
        rank = len(self.shapes[node.input[0]])
        starts, axes = self._value(node, 1), self._value(node, 3)
        if starts is None or (axes is None and len(node.input) > 3 and node.input[3]):
            return None
        given = range(len(starts)) if axes is None else axes
        moved = np.array([_first_axis(int(axis), rank) for axis in given], np.int64)
        rest = list(node.input[4:])
        first.input[:] = [
            self.twins[node.input[0]], *node.input[1:3], self._constant(f"{node.name}.first_axes", moved), *rest,
        ]  # fmt: skip
        return True

    def resize(self, node: NodeProto, first: NodeProto) -> bool | None:
        rank = len(self.shapes[node.input[0]])
        place = 3 if len(node.input) > 3 and node.input[3] else 2
        sizes = self._value(node, place) if len(node.input) > place else None
        if sizes is None or len(sizes) != rank or any(a.name == "axes" for a in node.attribute):
            return None
        if node.input[1]:
            return None
        self._use(first, self.twins[node.input[0]], place, sizes[list(_to_first(rank))])
        return True

    # What they need.

    def _use(self, first: NodeProto, twin: str, place: int, value: Any) -> None:
        """`first` reads the twin, and `value` as its input `place`."""
        kind = self.constants[first.input[place]].dtype
        first.input[0] = twin
        first.input[place] = self._constant(f"{first.name}.in{place}", np.asarray(value, kind))

    def _twin_of(self, name: str, rank: int) -> str | None:
        """The value with channels first: a twin, a constant turned, a scalar, or [N, 1, 1, C] reshaped."""
        if name in self.twins:
            return self.twins[name]
        value = self.constants.get(name)
        if value is not None:
            if value.size == 1 and value.ndim <= 1:
                return name
            if value.ndim > rank:
                return None
            wide = value.reshape((1,) * (rank - value.ndim) + value.shape)
            return self._constant(f"{name}.first", np.ascontiguousarray(wide.transpose(_to_first(rank))))
        return None

    def _is_per_axis(self, node: NodeProto) -> bool:
        return node.op_type in ("QuantizeLinear", "DequantizeLinear") and self.constants[node.input[1]].size > 1

    def _constant(self, name: str, value: Array) -> str:
        self.made[name] = value
        self.constants[name] = value
        return name

    def _value(self, node: NodeProto, place: int) -> Array | None:
        return self.constants.get(node.input[place]) if len(node.input) > place else None

    def _shape_of(self, name: str) -> tuple[int, ...] | None:
        if name in self.shapes:
            return self.shapes[name]
        last = next((last for last, first in self.twins.items() if first == name), None)
        shape = self.shapes.get(last or "")
        return None if shape is None else tuple(shape[axis] for axis in _to_first(len(shape)))

    def _model(self) -> onnx.ModelProto:
        """Without nodes that nobody needs, and with shapes."""
        found = onnx.ModelProto()
        found.CopyFrom(self.model)
        needed, live = set(self.kept), []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                live.append(node)
        graph = found.graph
        del graph.node[:], graph.value_info[:]
        graph.node.extend(live[::-1])
        graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in self.made.items())
        kept = [tensor for tensor in graph.initializer if tensor.name in needed]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        return found


_CHANGES: dict[str, Callable[[_Graph, NodeProto, NodeProto], bool | None]] = {
    **dict.fromkeys(_ELEMENTWISE, _Graph.elementwise),
    **dict.fromkeys(_ALONG_AXIS, _Graph.along_axis),
    **dict.fromkeys(_REDUCTIONS, _Graph.reduction),
    "Squeeze": _Graph.squeeze,
    "Reshape": _Graph.reshape,
    "Pad": _Graph.pad,
    "Slice": _Graph.slice,
    "Resize": _Graph.resize,
}


def _perm(node: NodeProto) -> tuple[int, ...] | None:
    """A Transpose's permutation of four or five axes."""
    if node.op_type != "Transpose":
        return None
    perm = next((tuple(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), ())
    return perm if len(perm) in (4, 5) else None


def _to_last(rank: int) -> tuple[int, ...]:
    return (0, *range(2, rank), 1)


def _to_first(rank: int) -> tuple[int, ...]:
    return (0, rank - 1, *range(1, rank - 1))


def _first_axis(axis: int, rank: int) -> int:
    """Where an axis of channels last lies with channels first."""
    return _to_first(rank).index(axis % rank)


def _in_order(gone: list[int], rank: int) -> bool:
    """Whether the axes that stay lie in the same order either way."""
    stay = [_to_first(rank)[axis] for axis in range(rank) if axis not in gone]
    return stay == sorted(stay)


def _is_pixel(shape: tuple[int, ...]) -> bool:
    """[N, 1, 1, C]"""
    return len(shape) in (4, 5) and all(side == 1 for side in shape[1:-1])


def _integer(node: NodeProto, name: str, default: int) -> int:
    return int(next((attribute.i for attribute in node.attribute if attribute.name == name), default))


def _set(node: NodeProto, name: str, value: int) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])

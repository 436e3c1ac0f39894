"""float32 (and index) operators of SPEC section 8 → kernel calls. Neighbouring elementwise nodes become one map."""

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgebuild.core.operators import THROUGH_TVM
from edgebuild.kernels.conv import Conv
from edgebuild.kernels.depthwise import is_depthwise
from edgebuild.kernels.float_conv import (
    FloatConv,
    FloatProduct,
    float_conv_kernel,
    float_depthwise_kernel,
    float_product_kernel,
)
from edgebuild.kernels.floats import (
    Map,
    Reduce,
    Resize,
    Tree,
    collapse,
    map_kernel,
    reduce_kernel,
    resize_kernel,
)
from edgebuild.kernels.nest import nest_kernel, products
from edgebuild.kernels.norm import Rows
from edgebuild.kernels.pool import float_pool_kernel
from edgebuild.kernels.rows import (
    Lookup,
    TopK,
    float_norm_kernel,
    lookup_kernel,
    pick_kernel,
    softmax_kernel,
    top_k_kernel,
)
from edgebuild.stages.compile.clusters import reduce_axes
from edgebuild.stages.compile.graph import Graph, Node
from edgebuild.stages.compile.integer import channels_last, four_dims, pool_of, whole_pool
from edgebuild.stages.compile.moves import Mover, expanded, is_move, resize_scales, source_coordinates
from edgebuild.stages.compile.relax import Tensor as ImportedTensor
from edgebuild.stages.compile.relax import imported
from edgebuild.stages.compile.values import Emitter, Value, row_major
from edgebuild.stages.compile.window import window_of

Clip = tuple[float, float] | None  # an activation that is part of the operator before it

_MAX_OPERANDS = 15  # of a map: plan.bin takes 16 arguments, and one of them is the result
_WIDE = 64
_CASTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool"}
_BINARY = {
    "Sum": "add", "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Min": "min", "Max": "max", "Equal": "equal",
    "Less": "less",
    "Greater": "greater", "LessOrEqual": "less_equal", "GreaterOrEqual": "greater_equal", "And": "and", "Or": "or",
}  # fmt: skip
_UNARY = {
    "Neg": "neg", "Abs": "abs", "Sqrt": "sqrt", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Exp": "exp",
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Not": "not", "Log": "log", "Erf": "erf",
}  # fmt: skip
_OTHER = frozenset({
    "Cast", "Celu", "Clip", "DequantizeLinear", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu",
    "Pow", "QuantizeLinear", "Reciprocal", "Relu", "Selu", "Softplus", "Softsign", "Swish", "ThresholdedRelu", "Where",
})  # fmt: skip
ELEMENTWISE = frozenset(_BINARY) | frozenset(_UNARY) | _OTHER
_FORMULAS = {
    "Celu": (3, 3), "DequantizeLinear": (1, 1), "Elu": (3, 3), "Gelu": (4, 5), "HardSigmoid": (4, 1),
    "HardSwish": (4, 2), "LeakyRelu": (2, 3), "Mish": (2, 3), "PRelu": (1, 3), "Pow": (1, 3), "QuantizeLinear": (1, 1),
    "Reciprocal": (1, 1), "Relu": (1, 1), "Selu": (4, 3), "Softplus": (2, 2), "Softsign": (1, 2), "Swish": (1, 2),
    "ThresholdedRelu": (2, 2),
}  # fmt: skip
"""The most constants that an operator's formula brings along, and how often it has its input."""
_MOST_OPERATORS = 64  # of a map, and of a chain that waits for its reader: both are walked by recursion
_MOST_COPIES = 32  # of one expression in a map's tree: nested formulas would double it without end
_REDUCES = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}


@dataclass
class Operands:
    """What a map reads; `reserved`: how many there are at most once all of its operators are in."""

    values: list[Value] = field(default_factory=list)
    reserved: int = 1
    operators: int = 0

    def add(self, value: Value) -> int:
        """The place of a value, which is listed once."""
        if value not in self.values:
            self.values.append(value)
        return self.values.index(value)

    def admits(self, node: Node) -> bool:
        return self.reserved + _further(node) <= _MAX_OPERANDS and self.operators < _MOST_OPERATORS

    def reserve(self, node: Node) -> None:
        self.reserved += _further(node)
        self.operators += 1


def _further(node: Node) -> int:
    """How many operands a map has more when a node takes the place of one."""
    return len(node.inputs) - 1 + _FORMULAS.get(node.op, (0, 1))[0]


@dataclass
class FloatLowering:
    """`value(name)` lowers a tensor on demand (the driver's method); `demands` counts the readers of each tensor;
    `integers` are the tensors that clusters make.
    """

    graph: Graph
    emit: Emitter
    mover: Mover
    value: Callable[[str], Value]
    demands: dict[str, int] = field(default_factory=dict)
    integers: Container[str] = ()
    waiting: dict[str, int] = field(default_factory=dict)
    """How many nodes, one behind the other, wait for the reader of a tensor."""

    def lower(self, node: Node) -> dict[str, Value]:
        """The values of a node's outputs."""
        if node.op in ELEMENTWISE:
            return {node.outputs[0]: self._map(node)}
        if is_move(node):
            return self._move(node)
        if node.op in _SEVERAL:
            return _SEVERAL[node.op](self, node)
        if node.op in _HANDLERS:
            return {node.outputs[0]: _HANDLERS[node.op](self, node)}
        if node.op in THROUGH_TVM:
            return self._imported(node)
        raise node.unsupported("this operator is not supported")

    def waits(self, node: Node) -> bool:
        """Whether a node with one reader is left to that reader: part of its map, or taking its activation in."""
        readers = self.graph.consumers.get(node.outputs[0], [])
        clipped = len(readers) == 1 and self._clipped_layer(readers[0]) is node
        length = 1 + max((self.waiting.get(name, 0) for name in node.inputs), default=0)
        if not clipped and (node.op not in ELEMENTWISE or length > _MOST_OPERATORS):
            return False
        self.waiting[node.outputs[0]] = length
        return True

    def _clipped_layer(self, node: Node) -> Node | None:
        """The Conv, Gemm or MatMul that a Relu or Clip becomes part of."""
        layer = self.graph.producers.get(node.inputs[0]) if node.op in ("Relu", "Clip") else None
        if layer is None or layer.op not in _LAYERS or self.demands.get(node.inputs[0]) != 1:
            return None
        if node.inputs[0] in self.integers:
            return None
        if layer.op == "Gemm" and not self._is_plain(layer):
            return None
        bounds = [self.graph.constant(i) for i in node.inputs[1:] if i]
        return layer if all(v is not None and v.size == 1 for v in bounds) else None

    def _clip(self, node: Node) -> tuple[float, float]:
        """The bounds of a Relu or Clip with constant ones."""
        if node.op == "Relu":
            return 0.0, math.inf
        bounds = [self.graph.constant(node.input(i)) if node.input(i) else None for i in (1, 2)]
        low, high = (None if v is None else float(v.reshape(())) for v in bounds)
        return (-math.inf if low is None else low), (math.inf if high is None else high)

    def supports(self, node: Node) -> bool:
        own = node.op in ELEMENTWISE or is_move(node) or node.op in _HANDLERS or node.op in _SEVERAL
        return own or node.op in THROUGH_TVM

    def _imported(self, node: Node) -> dict[str, Value]:
        """An operator without a kernel of ours, as TVM's loops."""
        made = imported(self.graph, node)
        values = [self._operand(node, i, tensor, i in made.outputs) for i, tensor in enumerate(made.tensors)]
        for nest, numbers in made.calls:
            operands = [values[i] for i in numbers]
            *also, output = operands[nest.read :]
            macs = products(nest.loops)
            self.emit.call("tvm", node.name, nest_kernel, nest, operands[: nest.read], output, macs=macs, also=also)
        return dict(zip(filter(None, node.outputs), (values[i] for i in made.outputs), strict=True))

    def _operand(self, node: Node, index: int, tensor: ImportedTensor, is_output: bool) -> Value:
        name = f"{node.outputs[0]}:{index}"
        if tensor.data is not None:
            return self.emit.constant(name, tensor.data)
        if not tensor.source:
            shape = tensor.shape if is_output else (math.prod(tensor.shape),)
            return self.emit.tensor(name, tensor.dtype, shape)
        value = self.value(tensor.source)
        return self.mover.ordered(value, row_major(len(value.shape)), node.name)

    # elementwise

    def _map(self, node: Node) -> Value:
        layer = self._clipped_layer(node)
        if layer is not None:
            return _LAYERS[layer.op](self, layer, self._clip(node))
        name = node.outputs[0]
        shape = self.graph.shape(name)
        found = Operands()
        if not found.admits(node):
            raise node.unsupported(f"more than {_MAX_OPERANDS} inputs")
        tree = self._tree(name, shape, found, root=True)
        return self._mapped(node.name, name, shape, tree, found.values)

    def _mapped(self, label: str, name: str, shape: tuple[int, ...], tree: Tree, operands: list[Value]) -> Value:
        """A new tensor `name`, made by the call `label` of a map."""
        order = self._order(shape, operands)
        out = self.emit.tensor(name, _tree_dtype(tree), shape, order)
        walks = [_broadcast_strides(v, shape, order) for v in operands]
        dims, strides = collapse(out.memory_shape, [*walks, [out.strides[a] for a in order]])
        inner = dims[-1]
        dims, strides = self._widened(name, dims, strides, operands)
        period = inner if dims[-1] != inner else 0
        pairs = tuple((v.dtype, s) for v, s in zip(operands, strides, strict=False))
        self.emit.call("map", label, map_kernel, Map(dims, out.dtype, pairs, tree, period), operands, out)
        return out

    def _widened(
        self, name: str, dims: tuple[int, ...], strides: list[tuple[int, ...]], operands: list[Value]
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """Repeat small constants (a mean for each of 3 channels) along the pixels, so that the inner loop fills
        vectors.
        """
        if len(dims) != 2 or dims[1] >= _WIDE or any(s not in ((dims[1], 1), (0, 1), (0, 0)) for s in strides):
            return dims, strides
        repeats = max((f for f in range(1, min(dims[0], 4 * _WIDE // dims[1]) + 1) if dims[0] % f == 0), default=1)
        inner = dims[1] * repeats
        for i, operand in enumerate(operands):
            data = self.emit.storages[operand.storage].data
            if strides[i] != (0, 1):
                continue
            if data is None:
                return dims, strides
            operands[i] = self.emit.constant(f"{name}:{i}", np.tile(data.reshape(-1), repeats))
        return (dims[0] // repeats, inner), [(inner, 1) if s == (dims[1], 1) else s for s in strides]

    def _tree(
        self, name: str, shape: tuple[int, ...], operands: Operands, *, copies: int = 1, root: bool = False
    ) -> Tree:
        node = self.graph.producers.get(name)
        inline = root or (
            node is not None
            and node.op in ELEMENTWISE
            and name not in self.integers
            and self.graph.constant(name) is None
            and self.demands.get(name, 0) == 1
            and name in self.waiting
            and self._clipped_layer(node) is None
            and self.graph.shape(name) == shape
            and operands.admits(node)
            and copies <= _MOST_COPIES
        )
        if node is None or not inline:
            value = self.value(name)
            return ("load", operands.add(value), value.dtype)
        operands.reserve(node)
        inner = copies * _FORMULAS.get(node.op, (0, 1))[1]

        def child(i: int) -> Tree:
            return self._tree(node.inputs[i], shape, operands, copies=inner)

        return self._operator(node, child, operands)

    def _operator(self, node: Node, child: Callable[[int], Tree], operands: Operands) -> Tree:
        dtype = self.graph.dtype(node.outputs[0])

        def number(value: float) -> Tree:
            return self._number(node, value, operands)

        if node.op in _BINARY:
            tree = child(0)
            for i in range(1, len(node.inputs)):
                tree = (_BINARY[node.op], dtype, tree, child(i))
            return tree
        if node.op in _UNARY:
            return (_UNARY[node.op], dtype, child(0))
        if node.op in ("QuantizeLinear", "DequantizeLinear"):
            return self._converted(node, dtype, child, number)
        if node.op == "Cast":
            return _cast(node, dtype, child(0))
        if node.op == "Pow":
            return self._power(node, child, number)
        if node.op == "Where":
            return ("where", dtype, child(0), child(1), child(2))
        if node.op in ("Clip", "Relu"):
            return _clipped(node, dtype, child, number)
        self._check_float(node)
        return _ACTIVATIONS[node.op](node, child, number)

    def _converted(self, node: Node, dtype: str, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
        self.graph.quant(node)
        kind = "quantize" if node.op == "QuantizeLinear" else "dequantize"
        zero = child(2) if node.input(2) else ("cast", "uint8", number(0.0))
        return (kind, dtype, child(0), child(1), zero)

    def _power(self, node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
        """SPEC section 8, pow: the exponent is part of the structure."""
        self._check_float(node)
        exponent = self.graph.constant(node.inputs[1])
        if exponent is None or exponent.size != 1:
            raise node.unsupported("the exponent must be one constant number")
        e, x = float(exponent.reshape(())), child(0)
        if abs(e) not in (0.5, 1.0, 2.0, 3.0):
            raise node.unsupported(f"exponent {e:g}; supported are ±0.5, ±1, ±2 and ±3")
        if abs(e) == 0.5:
            tree: Tree = ("sqrt", "float32", x)
        else:
            tree = x
            for _ in range(int(abs(e)) - 1):
                tree = ("mul", "float32", tree, x)
        return tree if e > 0 else ("div", "float32", number(1.0), tree)

    def _number(self, node: Node, value: float, operands: Operands) -> Tree:
        constant = self.emit.constant(f"{node.name}:{len(operands.values)}", np.array(value, np.float32))
        return ("load", operands.add(constant), "float32")

    def _order(self, shape: tuple[int, ...], operands: Sequence[Value]) -> tuple[int, ...]:
        """Memory order of a map's output: that of its largest operand, so that this one is read in one go."""
        full = [v for v in operands if v.shape == shape]
        return full[0].order if full else row_major(len(shape))

    # everything else

    def _move(self, node: Node) -> dict[str, Value]:
        if node.op == "Gather" and self.graph.constant(node.inputs[1]) is None:
            return {node.outputs[0]: self._lookup(node)}
        value = self.value(node.inputs[0])
        fill = self.graph.need_constant(node, 2) if node.op == "Pad" and node.input(2) else None
        return self.mover.move(node, value, np.zeros(1, np.float32) if fill is None else fill)

    def _concat(self, node: Node) -> Value:
        name = node.outputs[0]
        shape = self.graph.shape(name)
        axis = int(node.attrs["axis"]) % len(shape)
        values = [self.value(i) for i in node.inputs]
        out = self.emit.tensor(name, values[0].dtype, shape, values[0].order)
        place = 0
        for i, value in enumerate(values):
            into = [place if a == axis else 0 for a in range(len(shape))]
            self.mover.copy("concat", f"{node.name}:{i}", value, out, into=into)
            place += value.shape[axis]
        return out

    def _reduce(self, node: Node) -> Value:
        axes = reduce_axes(self.graph, node)
        if node.op == "ReduceMean":
            self._check_float(node)
        return self._reduced(node, _REDUCES[node.op], axes) if axes else self.value(node.inputs[0])

    def _argmax(self, node: Node) -> Value:
        rank = len(self.graph.shape(node.inputs[0]))
        kind = "argmax_last" if node.attrs.get("select_last_index", 0) else "argmax"
        return self._reduced(node, kind, [int(node.attrs.get("axis", 0)) % rank])

    def _reduced(self, node: Node, kind: str, axes: list[int]) -> Value:
        x, name = self.value(node.inputs[0]), node.outputs[0]
        return self._along(node.name, name, kind, x, axes, self.graph.shape(name), self.graph.dtype(name))

    def _along(
        self, label: str, name: str, kind: str, x: Value, axes: Sequence[int], shape: Sequence[int], dtype: str
    ) -> Value:
        """A reduction of `x` over `axes`, into a new tensor `name`."""
        kept_axes = [a for a in x.order if a not in axes]
        keep = len(shape) == len(x.shape)
        renamed = {a: a if keep else sum(b not in axes for b in range(a)) for a in kept_axes}
        ones = [a for a in axes if keep]
        order = (*ones, *(renamed[a] for a in kept_axes))
        kept = tuple((x.shape[a], x.strides[a]) for a in kept_axes if x.shape[a] > 1)
        reduced = tuple((x.shape[a], x.strides[a]) for a in axes)
        out = self.emit.tensor(name, dtype, shape, order)
        spec = Reduce(kind, "uint8" if x.dtype == "bool" else x.dtype, kept, reduced)
        self.emit.call("reduce", label, reduce_kernel, spec, [x], out)
        return out

    def _softmax(self, node: Node) -> Value:
        x = self.value(node.inputs[0])
        axis = int(node.attrs.get("axis", -1)) % len(x.shape)
        x = self.mover.ordered(x, [*(a for a in x.order if a != axis), axis], node.name)
        spec = Rows(x.size // x.shape[axis], x.shape[axis])
        out = self.emit.tensor(node.outputs[0], "float32", x.shape, x.order)
        self.emit.call("softmax", node.name, softmax_kernel, spec, [x], out, log=node.op == "LogSoftmax")
        return out

    def _layer_norm(self, node: Node) -> dict[str, Value]:
        x, rank = self.value(node.inputs[0]), len(self.graph.shape(node.inputs[0]))
        axis = int(node.attrs.get("axis", -1)) % rank
        further = self._deviation(node, x, axis)
        x = self.mover.ordered(x, [*(a for a in x.order if a < axis), *range(axis, rank)], node.name)
        shape, size = x.shape[axis:], int(np.prod(x.shape[axis:]))
        operands = [x]
        for i, part in ((1, "gain"), (2, "offset")):
            value = self.graph.need_constant(node, i) if node.input(i) else np.zeros((), np.float32)
            operands.append(self.emit.constant(f"{node.name}:{part}", np.broadcast_to(value, shape).reshape(-1)))
        epsilon = np.array([node.attrs.get("epsilon", 1e-5)], np.float32)
        operands.append(self.emit.constant(f"{node.name}:epsilon", epsilon))
        out = self.emit.tensor(node.outputs[0], "float32", x.shape, x.order)
        self.emit.call("layer_norm", node.name, float_norm_kernel, Rows(x.size // size, size), operands, out)
        return {node.outputs[0]: out, **further}

    def _deviation(self, node: Node, x: Value, axis: int) -> dict[str, Value]:
        """Mean and 1 / deviation of a LayerNormalization, where they are asked for (SPEC section 8)."""
        names = [name if self.demands.get(name) else "" for name in (*node.outputs[1:], "", "")][:2]
        if not any(names):
            return {}
        axes, shape = range(axis, len(x.shape)), (*x.shape[:axis], *[1] * (len(x.shape) - axis))

        def mean(stem: str, value: Value) -> Value:
            return self._along(node.name, stem, "mean", value, axes, shape, "float32")

        average = mean(f"{node.name}:mean", x)
        apart: Tree = ("sub", "float32", ("load", 0, "float32"), ("load", 1, "float32"))
        squares = self._mapped(
            node.name, f"{node.name}:squares", x.shape, ("mul", "float32", apart, apart), [x, average]
        )
        numbers = np.array([1.0], np.float32), np.array([node.attrs.get("epsilon", 1e-5)], np.float32)
        one, epsilon = (self.emit.constant(f"{node.name}:number{i}", n) for i, n in enumerate(numbers))
        root: Tree = ("sqrt", "float32", ("add", "float32", ("load", 0, "float32"), ("load", 1, "float32")))
        inverse = ("div", "float32", ("load", 2, "float32"), root)
        variance = mean(f"{node.name}:variance", squares)
        deviation = self._mapped(node.name, f"{node.name}:inverse", shape, inverse, [variance, epsilon, one])
        return {name: value for name, value in zip(names, (average, deviation), strict=True) if name}

    def _top_k(self, node: Node) -> dict[str, Value]:
        x, count = self.value(node.inputs[0]), int(self.graph.need_constant(node, 1).reshape(()))
        axis = int(node.attrs.get("axis", -1)) % len(x.shape)
        if x.dtype != "float32" or count > x.shape[axis]:
            raise node.unsupported(f"the first {count} of {x.shape[axis]} of {x.dtype}; float32 is supported")
        order = [*(a for a in x.order if a != axis), axis]
        x = self.mover.ordered(x, order, node.name)
        shape = [count if a == axis else n for a, n in enumerate(x.shape)]
        spec = TopK(x.size // x.shape[axis], x.shape[axis], count, bool(node.attrs.get("largest", 1)))
        values, index = (self.emit.tensor(n or f"{node.name}:{dtype}", dtype, shape, order)
                         for n, dtype in zip(node.outputs, ("float32", "int64"), strict=True))  # fmt: skip
        self.emit.call("top_k", node.name, top_k_kernel, spec, [x], index)
        self.emit.call("top_k", node.name, pick_kernel, spec, [x, index], values)
        return dict(zip(node.outputs, (values, index), strict=True))

    def _lookup(self, node: Node) -> Value:
        """Gather with indices that are computed at run time."""
        axis = int(node.attrs.get("axis", 0)) % len(self.graph.shape(node.inputs[0]))
        x, index = (self._row_major(self.value(i), node) for i in node.inputs)
        outer, inner = int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis + 1 :]))
        spec = Lookup(x.dtype if x.dtype != "bool" else "uint8", index.dtype, outer, x.shape[axis], index.size, inner)
        out = self.emit.tensor(node.outputs[0], x.dtype, self.graph.shape(node.outputs[0]))
        self.emit.call("lookup", node.name, lookup_kernel, spec, [x, index], out)
        return out

    def _resize(self, node: Node) -> Value:
        if node.text("mode", "nearest") not in ("linear", "cubic"):
            raise node.unsupported(f"mode {node.text('mode', 'nearest')}")
        self._check_float(node)
        value, shape = self.value(node.inputs[0]), self.graph.shape(node.outputs[0])
        scales = resize_scales(self.graph, node, value.shape, shape)
        for axis in reversed(range(len(shape))):
            if value.shape[axis] != shape[axis]:
                value = self._resize_axis(node, value, axis, shape[axis], scales[axis])
        return value

    def _resize_axis(self, node: Node, x: Value, axis: int, count: int, scale: float) -> Value:
        starts, weights = resize_taps(node, x.shape[axis], count, scale)
        name = f"{node.outputs[0]}:{axis}"
        place, memory = x.order.index(axis), x.memory_shape
        outer, inner = int(np.prod(memory[:place])), int(np.prod(memory[place + 1 :]))
        spec = Resize(outer, x.shape[axis], count, inner, weights.shape[1])
        shape = tuple(count if a == axis else s for a, s in enumerate(x.shape))
        out = self.emit.tensor(name, "float32", shape, x.order)
        inputs = [x, self.emit.constant(f"{name}:start", starts), self.emit.constant(f"{name}:weights", weights)]
        self.emit.call("resize", node.name, resize_kernel, spec, inputs, out)
        return out

    def _matmul(self, node: Node, clip: Clip = None) -> Value:
        self._check_float(node)
        if min(len(self.graph.shape(name)) for name in node.inputs) < 2:
            return self._vectors(node, clip)
        shape, weights = self.graph.shape(node.outputs[0]), self._constant(node.inputs[1])
        if weights is not None and weights.ndim == 2:
            a = self._row_major(self.value(node.inputs[0]), node)
            return self._dense(node, a, weights.T, None, shape, clip)
        a, b = (self._row_major(self.value(i), node) for i in node.inputs[:2])
        return self._matrices(node, a, b, shape, clip)

    def _vectors(self, node: Node, clip: Clip) -> Value:
        """A vector on the left is a row, on the right a column."""
        a, b = (self._row_major(self.value(i), node) for i in node.inputs[:2])
        shape = self.graph.shape(node.outputs[0])
        left, right = len(a.shape) == 1, len(b.shape) == 1
        a = a.seen((1, *a.shape), row_major(2)) if left else a
        b = b.seen((*b.shape, 1), row_major(2)) if right else b
        lead = shape[: len(shape) - 2 + left + right]
        made = self._matrices(node, a, b, (*lead, a.shape[-2], b.shape[-1]), clip)
        return made.seen(shape, row_major(len(shape)))

    def _matrices(self, node: Node, a: Value, b: Value, shape: tuple[int, ...], clip: Clip) -> Value:
        rows, depth, columns = a.shape[-2], a.shape[-1], b.shape[-1]
        if b.size == depth * columns:
            spec = FloatProduct(1, a.size // depth, depth, columns, shared=True, clip=clip is not None)
        else:
            a, b = (self._spread(node, v, (*shape[:-2], *v.shape[-2:])) for v in (a, b))
            spec = FloatProduct(a.size // (rows * depth), rows, depth, columns, shared=False, clip=clip is not None)
        return self._product(node, spec, [a, b], shape, clip)

    def _product(
        self, node: Node, spec: FloatProduct, operands: list[Value], shape: Sequence[int], clip: Clip
    ) -> Value:
        out = self.emit.tensor(node.outputs[0], "float32", shape)
        macs = operands[0].size * spec.columns
        operands = [*operands, *self._bounds(node, clip)]
        self.emit.call("matmul", node.name, float_product_kernel, spec, operands, out, macs=macs)
        return out

    def _dense(
        self, node: Node, a: Value, weights: np.ndarray, bias: np.ndarray | None, shape: Sequence[int], clip: Clip
    ) -> Value:
        """Weights [N, K], row-major `a` [..., K]."""
        outputs, depth = weights.shape
        rows = a.size // depth
        conv = Conv(1, rows, 1, depth, rows, 1, outputs)
        out = self.emit.tensor(node.outputs[0], "float32", shape)
        self._weighted("matmul", node, conv, a, weights[:, None, None, :], bias, out, clip)
        return out

    def _bounds(self, node: Node, clip: Clip) -> list[Value]:
        return [] if clip is None else [self.emit.constant(f"{node.name}:clip", np.array(clip, np.float32))]

    def _spread(self, node: Node, value: Value, shape: tuple[int, ...]) -> Value:
        return value if value.shape == shape else expanded(self.mover, f"{node.name}:batch", value, shape)

    def _gemm(self, node: Node, clip: Clip = None) -> Value:
        self._check_float(node)
        if not self._is_plain(node):
            return self._scaled_gemm(node)
        shape = self.graph.shape(node.outputs[0])
        bias = self._constant(node.inputs[2]) if node.input(2) else None
        if self._constant(node.inputs[1]) is not None and (bias is not None or not node.input(2)):
            vector = None if bias is None else np.broadcast_to(bias.reshape(-1), shape[1:])
            return self._gemm_of(node, vector, clip)
        added = self._spread(node, self._flat(self.value(node.inputs[2]), node), shape[1:]) if node.input(2) else None
        return self._gemm_of(node, added, clip)

    def _is_plain(self, node: Node) -> bool:
        """Whether a Gemm is a product that starts at one value a column."""
        shape = self.graph.shape(node.input(2)) if node.input(2) else ()
        plain = node.attrs.get("alpha", 1.0) == 1.0 and (not node.input(2) or node.attrs.get("beta", 1.0) == 1.0)
        return plain and math.prod(shape[:-1]) == 1

    def _scaled_gemm(self, node: Node) -> Value:
        """α and β, or a C with more than one row: SPEC section 8 has them behind the product."""
        shape, name = self.graph.shape(node.outputs[0]), node.outputs[0]
        operands = Operands([self._gemm_of(node, None, None)])

        def scaled(tree: Tree, attribute: str) -> Tree:
            factor = float(node.attrs.get(attribute, 1.0))
            return tree if factor == 1.0 else ("mul", "float32", tree, self._number(node, factor, operands))

        tree = scaled(("load", 0, "float32"), "alpha")
        if node.input(2):
            added = scaled(("load", operands.add(self.value(node.inputs[2])), "float32"), "beta")
            tree = ("add", "float32", tree, added)
        return self._mapped(node.name, name, shape, tree, operands.values)

    def _gemm_of(self, node: Node, start: "np.ndarray | Value | None", clip: Clip) -> Value:
        """The product of a Gemm, which starts at one value a column, or at 0."""
        a, b, shape = self.value(node.inputs[0]), node.inputs[1], self.graph.shape(node.outputs[0])
        a = self._row_major(_turned(a) if node.attrs.get("transA", 0) else a, node)
        weights = self._constant(b)
        if weights is not None and not isinstance(start, Value):
            return self._dense(node, a, weights if node.attrs.get("transB", 0) else weights.T, start, shape, clip)
        right = _turned(self.value(b)) if node.attrs.get("transB", 0) else self.value(b)
        operands = [a, self._row_major(right, node), *([start] if isinstance(start, Value) else [])]
        spec = FloatProduct(1, shape[0], a.shape[1], shape[1], True, len(operands) > 2, clip is not None)
        return self._product(node, spec, operands, shape, clip)

    def _flat(self, value: Value, node: Node) -> Value:
        """A value of one row as a vector."""
        return self._row_major(value, node).seen((value.size,), (0,))

    def _conv(self, node: Node, clip: Clip = None) -> Value:
        self._check_float(node)
        x, shape = self.value(node.inputs[0]), self.graph.shape(node.outputs[0])
        rank = len(shape)
        weights = self._constant(node.inputs[1])
        bias = self._constant(node.inputs[2]) if node.input(2) else None
        if rank not in (3, 4) or weights is None or (node.input(2) and bias is None):
            raise node.unsupported("only one or two dimensions with constant weights and bias")
        window, groups = window_of(self.graph, node), int(node.attrs.get("group", 1))
        x = self.mover.ordered(x, channels_last(rank), node.name)
        (n, c, h, w), (_, o, oh, ow) = four_dims(x.shape), four_dims(shape)
        conv = Conv(n, h, w, c, oh, ow, o, window.kernel, window.stride, window.before, window.dilation, groups)
        out = self.emit.tensor(node.outputs[0], "float32", shape, channels_last(rank))
        weights = weights.reshape(o, c // groups, *window.kernel).transpose(0, 2, 3, 1)
        self._weighted("conv", node, conv, x, weights, bias, out, clip)
        return out

    def _weighted(
        self,
        kind: str,
        node: Node,
        conv: Conv,
        x: Value,
        weights: np.ndarray,
        bias: np.ndarray | None,
        out: Value,
        clip: Clip,
    ) -> None:
        """`weights` [O, kh, kw, I/groups]; the sum starts at the bias plus 0, which is never −0."""
        spec, isa = FloatConv(conv, clip is not None), self.emit.isa
        start = np.zeros(conv.out_channels, np.float32) if bias is None else bias.astype(np.float32) + np.float32(0)
        weights = weights.astype(np.float32)
        make = float_conv_kernel
        if is_depthwise(conv):
            make, kind = float_depthwise_kernel, "depthwise"
            packed = [np.ascontiguousarray(weights[..., 0].transpose(1, 2, 0)), start]
        else:
            packed = [spec.pack_weights(weights, isa), spec.pack_channels(start, isa)]
        constants = [self.emit.constant(f"{node.name}:{part}", array.reshape(-1))
                     for part, array in zip(("weights", "bias"), packed, strict=True)]  # fmt: skip
        self.emit.call(kind, node.name, make, spec, [x, *constants, *self._bounds(node, clip)], out, macs=conv.macs)

    def _constant(self, name: str) -> np.ndarray | None:
        """A constant, dequantized where it is stored as integers; None where it is computed at run time."""
        value, dq = self.graph.constant(name), self.graph.producers.get(name)
        if value is None and dq is not None and dq.op == "DequantizeLinear":
            return None if self.graph.constant(dq.inputs[0]) is None else dequantized(self.graph, dq)
        return value

    def _pool(self, node: Node) -> Value:
        x, shape = self.value(node.inputs[0]), self.graph.shape(node.outputs[0])
        if any(node.outputs[1:]):
            raise node.unsupported("indices as a second output")
        if len(shape) not in (3, 4):
            raise node.unsupported(f"{len(shape) - 2} spatial dimensions; 1 and 2 are supported")
        self._check_float(node)
        x = self.mover.ordered(x, channels_last(len(shape)), node.name)
        kind = "max" if node.op.endswith("MaxPool") else "average"
        pool = whole_pool(x.shape)
        counts = np.full((1, 1), float(pool.height * pool.width))
        if not node.op.startswith("Global"):
            window = window_of(self.graph, node)
            pool = pool_of(window, x.shape, shape)
            counts = window.counts((pool.height, pool.width), (pool.out_height, pool.out_width))
        operands = [x]
        if kind == "average":
            operands.append(self.emit.constant(f"{node.name}:count", counts.astype(np.float32).reshape(-1)))
        out = self.emit.tensor(node.outputs[0], "float32", shape, channels_last(len(shape)))
        self.emit.call(f"{kind}_pool", node.name, float_pool_kernel, pool, operands, out, reduction=kind)
        return out

    def _check_float(self, node: Node) -> None:
        """Raises ModelError for an operator that is defined on float32 only (SPEC section 8) and reads another type."""
        dtype = self.graph.dtype(node.inputs[0])
        if dtype != "float32":
            raise node.unsupported(f"on {dtype}; float32 is supported")

    def _row_major(self, value: Value, node: Node) -> Value:
        return self.mover.ordered(value, row_major(len(value.shape)), node.name)


def dequantized(graph: Graph, dq: Node) -> np.ndarray:
    """float32 values of a quantized constant: one float32 multiplication each."""
    q, scale = graph.need_constant(dq, 0), graph.need_constant(dq, 1).astype(np.float32)
    zero = graph.need_constant(dq, 2) if dq.input(2) else np.zeros((), q.dtype)
    if scale.size > 1:
        shape = [1] * q.ndim
        shape[int(dq.attrs.get("axis", 1)) % q.ndim] = scale.size
        scale, zero = scale.reshape(shape), np.broadcast_to(zero, (scale.size,)).reshape(shape)
    return np.asarray((q.astype(np.int32) - zero.astype(np.int32)).astype(np.float32) * scale)


def resize_taps(node: Node, size: int, count: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """SPEC section 8.1: (start int32 [count], weights float32 [count, taps])."""
    centers = source_coordinates(node, size, count, scale)
    shrunk = scale if node.attrs.get("antialias", 0) and scale < 1 else 1.0
    outside = bool(node.attrs.get("exclude_outside", 0))
    if node.text("mode", "") == "cubic":
        a = float(node.attrs.get("cubic_coeff_a", -0.75))
        rows = [_filtered(c, size, shrunk, 2.0, outside, lambda d: _cubic(d, a)) for c in centers]
    elif shrunk < 1:
        rows = [_filtered(c, size, shrunk, 1.0, outside, lambda d: 1.0 - d) for c in centers]
    else:
        rows = [_two_taps(c, size) for c in centers]
    taps = max(len(w) for _, w in rows)
    starts, weights = np.zeros(count, np.int32), np.zeros((count, taps))
    for j, (start, row) in enumerate(rows):
        shift = max(0, start + taps - size)
        starts[j] = start - shift
        weights[j, shift : shift + len(row)] = row
    return starts, weights.astype(np.float32)


def _two_taps(center: float, size: int) -> tuple[int, list[float]]:
    c = min(max(center, 0.0), size - 1.0)
    i = int(np.floor(c))
    f = c - i
    return (i, [1.0 - f, f]) if i + 1 < size else (i, [1.0])


def _filtered(
    center: float, size: int, scale: float, reach: float, outside: bool, weight: Callable[[float], float]
) -> tuple[int, list[float]]:
    """Taps closer than reach / scale; those outside of the input are left out (`outside`), or moved to its end."""
    support = reach / scale
    near = [t for t in range(math.floor(center - support), math.ceil(center + support) + 1)
            if abs(t - center) < support and (not outside or 0 <= t < size)]  # fmt: skip
    if not near:
        return min(max(round(center), 0), size - 1), [1.0]
    weights = [weight(abs(t - center) * scale) for t in near]
    if scale < 1 or outside:
        total = sum(weights)
        weights = [w / total for w in weights]
    places = [min(max(t, 0), size - 1) for t in near]
    row = [0.0] * (places[-1] - places[0] + 1)
    for place, w in zip(places, weights, strict=True):
        row[place - places[0]] += w
    return places[0], row


def _cubic(d: float, a: float) -> float:
    """Keys' kernel at distance d < 2."""
    if d < 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((d - 5) * d + 8) * d * a - 4 * a


def _turned(value: Value) -> Value:
    return value.seen(value.shape[::-1], [1 - a for a in value.order])


def _broadcast_strides(value: Value, shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """Strides of an operand along the output's memory dimensions, 0 where it is broadcast."""
    lead = len(shape) - len(value.shape)
    logical = [0] * lead + [0 if s == 1 else t for s, t in zip(value.shape, value.strides, strict=True)]
    return [logical[a] for a in order]


def _tree_dtype(tree: Tree) -> str:
    return str(tree[2] if tree[0] == "load" else tree[1])


def _cast(node: Node, dtype: str, source: Tree) -> Tree:
    if int(node.attrs["to"]) not in _CASTS:
        raise node.unsupported("cast to this type")
    return source if _tree_dtype(source) == dtype else ("cast", dtype, source)


def _clipped(node: Node, dtype: str, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    """Relu and Clip, on any type."""
    tree = child(0)
    if node.op == "Relu":
        return ("max", dtype, tree, number(0.0) if dtype == "float32" else ("cast", dtype, number(0.0)))
    if node.input(1):
        tree = ("max", dtype, tree, child(1))
    return ("min", dtype, tree, child(2)) if node.input(2) else tree


def _leaky(node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    scaled = ("mul", "float32", x, number(float(node.attrs.get("alpha", 0.01))))
    return ("where", "float32", ("less", "bool", x, number(0.0)), scaled, x)


def _hard(x: Tree, alpha: float, beta: float, number: Callable[[float], Tree]) -> Tree:
    line = ("add", "float32", ("mul", "float32", x, number(alpha)), number(beta))
    return ("min", "float32", ("max", "float32", line, number(0.0)), number(1.0))


def _hard_swish(_: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    return ("mul", "float32", x, _hard(x, 1.0 / 6.0, 0.5, number))


def _where_negative(x: Tree, yes: Tree, number: Callable[[float], Tree]) -> Tree:
    return ("where", "float32", ("less", "bool", x, number(0.0)), yes, x)


def _minus_one(x: Tree, number: Callable[[float], Tree]) -> Tree:
    """exp(x) − 1."""
    return ("sub", "float32", ("exp", "float32", x), number(1.0))


def _elu(node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    alpha = number(float(node.attrs.get("alpha", 1.0)))
    return _where_negative(x, ("mul", "float32", alpha, _minus_one(x, number)), number)


def _selu(node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    alpha = number(float(node.attrs.get("alpha", 1.67326319217681884765625)))
    inner = _where_negative(x, ("mul", "float32", alpha, _minus_one(x, number)), number)
    return ("mul", "float32", number(float(node.attrs.get("gamma", 1.05070102214813232421875))), inner)


def _celu(node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    alpha = number(float(node.attrs.get("alpha", 1.0)))
    inner = _minus_one(("div", "float32", x, alpha), number)
    return _where_negative(x, ("mul", "float32", alpha, inner), number)


def _softplus(x: Tree, number: Callable[[float], Tree]) -> Tree:
    power = ("exp", "float32", ("neg", "float32", ("abs", "float32", x)))
    rest = ("log", "float32", ("add", "float32", number(1.0), power))
    return ("add", "float32", ("max", "float32", x, number(0.0)), rest)


def _mish(_: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    return ("mul", "float32", x, ("tanh", "float32", _softplus(x, number)))


def _swish(node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    scaled = ("mul", "float32", x, number(float(node.attrs.get("alpha", 1.0))))
    return ("mul", "float32", x, ("sigmoid", "float32", scaled))


def _gelu(node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    half = ("mul", "float32", x, number(0.5))
    if node.text("approximate", "none") == "tanh":
        cube = ("mul", "float32", ("mul", "float32", x, x), x)
        inner = ("add", "float32", x, ("mul", "float32", cube, number(0.044715)))
        bend: Tree = ("tanh", "float32", ("mul", "float32", inner, number(0.7978845608)))
    else:
        bend = ("erf", "float32", ("mul", "float32", x, number(0.7071067812)))
    return ("mul", "float32", half, ("add", "float32", bend, number(1.0)))


def _softsign(_: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    return ("div", "float32", x, ("add", "float32", ("abs", "float32", x), number(1.0)))


def _thresholded(node: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x, least = child(0), number(float(node.attrs.get("alpha", 1.0)))
    return ("where", "float32", ("greater", "bool", x, least), x, number(0.0))


def _prelu(_: Node, child: Callable[[int], Tree], number: Callable[[float], Tree]) -> Tree:
    x = child(0)
    return _where_negative(x, ("mul", "float32", x, child(1)), number)


_ACTIVATIONS: dict[str, Callable[[Node, Callable[[int], Tree], Callable[[float], Tree]], Tree]] = {
    "LeakyRelu": _leaky,
    "HardSigmoid": lambda n, child, number: _hard(
        child(0), float(n.attrs.get("alpha", 0.2)), float(n.attrs.get("beta", 0.5)), number
    ),
    "HardSwish": _hard_swish,
    "Celu": _celu,
    "Elu": _elu,
    "Gelu": _gelu,
    "Mish": _mish,
    "PRelu": _prelu,
    "Selu": _selu,
    "Softplus": lambda _, child, number: _softplus(child(0), number),
    "Softsign": _softsign,
    "Swish": _swish,
    "ThresholdedRelu": _thresholded,
    "Reciprocal": lambda _, child, number: ("div", "float32", number(1.0), child(0)),
}
_LAYERS: dict[str, Callable[[FloatLowering, Node, Clip], Value]] = {
    "Conv": FloatLowering._conv,
    "Gemm": FloatLowering._gemm,
    "MatMul": FloatLowering._matmul,
}
_SEVERAL: dict[str, Callable[[FloatLowering, Node], dict[str, Value]]] = {
    "TopK": FloatLowering._top_k,
    "LayerNormalization": FloatLowering._layer_norm,
}
"""Operators with several outputs."""
_HANDLERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(_REDUCES, FloatLowering._reduce),
    "ArgMax": FloatLowering._argmax,
    "Softmax": FloatLowering._softmax,
    "LogSoftmax": FloatLowering._softmax,
    "Resize": FloatLowering._resize,
    **_LAYERS,
    "Concat": FloatLowering._concat,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), FloatLowering._pool),
}

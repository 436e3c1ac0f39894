"""float32 (and index) operators of SPEC section 8 → kernel calls. Neighbouring elementwise nodes become one map."""

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgebuild.kernels.conv import Conv
from edgebuild.kernels.floats import (
    Map,
    MatMul,
    Reduce,
    Resize,
    Softmax,
    Tree,
    collapse,
    conv_float_kernel,
    map_kernel,
    matmul_kernel,
    reduce_kernel,
    resize_kernel,
    softmax_kernel,
)
from edgebuild.kernels.pool import Pool, float_pool_kernel
from edgebuild.stages.compile.clusters import reduce_axes
from edgebuild.stages.compile.graph import Graph, Node
from edgebuild.stages.compile.integer import channels_last, four_dims, pool_of
from edgebuild.stages.compile.moves import Mover, expanded, is_move, resize_scales, source_coordinates
from edgebuild.stages.compile.values import Emitter, Value, row_major
from edgebuild.stages.compile.window import window_of

_MAX_OPERANDS = 12
_WIDE = 64
_CASTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool"}
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Min": "min", "Max": "max", "Equal": "equal",
    "Less": "less",
    "Greater": "greater", "LessOrEqual": "less_equal", "GreaterOrEqual": "greater_equal", "And": "and", "Or": "or",
}  # fmt: skip
_UNARY = {
    "Neg": "neg", "Abs": "abs", "Sqrt": "sqrt", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Exp": "exp",
    "Sigmoid": "sigmoid", "Tanh": "tanh", "Not": "not",
}  # fmt: skip
_OTHER = frozenset(
    [
        "Cast",
        "Relu",
        "Clip",
        "LeakyRelu",
        "HardSigmoid",
        "HardSwish",
        "Reciprocal",
        "Where",
        "DequantizeLinear",
        "QuantizeLinear",
    ]
)
ELEMENTWISE = frozenset(_BINARY) | frozenset(_UNARY) | _OTHER
_REDUCES = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "max", "ReduceMin": "min"}


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

    def lower(self, node: Node) -> dict[str, Value]:
        """The values of a node's outputs."""
        if node.op in ELEMENTWISE:
            return {node.outputs[0]: self._map(node)}
        if is_move(node):
            return self._move(node)
        if node.op in _HANDLERS:
            return {node.outputs[0]: _HANDLERS[node.op](self, node)}
        raise node.unsupported("this operator is not supported")

    def supports(self, node: Node) -> bool:
        return node.op in ELEMENTWISE or is_move(node) or node.op in _HANDLERS

    # elementwise

    def _map(self, node: Node) -> Value:
        name = node.outputs[0]
        shape = self.graph.shape(name)
        operands: list[Value] = []
        tree = self._tree(name, shape, operands, root=True)
        order = self._order(shape, operands)
        out = self.emit.tensor(name, self.graph.dtype(name), shape, order)
        walks = [_broadcast_strides(v, shape, order) for v in operands]
        dims, strides = collapse(out.memory_shape, [*walks, [out.strides[a] for a in order]])
        dims, strides = self._widened(name, dims, strides, operands)
        pairs = tuple((v.dtype, s) for v, s in zip(operands, strides, strict=False))
        self.emit.call("map", node.name, map_kernel, Map(dims, out.dtype, pairs, tree), operands, out)
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

    def _tree(self, name: str, shape: tuple[int, ...], operands: list[Value], *, root: bool = False) -> Tree:
        node = self.graph.producers.get(name)
        inline = root or (
            node is not None
            and node.op in ELEMENTWISE
            and name not in self.integers
            and self.graph.constant(name) is None
            and self.demands.get(name, 0) == 1
            and self.graph.shape(name) == shape
            and len(operands) < _MAX_OPERANDS
        )
        if node is None or not inline:
            return self._leaf(name, operands)

        def child(i: int) -> Tree:
            return self._tree(node.inputs[i], shape, operands)

        return self._operator(node, child, operands)

    def _leaf(self, name: str, operands: list[Value]) -> Tree:
        value = self.value(name)
        if value not in operands:
            operands.append(value)
        return ("load", operands.index(value), value.dtype)

    def _operator(self, node: Node, child: Callable[[int], Tree], operands: list[Value]) -> Tree:
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
            self.graph.quant(node)
            kind = "quantize" if node.op == "QuantizeLinear" else "dequantize"
            zero = child(2) if node.input(2) else ("cast", "uint8", number(0.0))
            return (kind, dtype, child(0), child(1), zero)
        if node.op == "Cast":
            if int(node.attrs["to"]) not in _CASTS:
                raise node.unsupported("cast to this type")
            source = child(0)
            return source if _tree_dtype(source) == dtype else ("cast", dtype, source)
        if node.op == "Where":
            return ("where", dtype, child(0), child(1), child(2))
        return _ACTIVATIONS[node.op](node, child, number)

    def _number(self, node: Node, value: float, operands: list[Value]) -> Tree:
        constant = self.emit.constant(f"{node.name}:{len(operands)}", np.array(value, np.float32))
        operands.append(constant)
        return ("load", len(operands) - 1, "float32")

    def _order(self, shape: tuple[int, ...], operands: Sequence[Value]) -> tuple[int, ...]:
        """Memory order of a map's output: that of its largest operand, so that this one is read in one go."""
        full = [v for v in operands if v.shape == shape]
        return full[0].order if full else row_major(len(shape))

    # everything else

    def _move(self, node: Node) -> dict[str, Value]:
        value = self.value(node.inputs[0])
        fill = self.graph.constant(node.input(2)) if node.op == "Pad" and node.input(2) else None
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
        return self._reduced(node, _REDUCES[node.op], axes) if axes else self.value(node.inputs[0])

    def _argmax(self, node: Node) -> Value:
        if node.attrs.get("select_last_index", 0):
            raise node.unsupported("select_last_index")
        rank = len(self.graph.shape(node.inputs[0]))
        return self._reduced(node, "argmax", [int(node.attrs.get("axis", 0)) % rank])

    def _reduced(self, node: Node, kind: str, axes: list[int]) -> Value:
        x, name = self.value(node.inputs[0]), node.outputs[0]
        shape = self.graph.shape(name)
        kept_axes = [a for a in x.order if a not in axes]
        keep = len(shape) == len(x.shape)
        renamed = {a: a if keep else sum(b not in axes for b in range(a)) for a in kept_axes}
        ones = [a for a in axes if keep]
        order = (*ones, *(renamed[a] for a in kept_axes))
        kept = tuple((x.shape[a], x.strides[a]) for a in kept_axes if x.shape[a] > 1)
        reduced = tuple((x.shape[a], x.strides[a]) for a in axes)
        out = self.emit.tensor(name, self.graph.dtype(name), shape, order)
        self.emit.call("reduce", node.name, reduce_kernel, Reduce(kind, x.dtype, kept, reduced), [x], out)
        return out

    def _softmax(self, node: Node) -> Value:
        x = self.value(node.inputs[0])
        axis = int(node.attrs.get("axis", -1)) % len(x.shape)
        place = x.order.index(axis)
        memory = x.memory_shape
        spec = Softmax(int(np.prod(memory[:place])), memory[place], int(np.prod(memory[place + 1 :])))
        out = self.emit.tensor(node.outputs[0], "float32", x.shape, x.order)
        self.emit.call("softmax", node.name, softmax_kernel, spec, [x], out)
        return out

    def _resize(self, node: Node) -> Value:
        if node.text("mode", "nearest") != "linear":
            raise node.unsupported(f"mode {node.text('mode', 'nearest')}")
        if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise node.unsupported("keep_aspect_ratio_policy")
        if node.attrs.get("antialias", 0) and not node.attrs.get("exclude_outside", 0):
            raise node.unsupported("antialias without exclude_outside=1")
        value, shape = self.value(node.inputs[0]), self.graph.shape(node.outputs[0])
        scales = resize_scales(self.graph, node, value.shape, shape)
        for axis in reversed(range(len(shape))):
            if value.shape[axis] != shape[axis]:
                value = self._resize_axis(node, value, axis, shape[axis], scales[axis])
        return value

    def _resize_axis(self, node: Node, x: Value, axis: int, count: int, scale: float) -> Value:
        starts, weights = linear_taps(node, x.shape[axis], count, scale)
        name = f"{node.outputs[0]}:{axis}"
        place, memory = x.order.index(axis), x.memory_shape
        outer, inner = int(np.prod(memory[:place])), int(np.prod(memory[place + 1 :]))
        spec = Resize(outer, x.shape[axis], count, inner, weights.shape[1])
        shape = tuple(count if a == axis else s for a, s in enumerate(x.shape))
        out = self.emit.tensor(name, "float32", shape, x.order)
        inputs = [x, self.emit.constant(f"{name}:start", starts), self.emit.constant(f"{name}:weights", weights)]
        self.emit.call("resize", node.name, resize_kernel, spec, inputs, out)
        return out

    def _matmul(self, node: Node) -> Value:
        a, b = (self._row_major(self.value(i), node) for i in node.inputs[:2])
        shape = self.graph.shape(node.outputs[0])
        if len(a.shape) < 2 or len(b.shape) < 2:
            raise node.unsupported("vectors; reshape to matrices")
        rows, depth = a.shape[-2:]
        columns = b.shape[-1]
        if b.size == depth * columns:
            spec = MatMul(1, a.size // depth, depth, columns, shared=True, bias=False)
        else:
            a, b = (self._spread(node, v, (*shape[:-2], *v.shape[-2:])) for v in (a, b))
            spec = MatMul(a.size // (rows * depth), rows, depth, columns, shared=False, bias=False)
        out = self.emit.tensor(node.outputs[0], "float32", shape)
        macs = a.size * columns
        self.emit.call("matmul", node.name, matmul_kernel, spec, [a, b], out, macs=macs)
        return out

    def _spread(self, node: Node, value: Value, shape: tuple[int, ...]) -> Value:
        return value if value.shape == shape else expanded(self.mover, f"{node.name}:batch", value, shape)

    def _gemm(self, node: Node) -> Value:
        if node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
            raise node.unsupported("alpha and beta")
        a, b = self.value(node.inputs[0]), self.value(node.inputs[1])
        a = self._row_major(_turned(a) if node.attrs.get("transA", 0) else a, node)
        b = self._row_major(_turned(b) if node.attrs.get("transB", 0) else b, node)
        shape = self.graph.shape(node.outputs[0])
        operands = [a, b]
        if node.input(2):
            operands.append(self._spread(node, self.value(node.inputs[2]), (shape[1],)))
        spec = MatMul(1, shape[0], a.shape[1], shape[1], shared=True, bias=len(operands) == 3)
        out = self.emit.tensor(node.outputs[0], "float32", shape)
        self.emit.call("matmul", node.name, matmul_kernel, spec, operands, out, macs=a.size * shape[1])
        return out

    def _conv(self, node: Node) -> Value:
        x, shape = self.value(node.inputs[0]), self.graph.shape(node.outputs[0])
        if len(shape) != 4:
            raise node.unsupported("only two-dimensional convolutions run in float32")
        weights = self._weights(node)
        window, groups = window_of(self.graph, node), int(node.attrs.get("group", 1))
        x = self.mover.ordered(x, channels_last(4), node.name)
        (n, c, h, w), (_, o, oh, ow) = x.shape, shape
        conv = Conv(n, h, w, c, oh, ow, o, window.kernel, window.stride, window.before, window.dilation, groups)
        packed = weights.reshape(groups, o // groups, *weights.shape[1:]).transpose(0, 2, 3, 4, 1)
        operands = [x, self.emit.constant(f"{node.name}:weights", packed.astype(np.float32))]
        if node.input(2):
            operands.append(self.value(node.inputs[2]))
        out = self.emit.tensor(node.outputs[0], "float32", shape, channels_last(4))
        bias = bool(node.input(2))
        self.emit.call("conv", node.name, conv_float_kernel, conv, operands, out, macs=conv.macs, bias=bias)
        return out

    def _weights(self, node: Node) -> np.ndarray:
        """Constant weights, dequantized where they are stored as int8."""
        value = self.graph.constant(node.inputs[1])
        if value is not None:
            return value
        dq = self.graph.producers.get(node.inputs[1])
        if dq is None or dq.op != "DequantizeLinear":
            raise node.unsupported("weights must be constant")
        return dequantized(self.graph, dq)

    def _pool(self, node: Node) -> Value:
        x, shape = self.value(node.inputs[0]), self.graph.shape(node.outputs[0])
        if len(node.outputs) > 1 or len(shape) not in (3, 4):
            raise node.unsupported("indices as a second output, or more than two spatial dimensions")
        x = self.mover.ordered(x, channels_last(len(shape)), node.name)
        kind = "max" if node.op.endswith("MaxPool") else "average"
        n, c, h, w = four_dims(x.shape)
        pool, counts = Pool(n, h, w, c, 1, 1, (h, w)), np.full((1, 1), float(h * w))
        if not node.op.startswith("Global"):
            window = window_of(self.graph, node)
            pool = pool_of(window, x.shape, shape)
            counts = window.counts((h, w), (pool.out_height, pool.out_width))
        operands = [x]
        if kind == "average":
            operands.append(self.emit.constant(f"{node.name}:count", counts.astype(np.float32).reshape(-1)))
        out = self.emit.tensor(node.outputs[0], "float32", shape, channels_last(len(shape)))
        self.emit.call(f"{kind}_pool", node.name, float_pool_kernel, pool, operands, out, reduction=kind)
        return out

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


def linear_taps(node: Node, size: int, count: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """SPEC section 8.1: (start int32 [count], weights float32 [count, taps])."""
    centers = source_coordinates(node, size, count, scale)
    antialias = bool(node.attrs.get("antialias", 0)) and scale < 1
    rows = [_antialias_taps(c, size, scale) if antialias else _two_taps(c, size) for c in centers]
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


def _antialias_taps(center: float, size: int, scale: float) -> tuple[int, list[float]]:
    support = 1.0 / scale
    inside = [t for t in range(max(0, int(center - support) - 1), min(size, int(center + support) + 2))
              if abs(t - center) < support]  # fmt: skip
    weights = [1.0 - abs(t - center) * scale for t in inside]
    total = sum(weights)
    return inside[0], [w / total for w in weights]


def _turned(value: Value) -> Value:
    return value.seen(value.shape[::-1], [1 - a for a in value.order])


def _broadcast_strides(value: Value, shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """Strides of an operand along the output's memory dimensions, 0 where it is broadcast."""
    lead = len(shape) - len(value.shape)
    logical = [0] * lead + [0 if s == 1 else t for s, t in zip(value.shape, value.strides, strict=True)]
    return [logical[a] for a in order]


def _tree_dtype(tree: Tree) -> str:
    return str(tree[2] if tree[0] == "load" else tree[1])


def _clip(node: Node, child: Callable[[int], Tree], _: Callable[[float], Tree]) -> Tree:
    tree = child(0)
    if node.input(1):
        tree = ("max", "float32", tree, child(1))
    return ("min", "float32", tree, child(2)) if node.input(2) else tree


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


_ACTIVATIONS: dict[str, Callable[[Node, Callable[[int], Tree], Callable[[float], Tree]], Tree]] = {
    "Relu": lambda _, child, number: ("max", "float32", child(0), number(0.0)),
    "Clip": _clip,
    "LeakyRelu": _leaky,
    "HardSigmoid": lambda n, child, number: _hard(
        child(0), float(n.attrs.get("alpha", 0.2)), float(n.attrs.get("beta", 0.5)), number
    ),
    "HardSwish": _hard_swish,
    "Reciprocal": lambda _, child, number: ("div", "float32", number(1.0), child(0)),
}
_HANDLERS: dict[str, Callable[[FloatLowering, Node], Any]] = {
    **dict.fromkeys(_REDUCES, FloatLowering._reduce),
    "ArgMax": FloatLowering._argmax,
    "Softmax": FloatLowering._softmax,
    "Resize": FloatLowering._resize,
    "MatMul": FloatLowering._matmul,
    "Gemm": FloatLowering._gemm,
    "Conv": FloatLowering._conv,
    "Concat": FloatLowering._concat,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), FloatLowering._pool),
}

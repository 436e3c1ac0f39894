"""float32 operators of SPEC section 8: elementwise maps, reductions, softmax, linear resize, matmul, conv.

Every result is fenced: LLVM must not contract a product with a following addition, nor TVM simplify (x + c) − c. Sums
run in the SPEC's order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgebuild.kernels.builder import (
    ROUND_BITS,
    ROUND_MAGIC,
    Body,
    Cell,
    Expr,
    Flat,
    Kernel,
    T,
    bits,
    cast,
    cell,
    either,
    fence,
    intrinsic,
    kernel,
    loop,
    splat,
    vector,
    when,
)
from edgebuild.kernels.isa import Isa

Tree = tuple[Any, ...]  # ("load", operand) | (operator, dtype of the result, *trees)

_LIMITS = {"uint8": (0.0, 255.0), "int8": (-128.0, 127.0), "int32": (-2147483648.0, 2147483520.0)}
_EXP = (1.39819994e-3, 8.33345205e-3, 4.16657962e-2, 1.66666657e-1, 0.5)


@dataclass(frozen=True)
class Map:
    """out[i] = tree(operands[i]): `dims` in memory order of the output; each operand (dtype, strides), stride 0 where
    it is broadcast.
    """

    dims: tuple[int, ...]
    dtype: str
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    tree: Tree


def collapse(dims: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Merge neighbouring dimensions that every operand walks in one go; drop those of size 1."""
    out_dims: list[int] = []
    out: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(dims):
        if size == 1:
            continue
        if out_dims and all(o[-1] == s[axis] * size for o, s in zip(out, strides, strict=True)):
            out_dims[-1] *= size
            for o, s in zip(out, strides, strict=True):
                o[-1] = s[axis]
            continue
        out_dims.append(size)
        for o, s in zip(out, strides, strict=True):
            o.append(s[axis])
    if not out_dims:
        return (1,), [(1,) for _ in strides]
    return tuple(out_dims), [tuple(o) for o in out]


def map_kernel(spec: Map, isa: Isa) -> Kernel:
    """Arguments: the operands, the output."""
    dims = spec.dims
    outer, inner = dims[:-1], dims[-1]
    simple = all(s[-1] in (0, 1) for _, s in spec.operands)
    lanes = min(isa.wide, 1 << (inner.bit_length() - 1)) if simple else 1
    lines = math.prod(outer)
    steps = -(-inner // lanes)
    args = [(f"a{i}", _storage(d), _extent(dims, s)) for i, (d, s) in enumerate(spec.operands)]
    args.append(("y", _storage(spec.dtype), math.prod(dims)))

    def emit(body: Body) -> None:
        *operands, y = body.buffers
        with loop(body.begin, body.end) as unit:
            line = T.bind(unit // steps)
            place = T.bind(T.min(unit % steps * lanes, inner - lanes))
            loads = [_load(b, _index(line, outer, s[:-1]) + place * s[-1], d, s[-1], lanes)
                     for b, (d, s) in zip(operands, spec.operands, strict=True)]  # fmt: skip
            y.store(line * inner + place, _stored(evaluate(spec.tree, loads, lanes), spec.dtype, lanes), lanes)

    units = lines * steps
    return Kernel(kernel(args, emit), tuple(a[1] for a in args), units, min(units, max(1, 8192 // lanes)))


def _extent(dims: Sequence[int], strides: Sequence[int]) -> int:
    return 1 + sum((d - 1) * s for d, s in zip(dims, strides, strict=True))


def _storage(dtype: str) -> str:
    return "uint8" if dtype == "bool" else dtype


def _stored(value: Expr, dtype: str, lanes: int) -> Expr:
    return cast("uint8", value, lanes) if dtype == "bool" else value


def _index(line: Expr, dims: Sequence[int], strides: Sequence[int]) -> Expr:
    """Offset of a flat index over `dims`."""
    offset: Expr = 0
    for size, stride in zip(reversed(dims), reversed(strides), strict=True):
        if stride:
            offset = offset + line % size * stride
        line = line // size
    return offset


def _load(buffer: Flat, index: Expr, dtype: str, stride: int, lanes: int) -> Expr:
    value = splat(buffer.load(index), lanes) if stride == 0 or lanes == 1 else buffer.load(index, lanes)
    return cast("bool", value, lanes) if dtype == "bool" else value


def evaluate(tree: Tree, loads: Sequence[Expr], lanes: int) -> Expr:
    """The TIR expression of a tree."""
    if tree[0] == "load":
        return loads[tree[1]]
    operator, dtype, *children = tree
    types = [_dtype(c) for c in children]
    values = [evaluate(c, loads, lanes) for c in children]
    # TVM's range analysis cannot bind a vector of bool
    values = [v if t == "bool" else T.bind(v) for v, t in zip(values, types, strict=True)]
    return _OPERATORS[operator](_Context(dtype, types, lanes), *values)


def _dtype(tree: Tree) -> str:
    return str(tree[2] if tree[0] == "load" else tree[1])


@dataclass(frozen=True)
class _Context:
    dtype: str
    types: list[str]
    lanes: int

    def constant(self, value: float) -> Expr:
        return splat(T.float32(value), self.lanes)


def _fenced(operation: Callable[[Expr, Expr], Expr]) -> Callable[[_Context, Expr, Expr], Expr]:
    return lambda c, a, b: fence(operation(a, b), c.lanes) if c.dtype == "float32" else operation(a, b)


def _convert(c: _Context, a: Expr) -> Expr:
    source = c.types[0]
    if source == "float32" and c.dtype in _LIMITS:
        low, high = _LIMITS[c.dtype]
        a = cast("int32", T.min(T.max(a, c.constant(low)), c.constant(high)), c.lanes)
    elif source == "float32" and c.dtype == "bool":
        return a != c.constant(0.0)
    return cast(c.dtype, a, c.lanes)


def _quantize(c: _Context, a: Expr, scale: Expr, zero: Expr) -> Expr:
    """SPEC section 7, quantize: clamped before rounding, which is the same and cannot overflow."""
    z = cast("int32", zero, c.lanes)
    zf = cast("float32", z, c.lanes)
    value = T.min(T.max(a / scale, c.constant(0.0) - zf), c.constant(255.0) - zf)
    rounded = bits("int32", value + c.constant(ROUND_MAGIC), c.lanes) - splat(T.int32(ROUND_BITS), c.lanes)
    return cast("uint8", rounded + z, c.lanes)


def _dequantize(c: _Context, q: Expr, scale: Expr, zero: Expr) -> Expr:
    difference = cast("int32", q, c.lanes) - cast("int32", zero, c.lanes)
    return fence(cast("float32", difference, c.lanes) * scale, c.lanes)


def exponential(a: Expr, lanes: int) -> Expr:
    """SPEC section 8.2."""

    def number(value: float) -> Expr:
        return splat(T.float32(value), lanes)

    def product(x: Expr, y: Expr) -> Expr:
        return fence(x * y, lanes)

    x = T.bind(T.min(T.max(a, number(-87.0)), number(88.0)))
    shifted = T.bind(fence(product(x, number(1.44269502)) + number(ROUND_MAGIC), lanes))
    n = T.bind(shifted - number(ROUND_MAGIC))
    r = T.bind((x - product(n, number(0.693359375))) - product(n, number(-2.12194440e-4)))
    p = number(1.98756912e-4)
    for coefficient in _EXP:
        p = T.bind(product(p, r) + number(coefficient))
    p = (product(p, product(r, r)) + r) + number(1.0)
    # the magic number's bits leave at the top; unsigned, so that nothing here counts as overflow
    exponent = (bits("uint32", shifted, lanes) << splat(T.uint32(23), lanes)) + splat(T.uint32(127 << 23), lanes)
    power = bits("float32", exponent, lanes)
    return fence(p * power, lanes)


def _sigmoid(c: _Context, a: Expr) -> Expr:
    return c.constant(1.0) / (c.constant(1.0) + exponential(c.constant(0.0) - a, c.lanes))


def _tanh(c: _Context, a: Expr) -> Expr:
    e = exponential(fence(a * c.constant(-2.0), c.lanes), c.lanes)
    return c.constant(2.0) / (c.constant(1.0) + e) - c.constant(1.0)


def _unary(name: str) -> Callable[[_Context, Expr], Expr]:
    return lambda c, a: intrinsic(f"llvm.{name}", vector("float32", c.lanes), a)


_OPERATORS: dict[str, Callable[..., Expr]] = {
    "add": _fenced(lambda a, b: a + b),
    "sub": _fenced(lambda a, b: a - b),
    "mul": _fenced(lambda a, b: a * b),
    "div": lambda c, a, b: fence(a / b, c.lanes) if c.dtype == "float32" else T.truncdiv(a, b),
    "min": lambda _, a, b: T.min(a, b),
    "max": lambda _, a, b: T.max(a, b),
    "neg": lambda c, a: c.constant(-0.0) - a if c.dtype == "float32" else splat(cast(c.dtype, 0), c.lanes) - a,
    "abs": lambda c, a: (
        _unary("fabs")(c, a) if c.dtype == "float32" else T.max(a, splat(cast(c.dtype, 0), c.lanes) - a)
    ),
    "sqrt": _unary("sqrt"),
    "floor": _unary("floor"),
    "ceil": _unary("ceil"),
    "round": _unary("nearbyint"),
    "exp": lambda c, a: exponential(a, c.lanes),
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "equal": lambda _, a, b: a == b,
    "less": lambda _, a, b: a < b,
    "greater": lambda _, a, b: a > b,
    "less_equal": lambda _, a, b: a <= b,
    "greater_equal": lambda _, a, b: a >= b,
    "and": lambda _, a, b: T.And(a, b),
    "or": lambda _, a, b: T.Or(a, b),
    "not": lambda _, a: T.Not(a),
    "where": lambda _, condition, a, b: T.Select(condition, a, b),
    "cast": _convert,
    "quantize": _quantize,
    "dequantize": _dequantize,
}
OPERATORS = frozenset(_OPERATORS)


@dataclass(frozen=True)
class Reduce:
    """`kept`: (size, input stride) in the output's memory order; `reduced`: the same in row-major order of the
    logical axes.
    """

    kind: str
    dtype: str
    kept: tuple[tuple[int, int], ...]
    reduced: tuple[tuple[int, int], ...]


def reduce_kernel(spec: Reduce, isa: Isa) -> Kernel:
    """sum, mean, max, min, argmax (int64). Arguments: input, output."""
    out_size = math.prod([s for s, _ in spec.kept])
    in_size = 1 + sum((n - 1) * s for n, s in (*spec.kept, *spec.reduced))
    inner = spec.kept[-1] if spec.kept else (1, 0)
    vectorized = inner[1] == 1 and inner[0] > 1 and spec.kind != "argmax"
    lanes = min(isa.wide, 1 << (inner[0].bit_length() - 1)) if vectorized else 1
    lines, steps = out_size // inner[0], -(-inner[0] // lanes)
    out_dtype = "int64" if spec.kind == "argmax" else spec.dtype
    args = [("x", spec.dtype, in_size), ("y", out_dtype, out_size)]
    outer = spec.kept[:-1]

    def emit(body: Body) -> None:
        x, y = body.buffers
        with loop(body.begin, body.end) as unit:
            line = T.bind(unit // steps)
            place = T.bind(T.min(unit % steps * lanes, inner[0] - lanes))
            source = T.bind(_index(line, [s for s, _ in outer], [t for _, t in outer]) + place * inner[1])
            target = line * inner[0] + place
            if spec.kind == "argmax":
                _argmax(spec, body, x, source, y, target)
            else:
                _fold(spec, body, x, source, y, target, lanes)

    units = lines * steps
    work = math.prod([n for n, _ in spec.reduced])
    return Kernel(kernel(args, emit), (spec.dtype, out_dtype), units, max(1, min(units, 16384 // max(work * lanes, 1))))


def _fold(spec: Reduce, body: Body, x: Flat, source: Expr, y: Flat, target: Expr, lanes: int) -> None:
    """The first element starts the sum: 0 + x would lose the sign of a zero."""
    total = cell(spec.dtype, lanes)
    total.set(x.load(source, lanes))
    combine: Callable[[Expr, Expr], Expr] = {"max": T.max, "min": T.min}.get(spec.kind, lambda a, b: a + b)

    def element(offset: Expr, flat: Expr) -> None:
        with when(flat > 0):
            total.set(combine(total.get(), x.load(source + offset, lanes)))

    _nest(body, spec.reduced, 0, 0, element)
    result = total.get()
    if spec.kind == "mean":
        result = result / splat(T.float32(math.prod([n for n, _ in spec.reduced])), lanes)
    y.store(target, result, lanes)


def _argmax(spec: Reduce, body: Body, x: Flat, source: Expr, y: Flat, target: Expr) -> None:
    best, where = cell(spec.dtype), cell("int64")
    best.set(x.load(source))
    where.set(T.int64(0))

    def element(offset: Expr, flat: Expr) -> None:
        value = T.bind(x.load(source + offset))
        with when(value > best.get()):
            best.set(value)
            where.set(cast("int64", flat))

    _nest(body, spec.reduced, 0, 0, element)
    y.store(target, where.get())


def _nest(
    body: Body, dims: Sequence[tuple[int, int]], offset: Expr, flat: Expr, element: Callable[[Expr, Expr], None]
) -> None:
    """Loops over `dims` in order; `element(offset, row-major index)`."""
    if not dims:
        element(offset, flat)
        return
    size, stride = dims[0]
    with loop(0, body.rolled(size)) as i:
        _nest(body, dims[1:], offset + i * stride, flat * size + i, element)


@dataclass(frozen=True)
class Softmax:
    """Over the middle axis of [outer, size, inner]."""

    outer: int
    size: int
    inner: int


def softmax_kernel(spec: Softmax, isa: Isa) -> Kernel:
    """Arguments: input, output. A unit is one row."""
    count = spec.outer * spec.size * spec.inner
    lanes = min(isa.wide, 1 << (spec.size.bit_length() - 1)) if spec.inner == 1 else 1

    def emit(body: Body) -> None:
        x, y = body.buffers
        with loop(body.begin, body.end) as unit:
            base = T.bind(unit // spec.inner * (spec.size * spec.inner) + unit % spec.inner)
            top = cell("float32")
            top.set(x.load(base))
            with loop(1, spec.size) as i:
                top.set(T.max(top.get(), x.load(base + i * spec.inner)))
            whole = spec.size // lanes
            with loop(0, whole) as i:
                at = base + i * (lanes * spec.inner)
                y.store(at, exponential(x.load(at, lanes) - splat(top.get(), lanes), lanes), lanes)
            with loop(whole * lanes, spec.size) as i:
                at = base + i * spec.inner
                y.store(at, exponential(x.load(at) - top.get(), 1))
            total = cell("float32")
            total.set(y.load(base))
            with loop(1, spec.size) as i:
                total.set(total.get() + y.load(base + i * spec.inner))
            with loop(0, spec.size) as i:
                at = base + i * spec.inner
                y.store(at, y.load(at) / total.get())

    units = spec.outer * spec.inner
    func = kernel([("x", "float32", count), ("y", "float32", count)], emit)
    return Kernel(func, ("float32", "float32"), units, max(1, min(units, 1024 // spec.size)))


@dataclass(frozen=True)
class Resize:
    """Linear resize of one axis: [outer, size, inner] → [outer, count, inner] with `taps` taps an output."""

    outer: int
    size: int
    count: int
    inner: int
    taps: int


def resize_kernel(spec: Resize, isa: Isa) -> Kernel:
    """Arguments: input, start int32 [count], weights float32 [count, taps], output. A unit is one output line
    [inner].
    """
    lanes = min(isa.wide, 1 << (spec.inner.bit_length() - 1))
    args = [
        ("x", "float32", spec.outer * spec.size * spec.inner),
        ("start", "int32", spec.count),
        ("weights", "float32", spec.count * spec.taps),
        ("y", "float32", spec.outer * spec.count * spec.inner),
    ]

    def emit(body: Body) -> None:
        x, start, weights, y = body.buffers
        with loop(body.begin, body.end) as unit:
            output = T.bind(unit % spec.count)
            source = T.bind((unit // spec.count * spec.size + start.load(output)) * spec.inner)
            with loop(0, -(-spec.inner // lanes)) as i:
                place = T.bind(T.min(i * lanes, spec.inner - lanes))
                total = cell("float32", lanes)
                for t in range(spec.taps):
                    weight = splat(weights.load(output * spec.taps + t), lanes)
                    term = fence(weight * x.load(source + t * spec.inner + place, lanes), lanes)
                    total.set(term if t == 0 else total.get() + term)
                y.store(unit * spec.inner + place, total.get(), lanes)

    units = spec.outer * spec.count
    return Kernel(kernel(args, emit), tuple(a[1] for a in args), units, max(1, min(units, 8192 // spec.inner)))


@dataclass(frozen=True)
class MatMul:
    """[batch, rows, depth] × [batch or 1, depth, columns] → [batch, rows, columns], all row-major; `bias` adds
    [columns].
    """

    batch: int
    rows: int
    depth: int
    columns: int
    shared: bool
    bias: bool


def matmul_kernel(spec: MatMul, isa: Isa) -> Kernel:
    """Arguments: a, b, [bias], output. A unit is one output row."""
    lanes = min(isa.wide, 1 << (spec.columns.bit_length() - 1))
    args = [
        ("a", "float32", spec.batch * spec.rows * spec.depth),
        ("b", "float32", (1 if spec.shared else spec.batch) * spec.depth * spec.columns),
        *([("bias", "float32", spec.columns)] if spec.bias else []),
        ("y", "float32", spec.batch * spec.rows * spec.columns),
    ]

    def emit(body: Body) -> None:
        a, b, *bias, y = body.buffers
        with loop(body.begin, body.end) as unit, loop(0, -(-spec.columns // lanes)) as i:
            place = T.bind(T.min(i * lanes, spec.columns - lanes))
            matrix = 0 if spec.shared else unit // spec.rows * (spec.depth * spec.columns)
            total = cell("float32", lanes)

            def term(k: Expr, matrix: Expr = matrix, place: Expr = place, unit: Expr = unit) -> Expr:
                row = splat(a.load(unit * spec.depth + k), lanes)
                return fence(row * b.load(matrix + k * spec.columns + place, lanes), lanes)

            total.set(term(0))
            with loop(1, spec.depth) as k:
                total.set(total.get() + term(k))
            if bias:
                total.set(total.get() + bias[0].load(place, lanes))
            y.store(unit * spec.columns + place, total.get(), lanes)

    units = spec.batch * spec.rows
    return Kernel(
        kernel(args, emit), tuple(x[1] for x in args), units, max(1, min(units, 65536 // (spec.depth * lanes)))
    )


def _set_from(target: Cell, buffer: Flat, index: Expr) -> None:
    target.set(buffer.load(index))


def conv_float_kernel(conv: Any, isa: Isa, *, bias: bool) -> Kernel:
    """Arguments: input NHWC, weights [groups, I/groups, kh, kw, O/groups], [bias], output. A unit is one output
    pixel.
    """
    outputs, inputs = conv.group_outputs, conv.group_channels
    lanes = min(isa.wide, 1 << (outputs.bit_length() - 1))
    args = [
        ("x", "float32", conv.batch * conv.height * conv.width * conv.channels),
        ("w", "float32", conv.groups * conv.depth * outputs),
        *([("bias", "float32", conv.out_channels)] if bias else []),
        ("y", "float32", conv.pixels * conv.out_channels),
    ]

    def emit(body: Body) -> None:
        x, w, *offset, y = body.buffers
        with loop(body.begin, body.end) as pixel, loop(0, conv.groups) as group, loop(0, -(-outputs // lanes)) as i:
            place = T.bind(T.min(i * lanes, outputs - lanes))
            image = pixel // (conv.out_height * conv.out_width)
            top = T.bind(pixel // conv.out_width % conv.out_height * conv.stride[0] - conv.pad[0])
            left = T.bind(pixel % conv.out_width * conv.stride[1] - conv.pad[1])
            total = cell("float32", lanes)
            total.set(splat(T.float32(-0.0), lanes))  # −0 + x is x for every x
            with (
                loop(0, body.rolled(inputs)) as c,
                loop(0, body.rolled(conv.kernel[0])) as kh,
                loop(0, body.rolled(conv.kernel[1])) as kw,
            ):
                row, column = T.bind(top + kh * conv.dilation[0]), T.bind(left + kw * conv.dilation[1])
                value = cell("float32")
                source = ((image * conv.height + row) * conv.width + column) * conv.channels + group * inputs + c
                inside = T.And(T.And(row >= 0, row < conv.height), T.And(column >= 0, column < conv.width))
                either(inside, partial(_set_from, value, x, source), partial(value.set, T.float32(0.0)))
                tap = (((group * inputs + c) * conv.kernel[0] + kh) * conv.kernel[1] + kw) * outputs + place
                total.set(total.get() + fence(splat(value.get(), lanes) * w.load(tap, lanes), lanes))
            if offset:
                total.set(total.get() + offset[0].load(group * outputs + place, lanes))
            y.store(pixel * conv.out_channels + group * outputs + place, total.get(), lanes)

    grain = max(1, min(conv.pixels, 65536 // max(conv.depth * conv.out_channels, 1)))
    return Kernel(kernel(args, emit), tuple(a[1] for a in args), conv.pixels, grain)

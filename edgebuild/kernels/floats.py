"""float32 operators of SPEC section 8: elementwise maps, reductions, softmax, linear resize, matmul, conv.

Every result is fenced: LLVM must not contract a product with a following addition, nor TVM simplify (x + c) − c. Sums
run in the SPEC's order.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    fence,
    intrinsic,
    kernel,
    loop,
    offset_of,
    shuffle,
    splat,
    vector,
    when,
)
from edgebuild.kernels.isa import Isa

Tree = tuple[Any, ...]  # ("load", operand) | (operator, dtype of the result, *trees)

_INTEGERS = {"uint8": (0, 255), "int8": (-128, 127), "int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
_EXP = (1.39819994e-3, 8.33345205e-3, 4.16657962e-2, 1.66666657e-1, 0.5)

_LOG = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
    2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
_LEAST_LOG = 2.0**-126
_LEVELS = {"uint8": (0.0, 255.0), "int16": (-32768.0, 32767.0)}  # of quantized tensors
_ROOT_BITS = 0x3F3504F3  # sqrt(½)
_ERF = (0.3275911, 1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


@dataclass(frozen=True)
class Map:
    """out[i] = tree(operands[i]): `dims` in memory order of the output; each operand (dtype, strides), stride 0 where
    it is broadcast. `period`: constants along the innermost dimension repeat after so many elements; 0: they do not.
    """

    dims: tuple[int, ...]
    dtype: str
    operands: tuple[tuple[str, tuple[int, ...]], ...]
    tree: Tree
    period: int = 0


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
    lanes = isa.wide_for(inner) if simple else 1
    lines = math.prod(outer)
    steps = -(-inner // lanes)
    args = [(f"a{i}", _storage(d), _extent(dims, s)) for i, (d, s) in enumerate(spec.operands)]
    args.append(("y", _storage(spec.dtype), math.prod(dims)))

    def emit(body: Body) -> None:
        *operands, y = body.buffers
        with loop(body.begin, body.end) as unit:
            line = T.bind(unit // steps)
            place = T.bind(T.min(unit % steps * lanes, inner - lanes))
            loads = [_load(b, offset_of(line, outer, s[:-1]) + place * s[-1], d, s[-1], lanes)
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


def _load(buffer: Flat, index: Expr, dtype: str, stride: int, lanes: int) -> Expr:
    value = splat(buffer.load(index), lanes) if stride == 0 or lanes == 1 else buffer.load(index, lanes)
    return cast("bool", value, lanes) if dtype == "bool" else value


def evaluate(tree: Tree, loads: Sequence[Expr], lanes: int, made: dict[int, Expr] | None = None) -> Expr:
    """The TIR expression of a tree; a part that stands in several places, the same object, is `made` once."""
    made = {} if made is None else made
    if tree[0] == "load":
        return loads[tree[1]]
    operator, dtype, *children = tree
    types = [_dtype(c) for c in children]
    for child, child_dtype in zip(children, types, strict=True):
        if id(child) not in made:
            value = evaluate(child, loads, lanes, made)
            # TVM's range analysis cannot bind a vector of bool
            made[id(child)] = value if child_dtype == "bool" or child[0] == "load" else _kept(value, child_dtype, lanes)
    return _OPERATORS[operator](_Context(dtype, types, lanes), *(made[id(child)] for child in children))


def _kept(value: Expr, dtype: str, lanes: int) -> Expr:
    """The value in a cell: TVM's range analysis looks through names, over and over for nested formulas."""
    held = cell(dtype, lanes)
    held.set(value)
    return T.bind(held.get())


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
    if source == "float32" and c.dtype in _INTEGERS:
        return _truncated(c, a)
    if source == "float32" and c.dtype == "bool":
        return a != c.constant(0.0)
    return cast(c.dtype, a, c.lanes)


def _truncated(c: _Context, a: Expr) -> Expr:
    """Saturates, and makes 0 of NaN: what a CPU's own conversion makes of them differs."""
    least, most = _INTEGERS[c.dtype]
    low, high = c.constant(float(least)), c.constant(float(most))  # rounded, the highest may be one more
    inside = T.bind(T.Select(a > low, T.Select(a < high, a, c.constant(0.0)), c.constant(0.0)))
    wide = "int32" if c.dtype in ("uint8", "int8") else c.dtype
    number = cast(c.dtype, cast(wide, inside, c.lanes), c.lanes)
    ends = [splat(getattr(T, c.dtype)(n), c.lanes) for n in (least, most)]
    return T.Select(a <= low, ends[0], T.Select(a >= high, ends[1], number))


def _quantize(c: _Context, a: Expr, scale: Expr, zero: Expr) -> Expr:
    """SPEC section 7, quantize: clamped before rounding, which is the same and cannot overflow."""
    zf = cast("float32", cast("int32", zero, c.lanes), c.lanes)
    low, high = (c.constant(bound) - zf for bound in _LEVELS[c.dtype])
    return _requantize(c, a / scale, low, high, zero)


def _requantize(c: _Context, steps: Expr, low: Expr, high: Expr, zero: Expr) -> Expr:
    """float32 steps, clamped and rounded, plus the zero point."""
    value = T.min(T.max(steps, low), high)
    rounded = bits("int32", value + c.constant(ROUND_MAGIC), c.lanes) - splat(T.int32(ROUND_BITS), c.lanes)
    return cast(c.dtype, rounded + cast("int32", zero, c.lanes), c.lanes)


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


def logarithm(a: Expr, lanes: int) -> Expr:
    """SPEC section 8.3."""

    def number(value: float) -> Expr:
        return splat(T.float32(value), lanes)

    def product(x: Expr, y: Expr) -> Expr:
        return fence(x * y, lanes)

    pattern = T.bind(bits("int32", T.max(a, number(_LEAST_LOG)), lanes))
    # 0.70710678 ≤ mantissa < 1.41421356: the exponent of x / sqrt(½)
    shifted = T.bind(pattern - splat(T.int32(_ROOT_BITS), lanes))
    exponent = T.bind(shifted >> splat(T.int32(23), lanes))
    mantissa = bits("float32", pattern - (exponent << splat(T.int32(23), lanes)), lanes)
    x = T.bind(fence(mantissa - number(1.0), lanes))
    n, z = T.bind(cast("float32", exponent, lanes)), T.bind(product(x, x))
    p = number(_LOG[0])
    for coefficient in _LOG[1:]:
        p = T.bind(product(p, x) + number(coefficient))
    p = product(product(p, x), z)
    p = p + product(n, number(-2.12194440e-4))
    p = p - product(z, number(0.5))
    result = fence((x + p) + product(n, number(0.693359375)), lanes)
    return T.Select(a <= number(0.0), T.Select(a < number(0.0), number(float("nan")), number(float("-inf"))), result)


def _erf(c: _Context, a: Expr) -> Expr:
    """SPEC section 8.4."""

    def product(x: Expr, y: Expr) -> Expr:
        return fence(x * y, c.lanes)

    magnitude = T.bind(_unary("fabs")(c, a))
    t = T.bind(fence(c.constant(1.0) / (product(magnitude, c.constant(_ERF[0])) + c.constant(1.0)), c.lanes))
    p = c.constant(_ERF[1])
    for coefficient in _ERF[2:]:
        p = T.bind(product(p, t) + c.constant(coefficient))
    power = exponential(c.constant(0.0) - product(magnitude, magnitude), c.lanes)
    value = T.bind(fence(c.constant(1.0) - product(product(p, t), power), c.lanes))
    return T.Select(a < c.constant(0.0), c.constant(0.0) - value, value)


def _sigmoid(c: _Context, a: Expr) -> Expr:
    return c.constant(1.0) / (c.constant(1.0) + exponential(c.constant(0.0) - a, c.lanes))


def _tanh(c: _Context, a: Expr) -> Expr:
    e = exponential(fence(a * c.constant(-2.0), c.lanes), c.lanes)
    return c.constant(2.0) / (c.constant(1.0) + e) - c.constant(1.0)


def _unary(name: str) -> Callable[[_Context, Expr], Expr]:
    return lambda c, a: intrinsic(f"llvm.{name}", vector("float32", c.lanes), a)


def _integer_division(c: _Context, a: Expr, b: Expr) -> Expr:
    """By 0 it gives what 1 would give, by −1 the opposite, which may wrap: a CPU may stop the program instead."""
    zero, one = (splat(cast(c.dtype, n), c.lanes) for n in (0, 1))
    if c.dtype == "uint8":
        return T.truncdiv(a, T.max(b, one))
    opposite = b == zero - one
    divisor = T.Select(T.Or(b == zero, opposite), one, b)
    return T.Select(opposite, zero - a, T.truncdiv(a, divisor))


_OPERATORS: dict[str, Callable[..., Expr]] = {
    "add": _fenced(lambda a, b: a + b),
    "sub": _fenced(lambda a, b: a - b),
    "mul": _fenced(lambda a, b: a * b),
    "div": lambda c, a, b: fence(a / b, c.lanes) if c.dtype == "float32" else _integer_division(c, a, b),
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
    "log": lambda c, a: logarithm(a, c.lanes),
    "erf": _erf,
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
    "requantize": _requantize,
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
    """sum, mean, max, min, argmax and argmax_last (int64). Arguments: input, output."""
    out_size = math.prod([s for s, _ in spec.kept])
    in_size = 1 + sum((n - 1) * s for n, s in (*spec.kept, *spec.reduced))
    inner = spec.kept[-1] if spec.kept else (1, 0)
    places = spec.kind.startswith("argmax")
    vectorized = inner[1] == 1 and inner[0] > 1 and not places
    lanes = isa.wide_for(inner[0]) if vectorized else 1
    lines, steps = out_size // inner[0], -(-inner[0] // lanes)
    out_dtype = "int64" if places else spec.dtype
    args = [("x", spec.dtype, in_size), ("y", out_dtype, out_size)]
    outer = spec.kept[:-1]

    def emit(body: Body) -> None:
        x, y = body.buffers
        with loop(body.begin, body.end) as unit:
            line = T.bind(unit // steps)
            place = T.bind(T.min(unit % steps * lanes, inner[0] - lanes))
            source = T.bind(offset_of(line, [s for s, _ in outer], [t for _, t in outer]) + place * inner[1])
            target = line * inner[0] + place
            if _is_row(spec, isa):
                _row_extremum(spec, isa.wide, x, source, y, target)
            elif places:
                _argmax(spec, body, x, source, y, target)
            else:
                _fold(spec, body, x, source, y, target, lanes)

    units = lines * steps
    work = math.prod([n for n, _ in spec.reduced])
    return Kernel(kernel(args, emit), (spec.dtype, out_dtype), units, max(1, min(units, 16384 // max(work * lanes, 1))))


def _is_row(spec: Reduce, isa: Isa) -> bool:
    """Whether an extremum is looked for among neighbours in memory, enough of them to fill vectors."""
    along = len(spec.reduced) == 1 and spec.reduced[0][1] == 1 and spec.reduced[0][0] >= 2 * isa.wide
    return along and spec.dtype == "float32" and spec.kind in ("max", "min", "argmax")


def _row_extremum(spec: Reduce, lanes: int, x: Flat, source: Expr, y: Flat, target: Expr) -> None:
    """By vectors, whose last overlaps the one before; for argmax a second walk looks for the first place."""
    size = spec.reduced[0][0]
    combine = T.min if spec.kind == "min" else T.max
    best = cell("float32", lanes)
    best.set(x.load(source, lanes))

    def steps(step: Callable[[Expr, Expr], None]) -> None:
        with loop(0, -(-size // lanes)) as i:
            place = T.bind(T.min(i * lanes, size - lanes))
            step(place, x.load(source + place, lanes))

    steps(lambda _, value: best.set(combine(best.get(), value)))
    top = _across(best, lanes, combine)
    if spec.kind != "argmax":
        y.store(target, top)
        return
    first = cell("int32", lanes)
    first.set(splat(T.int32(size), lanes))

    def look(place: Expr, value: Expr) -> None:
        index = T.ramp(place, 1, lanes)
        found = T.Select(value == splat(top, lanes), index, splat(T.int32(size), lanes))
        first.set(T.min(first.get(), found))

    steps(look)
    place = _across(first, lanes, T.min)
    y.store(target, cast("int64", T.Select(place < size, place, T.int32(0))))  # nothing equals a NaN


def _across(vector_cell: Cell, lanes: int, combine: Callable[[Expr, Expr], Expr]) -> Expr:
    """The lanes of a vector combined, halves first."""
    value = T.bind(vector_cell.get())
    while lanes > 1:
        lanes //= 2
        if lanes == 1:
            value = T.bind(combine(shuffle([value], [0]), shuffle([value], [1])))
        else:
            low, high = (T.bind(shuffle([value], range(start, start + lanes))) for start in (0, lanes))
            value = T.bind(combine(low, high))
    return value


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
        with when(value >= best.get() if spec.kind == "argmax_last" else value > best.get()):
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
    lanes = isa.wide_for(spec.inner)
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

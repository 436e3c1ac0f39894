"""float32 operators on rows: softmax, layer normalization, lookup by index (SPEC section 8).

Sums over a row run in sixteen partial sums, whatever the vectors of the CPU hold: element i joins partial sum i mod 16,
and the partial sums are added in halves, 8 + 8, 4 + 4, …. LLVM splits vectors of sixteen where registers are shorter.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edgebuild.kernels.builder import (
    Body,
    Expr,
    Flat,
    Kernel,
    T,
    cast,
    cell,
    fence,
    floor_power,
    intrinsic,
    kernel,
    loop,
    splat,
    when,
)
from edgebuild.kernels.copy import copy_run
from edgebuild.kernels.floats import exponential, logarithm
from edgebuild.kernels.isa import Isa
from edgebuild.kernels.norm import Rows

PARTS = 16


def softmax_kernel(spec: Rows, _isa: Isa, *, log: bool) -> Kernel:
    """Arguments: input, output. `log`: LogSoftmax."""
    size = spec.size

    def emit(body: Body) -> None:
        x, y = body.buffers
        with loop(body.begin, body.end) as row:
            base = T.bind(row * size)
            top = _maximum(x, base, size)

            def shifted(at: Expr, lanes: int) -> Expr:
                return fence(x.load(base + at, lanes) - splat(top, lanes), lanes)

            def power(at: Expr, lanes: int) -> Expr:
                value = T.bind(exponential(shifted(at, lanes), lanes))
                if not log:
                    y.store(base + at, value, lanes)
                return value

            total = T.bind(row_sum(size, power))

            def result(at: Expr, lanes: int) -> Expr:
                if log:
                    return shifted(at, lanes) - splat(logarithm(total, 1), lanes)
                return y.load(base + at, lanes) / splat(total, lanes)

            each(size, lambda at, lanes: y.store(base + at, result(at, lanes), lanes))

    count = spec.rows * size
    func = kernel([("x", "float32", count), ("y", "float32", count)], emit)
    return Kernel(func, ("float32", "float32"), spec.rows, spec.grain())


def float_norm_kernel(spec: Rows, _isa: Isa) -> Kernel:
    """Arguments: input, gain [size], offset [size], epsilon [1], output."""
    size = spec.size
    args = [
        ("x", "float32", spec.rows * size),
        ("gain", "float32", size),
        ("offset", "float32", size),
        ("epsilon", "float32", 1),
        ("y", "float32", spec.rows * size),
    ]

    def emit(body: Body) -> None:
        x, gain, offset, epsilon, y = body.buffers
        with loop(body.begin, body.end) as row:
            base = T.bind(row * size)
            mean = T.bind(row_sum(size, lambda at, lanes: x.load(base + at, lanes)) / T.float32(size))

            def centred(at: Expr, lanes: int) -> Expr:
                return T.bind(fence(x.load(base + at, lanes) - splat(mean, lanes), lanes))

            def square(at: Expr, lanes: int) -> Expr:
                value = centred(at, lanes)
                return fence(value * value, lanes)

            variance = fence(row_sum(size, square) / T.float32(size), 1) + epsilon.load(0)
            factor = T.bind(T.float32(1) / intrinsic("llvm.sqrt", "float32", variance))

            def store(at: Expr, lanes: int) -> None:
                value = fence(centred(at, lanes) * splat(factor, lanes), lanes)
                value = fence(value * gain.load(at, lanes), lanes) + offset.load(at, lanes)
                y.store(base + at, value, lanes)

            each(size, store)

    return Kernel(kernel(args, emit), tuple(a[1] for a in args), spec.rows, spec.grain())


def each(size: int, step: Callable[[Expr, int], None]) -> None:
    """`step(place, lanes)` over a row, sixteen elements a step, the rest one by one."""
    whole = size // PARTS
    with loop(0, whole) as i:
        step(T.bind(i * PARTS), PARTS)
    if size % PARTS:
        with loop(whole * PARTS, size) as i:
            step(i, 1)


def row_sum(size: int, value: Callable[[Expr, int], Expr]) -> Expr:
    """The sum of `value(place, lanes)` over a row."""
    parts = cell("float32", PARTS)
    parts.set(splat(T.float32(0), PARTS))
    whole = size // PARTS
    with loop(0, whole) as i:
        parts.set(parts.get() + value(T.bind(i * PARTS), PARTS))
    flat = parts.flat
    if size % PARTS:
        with loop(whole * PARTS, size) as i:
            flat.store(i - whole * PARTS, flat.load(i - whole * PARTS) + value(i, 1))
    sums = [T.bind(flat.load(i)) for i in range(PARTS)]
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [T.bind(sums[i] + sums[i + half]) for i in range(half)]
    return sums[0]


def _maximum(x: Flat, base: Expr, size: int) -> Expr:
    lanes = min(PARTS, floor_power(size))
    best = cell("float32", lanes)
    best.set(x.load(base, lanes))
    with loop(1, -(-size // lanes)) as i:
        best.set(T.max(best.get(), x.load(base + T.min(i * lanes, size - lanes), lanes)))
    values = [T.bind(best.flat.load(i)) for i in range(lanes)]
    while len(values) > 1:
        half = len(values) // 2
        values = [T.bind(T.max(values[i], values[i + half])) for i in range(half)]
    return values[0]


@dataclass(frozen=True)
class TopK:
    """The `count` largest (or smallest) of every row of `rows` × `size`."""

    rows: int
    size: int
    count: int
    largest: bool


def top_k_kernel(spec: TopK, _isa: Isa) -> Kernel:
    """Arguments: x float32, indices int64 [rows, count]; equal values by rising index. A unit is one row.

    The best so far are kept in order; of a long row most elements are worse than all of them.
    """
    args = [("x", "float32", spec.rows * spec.size), ("y", "int64", spec.rows * spec.count)]
    sign = 1.0 if spec.largest else -1.0

    def emit(body: Body) -> None:
        (x, y), best = body.buffers, body.scratch

        def insert(row: Expr, j: Expr, value: Expr, last: Expr) -> None:
            """The value at place `last`, and then forward past all that are smaller."""
            at = row * spec.count
            best.store(last, value)
            y.store(at + last, cast("int64", j))
            with loop(0, last) as step:
                place = T.bind(last - step)
                before = T.bind(best.load(place - 1))
                with when(before < value):
                    best.store(place, before)
                    y.store(at + place, y.load(at + place - 1))
                    best.store(place - 1, value)
                    y.store(at + place - 1, cast("int64", j))

        with loop(body.begin, body.end) as row:
            with loop(0, body.rolled(spec.count)) as j:
                insert(row, j, T.bind(x.load(row * spec.size + j) * T.float32(sign)), j)
            with loop(spec.count, body.rolled(spec.size)) as j:
                value = T.bind(x.load(row * spec.size + j) * T.float32(sign))
                with when(best.load(spec.count - 1) < value):
                    insert(row, j, value, body.rolled(spec.count - 1))

    work = spec.size + spec.count * spec.count
    func = kernel(args, emit, scratch=("float32", spec.count))
    grain = max(1, min(spec.rows, 16384 // work))
    return Kernel(func, ("float32", "int64"), spec.rows, grain, 4 * spec.count)


def pick_kernel(spec: TopK, _isa: Isa) -> Kernel:
    """Arguments: x float32, indices int64 [rows, count], values float32 [rows, count]. A unit is one row."""
    args = [
        ("x", "float32", spec.rows * spec.size),
        ("index", "int64", spec.rows * spec.count),
        ("y", "float32", spec.rows * spec.count),
    ]

    def emit(body: Body) -> None:
        x, index, y = body.buffers
        with loop(body.begin, body.end) as row, loop(0, body.rolled(spec.count)) as i:
            place = row * spec.count + i
            y.store(place, x.load(row * spec.size + cast("int32", index.load(place))))

    func = kernel(args, emit)
    return Kernel(func, tuple(a[1] for a in args), spec.rows, max(1, min(spec.rows, 16384 // spec.count)))


@dataclass(frozen=True)
class Lookup:
    """[outer, size, inner] → [outer, count, inner] by indices that are computed at run time."""

    dtype: str
    index: str
    outer: int
    size: int
    count: int
    inner: int


def lookup_kernel(spec: Lookup, _isa: Isa) -> Kernel:
    """Arguments: table, indices, output. Negative indices count from the end; what lies outside is clamped."""
    args = [
        ("x", spec.dtype, spec.outer * spec.size * spec.inner),
        ("index", spec.index, spec.count),
        ("y", spec.dtype, spec.outer * spec.count * spec.inner),
    ]

    def emit(body: Body) -> None:
        x, index, y = body.buffers
        with loop(body.begin, body.end) as unit:
            given = T.bind(cast("int64", index.load(unit % spec.count)))
            wrapped = T.Select(given < T.int64(0), given + T.int64(spec.size), given)
            row = T.bind(cast("int32", T.min(T.max(wrapped, T.int64(0)), T.int64(spec.size - 1))))
            source = T.bind((unit // spec.count * spec.size + row) * spec.inner)
            copy_run(x, source, y, unit * spec.inner, spec.inner, lambda v, _: v)

    units = spec.outer * spec.count
    return Kernel(kernel(args, emit), tuple(a[1] for a in args), units, max(1, min(units, 65536 // spec.inner)))

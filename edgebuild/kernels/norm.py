"""Softmax and layer normalization of quantized rows (SPEC section 7): integer sums, one float32 factor a row."""

from dataclasses import dataclass

from edgebuild.kernels.builder import (
    Body,
    Expr,
    Flat,
    Kernel,
    T,
    bits,
    cast,
    cell,
    fence,
    floor_power,
    intrinsic,
    kernel,
    loop,
    splat,
)
from edgebuild.kernels.epilogue import QUANT_PARAMS, Epilogue
from edgebuild.kernels.isa import Isa

NORM_PARAMS = QUANT_PARAMS + 1  # those of every operator, and the constant of the variance as float32 bits


@dataclass(frozen=True)
class Rows:
    """`rows` rows of `size` elements, one behind the other."""

    rows: int
    size: int

    def grain(self) -> int:
        """Rows that are worth handing to another thread."""
        return max(1, min(self.rows, 8192 // self.size))


def softmax_table_kernel(spec: Rows, isa: Isa) -> Kernel:
    """Arguments: x uint8, exponentials int32 [256], 1 / s_y float32 [1], params int32 [QUANT_PARAMS], y uint8."""
    size, lanes = spec.size, isa.wide_for(spec.size)
    args = [
        ("x", "uint8", spec.rows * size),
        ("table", "int32", 256),
        ("scale", "float32", 1),
        ("params", "int32", QUANT_PARAMS),
        ("y", "uint8", spec.rows * size),
    ]

    def emit(body: Body) -> None:
        x, table, scale, params, y = body.buffers
        epilogue = Epilogue(isa, params)
        with loop(body.begin, body.end) as row:
            base = T.bind(row * size)
            top = _row_maximum(x, base, size, isa)
            total = cell("int32")
            total.set(T.int32(0))
            with loop(0, body.rolled(size)) as i:
                value = T.bind(table.load(top - cast("int32", x.load(base + i))))
                body.scratch.store(i, value)
                total.set(total.get() + value)
            factor = T.bind(splat(scale.load(0) / cast("float32", total.get()), lanes))
            with loop(0, -(-size // lanes)) as i:
                place = T.bind(T.min(i * lanes, size - lanes))
                value = cast("float32", body.scratch.load(place, lanes), lanes) * factor
                y.store(base + place, epilogue.rounded(value, lanes), lanes)

    func = kernel(args, emit, scratch=("int32", size))
    return Kernel(func, tuple(a[1] for a in args), spec.rows, spec.grain(), 4 * size)


def _row_maximum(x: Flat, base: Expr, size: int, isa: Isa) -> Expr:
    """The largest byte of a row, as int32."""
    lanes = min(4 * isa.lanes, floor_power(size))
    best = cell("uint8", lanes)
    best.set(x.load(base, lanes))
    with loop(1, -(-size // lanes)) as i:
        best.set(T.max(best.get(), x.load(base + T.min(i * lanes, size - lanes), lanes)))
    if lanes == 1:
        return T.bind(cast("int32", best.get()))
    return T.bind(cast("int32", intrinsic("llvm.vector.reduce.umax", "uint8", best.get())))


def layer_norm_kernel(spec: Rows, isa: Isa) -> Kernel:
    """Arguments: x uint8, gain and offset float32 [size], params int32 [NORM_PARAMS], y uint8."""
    size, lanes = spec.size, isa.wide_for(spec.size)
    args = [
        ("x", "uint8", spec.rows * size),
        ("gain", "float32", size),
        ("offset", "float32", size),
        ("params", "int32", NORM_PARAMS),
        ("y", "uint8", spec.rows * size),
    ]

    def emit(body: Body) -> None:
        x, gain, offset, params, y = body.buffers
        epilogue = Epilogue(isa, params)
        with loop(body.begin, body.end) as row:
            base = T.bind(row * size)
            total, squares = _row_sums(x, base, size, lanes)
            spread = cast("int64", squares) * T.int64(size) - cast("int64", total) * cast("int64", total)
            variance = T.bind(cast("float32", spread) + bits("float32", params.load(QUANT_PARAMS)))
            factor = T.bind(splat(T.float32(1) / intrinsic("llvm.sqrt", "float32", variance), lanes))
            mean = T.bind(splat(total, lanes))
            with loop(0, -(-size // lanes)) as i:
                place = T.bind(T.min(i * lanes, size - lanes))
                value = cast("int32", x.load(base + place, lanes), lanes) * splat(T.int32(size), lanes) - mean
                value = fence(cast("float32", value, lanes) * factor, lanes)
                value = fence(value * gain.load(place, lanes), lanes) + offset.load(place, lanes)
                y.store(base + place, epilogue.rounded(value, lanes), lanes)

    return Kernel(kernel(args, emit), tuple(a[1] for a in args), spec.rows, spec.grain())


def _row_sums(x: Flat, base: Expr, size: int, lanes: int) -> tuple[Expr, Expr]:
    """(Σ q, Σ q²) of a row, int32; exact for rows shorter than 2^15."""
    total, squares = cell("int32", lanes), cell("int32", lanes)
    for sums in (total, squares):
        sums.set(splat(T.int32(0), lanes))

    def add(place: Expr, mask: Expr | None) -> None:
        value = T.bind(cast("int32", x.load(place, lanes), lanes))
        value = value if mask is None else T.bind(value & mask)
        total.set(total.get() + value)
        squares.set(squares.get() + value * value)

    with loop(0, size // lanes) as i:
        add(base + i * lanes, None)
    if rest := size % lanes:
        fresh = T.ramp(T.int32(0), T.int32(1), lanes) >= splat(T.int32(lanes - rest), lanes)
        add(base + (size - lanes), splat(T.int32(0), lanes) - cast("int32", fresh, lanes))
    if lanes == 1:
        return T.bind(total.get()), T.bind(squares.get())
    return tuple(T.bind(intrinsic("llvm.vector.reduce.add", "int32", s.get())) for s in (total, squares))

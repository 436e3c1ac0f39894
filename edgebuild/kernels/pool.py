"""Max and average pooling, NHWC, channels in the lanes: of uint8 (SPEC section 7) and of float32 (section 8)."""

from collections.abc import Callable
from dataclasses import dataclass

from edgebuild.kernels.builder import Body, Expr, Kernel, T, cast, cell, floor_power, kernel, loop, splat
from edgebuild.kernels.epilogue import BYTES, QUANT_PARAMS, Epilogue, Types
from edgebuild.kernels.isa import Isa


@dataclass(frozen=True)
class Pool:
    """[batch, height, width, channels] → [batch, out_height, out_width, channels]."""

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def in_size(self) -> int:
        return self.batch * self.height * self.width * self.channels

    @property
    def out_size(self) -> int:
        return self.batch * self.out_height * self.out_width * self.channels


@dataclass(frozen=True)
class _Window:
    """The taps [y0, y1) × [x0, x1) of one output pixel that lie inside the image, and where tap (0, 0) would be."""

    top: Expr
    left: Expr
    rows: tuple[Expr, Expr]
    columns: tuple[Expr, Expr]


def max_pool_kernel(pool: Pool, isa: Isa, *, dtype: str = "uint8") -> Kernel:
    """Arguments: input, output, uint8 or int16."""
    lanes = min(isa.lanes * (4 if dtype == "uint8" else 2), floor_power(pool.channels))
    args = [("x", dtype, pool.in_size), ("y", dtype, pool.out_size)]
    least = cast(dtype, 0 if dtype == "uint8" else -(2**15))

    def emit(body: Body) -> None:
        x, y = body.buffers

        def pixel(window: _Window, image: Expr, place: Expr) -> None:
            with loop(0, -(-pool.channels // lanes)) as block:
                channel = T.bind(T.min(block * lanes, pool.channels - lanes))
                best = cell(dtype, lanes)
                best.set(splat(least, lanes))
                with loop(*window.rows) as kh, loop(*window.columns) as kw:
                    best.set(T.max(best.get(), x.load(_tap(pool, window, image, kh, kw) + channel, lanes)))
                y.store(place + channel, best.get(), lanes)

        _pixels(pool, body, pixel)

    return Kernel(kernel(args, emit), (dtype, dtype), pool.batch * pool.out_height)


def average_pool_kernel(pool: Pool, isa: Isa, *, types: Types = BYTES) -> Kernel:
    """Arguments: input, multipliers float32 [out_height, out_width], quant, output."""
    lanes = isa.wide_for(pool.channels)
    positions = pool.out_height * pool.out_width
    args = [
        ("x", types.source, pool.in_size),
        ("scale", "float32", positions),
        ("quant", "int32", QUANT_PARAMS),
        ("y", types.result, pool.out_size),
    ]

    def emit(body: Body) -> None:
        x, scale, quant, y = body.buffers
        epilogue = Epilogue(isa, quant, types=types)

        def pixel(window: _Window, image: Expr, place: Expr) -> None:
            taps = (window.rows[1] - window.rows[0]) * (window.columns[1] - window.columns[0])
            start = T.bind(0 - cast("int32", epilogue.padding) * taps)
            factor = T.bind(scale.load(place // pool.channels % positions))
            with loop(0, -(-pool.channels // lanes)) as block:
                channel = T.bind(T.min(block * lanes, pool.channels - lanes))
                total = cell("int32", lanes)
                total.set(splat(start, lanes))
                with loop(*window.rows) as kh, loop(*window.columns) as kw:
                    value = x.load(_tap(pool, window, image, kh, kw) + channel, lanes)
                    total.set(total.get() + cast("int32", value, lanes))
                y.store(place + channel, epilogue.single(total.get(), splat(factor, lanes), lanes), lanes)

        _pixels(pool, body, pixel)

    return Kernel(kernel(args, emit), tuple(a[1] for a in args), pool.batch * pool.out_height)


def float_pool_kernel(pool: Pool, isa: Isa, *, reduction: str) -> Kernel:
    """`reduction` max: input, output; average: input, count float32 [out_height, out_width], output (SPEC section
    8).
    """
    lanes = isa.wide_for(pool.channels)
    positions = pool.out_height * pool.out_width
    args = [("x", "float32", pool.in_size), ("y", "float32", pool.out_size)]
    if reduction == "average":
        args.insert(1, ("count", "float32", positions))

    def emit(body: Body) -> None:
        x, *counts, y = body.buffers

        def pixel(window: _Window, image: Expr, place: Expr) -> None:
            with loop(0, -(-pool.channels // lanes)) as block:
                channel = T.bind(T.min(block * lanes, pool.channels - lanes))
                total = cell("float32", lanes)
                start = float("-inf") if reduction == "max" else -0.0
                total.set(splat(T.float32(start), lanes))
                with loop(*window.rows) as kh, loop(*window.columns) as kw:
                    value = x.load(_tap(pool, window, image, kh, kw) + channel, lanes)
                    total.set(T.max(total.get(), value) if reduction == "max" else total.get() + value)
                result = total.get()
                if counts:
                    result = result / splat(counts[0].load(place // pool.channels % positions), lanes)
                y.store(place + channel, result, lanes)

        _pixels(pool, body, pixel)

    return Kernel(kernel(args, emit), tuple(a[1] for a in args), pool.batch * pool.out_height)


def _tap(pool: Pool, window: _Window, image: Expr, kh: Expr, kw: Expr) -> Expr:
    y, x = window.top + kh * pool.dilation[0], window.left + kw * pool.dilation[1]
    return ((image * pool.height + y) * pool.width + x) * pool.channels


def _pixels(pool: Pool, body: Body, pixel: Callable[[_Window, Expr, Expr], None]) -> None:
    """Call `pixel(window, image, index of its first output element)` for every output pixel; a unit is one line."""
    with loop(body.begin, body.end) as unit, loop(0, pool.out_width) as column:
        image = unit // pool.out_height if pool.batch > 1 else 0
        top = T.bind(unit % pool.out_height * pool.stride[0] - pool.pad[0])
        left = T.bind(column * pool.stride[1] - pool.pad[1])
        rows = _inside(top, pool.kernel[0], pool.dilation[0], pool.height)
        columns = _inside(left, pool.kernel[1], pool.dilation[1], pool.width)
        pixel(_Window(top, left, rows, columns), image, (unit * pool.out_width + column) * pool.channels)


def _inside(start: Expr, taps: int, dilation: int, size: int) -> tuple[Expr, Expr]:
    """First and last+1 tap t with 0 ≤ start + t·dilation < size."""
    first = T.bind(T.max(0, (dilation - 1 - start) // dilation))
    last = T.bind(T.min(taps, (size - start + dilation - 1) // dilation))
    return first, last

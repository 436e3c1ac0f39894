"""Residual add and mul of two quantized tensors (SPEC section 7)."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgebuild.kernels.builder import Body, Expr, Flat, Kernel, T, bits, cast, floor_power, kernel, loop, splat
from edgebuild.kernels.copy import Into
from edgebuild.kernels.epilogue import ANY, QUANT_PARAMS, Bounds, Epilogue
from edgebuild.kernels.isa import PACK, Isa

PARAMS = QUANT_PARAMS + 6  # the output's, multiplier as float32 bits, A, B, constant, z_a, z_b
CHUNK = 4096


@dataclass(frozen=True)
class Binary:
    """`rows` × `inner` elements; with `broadcast`, the second operand has one row for all."""

    kind: str
    rows: int
    inner: int
    broadcast: bool = False


def can_overwrite(binary: Binary, isa: Isa) -> bool:
    """Whether the output may take the place of an operand: no block overlaps the one before it."""
    run = binary.inner if binary.broadcast else binary.rows * binary.inner
    return run % _width(_fitting(isa, run), run) == 0


def binary_kernel(
    binary: Binary,
    isa: Isa,
    *,
    table: bool = False,
    into: Into | None = None,
    bounds: Bounds = ANY,
    overwrites: int | None = None,
) -> Kernel:
    """Arguments: a, b, params [11], [table uint8 [256]], output, which `into` places and which may be one of the
    operands (`overwrites`: 0 is a, 1 is b).

    add: acc = A·a + B·b + constant; mul: acc = (a − z_a)·(b − z_b).
    """
    size = binary.rows * binary.inner
    run = binary.inner if binary.broadcast else size if into is None else into.line
    isa = _fitting(isa, run)
    width = _width(isa, run)
    steps, rows = -(-run // width), size // run
    args = [
        ("a", "uint8", size),
        ("b", "uint8", binary.inner if binary.broadcast else size),
        ("params", "int32", PARAMS),
        *([("table", "uint8", 256)] if table else []),
        ("y", "uint8", into.size if into else size),
    ]
    stride, offset = (into.stride_of(run), into.offset) if into else (run, 0)
    second = 0 if binary.broadcast else run
    per_unit = max(1, CHUNK // width) if rows == 1 else 1

    def emit(body: Body) -> None:
        a, b, params, *tables, y = body.buffers
        if overwrites is not None:  # the buffers are declared not to overlap: only one of the two may be used
            a, b = (y, b) if overwrites == 0 else (a, y)
        step = _Step(binary.kind, isa, width, params, tables, bounds)

        def line(row: Expr, begin: Expr, end: Expr) -> None:
            with loop(begin, end) as i:
                place = T.bind(T.min(i * width, run - width))
                step.emit((a, row * run + place), (b, row * second + place), (y, row * stride + place + offset))

        if rows == 1:
            line(0, body.begin * per_unit, T.min(body.end * per_unit, steps))
            return
        with loop(body.begin, body.end) as row:
            line(row, 0, steps)

    units = -(-steps // per_unit) if rows == 1 else rows
    grain = max(1, min(units, 4 if rows == 1 else 4 * CHUNK // run))
    return Kernel(kernel(args, emit), tuple(a[1] for a in args), units, grain)


def _width(isa: Isa, run: int) -> int:
    """Elements of one block."""
    return min(isa.block, floor_power(run))


def _fitting(isa: Isa, run: int) -> Isa:
    """The longest vectors of which one block is not longer than the run."""
    lanes = isa.lanes
    while lanes > 4 and PACK * lanes > run:
        lanes //= 2
    return isa.at(lanes)


class _Step:
    """One block of elements; runs shorter than the shortest block take a vector of their own length."""

    def __init__(self, kind: str, isa: Isa, width: int, params: Flat, table: Sequence[Flat], bounds: Bounds) -> None:
        self.kind, self.isa, self.width, self.params = kind, isa, width, params
        self.epilogue = Epilogue(isa, params, bounds, table[0] if table else None)

    def emit(self, left: tuple[Flat, Expr], right: tuple[Flat, Expr], result: tuple[Flat, Expr]) -> None:
        y, target = result
        if self.width < self.isa.block:
            acc = self._accumulate(left, right, 0, self.width)
            multiplier = self._param(0, self.width, "float32")
            y.store(target, self.epilogue.single(acc, multiplier, self.width), self.width)
            return
        lanes = self.isa.lanes
        multiplier = self._param(0, lanes, "float32")
        levels = [self.epilogue.level(self._accumulate(left, right, k * lanes, lanes), multiplier) for k in range(PACK)]
        halves = [self.epilogue.half(*levels[i : i + 2]) for i in (0, 2)]
        y.store(target, self.epilogue.block(halves[0], halves[1]), self.width)

    def _accumulate(self, left: tuple[Flat, Expr], right: tuple[Flat, Expr], offset: int, lanes: int) -> Expr:
        a, b = (cast("int32", buffer.load(place + offset, lanes), lanes) for buffer, place in (left, right))
        if self.kind == "add":
            return a * self._param(1, lanes) + b * self._param(2, lanes) + self._param(3, lanes)
        return (a - self._param(4, lanes)) * (b - self._param(5, lanes))

    def _param(self, index: int, lanes: int, dtype: str = "int32") -> Expr:
        value = self.params.load(QUANT_PARAMS + index)
        return splat(value if dtype == "int32" else bits(dtype, value), lanes)

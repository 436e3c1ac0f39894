"""Batched product of two quantized activations (SPEC section 7, matmul of two activations), as attention has it.

For each matrix of the batch, `b` is packed into the layout of the dot instruction's weights, with 128 subtracted so
that it is int8; then blocks of rows × vectors accumulators stay in registers over the whole of K, as in `conv`. Both
zero points leave the inner loop: Σ (a − z_a)(b − z_b) = Σ a·b − z_a·Σb − z_b·Σa + K·z_a·z_b. The sums are dots with
ones, so no instruction set needs a horizontal addition.
"""

import math
from dataclasses import dataclass

import numpy as np

from edgebuild.kernels.builder import (
    Body,
    Cell,
    Expr,
    Kernel,
    T,
    bits,
    cast,
    cells,
    floor_power,
    kernel,
    loop,
    offset_of,
    splat,
)
from edgebuild.kernels.epilogue import ANY, QUANT_PARAMS, Bounds, Epilogue, Piece
from edgebuild.kernels.isa import Isa, group_scalar, spread

PARAMS = QUANT_PARAMS + 2  # those of every operator (z_x is z_a), z_b, multiplier as float32 bits
_ALIGNMENT = 64


@dataclass(frozen=True)
class Batched:
    """`batch` matrices a [rows, depth] × b [depth, columns] → y [rows, columns].

    Strides in elements: `*_batch` one for each size of `batch` (0 where it is broadcast); y's columns lie side by side.
    """

    batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    a_batch: tuple[int, ...]
    a_row: int
    a_depth: int
    b_batch: tuple[int, ...]
    b_depth: int
    b_column: int
    y_batch: tuple[int, ...]
    y_row: int

    @property
    def matrices(self) -> int:
        return math.prod(self.batch)

    @property
    def macs(self) -> int:
        return self.matrices * self.rows * self.depth * self.columns


def batched_kernel(spec: Batched, isa: Isa, *, bounds: Bounds = ANY) -> Kernel:
    """Arguments: a, b uint8, params int32 [PARAMS], y uint8. A unit is a part of one matrix's rows."""
    template = _Template(spec, isa, bounds)
    args = [
        ("a", "uint8", _extent(spec.batch, spec.a_batch) + (spec.rows - 1) * spec.a_row + spec.depth * spec.a_depth),
        ("b", "uint8", _extent(spec.batch, spec.b_batch) + spec.depth * spec.b_depth + spec.columns * spec.b_column),
        ("params", "int32", PARAMS),
        ("y", "uint8", _extent(spec.batch, spec.y_batch) + (spec.rows - 1) * spec.y_row + spec.columns),
    ]
    func = kernel(args, template.emit, scratch=("uint8", template.scratch))
    units = spec.matrices * template.parts
    grain = max(1, min(units, int(200_000 * units / spec.macs)))
    return Kernel(func, tuple(a[1] for a in args), units, grain, template.scratch)


def _extent(batch: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return sum((n - 1) * s for n, s in zip(batch, strides, strict=True))


def register_block(rows: int, vectors: int, steps: int, isa: Isa) -> tuple[int, int]:
    """Rows × vectors of accumulators: the cheapest that fits the registers; ties go to the larger block."""

    def cost(block: tuple[int, int]) -> tuple[float, int]:
        r, v = block
        tiles = -(-rows // r) * -(-vectors // v)
        return tiles * (isa.cost.step(r, v) * steps + 3.0 * r * v + 10.0), -r * v

    return min(isa.blocks(rows, vectors), key=cost)


class _Template:
    """Block sizes, the layout of the scratch (in bytes), and the loops."""

    def __init__(self, spec: Batched, isa: Isa, bounds: Bounds) -> None:
        self.spec, self.isa, self.bounds = spec, isa, bounds
        self.steps = -(-spec.depth // isa.group)
        self.vectors = -(-spec.columns // isa.lanes)
        self.width = isa.lanes * isa.group
        self.rows, self.block = register_block(spec.rows, self.vectors, self.steps, isa)
        self.blocks = -(-spec.rows // self.rows)
        self.parts = 1 if spec.matrices >= 4 else min(4, self.blocks)
        self.direct = isa.direct and spec.a_depth == 1 and spec.depth % isa.group == 0
        item = np.dtype(isa.packed).itemsize
        self.row_bytes = self.steps * isa.group * item
        sizes = [
            self.vectors * self.steps * self.width,
            4 * self.vectors * isa.lanes,
            4 * self.rows * isa.lanes,
            0 if self.direct else self.rows * self.row_bytes,
        ]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        self.column_sums, self.row_sums, self.packed, self.scratch = starts[1:]

    def emit(self, body: Body) -> None:
        self.a, self.b, self.params, self.y = body.buffers
        self.space, self.rolled = body.scratch, body.rolled
        self.epilogue = Epilogue(self.isa, self.params, self.bounds)
        spec = self.spec
        with loop(body.begin, body.end) as unit:
            matrix = T.bind(unit // self.parts) if self.parts > 1 else unit
            self.source = T.bind(offset_of(matrix, spec.batch, spec.a_batch) + T.int32(0))
            self.other = T.bind(offset_of(matrix, spec.batch, spec.b_batch) + T.int32(0))
            self.target = T.bind(offset_of(matrix, spec.batch, spec.y_batch) + T.int32(0))
            self.zero_a = T.bind(self.params.load(QUANT_PARAMS - 1) - self.isa.bias)
            self.zero_b = T.bind(self.params.load(QUANT_PARAMS) - 128)
            self._pack_columns()
            self._sum_columns()
            part = unit % self.parts
            with loop(part * self.blocks // self.parts, (part + 1) * self.blocks // self.parts) as i:
                self._rows(T.bind(T.min(i * self.rows, spec.rows - self.rows)))

    # b

    def _column(self, vector: Expr) -> Expr:
        """First column of a vector: the last one overlaps its neighbour."""
        if self.spec.columns < self.isa.lanes:
            return 0
        return T.min(vector * self.isa.lanes, self.spec.columns - self.isa.lanes)

    def _pack_columns(self) -> None:
        with loop(0, self.vectors) as j:
            first = T.bind(self._column(j) + T.int32(0))
            place = T.bind(j * (self.steps * self.width))
            if self.spec.b_column == 1 and self.spec.columns >= self.isa.lanes:
                self._interleave(first, place)
            else:
                self._transpose(first, place)

    def _interleave(self, first: Expr, place: Expr) -> None:
        """Columns lie side by side: `group` rows become the bytes of wider lanes by shifts."""
        whole = self.spec.depth // self.isa.group
        with loop(0, whole) as step:
            self._interleave_step(first, place, step, self.isa.group)
        if whole < self.steps:
            self._interleave_step(first, place, whole, self.spec.depth - whole * self.isa.group)

    def _interleave_step(self, first: Expr, place: Expr, step: Expr, count: int) -> None:
        """`count` rows of values; absent ones become 0 after 128 is subtracted."""
        lanes, group = self.isa.lanes, self.isa.group
        wide = f"uint{8 * group}"
        fill = sum(0x80 << (8 * g) for g in range(count, group))
        word: Expr = splat(_number(wide, fill), lanes)
        for g in range(count):
            row = self.other + (step * group + g) * self.spec.b_depth + first
            value = cast(wide, self.b.load(row, lanes), lanes)
            word = word | (value if g == 0 else value << splat(_number(wide, 8 * g), lanes))
        word = word ^ splat(_number(wide, sum(0x80 << (8 * g) for g in range(group))), lanes)
        self.space.store(place + step * self.width, bits("uint8", word, self.width), self.width)

    def _transpose(self, first: Expr, place: Expr) -> None:
        """Any strides; whole groups at once where a column's values lie side by side."""
        spec, group = self.spec, self.isa.group
        whole = spec.depth // group if spec.b_depth == 1 else 0
        with loop(0, self.rolled(min(self.isa.lanes, spec.columns))) as n:
            source = T.bind(self.other + (first + n) * spec.b_column)
            target = T.bind(place + n * group)
            if whole:
                with loop(0, self.rolled(whole)) as step:
                    value = self.b.load(source + step * group, group) ^ splat(T.uint8(128), group)
                    self.space.store(target + step * self.width, value, group)
            with loop(whole * group, self.rolled(spec.depth)) as k:
                value = self.b.load(source + k * spec.b_depth) ^ T.uint8(128)
                self.space.store(target + k // group * self.width + k % group, value)
            for k in range(spec.depth, self.steps * group):
                self.space.store(target + k // group * self.width + k % group, T.uint8(0))

    def _sum_columns(self) -> None:
        """K·z_a·z_b − z_a·Σb of every column."""
        lanes = self.isa.lanes
        constant = T.bind(self.zero_a * self.zero_b * self.spec.depth)
        with loop(0, self.vectors) as j:
            total = cells(1, "int32", lanes)[0]
            total.set(splat(T.int32(0), lanes))
            with loop(0, self.steps) as step:
                total.set(self._dot(total, self._ones(), self._weights((j * self.steps + step) * self.width)))
            value = splat(constant, lanes) - splat(self.zero_a, lanes) * total.get()
            self._store_sums(self.column_sums + j * (4 * lanes), value)

    def _ones(self) -> Expr:
        """A group of activations that are all 1."""
        size = 8 * np.dtype(self.isa.packed).itemsize
        return _number(group_scalar(self.isa), sum(1 << (size * g) for g in range(self.isa.group)))

    def _weights(self, place: Expr) -> Expr:
        return bits("int8", self.space.load(place, self.width), self.width)

    def _store_sums(self, place: Expr, value: Expr) -> None:
        lanes = self.isa.lanes
        self.space.store(place, bits("uint8", value, 4 * lanes), 4 * lanes)

    def _load_sums(self, place: Expr) -> Expr:
        return bits("int32", self.space.load(place, 4 * self.isa.lanes), self.isa.lanes)

    # a

    def _rows(self, first: Expr) -> None:
        if not self.direct:
            self._pack_rows(first)
        self._sum_rows(first)
        whole, rest = divmod(self.vectors, self.block)
        if whole:
            with loop(0, whole) as i:
                self._tile(first, i * self.block, self.block)
        if rest:
            self._tile(first, whole * self.block, rest)

    def _pack_rows(self, first: Expr) -> None:
        spec, item = self.spec, np.dtype(self.isa.packed).itemsize
        with loop(0, self.rolled(self.rows)) as i:
            source = T.bind(self.source + (first + i) * spec.a_row)
            target = T.bind(self.packed + i * self.row_bytes)
            if spec.a_depth == 1:
                self._pack_run(source, target, spec.depth)
            else:
                with loop(0, self.rolled(spec.depth)) as k:
                    value = self._packed_bytes(self.a.load(source + k * spec.a_depth), 1)
                    self.space.store(target + k * item, value, item)
            for k in range(spec.depth, self.steps * self.isa.group):
                self.space.store(target + k * item, splat(T.uint8(0), item), item)

    def _pack_run(self, source: Expr, target: Expr, count: int) -> None:
        """As `copy_run`, into bytes of a wider type."""
        item = np.dtype(self.isa.packed).itemsize
        lanes = min(32, floor_power(count))

        def step(offset: Expr) -> None:
            value = self._packed_bytes(self.a.load(source + offset, lanes), lanes)
            self.space.store(target + offset * item, value, lanes * item)

        with loop(0, count // lanes) as i:
            step(i * lanes)
        if count % lanes:
            step(count - lanes)

    def _packed_bytes(self, value: Expr, lanes: int) -> Expr:
        """uint8 activations as the bytes of what the dot instruction wants."""
        if self.isa.packed == "uint8":
            return value
        if self.isa.packed == "int8":
            return value ^ splat(T.uint8(128), lanes)
        return bits("uint8", cast(self.isa.packed, value, lanes), lanes * np.dtype(self.isa.packed).itemsize)

    def _activation(self, first: Expr, row: int, step: Expr) -> Expr:
        size = self.isa.group * np.dtype(self.isa.packed).itemsize
        if self.direct:
            value = self.a.load(self.source + first * self.spec.a_row + step * size + row * self.spec.a_row, size)
        else:
            value = self.space.load(self.packed + step * size + row * self.row_bytes, size)
        return value if size == 1 else bits(group_scalar(self.isa), value)

    def _sum_rows(self, first: Expr) -> None:
        """−z_b·Σa of every row of the block, in all lanes."""
        lanes = self.isa.lanes
        totals = cells(self.rows, "int32", lanes)
        for total in totals:
            total.set(splat(T.int32(0), lanes))
        ones = splat(T.int8(1), self.width)
        with loop(0, self.steps) as step:
            for i, total in enumerate(totals):
                total.set(self._dot(total, self._activation(first, i, step), ones))
        for i, total in enumerate(totals):
            value = splat(T.int32(0), lanes) - splat(self.zero_b, lanes) * total.get()
            self._store_sums(self.row_sums + i * (4 * lanes), value)

    def _tile(self, first: Expr, vector: Expr, vectors: int) -> None:
        lanes = self.isa.lanes
        acc = [cells(vectors, "int32", lanes) for _ in range(self.rows)]
        for j in range(vectors):
            column = T.bind(self._load_sums(self.column_sums + (vector + j) * (4 * lanes)))
            for i, row in enumerate(acc):
                row[j].set(column + self._load_sums(self.row_sums + i * (4 * lanes)))
        base = T.bind(vector * (self.steps * self.width))
        with loop(0, self.steps) as step:
            tap = T.bind(base + step * self.width)
            weights = [T.bind(self._weights(tap + j * (self.steps * self.width))) for j in range(vectors)]
            for i, row in enumerate(acc):
                activation = T.bind(self._activation(first, i, step))
                for total, w in zip(row, weights, strict=True):
                    total.set(self._dot(total, activation, w))
        self._store(acc, first, vector)

    def _dot(self, total: Cell, activation: Expr, weights: Expr) -> Expr:
        return self.isa.dot(total.get(), spread(self.isa, activation), weights, self.isa.lanes)

    def _store(self, acc: list[list[Cell]], first: Expr, vector: Expr) -> None:
        lanes, spec = self.isa.lanes, self.spec
        scale = T.bind(splat(bits("float32", self.params.load(QUANT_PARAMS + 1)), lanes))
        aligned = spec.columns % lanes == 0
        columns = [T.bind(self._column(vector + j) + T.int32(0)) for j in range(len(acc[0]))]
        for i, row in enumerate(acc):
            place = T.bind(self.target + (first + i) * spec.y_row)
            pieces = [
                Piece(row[j].get(), scale, place + column, min(lanes, spec.columns), j > 0 and aligned)
                for j, column in enumerate(columns)
            ]
            self.epilogue.store(self.y, pieces)


def _number(dtype: str, value: int) -> Expr:
    return getattr(T, dtype)(value)

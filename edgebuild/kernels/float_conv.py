"""Convolution, dense layers and matrix products in float32 (SPEC section 8): one fused multiply-add for each product.

The sum of an output element runs in one chain, in a fixed order, so a kernel may only split the work among elements:
blocks of `rows` output pixels × `vectors` vectors of output channels stay in registers over the whole of K. The
receptive fields of a block are packed side by side first (im2row), except where they lie so already.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgebuild.kernels.builder import (
    Body,
    Cell,
    Expr,
    Flat,
    Kernel,
    T,
    cells,
    either,
    floor_power,
    intrinsic,
    kernel,
    loop,
    splat,
    vector,
)
from edgebuild.kernels.conv import Conv
from edgebuild.kernels.copy import copy_run
from edgebuild.kernels.isa import Isa

CLIP_PARAMS = 2  # the lower and the upper bound
_NEAR = 1 << 18  # floats of weights that stay in a core's own cache


def fma(a: Expr, b: Expr, c: Expr, lanes: int) -> Expr:
    """The sum a · b + c, rounded once."""
    return intrinsic("llvm.fma", vector("float32", lanes), a, b, c)


@dataclass(frozen=True)
class Tiles:
    """How `rows` × `columns` outputs with sums of `depth` products are split into blocks of registers."""

    rows: int
    columns: int
    depth: int
    isa: Isa

    @property
    def lanes(self) -> int:
        return min(self.isa.lanes, floor_power(self.columns))

    @property
    def vectors(self) -> int:
        return -(-self.columns // self.lanes)

    def column(self, number: Expr) -> Expr:
        """First column of a vector: the last one overlaps its neighbour instead of running over the end."""
        return T.min(number * self.lanes, self.columns - self.lanes)

    @cached_property
    def block(self) -> tuple[int, int]:
        """(rows, vectors) of a block."""
        return min(self.isa.blocks(self.rows, self.vectors, widest=8), key=self._cost)

    def _cost(self, block: tuple[int, int]) -> tuple[float, int]:
        """Cycles of all blocks, roughly: multiply ports, load ports, and the latency of a chain; ties go to the larger
        block.
        """
        rows, vectors = block
        step = max(rows * vectors * (1.0 if self.lanes > 8 else 0.5), (rows + vectors) / 2, 4.0)
        tiles = -(-self.rows // rows) * -(-self.vectors // vectors)
        return tiles * (step * self.depth + 3.0 * rows * vectors + 10.0), -rows * vectors

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block[0])


@dataclass(frozen=True)
class FloatConv:
    """A convolution (or a dense layer as one) with packed constants; `clip`: an activation [lo, hi] is fused."""

    conv: Conv
    clip: bool = False

    def tiles(self, isa: Isa) -> Tiles:
        return Tiles(self.conv.pixels, self.conv.group_outputs, self.conv.depth, isa)

    def _channels(self, isa: Isa) -> np.ndarray:
        """Output channel of each lane, [groups, vectors, lanes]."""
        tiles = self.tiles(isa)
        starts = np.minimum(np.arange(tiles.vectors) * tiles.lanes, tiles.columns - tiles.lanes)
        inside = starts[:, None] + np.arange(tiles.lanes)
        return np.asarray(inside + np.arange(self.conv.groups)[:, None, None] * tiles.columns)

    def pack_weights(self, weights: np.ndarray, isa: Isa) -> np.ndarray:
        """Weights [O, kh, kw, I/groups] → [groups, vectors, K, lanes]."""
        flat = weights.reshape(len(weights), -1)
        return np.ascontiguousarray(flat[self._channels(isa)].transpose(0, 1, 3, 2))

    def pack_channels(self, values: np.ndarray, isa: Isa) -> np.ndarray:
        """One value an output channel → [groups, vectors, lanes]."""
        return np.asarray(values[self._channels(isa)])


def float_conv_kernel(spec: FloatConv, isa: Isa) -> Kernel:
    """Arguments: x NHWC, weights and bias as packed, [clip [2]], y NHWC. A unit is a block of pixels and a part of the
    channels.
    """
    template = _Convolution(spec, isa)
    conv = spec.conv
    count = conv.groups * template.tiles.vectors * template.tiles.lanes
    args = [
        ("x", conv.batch * conv.height * conv.width * conv.channels),
        ("w", count * conv.depth),
        ("bias", count),
        *([("clip", CLIP_PARAMS)] if spec.clip else []),
        ("y", conv.pixels * conv.out_channels),
    ]
    packed = 0 if conv.pointwise else template.tiles.block[0] * conv.depth
    func = kernel([(n, "float32", s) for n, s in args], template.emit, scratch=("float32", packed))
    units = template.tiles.blocks * template.parts
    grain = max(1, min(units, int(100_000 * units / max(conv.macs, 1))))
    return Kernel(func, ("float32",) * len(args), units, grain, 4 * packed)


class _Convolution:
    def __init__(self, spec: FloatConv, isa: Isa) -> None:
        self.spec, self.conv, self.tiles = spec, spec.conv, spec.tiles(isa)
        groups = -(-self.tiles.vectors // self.tiles.block[1])
        self.far = self.conv.groups == 1 and self.conv.depth * self.conv.out_channels > _NEAR
        self.parts = self.conv.groups if self.conv.groups > 1 else groups if self._split(groups) else 1

    def _split(self, groups: int) -> bool:
        """Whether each group of vectors is a unit: weights that fit no cache are then read once, and few rows still
        make work for several threads; packing is repeated for each group.
        """
        return groups > 1 and (self.far or self.tiles.blocks < 8)

    def emit(self, body: Body) -> None:
        self.x, self.w, self.bias, *clip, self.y = body.buffers
        self.packed, self.rolled = body.scratch, body.rolled
        self.clip = clip[0] if clip else None
        rows, vectors = self.tiles.block
        with loop(body.begin, body.end) as unit:
            block, part = unit // self.parts, unit % self.parts
            if self.far:
                part, block = unit // self.tiles.blocks, unit % self.tiles.blocks
            first = T.bind(T.min(block * rows, self.conv.pixels - rows))
            group = T.bind(part + T.int32(0)) if self.conv.groups > 1 else T.int32(0)
            if not self.conv.pointwise:
                self._pack(first, group)
            if self.parts > 1 and self.conv.groups == 1:
                start = T.bind(T.min(part * vectors, self.tiles.vectors - vectors))
                self._tile(first, group, start, vectors)
            else:
                self._all(first, group, vectors)

    def _all(self, first: Expr, group: Expr, vectors: int) -> None:
        whole, rest = divmod(self.tiles.vectors, vectors)
        with loop(0, whole) as i:
            self._tile(first, group, i * vectors, vectors)
        if rest:
            self._tile(first, group, whole * vectors, rest)

    def _pack(self, first: Expr, group: Expr) -> None:
        conv = self.conv
        with loop(0, self.rolled(self.tiles.block[0])) as i:
            pixel = T.bind(first + i)
            line = T.bind(pixel // conv.out_width % conv.out_height)
            image = pixel // (conv.out_width * conv.out_height) if conv.batch > 1 else 0
            x0 = T.bind(pixel % conv.out_width * conv.stride[1] - conv.pad[1])
            with loop(0, self.rolled(conv.kernel[0])) as kh:
                y0 = T.bind(line * conv.stride[0] - conv.pad[0] + kh * conv.dilation[0])
                source = T.bind(
                    ((image * conv.height + y0) * conv.width + x0) * conv.channels + group * conv.group_channels
                )
                target = T.bind(i * conv.depth + kh * (conv.kernel[1] * conv.group_channels))
                self._pack_line(source, target, y0, x0)

    def _pack_line(self, source: Expr, target: Expr, y0: Expr, x0: Expr) -> None:
        """One row of the kernel window: a single run when it lies inside the image, tap by tap at the border."""
        conv = self.conv
        reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1
        inside = T.And(T.And(y0 >= 0, y0 < conv.height), T.And(x0 >= 0, x0 + reach <= conv.width))
        contiguous = conv.dilation[1] == 1 and conv.groups == 1

        def run() -> None:
            if contiguous:
                self._copy(source, target, conv.kernel[1] * conv.group_channels)
            else:
                self._taps(source, target, y0, x0, checked=False)

        either(inside, run, lambda: self._taps(source, target, y0, x0, checked=True))

    def _copy(self, source: Expr, target: Expr, count: int) -> None:
        copy_run(self.x, source, self.packed, target, count, lambda v, _: v, widest=16)

    def _taps(self, source: Expr, target: Expr, y0: Expr, x0: Expr, *, checked: bool) -> None:
        conv = self.conv
        size = conv.group_channels
        with loop(0, self.rolled(conv.kernel[1])) as kw:
            column = x0 + kw * conv.dilation[1]
            tap, place = T.bind(source + kw * (conv.dilation[1] * conv.channels)), T.bind(target + kw * size)

            def fill() -> None:
                copy_run(None, 0, self.packed, place, size, lambda _, n: splat(T.float32(0), n), widest=16)

            if checked:
                valid = T.And(T.And(y0 >= 0, y0 < conv.height), T.And(column >= 0, column < conv.width))
                either(valid, lambda: self._copy(tap, place, size), fill)
            else:
                self._copy(tap, place, size)

    def _tile(self, first: Expr, group: Expr, number: Expr, vectors: int) -> None:
        conv, lanes, depth = self.conv, self.tiles.lanes, self.conv.depth
        base = T.bind((group * self.tiles.vectors + number) * lanes)
        taps = T.bind(base * depth)
        source, start = (self.x, T.bind(first * depth)) if conv.pointwise else (self.packed, 0)
        acc = accumulators(
            self.tiles.block[0], [self.bias.load(base + j * lanes, lanes) for j in range(vectors)], lanes
        )
        with loop(0, depth) as k:
            tap = T.bind(taps + k * lanes)
            weights = [T.bind(self.w.load(tap + j * (depth * lanes), lanes)) for j in range(vectors)]
            products(acc, source, T.bind(start + k), depth, weights, lanes)
        offset = T.bind(first * conv.out_channels + group * conv.group_outputs)
        places = [T.bind(offset + self.tiles.column(number + j)) for j in range(vectors)]
        store(acc, self.y, places, conv.out_channels, self.clip, lanes)


def accumulators(rows: int, start: Sequence[Expr], lanes: int) -> list[list[Cell]]:
    """A block of registers whose rows all begin with `start`."""
    acc = [cells(len(start), "float32", lanes) for _ in range(rows)]
    for j, value in enumerate(start):
        bound = T.bind(value)
        for row in acc:
            row[j].set(bound)
    return acc


def products(
    acc: list[list[Cell]], source: Flat, place: Expr, stride: int, weights: Sequence[Expr], lanes: int
) -> None:
    """One step of K: row i multiplies source[place + i · stride]."""
    for i, row in enumerate(acc):
        value = T.bind(splat(source.load(place + i * stride), lanes))
        for total, weight in zip(row, weights, strict=True):
            total.set(fma(value, weight, total.get(), lanes))


def store(acc: list[list[Cell]], y: Flat, places: Sequence[Expr], stride: int, clip: Flat | None, lanes: int) -> None:
    """Row i, vector j goes to places[j] + i · stride."""
    bounds = [T.bind(splat(clip.load(i), lanes)) for i in range(CLIP_PARAMS)] if clip is not None else []
    for i, row in enumerate(acc):
        for total, place in zip(row, places, strict=True):
            value = total.get()
            if bounds:
                value = T.min(T.max(value, bounds[0]), bounds[1])
            y.store(place + i * stride, value, lanes)


@dataclass(frozen=True)
class FloatProduct:
    """`matrices` times [rows, depth] × [depth, columns] of two computed matrices, all row-major; `shared`: one right
    matrix for all.
    """

    matrices: int
    rows: int
    depth: int
    columns: int
    shared: bool
    bias: bool = False
    clip: bool = False


def float_product_kernel(spec: FloatProduct, isa: Isa) -> Kernel:
    """Arguments: a, b, [bias [columns]], [clip [2]], y. A unit is a block of rows of one matrix."""
    tiles = Tiles(spec.rows, spec.columns, spec.depth, isa)
    lanes = tiles.lanes
    rows, vectors = tiles.block
    args = [
        ("a", spec.matrices * spec.rows * spec.depth),
        ("b", (1 if spec.shared else spec.matrices) * spec.depth * spec.columns),
        *([("bias", spec.columns)] if spec.bias else []),
        *([("clip", CLIP_PARAMS)] if spec.clip else []),
        ("y", spec.matrices * spec.rows * spec.columns),
    ]

    def emit(body: Body) -> None:
        a, b, *rest, y = body.buffers
        bias = rest.pop(0) if spec.bias else None
        clip = rest.pop(0) if spec.clip else None

        def tile(matrix: Expr, first: Expr, number: Expr, count: int) -> None:
            columns = [T.bind(tiles.column(number + j)) for j in range(count)]
            start = [splat(T.float32(0), lanes) if bias is None else bias.load(c, lanes) for c in columns]
            acc = accumulators(rows, start, lanes)
            right = T.bind(T.int32(0) if spec.shared else matrix * (spec.depth * spec.columns))
            left = T.bind((matrix * spec.rows + first) * spec.depth)
            with loop(0, spec.depth) as k:
                line = T.bind(right + k * spec.columns)
                weights = [T.bind(b.load(line + c, lanes)) for c in columns]
                products(acc, a, T.bind(left + k), spec.depth, weights, lanes)
            offset = T.bind((matrix * spec.rows + first) * spec.columns)
            store(acc, y, [T.bind(offset + c) for c in columns], spec.columns, clip, lanes)

        with loop(body.begin, body.end) as unit:
            matrix = T.bind(unit // tiles.blocks)
            first = T.bind(T.min(unit % tiles.blocks * rows, spec.rows - rows))
            whole, left_over = divmod(tiles.vectors, vectors)
            with loop(0, whole) as i:
                tile(matrix, first, i * vectors, vectors)
            if left_over:
                tile(matrix, first, whole * vectors, left_over)

    func = kernel([(n, "float32", s) for n, s in args], emit)
    units = spec.matrices * tiles.blocks
    macs = spec.matrices * spec.rows * spec.depth * spec.columns
    return Kernel(func, ("float32",) * len(args), units, max(1, min(units, int(100_000 * units / max(macs, 1)))))


def float_depthwise_kernel(spec: FloatConv, isa: Isa) -> Kernel:
    """Arguments: x NHWC, weights [kh, kw, C], bias [C], [clip [2]], y NHWC. A unit is one output line."""
    conv = spec.conv
    args = [
        ("x", conv.batch * conv.height * conv.width * conv.channels),
        ("w", conv.kernel[0] * conv.kernel[1] * conv.channels),
        ("bias", conv.channels),
        *([("clip", CLIP_PARAMS)] if spec.clip else []),
        ("y", conv.pixels * conv.channels),
    ]
    func = kernel([(n, "float32", s) for n, s in args], _Depthwise(conv, isa).emit)
    units = conv.batch * conv.out_height
    grain = max(1, min(units, int(50_000 * units / max(conv.macs, 1))))
    return Kernel(func, ("float32",) * len(args), units, grain)


class _Depthwise:
    """Channels in the lanes; several neighbouring pixels of a line share the loaded weights."""

    def __init__(self, conv: Conv, isa: Isa) -> None:
        self.conv = conv
        self.lanes = min(isa.lanes, floor_power(conv.channels))
        reach = (conv.kernel[1] - 1) * conv.dilation[1]
        self.left = min(-(-conv.pad[1] // conv.stride[1]), conv.out_width)
        right = (conv.width - 1 - reach + conv.pad[1]) // conv.stride[1] + 1
        self.right = max(self.left, min(right, conv.out_width))
        self.columns = max(1, min(8 if isa.registers == 32 else 4, self.right - self.left))

    def emit(self, body: Body) -> None:
        self.x, self.w, self.bias, *clip, self.y = body.buffers
        self.clip = clip[0] if clip else None
        blocks = -(-self.conv.channels // self.lanes)
        with loop(body.begin, body.end) as unit, loop(0, blocks) as block:
            channel = T.bind(T.min(block * self.lanes, self.conv.channels - self.lanes))
            self._border(unit, channel, 0, self.left)
            inner = self.right - self.left
            if inner:
                with loop(0, -(-inner // self.columns)) as i:
                    first = T.bind(T.min(self.left + i * self.columns, self.right - self.columns))
                    self._pixels(unit, channel, first, self.columns, checked=False)
            self._border(unit, channel, self.right, self.conv.out_width)

    def _border(self, unit: Expr, channel: Expr, begin: int, end: int) -> None:
        if begin < end:
            with loop(begin, end) as column:
                self._pixels(unit, channel, column, 1, checked=True)

    def _pixels(self, unit: Expr, channel: Expr, first: Expr, count: int, *, checked: bool) -> None:
        conv, lanes = self.conv, self.lanes
        image, line = unit // conv.out_height, unit % conv.out_height
        acc = accumulators(count, [self.bias.load(channel, lanes)], lanes)
        with loop(0, conv.kernel[0]) as kh:
            y = T.bind(line * conv.stride[0] - conv.pad[0] + kh * conv.dilation[0])
            source = T.bind(
                ((image * conv.height + y) * conv.width + first * conv.stride[1] - conv.pad[1]) * conv.channels
                + channel
            )
            tap = T.bind(kh * (conv.kernel[1] * conv.channels) + channel)
            weights = [T.bind(self.w.load(tap + kw * conv.channels, lanes)) for kw in range(conv.kernel[1])]
            either(
                T.And(y >= 0, y < conv.height),
                lambda: self._line(acc, source, first, weights, checked=checked),
                lambda: self._outside(acc, weights),
            )
        place = T.bind((unit * conv.out_width + first) * conv.channels + channel)
        store(acc, self.y, [place], conv.channels, self.clip, lanes)

    def _outside(self, acc: list[list[Cell]], weights: Sequence[Expr]) -> None:
        for (total,) in acc:
            for w in weights:
                self._add(total, splat(T.float32(0), self.lanes), w)

    def _add(self, total: Cell, x: Expr, w: Expr) -> None:
        total.set(fma(x, w, total.get(), self.lanes))

    def _line(
        self, acc: list[list[Cell]], source: Expr, first: Expr, weights: Sequence[Expr], *, checked: bool
    ) -> None:
        conv, lanes = self.conv, self.lanes
        for i, (total,) in enumerate(acc):
            for kw, w in enumerate(weights):
                step = i * conv.stride[1] + kw * conv.dilation[1]

                def inside(step: int = step, w: Expr = w, total: Cell = total) -> None:
                    self._add(total, self.x.load(source + step * conv.channels, lanes), w)

                def outside(w: Expr = w, total: Cell = total) -> None:
                    self._add(total, splat(T.float32(0), lanes), w)

                if checked:
                    column = first * conv.stride[1] - conv.pad[1] + step
                    either(T.And(column >= 0, column < conv.width), inside, outside)
                else:
                    inside()

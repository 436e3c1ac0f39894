"""Convolution, dense and matmul as one blocked GEMM over packed rows of activations (SPEC section 7, conv).

For a block of `rows` output pixels the activations of the receptive field are packed side by side (im2row, padding
filled with the zero point), in the form the dot instruction wants; then `rows` × `vectors` accumulators stay in
registers over the whole of K. Where the instruction takes plain uint8 and K is contiguous (1×1, stride 1), nothing is
packed.
"""

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
    bits,
    cast,
    cells,
    either,
    kernel,
    loop,
    opaque,
    shuffle,
    splat,
)
from edgebuild.kernels.copy import Into, copy_run
from edgebuild.kernels.epilogue import ANY, BYTES, QUANT_PARAMS, Bounds, Epilogue, Piece, Types
from edgebuild.kernels.isa import Isa, converted, group_scalar, spread

_ALIGNMENT = 64


@dataclass(frozen=True)
class Conv:
    """Shape of a convolution, NHWC: [batch, height, width, channels] → [batch, out_height, out_width, out_channels]."""

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    @property
    def pixels(self) -> int:
        return self.batch * self.out_height * self.out_width

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def group_outputs(self) -> int:
        return self.out_channels // self.groups

    @property
    def depth(self) -> int:
        """K: multiply-accumulates for one output element."""
        return self.kernel[0] * self.kernel[1] * self.group_channels

    @property
    def macs(self) -> int:
        return self.pixels * self.out_channels * self.depth

    @property
    def pointwise(self) -> bool:
        """Whether output pixel p reads exactly input pixel p."""
        return self.kernel == (1, 1) and self.stride == (1, 1) and self.pad == (0, 0) and self.groups == 1


@dataclass(frozen=True)
class Blocking:
    """Register block: `rows` pixels × `vectors` vectors of output channels; `splits` of the channels make separate
    units of work.
    """

    rows: int
    vectors: int
    splits: int


@dataclass(frozen=True)
class ConvPlan:
    """A convolution on one instruction set: block sizes, and the layout of its constants, which is the same for all.

    `chosen` is a measured block; without one the cost model chooses.
    """

    conv: Conv
    isa: Isa
    chosen: Blocking | None = None

    @cached_property
    def steps(self) -> int:
        """K in groups of the dot instruction."""
        return -(-self.conv.depth // self.isa.group)

    @cached_property
    def vectors(self) -> int:
        """Vectors of output channels in one group."""
        return -(-self.conv.group_outputs // self.isa.lanes)

    @property
    def row(self) -> int:
        """Elements of a packed row, or of one of its planes."""
        return self.steps * self.isa.group

    @property
    def direct(self) -> bool:
        return self.isa.direct and self.conv.pointwise and self.conv.depth % self.isa.group == 0

    @property
    def blocking(self) -> Blocking:
        return self.chosen or self.alternatives[0]

    @cached_property
    def alternatives(self) -> tuple[Blocking, ...]:
        """Every block that fits, the best by the cost model first."""
        found = sorted(self.isa.blocks(self.conv.pixels, self.vectors), key=self._cost)
        return tuple(self._split(rows, vectors) for rows, vectors in found)

    def _split(self, rows: int, vectors: int) -> Blocking:
        """Channels become separate units of work where there are few blocks of pixels to share between threads."""
        blocks = -(-self.conv.pixels // rows)
        groups = self.vectors // vectors
        splits = 1
        if self.conv.groups == 1 and blocks < 8 and self.vectors % vectors == 0:
            splits = next(n for n in range(min(groups, 8), 0, -1) if groups % n == 0)
        return Blocking(rows, vectors, splits)

    def _cost(self, block: tuple[int, int]) -> tuple[float, int]:
        """Cycles of all blocks, roughly: dots, then requantization, which overlaps with the next tile's dots as long as
        both fit the window in which the CPU reorders (`isa.cost.tile` accumulators); ties go to the larger block.
        """
        rows, vectors = block
        whole, rest = divmod(self.vectors, vectors)
        line = whole * self._tile_cost(rows, vectors) + (self._tile_cost(rows, rest) if rest else 0.0)
        return -(-self.conv.pixels // rows) * line, -rows * vectors

    def _tile_cost(self, rows: int, vectors: int) -> float:
        accumulators, cost = rows * vectors, self.isa.cost
        tail = accumulators * (2.0 if accumulators <= cost.tile else 3.0) * (1.0 if vectors % 4 == 0 else 1.2)
        return cost.step(rows * self.isa.planes, vectors) * self.steps + tail + 8.0

    def channel_start(self, vector: int) -> int:
        """First output channel (in its group) of a vector: the last one overlaps its neighbour instead of running
        over the end.
        """
        return max(0, min(vector * self.isa.lanes, self.conv.group_outputs - self.isa.lanes))

    def channel_index(self) -> np.ndarray:
        """Output channel of each lane, [groups, vectors, lanes]; −1 where a lane has none."""
        lanes = np.arange(self.isa.lanes)
        starts = np.array([self.channel_start(v) for v in range(self.vectors)])
        index = starts[:, None] + lanes
        index = np.where(index < self.conv.group_outputs, index, -1)
        offset = np.arange(self.conv.groups)[:, None, None] * self.conv.group_outputs
        return np.asarray(np.where(index < 0, -1, index + offset))

    def pack_weights(self, weights: np.ndarray) -> np.ndarray:
        """Weights int8 [O, kh, kw, I/groups] → int8 [groups, vectors, steps, lanes, group]."""
        index = self.channel_index()
        flat = weights.reshape(weights.shape[0], -1)
        flat = np.pad(flat, ((0, 1), (0, self.steps * self.isa.group - flat.shape[1])))  # row −1 is zero
        packed = flat[index].reshape(*index.shape, self.steps, self.isa.group)
        return np.ascontiguousarray(packed.transpose(0, 1, 3, 2, 4))

    def pack_channels(self, values: np.ndarray) -> np.ndarray:
        """One value an output channel → [groups, vectors, lanes], 0 where a lane has no channel."""
        return np.asarray(np.append(values, values.dtype.type(0))[self.channel_index()])


def fold_bias(isa: Isa, bias: np.ndarray, weights: np.ndarray, zero_point: int, types: Types = BYTES) -> np.ndarray:
    """Bias − (z_x − isa.bias)·Σw, [O] in `types.sums`: what is left when a kernel sums (x − isa.bias)·w."""
    sums = weights.reshape(weights.shape[0], -1).astype(np.int64).sum(axis=1)
    folded = bias.astype(np.int64) - (zero_point - isa.bias) * sums
    return np.asarray(folded.astype(np.float64).view(np.int64) if types.wide else folded.astype(np.int32))


def conv_kernel(
    conv: Conv,
    isa: Isa,
    *,
    table: bool = False,
    into: Into | None = None,
    schedule: Blocking | None = None,
    bounds: Bounds = ANY,
    types: Types = BYTES,
    limits: bool = False,
) -> Kernel:
    """Arguments: input, weights, bias, multipliers, quant, [`limits`: lo − z_y and hi − z_y of each channel, float32,]
    [table uint8 [256]], output, which `into` places.
    """
    isa = types.gemm(isa)
    plan = ConvPlan(conv, isa, schedule)
    block = plan.blocking
    count = conv.groups * plan.vectors * isa.lanes
    args = [
        ("x", types.source, conv.batch * conv.height * conv.width * conv.channels),
        ("w", "int8", count * plan.steps * isa.group),
        ("bias", types.sums, count),
        ("scale", "float32", count),
        ("quant", "int32", QUANT_PARAMS),
        *([("low", "float32", count), ("high", "float32", count)] if limits else []),
        *([("table", "uint8", 256)] if table else []),
        ("y", types.result, into.size if into else conv.pixels * conv.out_channels),
    ]
    item = np.dtype(isa.packed).itemsize
    packed = _packed(plan)
    if _parts(plan, types) > 1:
        packed = _sums_start(plan) + block.rows * block.vectors * isa.lanes * 8 // item
    func = kernel(args, _ConvBody(plan, into, bounds, types, limits=limits).emit, scratch=(isa.packed, packed))
    units = -(-conv.pixels // block.rows) * max(block.splits, conv.groups)
    return Kernel(func, tuple(a[1] for a in args), units, _grain(conv.macs, units), packed * item)


def _parts(plan: ConvPlan, types: Types) -> int:
    """Parts of K whose sums are added up in float64."""
    return -(-plan.steps // (plan.isa.products // plan.isa.group)) if types.wide else 1


def _packed(plan: ConvPlan) -> int:
    """Elements of the packed rows of a block."""
    return 0 if plan.direct else plan.blocking.rows * plan.isa.planes * plan.row


def _sums_start(plan: ConvPlan) -> int:
    """Where in the scratch, behind the packed rows, sums of parts lie."""
    unit = _ALIGNMENT // np.dtype(plan.isa.packed).itemsize
    return -(-_packed(plan) // unit) * unit


def _grain(macs: int, units: int) -> int:
    """Units that are worth handing to another thread: about 10 µs of work."""
    return max(1, min(units, int(400_000 * units / max(macs, 1))))


class _ConvBody:
    """Emits the loops of one convolution."""

    def __init__(self, plan: ConvPlan, into: Into | None, bounds: Bounds, types: Types, *, limits: bool) -> None:
        channels, self.bounds, self.types = plan.conv.out_channels, bounds, types
        self.stride, self.offset = (into.stride_of(channels), into.offset) if into else (channels, 0)
        self.limited = limits
        self.plan, self.conv, self.isa, self.block = plan, plan.conv, plan.isa, plan.blocking

    def emit(self, body: Body) -> None:
        self.x, self.w, self.bias, self.scale, quant, *more, self.y = body.buffers
        self.limits, table = (more[:2], more[2:]) if self.limited else ([], more)
        self.packed, self.rolled = body.scratch, body.rolled
        self.epilogue = Epilogue(self.isa, quant, self.bounds, table[0] if table else None, self.types)
        splits = max(self.block.splits, self.conv.groups)
        with loop(body.begin, body.end) as unit:
            first = T.bind(T.min(unit // splits * self.block.rows, self.conv.pixels - self.block.rows))
            part = unit % splits if splits > 1 else 0
            group = part if self.conv.groups > 1 else 0
            if not self.plan.direct:
                self._pack(first, group)
            self._channels(first, group, part)

    def _channels(self, first: Expr, group: Expr, part: Expr) -> None:
        whole, rest = divmod(self.plan.vectors, self.block.vectors)
        if self.block.splits > 1:
            share = whole // self.block.splits
            with loop(0, share) as i:
                self._tile(first, group, (part * share + i) * self.block.vectors, self.block.vectors)
            return
        if whole:
            with loop(0, whole) as i:
                self._tile(first, group, i * self.block.vectors, self.block.vectors)
        if rest:
            self._tile(first, group, whole * self.block.vectors, rest)

    def _pack(self, first: Expr, group: Expr) -> None:
        conv, row_size = self.conv, self.plan.row * self.isa.planes
        with loop(0, self.rolled(self.block.rows)) as i:
            pixel = T.bind(first + i)
            column = opaque(pixel % conv.out_width)
            line = opaque(pixel // conv.out_width % conv.out_height)
            image = opaque(pixel // (conv.out_width * conv.out_height)) if conv.batch > 1 else 0
            x0 = T.bind(column * conv.stride[1] - conv.pad[1])
            with loop(0, self.rolled(conv.kernel[0])) as kh:
                y0 = T.bind(line * conv.stride[0] - conv.pad[0] + kh * conv.dilation[0])
                source = T.bind(
                    ((image * conv.height + y0) * conv.width + x0) * conv.channels + group * conv.group_channels
                )
                target = T.bind(i * row_size + kh * (conv.kernel[1] * conv.group_channels))
                self._pack_line(source, target, y0, x0)

    def _pack_line(self, source: Expr, target: Expr, y0: Expr, x0: Expr) -> None:
        """One row of the kernel window: a single run when it lies inside the image, tap by tap at the border."""
        conv = self.conv
        reach = (conv.kernel[1] - 1) * conv.dilation[1] + 1
        inside = T.And(T.And(y0 >= 0, y0 < conv.height), T.And(x0 >= 0, x0 + reach <= conv.width))
        contiguous = conv.dilation[1] == 1 and conv.groups == 1
        if conv.pad == (0, 0) and self._never_outside():
            self._run(source, target) if contiguous else self._taps(source, target, y0, x0, checked=False)
            return
        either(
            inside,
            lambda: self._run(source, target) if contiguous else self._taps(source, target, y0, x0, checked=False),
            lambda: self._taps(source, target, y0, x0, checked=True),
        )

    def _never_outside(self) -> bool:
        conv = self.conv
        return all(
            (out - 1) * stride + (k - 1) * dilation + 1 <= size
            for out, stride, k, dilation, size in zip(
                (conv.out_height, conv.out_width),
                conv.stride,
                conv.kernel,
                conv.dilation,
                (conv.height, conv.width),
                strict=True,
            )
        )

    def _run(self, source: Expr, target: Expr) -> None:
        self._copy(source, target, self.conv.kernel[1] * self.conv.group_channels)

    def _copy(self, source: Expr, target: Expr, count: int) -> None:
        for plane in range(self.isa.planes):
            place = target + plane * self.plan.row

            def convert(value: Expr, lanes: int, plane: int = plane) -> Expr:
                return self._convert(value, lanes, plane)

            copy_run(self.x, source, self.packed, place, count, convert)

    def _taps(self, source: Expr, target: Expr, y0: Expr, x0: Expr, *, checked: bool) -> None:
        conv = self.conv
        size = conv.group_channels
        with loop(0, self.rolled(conv.kernel[1])) as kw:
            column = x0 + kw * conv.dilation[1]
            tap = source + kw * (conv.dilation[1] * conv.channels)
            place = target + kw * size

            def copy(tap: Expr = tap, place: Expr = place) -> None:
                self._copy(tap, place, size)

            def fill(place: Expr = place) -> None:
                for plane in range(self.isa.planes):
                    zero = self._convert(self.epilogue.padding, 1, plane)

                    def padding(_: Expr, lanes: int, zero: Expr = zero) -> Expr:
                        return splat(zero, lanes)

                    copy_run(None, 0, self.packed, place + plane * self.plan.row, size, padding)

            if checked:
                valid = T.And(T.And(y0 >= 0, y0 < conv.height), T.And(column >= 0, column < conv.width))
                either(valid, copy, fill)
            else:
                copy()

    def _convert(self, value: Expr, lanes: int, plane: int) -> Expr:
        if self.types.source == "uint8":
            return converted(self.isa, value, lanes)
        if self.isa.planes == 1:
            return value
        part = value >> splat(T.int16(8), lanes) if plane else value ^ splat(T.int16(128), lanes)
        return cast("int8", part, lanes)

    def _tile(self, first: Expr, group: Expr, vector: Expr, vectors: int) -> None:
        isa, rows = self.isa, self.block.rows
        base = T.bind((group * self.plan.vectors + vector) * isa.lanes)
        acc = [cells(vectors, "int32", isa.lanes) for _ in range((rows + rows % isa.pixels) * isa.planes)]
        if self.types.wide:
            self._store(self._wide_sums(acc, first, base), first, group, vector, base)
            return
        for j in range(vectors):
            bias = T.bind(self.bias.load(base + j * isa.lanes, isa.lanes))
            for i, row in enumerate(acc):
                start = bias if i % isa.planes == 0 else splat(T.int32(0), isa.lanes)
                row[j].set(start if isa.pixels == 1 else shuffle([bias], _pair(i % 2)))
        self._steps(acc, first, base, 0, self.plan.steps)
        self._store(self._by_row(acc)[:rows], first, group, vector, base)

    def _wide_sums(self, acc: list[list[Cell]], first: Expr, base: Expr) -> list[list[Expr]]:
        """Sums of products of 16-bit activations, rounded once, to float32: 32 bits hold a part of K, and float64 adds
        the parts up exactly. They lie in memory: as registers they would push the accumulators out.
        """
        isa, steps, parts = self.isa, self.plan.steps, _parts(self.plan, self.types)
        size = 8 // np.dtype(isa.packed).itemsize * isa.lanes
        vectors = range(len(acc[0]))
        block = [(i, j) for i in range(len(acc) // isa.planes) for j in vectors]
        starts = [T.bind(bits("float64", self.bias.load(base + j * isa.lanes, isa.lanes), isa.lanes)) for j in vectors]
        place = _sums_start(self.plan)

        def at(i: int, j: int) -> int:
            return place + (i * len(vectors) + j) * size

        def total(i: int, j: int) -> Expr:
            before = bits("float64", self.packed.load(at(i, j), size), isa.lanes) if parts > 1 else starts[j]
            return before + self._exact(acc, i, j)

        if parts > 1:
            part = isa.products // isa.group
            for i, j in block:
                self.packed.store(at(i, j), bits(isa.packed, starts[j], size), size)
            with loop(0, parts - 1) as step:
                self._part(acc, first, base, T.bind(step * part), T.bind(step * part + part))
                for i, j in block:
                    self.packed.store(at(i, j), bits(isa.packed, total(i, j), size), size)
            self._part(acc, first, base, (parts - 1) * part, steps)
        else:
            self._part(acc, first, base, 0, steps)
        found: list[list[Expr]] = [[] for _ in range(len(acc) // isa.planes)]
        for i, j in block:
            found[i].append(T.bind(cast("float32", total(i, j), isa.lanes)))
        return found

    def _part(self, acc: list[list[Cell]], first: Expr, base: Expr, begin: Expr, end: Expr) -> None:
        """The sums of steps [begin, end)."""
        for row in acc:
            for cell in row:
                cell.set(splat(T.int32(0), self.isa.lanes))
        self._steps(acc, first, base, begin, end)

    def _exact(self, acc: list[list[Cell]], i: int, j: int) -> Expr:
        """A sum of row i in float64."""
        lanes = self.isa.lanes
        low, *high = (cast("float64", row[j].get(), lanes) for row in acc[i * self.isa.planes :][: self.isa.planes])
        return low + high[0] * splat(T.float64(256), lanes) if high else low

    def _steps(self, acc: list[list[Cell]], first: Expr, base: Expr, begin: Expr, end: Expr) -> None:
        """Steps [begin, end) of K.

        Indices are sums with the constant part last: then an address of a step is one register plus a constant.
        """
        isa = self.isa
        size, width = self.plan.steps * isa.group, isa.lanes * isa.group
        weights_base = T.bind(base * size)
        source, start = (self.x, T.bind(first * size)) if self.plan.direct else (self.packed, 0)
        with loop(begin, end) as k:
            tap = T.bind(weights_base + k * width)
            column = T.bind(start + k * isa.group)
            if isa.pixels == 1:
                self._dots(acc, source, column, tap)
            else:
                self._products(acc, source, column, tap)

    def _dots(self, acc: list[list[Cell]], source: Flat, column: Expr, tap: Expr) -> None:
        """One group of K for all accumulators; each pixel's activations go to every lane."""
        isa, steps = self.isa, self.plan.steps
        width = isa.lanes * isa.group
        weights = [T.bind(self.w.load(tap + j * (steps * width), width)) for j in range(len(acc[0]))]
        for i, row in enumerate(acc):
            activation = spread(isa, self._activation(source, column + i * (steps * isa.group)))
            for sum_, w in zip(row, weights, strict=True):
                sum_.set(isa.dot(sum_.get(), activation, w, isa.lanes))

    def _products(self, acc: list[list[Cell]], source: Flat, column: Expr, tap: Expr) -> None:
        """The same with products of small matrices: two pixels with two channels, so that accumulators 2p and 2p + 1
        hold the lower and the upper channels of pixels 2p and 2p + 1.
        """
        isa, steps = self.isa, self.plan.steps
        width, half = isa.lanes * isa.group, isa.lanes * isa.group // 2
        weights = [
            [T.bind(self.w.load(tap + j * (steps * width) + part * half, half)) for part in (0, 1)]
            for j in range(len(acc[0]))
        ]
        for i in range(0, len(acc), 2):
            places = [column + min(i + n, self.block.rows - 1) * (steps * isa.group) for n in (0, 1)]
            pair = T.bind(shuffle([T.bind(source.load(place, isa.group)) for place in places], range(2 * isa.group)))
            for part in (0, 1):
                for sum_, w in zip(acc[i + part], weights, strict=True):
                    sum_.set(isa.dot(sum_.get(), pair, w[part], isa.lanes))

    def _by_row(self, acc: list[list[Cell]]) -> list[list[Expr]]:
        """The sums of each pixel, [rows][vectors]."""
        if self.isa.planes == 2:
            pairs = zip(acc[::2], acc[1::2], strict=True)
            eight = splat(T.int32(8), self.isa.lanes)
            return [[a.get() + (b.get() << eight) for a, b in zip(low, high, strict=True)] for low, high in pairs]
        if self.isa.pixels == 1:
            return [[cell.get() for cell in row] for row in acc]
        found: list[list[Expr]] = []
        for low, high in zip(acc[::2], acc[1::2], strict=True):
            both = [[T.bind(a.get()), T.bind(b.get())] for a, b in zip(low, high, strict=True)]
            found += [
                [T.bind(shuffle(pair, [2 * n, 2 * n + 1, 4 + 2 * n, 5 + 2 * n])) for pair in both] for n in (0, 1)
            ]
        return found

    def _activation(self, source: Flat, place: Expr) -> Expr:
        group = self.isa.group
        value = source.load(place, group)
        return value if group == 1 else bits(group_scalar(self.isa), value)

    def _store(self, sums: list[list[Expr]], first: Expr, group: Expr, vector: Expr, base: Expr) -> None:
        isa, conv = self.isa, self.conv
        count = min(isa.lanes, conv.group_outputs)
        adjacent = conv.group_outputs % isa.lanes == 0
        places, scales, limits = [], [], []
        for j in range(len(sums[0])):
            scales.append(T.bind(self.scale.load(base + j * isa.lanes, isa.lanes)))
            ends = [T.bind(end.load(base + j * isa.lanes, isa.lanes)) for end in self.limits]
            limits.append((ends[0], ends[1]) if ends else None)
            channel = T.max(0, T.min((vector + j) * isa.lanes, conv.group_outputs - isa.lanes))
            places.append(T.bind(first * self.stride + group * conv.group_outputs + channel + self.offset))
        pieces = [
            Piece(acc, scale, place + i * self.stride, count, adjacent and j > 0, ends)
            for i, row in enumerate(sums)
            for j, (acc, scale, place, ends) in enumerate(zip(row, scales, places, limits, strict=True))
        ]
        self.epilogue.store(self.y, pieces)


def _pair(part: int) -> list[int]:
    """Lanes of a vector of four channels that one of two pairs of channels takes, for two pixels."""
    return [2 * part, 2 * part + 1] * 2

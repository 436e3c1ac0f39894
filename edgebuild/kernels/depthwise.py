"""Depthwise convolution (SPEC section 7, conv with one input channel a group).

The lines of one block of channels are copied, padded, to a ring in the scratch memory, in the form that the dot
instruction multiplies. One dot takes `group` kernel rows at once: their activations are interleaved when they are
loaded, and serve every output column that reads them.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from edgebuild.kernels.builder import Body, Cell, Expr, Kernel, T, cells, either, kernel, loop, shuffle, splat
from edgebuild.kernels.conv import Conv
from edgebuild.kernels.copy import Into, copy_run
from edgebuild.kernels.epilogue import (
    ANY,
    BYTES,
    QUANT_PARAMS,
    Bounds,
    Epilogue,
    Limits,
    Types,
    store_lanes,
    store_part,
)
from edgebuild.kernels.isa import PACK, Isa, converted, interleave, interleave_order, parts

_LEAST_LANES = 4
_MOST_CHUNKS, _LEAST_LINES = 4, 12


def is_depthwise(conv: Conv) -> bool:
    return conv.groups > 1 and conv.group_channels == 1 and conv.group_outputs == 1


@dataclass(frozen=True)
class Section:
    """Channels [start, start + blocks · block) in blocks of `isa.block`; the last has `count` real ones."""

    isa: Isa
    start: int
    blocks: int
    count: int


@dataclass(frozen=True)
class DepthwisePlan:
    """A depthwise convolution on one instruction set: how its channels and columns are cut, and its constants.

    `chosen` is a measured number of columns; without one the cost model chooses.
    """

    conv: Conv
    isa: Isa
    chosen: int | None = None

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Whole blocks of full vectors, then what is left in the shortest vectors that hold it."""
        found, start, lanes = [], 0, self.isa.lanes
        while left := self.conv.channels - start:
            isa = self.isa.at(lanes)
            if left >= isa.block:
                found.append(Section(isa, start, left // isa.block, isa.block))
                start += left // isa.block * isa.block
            elif lanes > _LEAST_LANES and left <= isa.block * 3 // 4:
                lanes //= 2
            else:
                found.append(Section(isa, start, 1, left))
                start += left
        return tuple(found)

    @cached_property
    def row_groups(self) -> int:
        """Dots for one column of the kernel."""
        return -(-self.conv.kernel[0] // self.isa.group)

    @property
    def columns(self) -> int:
        """Output columns of one tile."""
        return self.chosen or self.alternatives[0]

    @cached_property
    def alternatives(self) -> tuple[int, ...]:
        """Every number of columns whose accumulators fit, the best by the cost model first."""
        held = len(self.passes[0]) + len(self.passes) - 1  # accumulators, and what earlier passes left
        most = max(1, (self.isa.registers - len(self.passes[0]) - 2) // held)
        return tuple(sorted(range(1, min(most, self.conv.out_width) + 1), key=self._cost))

    def _cost(self, columns: int) -> tuple[float, int]:
        """Operations for one line: dots and requantization for each output, interleaving for each input column."""
        conv = self.conv
        tiles = -(-conv.out_width // columns)
        inputs = min((columns - 1) * conv.stride[1] + conv.kernel[1], columns * conv.kernel[1])
        outputs = columns * (conv.kernel[1] * self.row_groups * self.isa.cost.dot_uops + 6)
        return tiles * (outputs + inputs * self.row_groups * 3), -columns

    @property
    def passes(self) -> tuple[range, ...]:
        """Vectors of a block whose accumulators are held together: all that one interleaving gives, or half."""
        return (range(PACK),) if self.isa.group == 4 else (range(2), range(2, PACK))

    @property
    def width(self) -> int:
        """Columns of a padded line."""
        conv = self.conv
        return (conv.out_width - 1) * conv.stride[1] + (conv.kernel[1] - 1) * conv.dilation[1] + 1

    @property
    def height(self) -> int:
        """Lines in the ring."""
        return (self.conv.kernel[0] - 1) * self.conv.dilation[0] + 1

    @cached_property
    def chunk(self) -> int:
        """Output lines of one unit of work: neighbouring units read some lines twice, and the last one makes some again
        unless the units divide the image.
        """
        lines = self.conv.out_height
        sizes = (-(-lines // chunks) for chunks in range(_MOST_CHUNKS, 0, -1))
        return next(size for size in sizes if size == lines or (size >= _LEAST_LINES and -lines % size <= lines // 24))

    @property
    def chunks(self) -> int:
        return -(-self.conv.out_height // self.chunk)

    @property
    def scratch(self) -> int:
        """Elements of the ring."""
        return self.height * self.width * max(s.isa.block for s in self.sections)

    @property
    def taps(self) -> int:
        """Dots of one output."""
        return self.row_groups * self.conv.kernel[1]

    def _channels(self) -> np.ndarray:
        """Channel of every lane, [vectors, lanes] flattened over sections; the number of channels where it has none."""
        found = []
        for section in self.sections:
            order = interleave_order(section.isa).reshape(-1)
            for block in range(section.blocks):
                channel = section.start + block * section.isa.block + order
                found.append(np.where(order < section.count, channel, self.conv.channels))
        return np.concatenate(found)

    def pack_channels(self, values: np.ndarray) -> np.ndarray:
        """One value a channel → one a lane, 0 where a lane has no channel."""
        return np.asarray(np.append(values, values.dtype.type(0))[self._channels()])

    def pack_weights(self, weights: np.ndarray) -> np.ndarray:
        """Weights int8 [C, kh, kw] → for each block [taps, vectors, lanes, group], as bytes or int16."""
        conv, group = self.conv, self.isa.group
        padded = np.pad(weights, ((0, 1), (0, self.row_groups * group - conv.kernel[0]), (0, 0)))
        dtype = np.int16 if self.isa.packed == "int16" else np.int8
        channels, found, place = self._channels(), [], 0
        for section in self.sections:
            for _ in range(section.blocks):
                lanes = padded[channels[place : place + section.isa.block]]
                lanes = lanes.reshape(len(lanes), self.row_groups, group, conv.kernel[1]).transpose(1, 3, 0, 2)
                found.append(lanes.reshape(-1))
                place += section.isa.block
        return np.ascontiguousarray(np.concatenate(found).astype(dtype))


def depthwise_kernel(
    conv: Conv,
    isa: Isa,
    *,
    table: bool = False,
    into: Into | None = None,
    schedule: int | None = None,
    bounds: Bounds = ANY,
    types: Types = BYTES,
    limits: bool = False,
) -> Kernel:
    """Arguments: input, weights, bias, multipliers, quant, [`limits`: lo − z_y and hi − z_y of each channel, float32,]
    [table uint8 [256]], output, which `into` places. A unit is a chunk of lines of one block.
    """
    isa = types.depthwise(isa)
    plan = DepthwisePlan(conv, isa, schedule)
    lanes = sum(s.blocks * s.isa.block for s in plan.sections)
    weights = "int16" if isa.packed == "int16" else "int8"
    args = [
        ("x", types.source, conv.batch * conv.height * conv.width * conv.channels),
        ("w", weights, plan.taps * isa.group * lanes),
        ("bias", "int32", lanes),
        ("scale", "float32", lanes),
        ("quant", "int32", QUANT_PARAMS),
        *([("low", "float32", lanes), ("high", "float32", lanes)] if limits else []),
        *([("table", "uint8", 256)] if table else []),
        ("y", types.result, into.size if into else conv.pixels * conv.channels),
    ]
    units = conv.batch * plan.chunks * sum(s.blocks for s in plan.sections)
    grain = max(1, min(units, int(200_000 * units / max(conv.macs, 1))))
    func = kernel(
        args, _DepthwiseBody(plan, into, bounds, types, limits=limits).emit, scratch=(isa.packed, plan.scratch)
    )
    scratch = plan.scratch * np.dtype(isa.packed).itemsize
    return Kernel(func, tuple(a[1] for a in args), units, grain, scratch)


class _DepthwiseBody:
    def __init__(self, plan: DepthwisePlan, into: Into | None, bounds: Bounds, types: Types, *, limits: bool) -> None:
        self.limited = limits
        self.plan, self.conv, self.bounds, self.types = plan, plan.conv, bounds, types
        channels = plan.conv.channels
        self.stride, self.offset = (into.stride_of(channels), into.offset) if into else (channels, 0)

    def emit(self, body: Body) -> None:
        self.x, self.w, self.bias, self.scale, self.quant, *more, self.y = body.buffers
        self.limits, self.table = (more[:2], more[2:]) if self.limited else ([], more)
        self.ring, self.rolled = body.scratch, body.rolled
        first = 0
        for section in self.plan.sections:
            units = section.blocks * self.conv.batch * self.plan.chunks
            with loop(T.max(body.begin, first), T.min(body.end, first + units)) as unit:
                self._unit(section, unit - first)
            first += units

    def _unit(self, section: Section, unit: Expr) -> None:
        plan, conv = self.plan, self.conv
        isa = section.isa
        self.epilogue = Epilogue(isa, self.quant, self.bounds, self.table[0] if self.table else None, self.types)
        block = T.bind(unit // (conv.batch * plan.chunks)) if section.blocks > 1 else 0
        image = T.bind(unit // plan.chunks % conv.batch) if conv.batch > 1 else 0
        channel = T.bind(block * isa.block + section.start)
        lanes = T.bind(
            block * isa.block + sum(s.blocks * s.isa.block for s in plan.sections if s.start < section.start)
        )
        line = T.bind(T.min(unit % plan.chunks * plan.chunk, conv.out_height - plan.chunk))
        self._pad_columns(section)
        kept = max(0, plan.height - conv.stride[0])
        top = T.bind(line * conv.stride[0] - conv.pad[0])
        with loop(0, self.rolled(kept)) as i:
            self._fill_line(section, image, channel, top + i, i)
        with loop(0, plan.chunk) as i:
            base = T.bind(i * conv.stride[0])
            with loop(0, self.rolled(plan.height - kept)) as j:
                step = T.bind(base + kept + j)
                self._fill_line(section, image, channel, top + step, step)
            self._line(section, lanes, base, ((image * conv.out_height + line + i) * conv.out_width, channel))

    def _slot(self, isa: Isa, step: Expr) -> Expr:
        """Where in the ring the line lies that is `step` below the unit's first."""
        return T.bind(step % self.plan.height * (self.plan.width * isa.block))

    def _pad_columns(self, section: Section) -> None:
        """Columns left and right of the image keep the zero point for the whole unit."""
        conv, plan, isa = self.conv, self.plan, section.isa
        left, right = min(conv.pad[1], plan.width), plan.width - conv.pad[1] - conv.width
        with loop(0, self.rolled(plan.height)) as slot:
            for begin, count in ((0, left), (plan.width - right, right)):
                if count > 0:
                    self._zeros(isa, T.bind(slot * (plan.width * isa.block) + begin * isa.block), count)

    def _zeros(self, isa: Isa, place: Expr, columns: int) -> None:
        value = self._convert(isa, splat(self.epilogue.padding, isa.block), isa.block)
        with loop(0, self.rolled(columns)) as column:
            self.ring.store(place + column * isa.block, value, isa.block)

    def _fill_line(self, section: Section, image: Expr, channel: Expr, y: Expr, step: Expr) -> None:
        conv, plan, isa = self.conv, self.plan, section.isa
        columns = min(conv.width, plan.width - conv.pad[1])
        slot = T.bind(self._slot(isa, step) + conv.pad[1] * isa.block)
        source = T.bind((image * conv.height + y) * (conv.width * conv.channels) + channel)

        def copy() -> None:
            with loop(0, columns) as column:
                place, to = source + column * conv.channels, slot + column * isa.block
                copy_run(self.x, place, self.ring, to, section.count, lambda v, n: self._convert(isa, v, n), isa.block)

        either(T.And(y >= 0, y < conv.height), copy, lambda: self._zeros(isa, slot, columns))

    def _convert(self, isa: Isa, value: Expr, lanes: int) -> Expr:
        return value if self.types.source == "int16" else converted(isa, value, lanes)

    def _line(self, section: Section, lanes: Expr, base: Expr, place: tuple[Expr, Expr]) -> None:
        plan, conv, isa = self.plan, self.conv, section.isa
        rows = [self._slot(isa, base + kh * conv.dilation[0]) for kh in range(conv.kernel[0])]
        weights = T.bind(lanes * (plan.taps * isa.group))
        with loop(0, -(-conv.out_width // plan.columns)) as i:
            first = T.bind(T.min(i * plan.columns, conv.out_width - plan.columns))
            at = (place[0] + first) * self.stride + place[1] + self.offset
            halves: list[list[Expr]] = [[] for _ in range(plan.columns)]
            for vectors in plan.passes:
                acc = self._accumulators(isa, lanes, vectors)
                self._dots(acc, isa, rows, first, weights, vectors)
                self._requantize(acc, halves, isa, lanes, vectors)
            for column, found in enumerate(halves):
                self._store(section, at + column * self.stride, found)

    def _store(self, section: Section, place: Expr, found: list[Expr]) -> None:
        """Stores a block; `found` are halves of it, or in float32 its vectors."""
        isa, order = section.isa, interleave_order(section.isa)
        if self.types.result == "uint8":
            store_part(self.y, place, self.epilogue.block(found[0], found[1], order), isa.block, 0, section.count)
            return
        if self.types.result == "int16":
            order = isa.pack16_order(order)
        size = isa.block // len(found)
        if np.array_equal(order.reshape(-1), np.arange(isa.block)):
            for i, part in enumerate(found):
                if section.count > i * size:
                    store_lanes(self.y, place + i * size, part, size, 0, min(size, section.count - i * size))
            return
        whole = T.bind(shuffle(found, np.argsort(order.reshape(-1)).tolist()))
        store_lanes(self.y, place, whole, isa.block, 0, section.count)

    def _accumulators(self, isa: Isa, lanes: Expr, vectors: range) -> list[list[Cell]]:
        """[columns][vectors], starting from the bias."""
        acc = [cells(len(vectors), "int32", isa.lanes) for _ in range(self.plan.columns)]
        for i, k in enumerate(vectors):
            bias = T.bind(self.bias.load(lanes + k * isa.lanes, isa.lanes))
            for column in acc:
                column[i].set(bias)
        return acc

    def _dots(
        self, acc: list[list[Cell]], isa: Isa, rows: list[Expr], first: Expr, weights: Expr, vectors: range
    ) -> None:
        """Each interleaved input column goes to all outputs of the tile that read it."""
        plan, conv = self.plan, self.conv
        tap_size = isa.block * isa.group
        start = T.bind(first * (conv.stride[1] * isa.block))
        for group in range(plan.row_groups):
            members = [min(group * isa.group + r, conv.kernel[0] - 1) for r in range(isa.group)]
            for column, readers in self._readers().items():
                lines = {
                    m: self._load(isa, start + rows[m] + column * isa.block, vectors) for m in dict.fromkeys(members)
                }
                operands = interleave(isa, [lines[m] for m in members])
                for i, (k, operand) in enumerate(zip(vectors, operands, strict=True)):
                    for output, kw in readers:
                        tap = (group * conv.kernel[1] + kw) * tap_size + k * (isa.lanes * isa.group)
                        w = self.w.load(weights + tap, isa.lanes * isa.group)
                        acc[output][i].set(isa.dot(acc[output][i].get(), operand, w, isa.lanes))

    def _load(self, isa: Isa, place: Expr, vectors: range) -> list[Expr]:
        """The parts of one column of the ring that give the dot operands `vectors`."""
        count, size = parts(isa)
        wanted = range(vectors.start * count // PACK, vectors.stop * count // PACK)
        return [T.bind(self.ring.load(place + p * size, size)) for p in wanted]

    def _readers(self) -> dict[int, list[tuple[int, int]]]:
        """Input column of a tile → the (output column, kernel column) pairs that read it."""
        conv = self.conv
        found: dict[int, list[tuple[int, int]]] = {}
        for output in range(self.plan.columns):
            for kw in range(conv.kernel[1]):
                found.setdefault(output * conv.stride[1] + kw * conv.dilation[1], []).append((output, kw))
        return dict(sorted(found.items()))

    def _requantize(
        self, acc: list[list[Cell]], halves: list[list[Expr]], isa: Isa, lanes: Expr, vectors: range
    ) -> None:
        scales = [T.bind(self.scale.load(lanes + k * isa.lanes, isa.lanes)) for k in vectors]
        limits: list[Limits] = [None for _ in vectors]
        if self.limits:
            low, high = ([T.bind(end.load(lanes + k * isa.lanes, isa.lanes)) for k in vectors] for end in self.limits)
            limits = list(zip(low, high, strict=True))
        for column, found in zip(acc, halves, strict=True):
            sums = [(cell.get(), scale, ends) for cell, scale, ends in zip(column, scales, limits, strict=True)]
            if self.types.result == "float32":
                found += [self.epilogue.vector(*pair) for pair in sums]
                continue
            if self.types.result == "int16":
                words = [self.epilogue.word(*pair) for pair in sums]
                pairs = zip(words[::2], words[1::2], strict=True)
                found += [T.bind(isa.pack16(first, second, isa.lanes)) for first, second in pairs]
                continue
            levels = [self.epilogue.level(*pair) for pair in sums]
            found += [self.epilogue.half(*levels[i : i + 2]) for i in range(0, len(levels), 2)]

"""Depthwise convolution, channels in the lanes (SPEC section 7, conv with one input channel a group)."""

from edgebuild.kernels.builder import (
    Body,
    Cell,
    Expr,
    Kernel,
    T,
    bits,
    cast,
    cells,
    either,
    kernel,
    loop,
    requantize,
    splat,
)
from edgebuild.kernels.conv import QUANT_PARAMS, Conv
from edgebuild.kernels.isa import Isa


def is_depthwise(conv: Conv) -> bool:
    return conv.groups > 1 and conv.group_channels == 1 and conv.group_outputs == 1


def depthwise_kernel(conv: Conv, isa: Isa) -> Kernel:
    """Arguments: input, weights int8 [kh, kw, C], bias, multipliers, quant [4], output. A unit is one output line."""
    size = conv.channels
    args = [
        ("x", "uint8", conv.batch * conv.height * conv.width * size),
        ("w", "int8", conv.kernel[0] * conv.kernel[1] * size),
        ("bias", "int32", size),
        ("scale", "float32", size),
        ("quant", "int32", QUANT_PARAMS),
        ("y", "uint8", conv.pixels * size),
    ]
    units = conv.batch * conv.out_height
    grain = max(1, min(units, int(100_000 * units / max(conv.macs, 1))))
    return Kernel(kernel(args, _DepthwiseBody(conv, isa).emit), tuple(a[1] for a in args), units, grain)


class _DepthwiseBody:
    def __init__(self, conv: Conv, isa: Isa) -> None:
        self.conv, self.isa = conv, isa
        self.lanes = min(isa.wide, 1 << (conv.channels.bit_length() - 1))
        self.left, self.right = self._interior()
        self.columns = max(1, min(8 if isa.registers == 32 else 4, self.right - self.left))

    def _interior(self) -> tuple[int, int]:
        """Output columns [left, right) whose taps all lie inside the image."""
        conv = self.conv
        reach = (conv.kernel[1] - 1) * conv.dilation[1]
        left = -(-conv.pad[1] // conv.stride[1])
        right = (conv.width - 1 - reach + conv.pad[1]) // conv.stride[1] + 1
        left = min(left, conv.out_width)
        return left, max(left, min(right, conv.out_width))

    def emit(self, body: Body) -> None:
        self.x, self.w, self.bias, self.scale, self.quant, self.y = body.buffers
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
        """`count` neighbouring output pixels of one line, one vector of channels."""
        conv, lanes = self.conv, self.lanes
        image, line = unit // conv.out_height, unit % conv.out_height
        if conv.batch == 1:
            image, line = 0, unit
        acc = cells(count, "int32", lanes)
        start = T.bind(self.bias.load(channel, lanes))
        for cell in acc:
            cell.set(start)
        with loop(0, conv.kernel[0]) as kh:
            y = T.bind(line * conv.stride[0] - conv.pad[0] + kh * conv.dilation[0])
            source = T.bind(
                ((image * conv.height + y) * conv.width + first * conv.stride[1] - conv.pad[1]) * conv.channels
                + channel
            )
            tap = T.bind(kh * (conv.kernel[1] * conv.channels) + channel)
            weights = [T.bind(self.w.load(tap + kw * conv.channels, lanes)) for kw in range(conv.kernel[1])]

            def inside(source: Expr = source, weights: list[Expr] = weights) -> None:
                self._line(acc, source, first, weights, checked=checked)

            def outside(weights: list[Expr] = weights) -> None:
                padding = splat(cast("uint8", self.quant.load(3)), lanes)
                for cell in acc:
                    for w in weights:
                        cell.set(cell.get() + self.isa.product(padding, w, lanes))

            either(T.And(y >= 0, y < conv.height), inside, outside)
        self._store(acc, (unit * conv.out_width + first) * conv.channels + channel, channel)

    def _line(self, acc: list[Cell], source: Expr, first: Expr, weights: list[Expr], *, checked: bool) -> None:
        conv, lanes = self.conv, self.lanes
        for i, cell in enumerate(acc):
            for kw, w in enumerate(weights):
                step = i * conv.stride[1] + kw * conv.dilation[1]

                def inside(step: int = step, w: Expr = w, cell: Cell = cell) -> None:
                    x = self.x.load(source + step * conv.channels, lanes)
                    cell.set(cell.get() + self.isa.product(x, w, lanes))

                def outside(w: Expr = w, cell: Cell = cell) -> None:
                    padding = splat(cast("uint8", self.quant.load(3)), lanes)
                    cell.set(cell.get() + self.isa.product(padding, w, lanes))

                if checked:
                    column = first * conv.stride[1] - conv.pad[1] + step
                    either(T.And(column >= 0, column < conv.width), inside, outside)
                else:
                    inside()

    def _store(self, acc: list[Cell], place: Expr, channel: Expr) -> None:
        lanes = self.lanes
        lo = splat(bits("float32", self.quant.load(0)), lanes)
        hi = splat(bits("float32", self.quant.load(1)), lanes)
        zero = splat(self.quant.load(2), lanes)
        scale = T.bind(self.scale.load(channel, lanes))
        for i, cell in enumerate(acc):
            value = requantize(cell.get(), scale, lo, hi, zero, lanes)
            self.y.store(place + i * self.conv.channels, cast("uint8", value, lanes), lanes)

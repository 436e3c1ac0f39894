"""Moving bytes: runs, strided boxes, gathers, fills, and byte tables."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgebuild.kernels.builder import Body, Expr, Flat, Kernel, T, cast, floor_power, kernel, loop, shuffle
from edgebuild.kernels.isa import Isa

WIDEST = 32  # elements of the widest copy step: one AVX2 register of bytes, and cheap on narrower machines

Convert = Callable[[Expr, int], Expr]


def copy_run(
    source: Flat | None, at: Expr, target: Flat, to: Expr, count: int, convert: Convert, widest: int = WIDEST
) -> None:
    """target[to : to+count] = convert(source[at : at+count]) for a static count; without a source `convert` makes the
    value.

    The tail is one more step that overlaps the step before it; runs shorter than a step take powers of two.
    """
    lanes = min(widest, floor_power(count))

    def step(offset: Expr) -> None:
        value = None if source is None else source.load(at + offset, lanes)
        target.store(to + offset, convert(value, lanes), lanes)

    whole = count // lanes
    if whole > 4:
        with loop(0, whole) as i:
            step(i * lanes)
    else:
        for i in range(whole):
            step(i * lanes)
    if count % lanes:
        step(count - lanes)


@dataclass(frozen=True)
class Into:
    """A part of a larger tensor of `size` elements: lines of `line` elements, `stride` apart, from `offset` on."""

    line: int
    stride: int
    offset: int
    size: int

    def fits(self, width: int) -> bool:
        """Whether a result that is made in lines of `width` elements can go there."""
        return self.line in (width, self.stride)

    def stride_of(self, width: int) -> int:
        """Distance of such lines."""
        assert self.fits(width)
        return self.stride if width == self.line else width


@dataclass(frozen=True)
class Box:
    """A strided copy: out[out_offset + Σ i·out_stride] = in[in_offset + Σ i·in_stride], i below `dims`; strides in
    elements.

    It is a transpose, a slice (also with negative steps), an expand (stride 0), one input of a concat, the inside of
    a pad. `table`: dtype of a table that every byte goes through.
    """

    dtype: str
    dims: tuple[int, ...]
    in_strides: tuple[int, ...]
    out_strides: tuple[int, ...]
    in_size: int
    out_size: int
    in_offset: int = 0
    out_offset: int = 0
    table: str = ""


def box_kernel(box: Box, _isa: Isa) -> Kernel:
    """Arguments: input, [table [256] of the dtype `table`], output. A unit is one index of the outermost dimension."""
    args = [("x", box.dtype, box.in_size), ("y", box.table or box.dtype, box.out_size)]
    if box.table:
        args.insert(1, ("table", box.table, 256))

    def emit(body: Body) -> None:
        x, *table, y = body.buffers
        convert: Convert = (lambda v, _: table[0].load(cast("int32", v))) if table else (lambda v, _: v)
        with loop(body.begin, body.end) as unit:
            source = box.in_offset + unit * box.in_strides[0]
            target = box.out_offset + unit * box.out_strides[0]
            _box_loops(body, box, 1, x, source, y, target, convert)

    units = box.dims[0]
    inner = max(1, math.prod(box.dims[1:]))
    return Kernel(kernel(args, emit), tuple(a[1] for a in args), units, max(1, min(units, 65536 // inner)))


def _box_loops(body: Body, box: Box, axis: int, x: Flat, source: Expr, y: Flat, target: Expr, convert: Convert) -> None:
    if axis == len(box.dims):
        y.store(target, convert(x.load(source), 1))
        return
    contiguous = axis == len(box.dims) - 1 and box.in_strides[axis] == box.out_strides[axis] == 1
    if contiguous and not box.table:
        copy_run(x, source, y, target, box.dims[axis], convert)
        return
    with loop(0, body.rolled(box.dims[axis])) as i:
        step_in, step_out = source + i * box.in_strides[axis], target + i * box.out_strides[axis]
        _box_loops(body, box, axis + 1, x, step_in, y, step_out, convert)


@dataclass(frozen=True)
class Gather:
    """[outer, size, inner] → [outer, count, inner] by an index table; nearest resize and constant gathers."""

    dtype: str
    outer: int
    size: int
    count: int
    inner: int


def gather_kernel(gather: Gather, _isa: Isa, *, into: Into | None = None) -> Kernel:
    """Arguments: input, index int32 [count], output. A unit is one output line [inner], which `into` places."""
    size = gather.outer * gather.count * gather.inner
    into = into or Into(gather.inner, gather.inner, 0, size)
    args = [
        ("x", gather.dtype, gather.outer * gather.size * gather.inner),
        ("index", "int32", gather.count),
        ("y", gather.dtype, into.size),
    ]

    def emit(body: Body) -> None:
        x, index, y = body.buffers
        with loop(body.begin, body.end) as unit:
            source = (unit // gather.count * gather.size + index.load(unit % gather.count)) * gather.inner
            target = unit * into.stride_of(gather.inner) + into.offset
            copy_run(x, source, y, target, gather.inner, lambda v, _: v)

    units = gather.outer * gather.count
    return Kernel(kernel(args, emit), tuple(a[1] for a in args), units, max(1, min(units, 65536 // gather.inner)))


@dataclass(frozen=True)
class Fill:
    """`size` times one value."""

    dtype: str
    size: int


def fill_kernel(fill: Fill, _isa: Isa) -> Kernel:
    """Arguments: value [1], output [size]."""
    dtype, size = fill.dtype, fill.size
    args = [("value", dtype, 1), ("y", dtype, size)]

    def emit(body: Body) -> None:
        value, y = body.buffers
        with loop(body.begin, body.end) as unit:
            y.store(unit, value.load(0))

    return Kernel(kernel(args, emit), tuple(a[1] for a in args), size, min(size, 65536))


@dataclass(frozen=True)
class Table:
    """`size` bytes through tables of 256; element i takes table i mod `period`."""

    size: int
    period: int = 1
    dtype: str = "uint8"


def table_kernel(spec: Table, isa: Isa) -> Kernel:
    """Arguments: input uint8, tables [period, 256], output, both of the spec's dtype: SPEC section 7, table.

    A step covers `period` vectors, so that each place in it always belongs to the same table.
    """
    size, period, lookup = spec.size, spec.period, isa.lookup if spec.dtype == "uint8" else None
    args = [("x", "uint8", size), ("table", spec.dtype, 256 * period), ("y", spec.dtype, size)]
    fits = size % period == 0 and size >= period * isa.block
    width = isa.block if lookup is not None and fits and (period == 1 or isa.lookups) else 1
    step = width * period
    units = -(-size // step)

    def emit(body: Body) -> None:
        x, table, y = body.buffers
        with loop(body.begin, body.end) as i:
            start = T.bind(T.min(i * step, size - step))
            for part in range(period):
                place = start + part * width
                value = T.bind(x.load(place, width))
                if width == 1 or lookup is None:
                    y.store(place, table.load(cast("int32", value) + part * 256))
                    continue
                found = [lookup(table, t * 256, value, width) for t in range(period)]
                y.store(place, _interleaved(found, part * width, width), width)

    return Kernel(kernel(args, emit), tuple(a[1] for a in args), units, min(units, max(1, 16384 // step)))


def _interleaved(found: Sequence[Expr], start: int, width: int) -> Expr:
    """Element i of vector (start + i) mod len(found)."""
    result = found[0]
    for t in range(1, len(found)):
        order = [width + i if (start + i) % len(found) == t else i for i in range(width)]
        result = T.bind(shuffle([T.bind(result), T.bind(found[t])], order))
    return result

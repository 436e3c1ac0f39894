"""Operators that only move data, on values of any type: views where the memory order allows it, else one copy.

`move(node, inputs)` gives the values of the node's outputs. Padding values and index tables are constants.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgebuild.kernels.copy import Box, Fill, Gather, box_kernel, fill_kernel, gather_kernel
from edgebuild.stages.compile.graph import Graph, Node
from edgebuild.stages.compile.values import Emitter, Value, row_major


@dataclass(frozen=True)
class Mover:
    """Lowers data movement; `fill` is the padding value as an array of one element of the value's dtype."""

    graph: Graph
    emit: Emitter

    def move(self, node: Node, value: Value, fill: np.ndarray) -> dict[str, Value]:
        """The outputs of a node with one data input."""
        return _MOVES[node.op](self, node, value, fill)

    def ordered(self, value: Value, order: Sequence[int], name: str) -> Value:
        """The value with its bytes in a given order: itself, or a copy."""
        if value.has_order(order):
            return value.seen(value.shape, order)
        out = self.emit.tensor(f"{name}:layout", value.dtype, value.shape, order)
        self.copy("layout", name, value, out)
        return out

    def copy(
        self,
        kind: str,
        name: str,
        source: Value,
        out: Value,
        *,
        into: Sequence[int] | None = None,
        table: Value | None = None,
        view: tuple[Sequence[int], int] | None = None,
    ) -> None:
        """Copy `source` to `out` at index `into`; `view` = (strides, offset) reads the source otherwise than it
        lies.
        """
        in_strides, in_offset = view if view is not None else (source.strides, 0)
        shape = source.shape if view is None and into is not None else out.shape
        axes = [a for a in out.order if shape[a] > 1] or [0]
        dims = tuple(shape[a] for a in axes) if shape else (1,)
        out_strides = out.strides if out.shape else (1,)
        in_strides = in_strides if source.shape or view is not None else (1,)
        start = sum(i * s for i, s in zip(into, out.strides, strict=True)) if into is not None else 0
        box = _merged(
            Box(
                source.dtype if source.dtype != "bool" else "uint8",
                dims,
                tuple(in_strides[a] for a in axes),
                tuple(out_strides[a] for a in axes),
                max(1, source.size),
                max(1, out.size),
                in_offset,
                start,
                table.dtype if table is not None else "",
            )
        )
        inputs = [source] if table is None else [source, table]
        self.emit.call(kind, name, box_kernel, box, inputs, out, integer=source.dtype != "float32")

    def gather(self, name: str, value: Value, axis: int, index: np.ndarray) -> Value:
        """out[…, i, …] = value[…, index[i], …]."""
        place = value.order.index(axis)
        memory = value.memory_shape
        outer, inner = int(np.prod(memory[:place])), int(np.prod(memory[place + 1 :]))
        shape = tuple(len(index) if a == axis else s for a, s in enumerate(value.shape))
        out = self.emit.tensor(name, value.dtype, shape, value.order)
        dtype = value.dtype if value.dtype != "bool" else "uint8"
        spec = Gather(dtype, outer, value.shape[axis], len(index), inner)
        table = self.emit.constant(f"{name}:index", index.astype(np.int32))
        self.emit.call("gather", name, gather_kernel, spec, [value, table], out, integer=value.dtype != "float32")
        return out


def _merged(box: Box) -> Box:
    """Merge dimensions that both sides walk in one go; keep the outermost one for splitting the work."""
    dims, ins, outs = [box.dims[0]], [box.in_strides[0]], [box.out_strides[0]]
    for size, a, b in zip(box.dims[1:], box.in_strides[1:], box.out_strides[1:], strict=True):
        if ins[-1] == a * size and outs[-1] == b * size and len(dims) > 1:
            dims[-1], ins[-1], outs[-1] = dims[-1] * size, a, b
        else:
            dims.append(size)
            ins.append(a)
            outs.append(b)
    if len(dims) == 1:
        dims, ins, outs = [1, *dims], [0, *ins], [0, *outs]
    return Box(
        box.dtype,
        tuple(dims),
        tuple(ins),
        tuple(outs),
        box.in_size,
        box.out_size,
        box.in_offset,
        box.out_offset,
        box.table,
    )


def _view(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    """Reshape, Flatten, Squeeze, Unsqueeze."""
    name = node.outputs[0]
    shape = mover.graph.shape(name)
    order = _kept_order(value, shape)
    if order is None:
        value = mover.ordered(value, row_major(len(value.shape)), node.name)
        order = row_major(len(shape))
    return {name: value.seen(shape, order)}


def _kept_order(value: Value, shape: Sequence[int]) -> tuple[int, ...] | None:
    """The memory order of a reshaped value, when only axes of size 1 come or go, or when it lies row-major."""
    if value.has_order(row_major(len(value.shape))):
        return row_major(len(shape))
    old = [a for a, s in enumerate(value.shape) if s > 1]
    new = [a for a, s in enumerate(shape) if s > 1]
    if [value.shape[a] for a in old] != [shape[a] for a in new]:
        return None
    renamed = dict(zip(old, new, strict=True))
    ones = [a for a, s in enumerate(shape) if s == 1]
    return (*ones, *(renamed[a] for a in value.order if value.shape[a] > 1))


def _transpose(_: Mover, node: Node, value: Value, __: np.ndarray) -> dict[str, Value]:
    perm = node.attrs.get("perm") or tuple(reversed(range(len(value.shape))))
    place = {old: new for new, old in enumerate(perm)}
    return {node.outputs[0]: value.seen([value.shape[p] for p in perm], [place[a] for a in value.order])}


def _identity(_: Mover, node: Node, value: Value, __: np.ndarray) -> dict[str, Value]:
    return {node.outputs[0]: value}


def _slice(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    rank = len(value.shape)
    starts, ends = (mover.graph.need_constant(node, i).tolist() for i in (1, 2))
    axes = mover.graph.need_constant(node, 3).tolist() if node.input(3) else list(range(len(starts)))
    steps = mover.graph.need_constant(node, 4).tolist() if node.input(4) else [1] * len(starts)
    picked = [range(s) for s in value.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked[axis % rank] = range(value.shape[axis % rank])[start:end:step]
    return {node.outputs[0]: _pick(mover, node.outputs[0], value, picked)}


def _pick(mover: Mover, name: str, value: Value, picked: Sequence[range]) -> Value:
    """A regular part of a value, copied."""
    out = mover.emit.tensor(name, value.dtype, [len(p) for p in picked], value.order)
    strides = [s * p.step for s, p in zip(value.strides, picked, strict=True)]
    offset = sum(s * p.start for s, p in zip(value.strides, picked, strict=True))
    mover.copy("slice", name, value, out, view=(strides, offset))
    return out


def _split(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    axis = int(node.attrs.get("axis", 0)) % len(value.shape)
    outs, start = {}, 0
    for name in node.outputs:
        size = mover.graph.shape(name)[axis]
        picked = [range(s) for s in value.shape]
        picked[axis] = range(start, start + size)
        outs[name] = _pick(mover, name, value, picked)
        start += size
    return outs


def _gather(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    axis = int(node.attrs.get("axis", 0)) % len(value.shape)
    index = mover.graph.need_constant(node, 1)
    flat = np.where(index < 0, index + value.shape[axis], index).reshape(-1)
    out = mover.gather(node.outputs[0], value, axis, flat)
    if index.ndim == 1:
        return {node.outputs[0]: out}
    out = mover.ordered(out, row_major(len(out.shape)), node.name)
    shape = mover.graph.shape(node.outputs[0])
    return {node.outputs[0]: out.seen(shape, row_major(len(shape)))}


def _expand(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    shape = mover.graph.shape(node.outputs[0])
    return {node.outputs[0]: expanded(mover, node.outputs[0], value, shape)}


def expanded(mover: Mover, name: str, value: Value, shape: Sequence[int], order: Sequence[int] | None = None) -> Value:
    """A value broadcast to a shape, in memory."""
    lead = len(shape) - len(value.shape)
    strides = [0] * lead + [0 if s == 1 else t for s, t in zip(value.shape, value.strides, strict=True)]
    out = mover.emit.tensor(name, value.dtype, shape, order)
    mover.copy("expand", name, value, out, view=(strides, 0))
    return out


def _tile(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    name = node.outputs[0]
    for axis, count in enumerate(mover.graph.need_constant(node, 1).tolist()):
        if count != 1:
            value = mover.gather(f"{name}:{axis}", value, axis, np.tile(np.arange(value.shape[axis]), count))
    return {name: value}


def _pad(mover: Mover, node: Node, value: Value, fill: np.ndarray) -> dict[str, Value]:
    mode, rank, name = node.text("mode", "constant"), len(value.shape), node.outputs[0]
    pads = mover.graph.need_constant(node, 1).tolist()
    axes = mover.graph.need_constant(node, 3).tolist() if node.input(3) else list(range(rank))
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis % rank], after[axis % rank] = pads[i], pads[i + len(axes)]
    if mode == "constant":
        return {name: padded(mover, name, value, before, after, fill)}
    if mode not in ("reflect", "edge", "wrap"):
        raise node.unsupported(f"padding mode {mode}")
    for axis in range(rank):
        if before[axis] or after[axis]:
            amounts = before[axis], after[axis]
            kept = np.arange(value.shape[axis])[max(0, -amounts[0]) : value.shape[axis] - max(0, -amounts[1])]
            index = np.pad(kept, [max(0, n) for n in amounts], mode=mode)  # type: ignore[call-overload]
            value = mover.gather(f"{name}:{axis}", value, axis, index)
    return {name: value}


def padded(
    mover: Mover, name: str, value: Value, before: Sequence[int], after: Sequence[int], fill: np.ndarray
) -> Value:
    """Constant padding; negative amounts crop."""
    kept = [range(max(0, -b), s - max(0, -a)) for b, a, s in zip(before, after, value.shape, strict=True)]
    if any(len(k) != s for k, s in zip(kept, value.shape, strict=True)):
        value = _pick(mover, f"{name}:crop", value, kept)
    grow = [max(0, b) for b in before]
    if not any(grow) and all(a <= 0 for a in after):
        return value
    shape = [s + b + max(0, a) for s, b, a in zip(value.shape, grow, after, strict=True)]
    out = mover.emit.tensor(name, value.dtype, shape, value.order)
    dtype = value.dtype if value.dtype != "bool" else "uint8"
    constant = mover.emit.constant(f"{name}:value", fill.astype(dtype).reshape(1))
    mover.emit.call("fill", name, fill_kernel, Fill(dtype, out.size), [constant], out, integer=dtype != "float32")
    mover.copy("pad", name, value, out, into=grow)
    return out


def _depth_to_space(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    block = int(node.attrs["blocksize"])
    n, c, h, w = value.shape
    inner = c // block**2
    if node.text("mode", "DCR") == "CRD":
        shape, perm = (n, inner, block, block, h, w), (0, 1, 4, 2, 5, 3)
    else:
        shape, perm = (n, block, block, inner, h, w), (0, 3, 4, 1, 5, 2)
    return _shuffle(mover, node, value, shape, perm)


def _space_to_depth(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    block = int(node.attrs["blocksize"])
    n, c, h, w = value.shape
    perm = (0, 1, 3, 5, 2, 4) if node.text("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    return _shuffle(mover, node, value, (n, c, h // block, block, w // block, block), perm)


def _shuffle(mover: Mover, node: Node, value: Value, shape: tuple[int, ...], perm: tuple[int, ...]) -> dict[str, Value]:
    """Reshape, transpose, reshape, with one copy."""
    value = mover.ordered(value, row_major(len(value.shape)), node.name).seen(shape, row_major(len(shape)))
    place = {old: new for new, old in enumerate(perm)}
    turned = value.seen([shape[p] for p in perm], [place[a] for a in value.order])
    flat = mover.ordered(turned, row_major(len(shape)), node.name)
    out = mover.graph.shape(node.outputs[0])
    return {node.outputs[0]: flat.seen(out, row_major(len(out)))}


def _nearest(mover: Mover, node: Node, value: Value, _: np.ndarray) -> dict[str, Value]:
    name = node.outputs[0]
    shape = mover.graph.shape(name)
    scales = resize_scales(mover.graph, node, value.shape, shape)
    out = value
    for axis, (size, count, scale) in enumerate(zip(value.shape, shape, scales, strict=True)):
        if size != count:
            out = mover.gather(f"{name}:{axis}", out, axis, _nearest_index(node, size, count, scale))
    return {name: out}


def resize_scales(graph: Graph, node: Node, size: Sequence[int], out: Sequence[int]) -> list[float]:
    """Scale of each axis: the node's own where it gives scales, else the ratio of the sizes."""
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise node.unsupported("keep_aspect_ratio_policy")
    axes = node.attrs.get("axes") or list(range(len(size)))
    scales = [o / s for s, o in zip(size, out, strict=True)]
    given = graph.need_constant(node, 2) if node.input(2) else None
    if given is not None and given.size:
        if given.size != len(axes):
            raise node.unsupported(f"{given.size} scales for {len(axes)} axes")
        for axis, scale in zip(axes, given.reshape(-1).tolist(), strict=True):
            scales[axis] = float(scale)
    return scales


def source_coordinates(node: Node, size: int, count: int, scale: float) -> np.ndarray:
    """SPEC section 8.1: where each output lies on the input axis, float64 [count]."""
    mode = node.text("coordinate_transformation_mode", "half_pixel")
    j = np.arange(count, dtype=np.float64)
    if mode == "half_pixel_symmetric":
        return size / 2 * (1 - count / (scale * size)) + (j + 0.5) / scale - 0.5
    if mode == "align_corners" and abs(size * scale - count) > _WHOLE:
        raise node.unsupported("align_corners with a scale that gives no whole length; runtimes differ in it")
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and count > 1):
        return (j + 0.5) / scale - 0.5
    if mode == "align_corners" and count > 1:
        return j * (size - 1) / (count - 1)
    if mode in ("align_corners", "pytorch_half_pixel"):
        return np.zeros(1)
    if mode == "asymmetric":
        return j / scale
    raise node.unsupported(f"coordinate mode {mode}")


def _nearest_index(node: Node, size: int, count: int, scale: float) -> np.ndarray:
    x = source_coordinates(node, size, count, scale)
    mode = node.text("nearest_mode", "round_prefer_floor")
    if mode == "floor":
        index = np.floor(x)
    elif mode == "ceil":
        index = np.ceil(x)
    elif mode == "round_prefer_ceil":
        index = np.floor(x + 0.5)
    else:
        index = np.ceil(x - 0.5)
    return np.asarray(np.clip(index, 0, size - 1).astype(np.int32))


_WHOLE = 1e-3  # a float32 scale times a length is a whole number, but for rounding
_MOVES: dict[str, Callable[[Mover, Node, Value, np.ndarray], dict[str, Value]]] = {
    "Reshape": _view,
    "Flatten": _view,
    "Squeeze": _view,
    "Unsqueeze": _view,
    "Transpose": _transpose,
    "Identity": _identity,
    "Dropout": _identity,
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Resize": _nearest,
}


def is_move(node: Node) -> bool:
    """Whether a node only moves data; a Resize does when it takes the nearest."""
    if node.op == "Resize":
        return node.text("mode", "nearest") == "nearest"
    return node.op in _MOVES

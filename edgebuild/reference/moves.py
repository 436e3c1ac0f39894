"""Operators that only move data; they work on any dtype, so on bytes as well."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from edgebuild.core.errors import ModelError
from edgebuild.reference import resize
from edgebuild.reference.model import Node
from edgebuild.reference.values import Array

Inputs = list[Array | None]
Move = Callable[[Node, Array, Inputs], list[Array]]


def ints(node: Node, inputs: Inputs, position: int, attribute: str) -> list[int] | None:
    """A list of integers that newer opsets pass as an input and older ones as an attribute."""
    if len(inputs) > position and (given := inputs[position]) is not None:
        return [int(v) for v in given.reshape(-1)]
    value = node.attributes.get(attribute)
    return None if value is None else [int(v) for v in value]


def _reshape(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    shape = ints(node, inputs, 1, "shape") or []
    if not node.attributes.get("allowzero", 0):
        shape = [x.shape[i] if d == 0 else d for i, d in enumerate(shape)]
    return [x.reshape(shape)]


def _flatten(node: Node, x: Array, _: Inputs) -> list[Array]:
    axis = node.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return [x.reshape(int(np.prod(x.shape[:axis])), -1)]


def _transpose(node: Node, x: Array, _: Inputs) -> list[Array]:
    return [np.transpose(x, node.attributes.get("perm"))]


def _squeeze(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    axes = ints(node, inputs, 1, "axes")
    return [np.squeeze(x, None if axes is None else tuple(axes))]


def _unsqueeze(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    return [np.expand_dims(x, tuple(ints(node, inputs, 1, "axes") or []))]


def _slice(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    starts, ends = ints(node, inputs, 1, "starts") or [], ints(node, inputs, 2, "ends") or []
    axes = ints(node, inputs, 3, "axes") or list(range(len(starts)))
    steps = ints(node, inputs, 4, "steps") or [1] * len(starts)
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        n = x.shape[axis]
        reaches_front = step < 0 and end < -n
        index[axis] = slice(start, None if reaches_front else end, step)
    return [x[tuple(index)]]


def _split(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    axis = node.attributes.get("axis", 0)
    sizes = ints(node, inputs, 1, "split")
    if sizes is None:
        parts = len(node.outputs)
        size = -(-x.shape[axis] // parts)
        sizes = [min(size, x.shape[axis] - i * size) for i in range(parts)]
    return np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis)


def _gather(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    indices = inputs[1]
    if indices is None:
        raise ModelError(f"Gather {node.name!r} has no indices", "export the model again")
    axis = node.attributes.get("axis", 0)
    size = x.shape[axis]
    return [np.take(x, np.clip(np.where(indices < 0, indices + size, indices), 0, size - 1), axis=axis)]


def _expand(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    shape = np.broadcast_shapes(x.shape, tuple(ints(node, inputs, 1, "shape") or []))
    return [np.broadcast_to(x, shape)]


def _tile(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    return [np.tile(x, ints(node, inputs, 1, "repeats") or [])]


def _depth_to_space(node: Node, x: Array, _: Inputs) -> list[Array]:
    block = node.attributes["blocksize"]
    n, c, h, w = x.shape
    if node.attributes.get("mode", b"DCR") == b"DCR":
        order = x.reshape(n, block, block, c // block**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        order = x.reshape(n, c // block**2, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return [order.reshape(n, c // block**2, h * block, w * block)]


def _space_to_depth(node: Node, x: Array, _: Inputs) -> list[Array]:
    block = node.attributes["blocksize"]
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block)
    depth_first = node.attributes.get("mode", b"DCR") == b"DCR"
    order = blocks.transpose(0, 3, 5, 1, 2, 4) if depth_first else blocks.transpose(0, 1, 3, 5, 2, 4)
    return [order.reshape(n, c * block**2, h // block, w // block)]


def _dropout(node: Node, x: Array, _: Inputs) -> list[Array]:
    if len(node.outputs) > 1:
        raise ModelError(f"Dropout ({node.name!r}) is in training mode", "export the model in evaluation mode")
    return [x]


def _nearest(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    return [resize.nearest(node, x, inputs)]


_PADDINGS: dict[str, Literal["edge", "reflect", "wrap"]] = {"edge": "edge", "reflect": "reflect", "wrap": "wrap"}


def pad(node: Node, x: Array, inputs: Inputs, value: Any) -> Array:
    """Pad with `value`, which has x's dtype (bytes: Q(value))."""
    amounts = ints(node, inputs, 1, "pads") or []
    axes = [a % x.ndim for a in ints(node, inputs, 3, "axes") or range(x.ndim)]
    mode = node.attributes.get("mode", b"constant").decode()
    pads = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        pads[axis] = (amounts[i], amounts[len(axes) + i])
    x = x[tuple(slice(max(0, -a), x.shape[i] + min(0, b)) for i, (a, b) in enumerate(pads))]
    widths = [(max(0, a), max(0, b)) for a, b in pads]
    if mode == "constant":
        return np.pad(x, widths, constant_values=value)
    if mode not in _PADDINGS:
        raise ModelError(f"Pad {node.name!r}: mode {mode} is not supported", "use constant, reflect or edge padding")
    return np.pad(x, widths, mode=_PADDINGS[mode])


MOVES: dict[str, Move] = {
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": lambda _, x, __: [x],
    "Reshape": _reshape,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}


def is_move(node: Node) -> bool:
    """Whether the node moves its first input's elements (Pad apart, which also writes a value)."""
    return node.op in MOVES or (node.op == "Resize" and node.attributes.get("mode", b"nearest") == b"nearest")


def move(node: Node, x: Array, inputs: Inputs) -> list[Array]:
    """Runs a move on its first input `x`; the other inputs are shapes, axes and indices."""
    outputs = MOVES.get(node.op, _nearest)(node, x, inputs)
    return [np.ascontiguousarray(o) if o.ndim else o for o in outputs]

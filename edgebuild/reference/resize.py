"""Resize: nearest (a move) and linear with or without antialias (section 8.1)."""

import math

import numpy as np

from edgebuild.core.errors import ModelError
from edgebuild.reference.model import Node
from edgebuild.reference.values import Array


def target(node: Node, inputs: list[Array | None], shape: tuple[int, ...]) -> tuple[list[int], list[float]]:
    """Output shape and scale r of every axis."""
    if node.attributes.get("keep_aspect_ratio_policy", b"stretch") != b"stretch":
        raise _unsupported(node, "keep_aspect_ratio_policy")
    rank = len(shape)
    axes = [a % rank for a in node.attributes.get("axes") or range(rank)]
    sizes, scales = list(shape), [1.0] * rank
    given = inputs[2] if len(inputs) > 2 else None
    if given is not None and given.size:
        for axis, r in zip(axes, given, strict=True):
            scales[axis], sizes[axis] = float(r), math.floor(shape[axis] * float(r))
    else:
        wanted = inputs[3] if len(inputs) > 3 else None
        if wanted is None:
            raise _unsupported(node, "neither scales nor sizes")
        for axis, o in zip(axes, wanted, strict=True):
            sizes[axis], scales[axis] = int(o), int(o) / shape[axis]
    return sizes, scales


def _unsupported(node: Node, what: str) -> ModelError:
    return ModelError(
        f"Resize {node.name!r}: {what} is not supported", "use nearest or linear resizing to a fixed size"
    )


def _coordinate(mode: bytes, j: int, n: int, o: int, r: float) -> float | None:
    if mode == b"half_pixel":
        return (j + 0.5) / r - 0.5
    if mode == b"pytorch_half_pixel":
        return (j + 0.5) / r - 0.5 if o > 1 else 0.0
    if mode == b"align_corners":
        return j * (n - 1) / (o - 1) if o > 1 else 0.0
    return j / r if mode == b"asymmetric" else None


def coordinates(node: Node, n: int, o: int, r: float) -> list[float]:
    """Source coordinate of each of the `o` outputs."""
    mode = node.attributes.get("coordinate_transformation_mode", b"half_pixel")
    found = [_coordinate(mode, j, n, o, r) for j in range(o)]
    if any(c is None for c in found):
        raise _unsupported(node, f"coordinate_transformation_mode {mode.decode()}")
    return [c for c in found if c is not None]


def _nearest_round(mode: bytes, c: float) -> int:
    if mode == b"floor":
        return math.floor(c)
    if mode == b"ceil":
        return math.ceil(c)
    return math.floor(c + 0.5) if mode == b"round_prefer_ceil" else math.ceil(c - 0.5)


def nearest(node: Node, x: Array, inputs: list[Array | None]) -> Array:
    """Nearest resize of any dtype."""
    sizes, scales = target(node, inputs, x.shape)
    rounding = node.attributes.get("nearest_mode", b"round_prefer_floor")
    for axis, (o, r) in enumerate(zip(sizes, scales, strict=True)):
        n = x.shape[axis]
        if o == n and r == 1.0:
            continue
        index = [min(max(_nearest_round(rounding, c), 0), n - 1) for c in coordinates(node, n, o, r)]
        x = np.take(x, index, axis=axis)
    return x


def linear_taps(cs: list[float], n: int, r: float, *, antialias: bool) -> tuple[Array, Array]:
    """Start indices [o] and float32 weights [o, T] of section 8.1."""
    rows: list[tuple[int, list[float]]] = []
    for c in cs:
        if antialias and r < 1.0:
            near = range(max(0, math.floor(c - 1 / r)), min(n, math.ceil(c + 1 / r) + 1))
            inside = [t for t in near if abs(t - c) < 1 / r]
            weights = [1.0 - abs(t - c) * r for t in inside]
            total = sum(weights)
            rows.append((inside[0], [w / total for w in weights]))
        else:
            clamped = min(max(c, 0.0), float(n - 1))
            i = math.floor(clamped)
            f = clamped - i
            rows.append((i, [1.0 - f, f] if i + 1 < n else [1.0]))
    return _aligned(rows, n)


def _aligned(rows: list[tuple[int, list[float]]], n: int) -> tuple[Array, Array]:
    width = max(len(weights) for _, weights in rows)
    starts, table = [], np.zeros((len(rows), width), np.float32)
    for j, (start, weights) in enumerate(rows):
        shift = max(0, start + width - n)
        starts.append(start - shift)
        table[j, shift : shift + len(weights)] = weights
    return np.array(starts), table


def linear(node: Node, x: Array, inputs: list[Array | None]) -> Array:
    """Linear resize of float32, the last axis first."""
    sizes, scales = target(node, inputs, x.shape)
    antialias = bool(node.attributes.get("antialias", 0))
    for axis in reversed(range(x.ndim)):
        n, o, r = x.shape[axis], sizes[axis], scales[axis]
        if o == n and r == 1.0:
            continue
        starts, weights = linear_taps(coordinates(node, n, o, r), n, r, antialias=antialias)
        shape = [1] * x.ndim
        shape[axis] = o
        total = np.take(x, starts, axis=axis) * weights[:, 0].reshape(shape)
        for t in range(1, weights.shape[1]):
            total = total + np.take(x, starts + t, axis=axis) * weights[:, t].reshape(shape)
        x = total
    return x

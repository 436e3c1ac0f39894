"""Resize: nearest (a move), and linear and cubic with or without antialias (section 8.1)."""

import math
from collections.abc import Callable

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
        return None if abs(n * r - o) > 1e-3 else j * (n - 1) / (o - 1) if o > 1 else 0.0
    if mode == b"half_pixel_symmetric":
        return n / 2 * (1 - o / (r * n)) + (j + 0.5) / r - 0.5
    return j / r if mode == b"asymmetric" else None


def coordinates(node: Node, n: int, o: int, r: float) -> list[float]:
    """Source coordinate of each of the `o` outputs."""
    mode = node.attributes.get("coordinate_transformation_mode", b"half_pixel")
    found = [_coordinate(mode, j, n, o, r) for j in range(o)]
    if any(c is None for c in found):
        raise _unsupported(node, f"coordinate_transformation_mode {mode.decode()} with scale {r:g}")
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


def _two(c: float, n: int) -> tuple[int, list[float]]:
    clamped = min(max(c, 0.0), float(n - 1))
    i = math.floor(clamped)
    f = clamped - i
    return i, [1.0 - f, f] if i + 1 < n else [1.0]


def _keys(a: float) -> Callable[[float], float]:
    """The cubic kernel, zero from 2 on."""
    return lambda d: ((a + 2) * d - (a + 3)) * d * d + 1 if d < 1 else ((d - 5) * d + 8) * d * a - 4 * a


def taps(node: Node, cs: list[float], n: int, r: float) -> tuple[Array, Array]:
    """Start indices [o] and float32 weights [o, T] of section 8.1."""
    scale = r if node.attributes.get("antialias", 0) and r < 1.0 else 1.0
    cubic = node.attributes.get("mode") == b"cubic"
    if not cubic and scale == 1.0:
        return _aligned([_two(c, n) for c in cs], n)
    kernel = _keys(node.attributes.get("cubic_coeff_a", -0.75)) if cubic else lambda d: 1.0 - d
    support = (2.0 if cubic else 1.0) / scale
    exclude = bool(node.attributes.get("exclude_outside", 0))
    return _aligned([_filtered(c, n, scale, support, kernel, exclude=exclude) for c in cs], n)


def _filtered(
    c: float, n: int, scale: float, support: float, kernel: Callable[[float], float], *, exclude: bool
) -> tuple[int, list[float]]:
    """(Start, weights) of one output; a tap outside of the input, where it counts, is the nearest one inside."""
    first, last = math.floor(c - support), math.ceil(c + support)
    found = {t: kernel(abs(t - c) * scale) for t in range(first, last + 1) if abs(t - c) < support}
    if exclude:
        found = {t: weight for t, weight in found.items() if 0 <= t < n}
    if not found:
        return min(max(round(c), 0), n - 1), [1.0]
    total = sum(found.values()) if exclude or scale < 1.0 else 1.0
    inside: dict[int, float] = {}
    for t, weight in found.items():
        place = min(max(t, 0), n - 1)
        inside[place] = inside.get(place, 0.0) + weight / total
    return min(inside), list(inside.values())


def _aligned(rows: list[tuple[int, list[float]]], n: int) -> tuple[Array, Array]:
    width = max(len(weights) for _, weights in rows)
    starts, table = [], np.zeros((len(rows), width), np.float32)
    for j, (start, weights) in enumerate(rows):
        shift = max(0, start + width - n)
        starts.append(start - shift)
        table[j, shift : shift + len(weights)] = weights
    return np.array(starts), table


def smooth(node: Node, x: Array, inputs: list[Array | None]) -> Array:
    """Linear or cubic resize of float32, the last axis first."""
    sizes, scales = target(node, inputs, x.shape)
    for axis in reversed(range(x.ndim)):
        n, o, r = x.shape[axis], sizes[axis], scales[axis]
        if o == n and r == 1.0:
            continue
        starts, weights = taps(node, coordinates(node, n, o, r), n, r)
        shape = [1] * x.ndim
        shape[axis] = o
        total = np.take(x, starts, axis=axis) * weights[:, 0].reshape(shape)
        for t in range(1, weights.shape[1]):
            total = total + np.take(x, starts + t, axis=axis) * weights[:, t].reshape(shape)
        x = total
    return x

"""Multipliers of requantization, as weights.bin holds them, and the weight scales that give them."""

import numpy as np

from edgebuild.stages.quantize.graph import Array
from edgebuild.stages.quantize.parameters import LARGEST_SCALE, SMALLEST_SCALE

Pair = tuple[np.float32, np.float32 | None]
"""Scales of a layer's input and result; None: the result is float32."""

_LOW_BITS = 16
"""Changed multipliers keep so many low bits of the 23: what changes is one part in 128 or coarser, in one byte."""
_OFFSETS = (0, 1 << 15, -1 << 15, 1 << 16, -1 << 16, 1 << 14, -1 << 14)
"""Not every float32 is the quotient of one of these scales: the first of these places near the wanted one that is."""
_NEIGHBOURS = (0, 1, -1, 2, -2, 3, -3, 4, -4)


def multiplier(scale: Array, ends: Pair) -> Array:
    """(s_x·s_w) / s_y, each operation rounded to float32 (SPEC section 7), [O]."""
    found = np.float32(ends[0]) * scale.astype(np.float32)
    return np.asarray(found if ends[1] is None else found / np.float32(ends[1]))


def aligned_scale(old: Array, ratio: Array, before: Pair, after: Pair, up: Array) -> Array:
    """Weight scales [O] near `old` · `ratio` whose multipliers differ from the old ones in their high bits only.

    `before`, `after`: the scales around the layer then and now. While these are the same, a ratio of 1 keeps the old
    scale. `up`: not smaller.
    """
    moved = (ratio != 1.0) if before == after else np.ones(ratio.shape, bool)
    wanted = np.clip(old.astype(np.float64) * ratio, SMALLEST_SCALE, LARGEST_SCALE)
    was = multiplier(old, before).view(np.int32).astype(np.int64)
    now = multiplier(wanted.astype(np.float32), after).view(np.int32).astype(np.int64)
    count = (now - was) / (1 << _LOW_BITS)
    target = was + (np.where(up, np.ceil(count), np.rint(count)).astype(np.int64) << _LOW_BITS)
    return np.where(moved, _reached(target, up, after), old).astype(np.float32)


def _reached(target: Array, up: Array, ends: Pair) -> Array:
    """The scales of the multipliers `target` (their bits), or of those next to them in the order of _OFFSETS."""
    found, miss = _scale_of(target, ends)
    for offset in _OFFSETS[1:]:
        other, distance = _scale_of(target + offset, ends)
        better = (miss > 0) & (distance == 0) & ((offset > 0) | ~up)
        found, miss = np.where(better, other, found), np.where(better, 0, miss)
    return found


def _scale_of(target: Array, ends: Pair) -> tuple[Array, Array]:
    """The scales whose multipliers come nearest to those of the bits `target`, and by how many bits they miss them."""
    wanted = target.astype(np.int32)
    y = 1.0 if ends[1] is None else float(ends[1])
    start = (wanted.view(np.float32).astype(np.float64) * y / float(ends[0])).astype(np.float32).view(np.int32)
    tried = np.stack([(start + n).astype(np.int32).view(np.float32) for n in _NEIGHBOURS])
    bits = np.stack([multiplier(t, ends) for t in tried]).view(np.int32).astype(np.int64)
    distance = np.abs(bits - wanted)
    best = np.argmin(distance, axis=0)[None]
    return np.take_along_axis(tried, best, 0)[0], np.take_along_axis(distance, best, 0)[0]

"""Fused multiply-add in float32, exactly: the product of two float32 is exact in float64, the sum is not.

Rounding first to float64 and then to float32 differs from rounding once only where the float64 sum lies exactly half
way between two float32 while the true sum does not, or where the result is subnormal. There the sum is first rounded
to odd (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008), which makes the second rounding
right.
"""

import numpy as np

from edgebuild.reference.values import Array

_BLOCK = 1 << 14  # elements that stay in the cache
_TAIL = (1 << 29) - 1  # bits of a float64 that a float32 lacks
_HALF = 1 << 28
_SMALLEST_NORMAL = 2.0**-126


def fma_chain(left: Array, right: Array, start: Array) -> Array:
    """Chains s = start; s = fma(left[k, i], right[k, j], s), k rising: [K, M], [K, N], [M, N] → float32 [M, N]."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    result = np.empty(start.shape, np.float32)
    width = min(b.shape[1], _BLOCK)
    height = max(1, _BLOCK // width)
    for i in range(0, a.shape[1], height):
        for j in range(0, b.shape[1], width):
            part = np.s_[i : i + height, j : j + width]
            result[part] = _block(a[:, i : i + height], b[:, j : j + width], start[part])
    return result


def _block(a: Array, b: Array, start: Array) -> Array:
    total = start.astype(np.float64)
    product, sums = np.empty_like(total), np.empty_like(total)
    bits = sums.view(np.int64)
    tails, narrow = np.empty_like(bits), np.empty(total.shape, np.float32)
    normal = _never_subnormal(a, b, start)
    for x, y in zip(a, b, strict=True):
        np.multiply(x[:, None], y[None, :], out=product)
        np.add(product, total, out=sums)
        np.bitwise_and(bits, _TAIL, out=tails)
        doubtful = tails == _HALF
        if not normal:
            doubtful |= np.abs(sums) < _SMALLEST_NORMAL
        if doubtful.any():
            sums[doubtful] = _to_odd(product[doubtful], total[doubtful])
        narrow[...] = sums
        total[...] = narrow
    return narrow.copy() if len(a) else start.astype(np.float32)


def _never_subnormal(a: Array, b: Array, start: Array) -> bool:
    """Whether all products and sums are multiples of the smallest normal float32."""
    least = [float(np.min(np.abs(v), where=v != 0, initial=np.inf)) for v in (a, b, start)]
    return least[0] * least[1] * 2.0**-48 >= _SMALLEST_NORMAL and least[2] * 2.0**-24 >= _SMALLEST_NORMAL


def _to_odd(x: Array, y: Array) -> Array:
    """The sum in float64, rounded to odd where it is not exact."""
    total = x + y
    part = total - x
    error = (x - (total - part)) + (y - part)
    bits = total.view(np.int64).copy()
    inexact = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    # One unit away from or towards zero: the neighbour on the side of the error is the odd one.
    bits[inexact] += np.where((error > 0) == (total > 0), 1, -1)[inexact]
    return bits.view(np.float64)

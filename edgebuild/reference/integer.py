"""Section 7: integer operators on activations of 8 and 16 bits; NCHW.

Sums are formed in float32 or float64 where every partial sum is an integer that the type holds exactly.
"""

import math
from typing import Any

import numpy as np

from edgebuild.reference.geometry import Window, counts, padded, tap, taps
from edgebuild.reference.values import Array, Bound, Bytes, Params, View

_LARGEST_WEIGHT = 128
_INT64: np.dtype[Any] = np.dtype(np.int64)


def exact_float(terms: int, span: int) -> np.dtype[Any]:
    """The narrowest float type that sums `terms` products of an activation, at most `span`, and a weight exactly."""
    return np.dtype(np.float32 if terms * span * _LARGEST_WEIGHT < 1 << 24 else np.float64)


def quantized(value: Bound, params: Params) -> Array:
    """Q(v) = rne(v / s) + z in float64; infinities stay."""
    return np.asarray(np.rint(np.asarray(value, np.float64) / params.s) + params.zero_point)


def requantize(acc: Array, m: Array, params: Params, low: Bound, high: Bound) -> Bytes:
    """Requantize(acc, m, z, lo, hi) with the activation clip [low, high]; `m` (float32) broadcasts against `acc`."""
    return rounded(acc.astype(np.float32) * m.astype(np.float32), params, low, high)


def rounded(scaled: Array, params: Params, low: Bound, high: Bound) -> Bytes:
    """Clip, rounding and zero point of Requantize, for float32 steps."""
    z = params.zero_point
    lo, hi = (np.clip(quantized(bound, params), params.least, params.most) - z for bound in (low, high))
    lo, hi = lo.astype(np.float32), hi.astype(np.float32)
    return np.asarray(np.rint(np.minimum(np.maximum(scaled, lo), hi)) + z, params.dtype)


def quantize(x: Array, params: Params) -> Bytes:
    """QuantizeLinear of float32 values."""
    q = np.rint(x.astype(np.float32) / params.scale) + np.float32(params.zero_point)
    return np.asarray(np.minimum(np.maximum(q, params.least), params.most), params.dtype)


def requantized(x: View, y: Params, low: Bound, high: Bound) -> Bytes:
    """An activation of 16 bits in other parameters."""
    return rounded(_centred(x).astype(np.float32) * np.float32(x.params.s / y.s), y, low, high)


def weight_scale(x: Params, scale: Array) -> Array:
    """s_x·s_w[c] in float32: what one unit of the accumulator is worth."""
    return np.asarray(np.float32(x.s) * scale.astype(np.float32))


def weight_multiplier(x: Params, scale: Array, y: Params) -> Array:
    """m[c] = (s_x·s_w[c]) / s_y, in float32."""
    return np.asarray(weight_scale(x, scale) / np.float32(y.s))


def fits(x: Params, depth: int, bias: Array) -> bool:
    """Whether sums of `depth` products and a bias stay in 32 bits (of 16-bit activations in 53), with room to spare."""
    largest = 2 * depth * x.span * _LARGEST_WEIGHT + float(np.max(np.abs(bias), initial=0.0))
    return largest < (2**53 if x.wide else 2**31)


def conv(x: View, weight: Array, w: Window, group: int) -> Array:
    """Σ (x - z_x)·w over the window: x [N, C, H, W], weight int8 [M, C/group, kh, kw] → int64 [N, M, oh, ow]."""
    kind = exact_float(int(np.prod(weight.shape[1:])), x.params.span)
    centred = padded(_centred(x, kind), w, 0)
    sums = _depthwise(centred, weight, w, group) if weight.shape[1] == 1 else _dense(centred, weight, w, group)
    return sums.astype(np.int64)


def _depthwise(x: Array, weight: Array, w: Window, group: int) -> Array:
    repeat = weight.shape[0] // group
    if repeat > 1:
        x = np.repeat(x, repeat, axis=1)
    sums: Array = np.zeros((x.shape[0], weight.shape[0], *w.output), x.dtype)
    spatial = (1,) * len(w.output)
    columns = weight.reshape(len(weight), -1).astype(x.dtype)
    for t, position in enumerate(taps(w)):
        sums += tap(x, w, position) * columns[:, t].reshape(-1, *spatial)
    return sums


def _dense(x: Array, weight: Array, w: Window, group: int) -> Array:
    batch, outputs = x.shape[0], weight.shape[0]
    columns = np.stack([tap(x, w, p) for p in taps(w)], axis=2)
    columns = columns.reshape(batch, group, -1, int(np.prod(w.output)))
    matrix = weight.reshape(group, outputs // group, -1).astype(x.dtype)
    return np.asarray(np.matmul(matrix[None], columns)).reshape(batch, outputs, *w.output)


def matmul(x: View, weight: Array) -> Array:
    """Σ_k (x[…, k] - z_x)·w[k, n]: int64 […, N]."""
    kind = exact_float(weight.shape[0], x.params.span)
    return np.asarray(_centred(x, kind) @ weight.astype(kind), np.int64)


def product(a: View, b: View, y: Params, low: Bound, high: Bound) -> Bytes:
    """Matmul of two activations: Σ_k (a[…, m, k] - z_a)·(b[…, k, n] - z_b)."""
    acc = np.matmul(_centred(a, np.dtype(np.float64)), _centred(b, np.dtype(np.float64))).astype(np.int32)
    return requantize(acc, np.asarray(np.float32(a.params.s * b.params.s / y.s)), y, low, high)


def softmax(x: View, axis: int, y: Params, low: Bound, high: Bound) -> Bytes:
    """Integer exponentials of the distance to the largest value; their exact sum; one factor a row."""
    size = x.q.shape[axis]
    fraction = min(23, 30 - (size - 1).bit_length())
    table = np.array([round(math.exp(-x.params.s * d) * 2**fraction) for d in range(256)], np.int64)
    e = table[np.max(x.q, axis=axis, keepdims=True).astype(np.int64) - x.q]
    total = np.sum(e, axis=axis, keepdims=True).astype(np.float32)
    return requantize(e, np.float32(1.0 / y.s) / total, y, low, high)


def layer_norm(
    x: View, axis: int, gain: Array, offset: Array | None, epsilon: float, y: Params, low: Bound, high: Bound
) -> Bytes:
    """Normalizes over the axes from `axis` on; the sums are exact."""
    axes = tuple(range(axis, x.q.ndim))
    shape = x.q.shape[axis:]
    size = int(np.prod(shape))
    q = x.q.astype(np.int64)
    total = np.sum(q, axis=axes, keepdims=True)
    spread = size * np.sum(q * q, axis=axes, keepdims=True) - total * total
    constant = np.float32(float(np.float32(epsilon)) * size**2 / x.params.s**2)
    factor = np.float32(1) / np.sqrt(spread.astype(np.float32) + constant)
    scaled = (size * q - total).astype(np.float32) * factor
    g = np.broadcast_to((gain.astype(np.float64) / y.s).astype(np.float32), shape)
    b = np.zeros(shape, np.float32) if offset is None else (offset.astype(np.float64) / y.s).astype(np.float32)
    return rounded(scaled * g + b, y, low, high)


def bias(values: Array, x: Params, weight_scale: Array) -> Array:
    """A float bias in the accumulator's units: rne(b / (s_x·s_w[c])), an integer in float64."""
    return np.asarray(np.rint(values.astype(np.float64) / (x.s * weight_scale.astype(np.float64))))


def add(a: View, b: View, y: Params, low: Bound, high: Bound) -> Bytes:
    """Residual add of two scales; in float32 where anything has 16 bits."""
    r_a, r_b = a.params.s / y.s, b.params.s / y.s
    if a.params.wide or b.params.wide or y.wide:
        terms = [_centred(x).astype(np.float32) * np.float32(r) for x, r in ((a, r_a), (b, r_b))]
        return rounded(terms[0] + terms[1], y, low, high)
    k = 24
    while np.rint(max(r_a, r_b) * 2.0**k) > 1 << 21:
        k -= 1
    factors = [np.int32(np.rint(r * 2.0**k)) for r in (r_a, r_b)]
    acc: Array = factors[0] * _centred(a) + factors[1] * _centred(b)
    return requantize(acc, np.asarray(2.0**-k), y, low, high)


def mul(a: View, b: View, y: Params, low: Bound, high: Bound) -> Bytes:
    """Product of two tensors, with broadcasting; in float32 where anything has 16 bits."""
    m = np.float32(a.params.s * b.params.s / y.s)
    if a.params.wide or b.params.wide or y.wide:
        return rounded((_centred(a).astype(np.float32) * _centred(b).astype(np.float32)) * m, y, low, high)
    return requantize(_centred(a) * _centred(b), np.asarray(m), y, low, high)


def _centred(x: View, kind: np.dtype[Any] = _INT64) -> Array:
    """The values x - z_x as `kind`."""
    return np.asarray(x.q.astype(kind) - kind.type(x.params.zero_point))


def average_pool(x: View, w: Window, y: Params, low: Bound, high: Bound, *, include_pad: bool) -> Bytes:
    """Average over windows; padding adds 0 and counts only with `include_pad`."""
    centred = padded(_centred(x), w, 0)
    acc: Array = np.zeros((*x.q.shape[:2], *w.output), np.int64)
    for position in taps(w):
        acc = acc + tap(centred, w, position)
    n = counts(w, x.q.shape[2:], include_pad=include_pad)
    return requantize(acc, _mean_multiplier(x.params, y, n), y, low, high)


def mean(x: View, axes: tuple[int, ...], y: Params, low: Bound, high: Bound, *, keepdims: bool) -> Bytes:
    """Average over whole axes."""
    acc: Array = np.asarray(np.sum(_centred(x), axis=axes, keepdims=keepdims, dtype=np.int64))
    n = np.asarray(int(np.prod([x.q.shape[a] for a in axes])))
    return requantize(acc, _mean_multiplier(x.params, y, n), y, low, high)


def _mean_multiplier(x: Params, y: Params, n: Array) -> Array:
    return (x.s / (y.s * n.astype(np.float64))).astype(np.float32)


def max_pool(x: Array, w: Window) -> Array:
    """The largest value of each window; padding never wins. Any dtype."""
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    image = padded(x, w, lowest)
    best = tap(image, w, (0,) * len(w.kernel))
    for position in taps(w)[1:]:
        best = np.maximum(best, tap(image, w, position))
    return np.ascontiguousarray(best)

"""Convolutions in float32 against exact fused multiply-adds, over random shapes, also on a CPU that has none."""

import math
from fractions import Fraction

import numpy as np
import pytest
from kernels.native import Native, runnable
from kernels.test_conv import _random_conv

from edgebuild.kernels.conv import Conv
from edgebuild.kernels.depthwise import is_depthwise
from edgebuild.kernels.float_conv import FloatConv, float_conv_kernel, float_depthwise_kernel
from edgebuild.kernels.isa import ISAS
from edgebuild.reference.fused import fma_chain

SHAPES = 30


@pytest.fixture(scope="module", params=["x86_64-generic", "x86_64-avx2", "x86_64-avx512vnni"])
def native(request):
    target = runnable(request.param)
    rng = np.random.default_rng(8)
    specs = [FloatConv(_random_conv(rng), clip=bool(i % 2)) for i in range(SHAPES)]
    isa = ISAS[target.isa]
    kernels = [(float_depthwise_kernel if is_depthwise(s.conv) else float_conv_kernel)(s, isa) for s in specs]
    return isa, specs, Native(kernels, target)


@pytest.mark.parametrize("index", range(SHAPES))
def test_random_shape(native, index: int) -> None:
    isa, specs, run = native
    spec, conv = specs[index], specs[index].conv
    rng = np.random.default_rng(index)
    x = rng.normal(0, 1, (conv.batch, conv.height, conv.width, conv.channels)).astype(np.float32)
    weights = rng.normal(0, 1, (conv.out_channels, *conv.kernel, conv.group_channels)).astype(np.float32)
    bias = rng.normal(0, 1, conv.out_channels).astype(np.float32)
    if is_depthwise(conv):
        packed = [weights[..., 0].transpose(1, 2, 0), bias]
    else:
        packed = [spec.pack_weights(weights, isa), spec.pack_channels(bias, isa)]
    wanted = _reference(conv, x, weights, bias)
    clip = [np.array([-0.5, 1.5], np.float32)] if spec.clip else []
    wanted = np.clip(wanted, *clip[0]) if clip else wanted
    assert np.array_equal(run(index, [x, *packed, *clip], np.zeros_like(wanted)), wanted)


def _reference(conv: Conv, x, weights, bias) -> np.ndarray:
    """SPEC section 8: kernel row, kernel column, input channel; the sum starts at the bias."""
    margin = [(p, p + k * d) for p, k, d in zip(conv.pad, conv.kernel, conv.dilation, strict=True)]
    padded = np.pad(x, ((0, 0), *margin, (0, 0)))
    out = np.empty((conv.batch, conv.out_height, conv.out_width, conv.out_channels), np.float32)
    for n, h, w in np.ndindex(*out.shape[:3]):
        lines, columns = (
            slice(o * s, o * s + (k - 1) * d + 1, d)
            for o, s, k, d in zip((h, w), conv.stride, conv.kernel, conv.dilation, strict=True)
        )
        field = padded[n, lines, columns]
        for group in range(conv.groups):
            ins = slice(group * conv.group_channels, (group + 1) * conv.group_channels)
            outs = slice(group * conv.group_outputs, (group + 1) * conv.group_outputs)
            matrix = weights[outs].reshape(conv.group_outputs, -1).T
            out[n, h, w, outs] = fma_chain(field[..., ins].reshape(-1, 1), matrix, bias[None, outs])[0]
    return out


def _exact(a: np.float32, b: np.float32, c: np.float32) -> float:
    """The sum a · b + c rounded once to float32, by way of fractions."""
    value = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    guess = np.float32(float(value))
    near = [np.nextafter(guess, np.float32(s)) for s in (-math.inf, math.inf)] + [guess]
    gap = {float(n): abs(Fraction(float(n)) - value) for n in near if np.isfinite(n)}
    least = min(gap.values())
    best = [n for n, g in gap.items() if g == least]
    return best[0] if len(best) == 1 else next(n for n in best if np.float32(n).view(np.int32) % 2 == 0)


@pytest.mark.parametrize("scale", [1.0, 1e-22, 1e8])
def test_the_emulation_rounds_once(scale: float) -> None:
    """Numbers of few bits, so that sums often lie half way between two float32."""
    rng = np.random.default_rng(3)
    count = 4000
    a, b = ((rng.integers(1, 1 << 13, count) * scale).astype(np.float32) for _ in range(2))
    c = (a * b * np.float32(2.0) ** rng.integers(-70, 26, count)).astype(np.float32)
    c *= rng.choice([-1, 1], count).astype(np.float32)
    got = [fma_chain(x.reshape(1, 1), y.reshape(1, 1), z.reshape(1, 1))[0, 0] for x, y, z in zip(a, b, c, strict=True)]
    wanted = [_exact(*values) for values in zip(a, b, c, strict=True)]
    assert np.array_equal(np.array(got), np.array(wanted, np.float32))
    if scale == 1.0:
        twice = (a.astype(np.float64) * b + c).astype(np.float32)
        assert (twice != np.array(wanted, np.float32)).any()  # rounding twice would have been seen

"""Convolution kernels against a plain NumPy one, over random shapes, paddings, strides, groups and zero points."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.native import Native, runnable

from edgebuild.kernels.conv import Conv, ConvPlan, conv_kernel, fold_bias
from edgebuild.kernels.depthwise import DepthwisePlan, depthwise_kernel, is_depthwise
from edgebuild.kernels.epilogue import ANY, Bounds
from edgebuild.kernels.isa import ISAS, Isa

SHAPES = 40


@pytest.fixture(scope="module", params=["x86_64-generic", "x86_64-avx2", "x86_64-avx512vnni", "x86_64-avx512vbmi"])
def native(request):
    target = runnable(request.param)
    rng = np.random.default_rng(5)
    convs = [_random_conv(rng) for _ in range(SHAPES)]
    isa = ISAS[target.isa]
    kernels = [(depthwise_kernel if is_depthwise(c) else conv_kernel)(c, isa) for c in convs]
    return isa, convs, Native(kernels, target)


@pytest.mark.parametrize("index", range(SHAPES))
def test_random_shape(native, index: int) -> None:
    isa, convs, run = native
    _check(run, index, convs[index], isa, np.random.default_rng(index), ANY)


@st.composite
def drawn_convs(draw: st.DrawFn) -> Conv:
    def two(least: int, most: int) -> tuple[int, int]:
        return draw(st.integers(least, most)), draw(st.integers(least, most))

    kernel, stride, dilation = two(1, 5), two(1, 3), two(1, 2)
    groups, inputs, outputs = draw(
        st.one_of(
            st.tuples(st.just(1), st.integers(1, 70), st.integers(1, 90)),
            st.tuples(st.integers(2, 4), st.integers(1, 20), st.integers(1, 40)),
            st.tuples(st.integers(2, 70), st.just(1), st.just(1)),
        )
    )
    pad = draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [r + more for r, more in zip(reach, two(0, 14), strict=True)]
    out = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(size, pad, reach, stride, strict=True)]
    batch = draw(st.integers(1, 2))
    return Conv(batch, *size, groups * inputs, *out, groups * outputs, kernel, stride, pad, dilation, groups)


@pytest.mark.parametrize("name", ["x86_64-avx2", "x86_64-avx512vnni", "x86_64-avx512vbmi"])
@settings(max_examples=20, deadline=None)
@given(
    conv=drawn_convs(),
    bounds=st.builds(Bounds, st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_drawn_shape(name: str, conv: Conv, bounds: Bounds, seed: int) -> None:
    target = runnable(name)
    isa = ISAS[target.isa]
    kernel = (depthwise_kernel if is_depthwise(conv) else conv_kernel)(conv, isa, bounds=bounds)
    run = Native([kernel], target)
    _check(run, 0, conv, isa, np.random.default_rng(seed), bounds)


def _check(run: Native, index: int, conv: Conv, isa: Isa, rng: np.random.Generator, bounds: Bounds) -> None:
    x = rng.integers(0, 256, (conv.batch, conv.height, conv.width, conv.channels)).astype(np.uint8)
    weights = rng.integers(-127, 128, (conv.out_channels, *conv.kernel, conv.group_channels)).astype(np.int8)
    bias = rng.integers(-20000, 20000, conv.out_channels)
    multiplier = (rng.uniform(0.3, 1.5, conv.out_channels) * 50 / (conv.depth**0.5 * 5500)).astype(np.float32)
    if bounds.large:
        multiplier *= np.float32(rng.choice([1.0, 1e7]))
    zero_x, zero_y = int(rng.choice([0, 3, 128, 255])), int(rng.choice([0, 77, 255]))
    low, high = sorted(rng.integers(0, 256, 2).tolist())
    low, high = low if bounds.low else 0, high if bounds.high else 255
    wanted = _reference(conv, x, weights, bias, multiplier, zero_x, zero_y, low, high)
    top = int(np.float32(high - zero_y).view(np.int32))
    quant = np.array([top, zero_y, low, high, zero_x], np.int32)
    args = [x, *_constants(conv, isa, weights, bias, multiplier, zero_x), quant]
    assert np.array_equal(run(index, args, np.zeros_like(wanted)), wanted)


def _random_conv(rng: np.random.Generator) -> Conv:
    def pick(*values: int) -> int:
        return int(rng.choice(values))

    groups = pick(1, 1, 1, 2, 3)
    inputs, outputs = pick(1, 3, 4, 16, 29, 64), pick(1, 2, 5, 8, 16, 17, 40, 72)
    if pick(0, 1, 2) == 0:
        groups, inputs, outputs = pick(2, 8, 19, 48), 1, 1
    kernel, stride, dilation = (
        (pick(1, 1, 2, 3, 5), pick(1, 3)),
        (pick(1, 1, 2), pick(1, 2)),
        (pick(1, 1, 2), pick(1, 2)),
    )
    pad = (int(rng.integers(0, kernel[0])), int(rng.integers(0, kernel[1])))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = [pick(1, 2, 7, 12, 19) + r for r in reach]
    out = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(size, pad, reach, stride, strict=True)]
    return Conv(pick(1, 1, 2), *size, groups * inputs, *out, groups * outputs, kernel, stride, pad, dilation, groups)


def _constants(conv: Conv, isa: Isa, weights, bias, multiplier, zero_x: int) -> list[np.ndarray]:
    if is_depthwise(conv):
        plan, packed = DepthwisePlan(conv, isa), DepthwisePlan(conv, isa).pack_weights(weights[..., 0])
    else:
        plan, packed = ConvPlan(conv, isa.gemm), ConvPlan(conv, isa.gemm).pack_weights(weights)
    folded = fold_bias(plan.isa, bias, weights, zero_x)
    return [packed, plan.pack_channels(folded), plan.pack_channels(multiplier)]


def _reference(conv: Conv, x, weights, bias, multiplier, zero_x: int, zero_y: int, low: int, high: int) -> np.ndarray:
    """SPEC section 7, written down once more."""
    margin = [(p, p + k * d) for p, k, d in zip(conv.pad, conv.kernel, conv.dilation, strict=True)]
    padded = np.pad(x.astype(np.int64) - zero_x, ((0, 0), *margin, (0, 0)))
    acc = np.zeros((conv.batch, conv.out_height, conv.out_width, conv.out_channels), np.int64) + bias
    for group in range(conv.groups):
        ins = slice(group * conv.group_channels, (group + 1) * conv.group_channels)
        outs = slice(group * conv.group_outputs, (group + 1) * conv.group_outputs)
        for i in range(conv.kernel[0]):
            for j in range(conv.kernel[1]):
                rows, columns = (
                    slice(t * d, t * d + (o - 1) * s + 1, s)
                    for t, d, o, s in zip(
                        (i, j), conv.dilation, (conv.out_height, conv.out_width), conv.stride, strict=True
                    )
                )
                acc[..., outs] += padded[:, rows, columns, ins] @ weights[outs, i, j].astype(np.int64).T
    scaled = acc.astype(np.int32).astype(np.float32) * multiplier
    return (np.rint(np.clip(scaled, np.float32(low - zero_y), np.float32(high - zero_y))) + zero_y).astype(np.uint8)

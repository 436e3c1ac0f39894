"""Convolution kernels against a plain NumPy one, over random shapes, paddings, strides, groups and zero points."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernels.native import Native, runnable

from edgebuild.kernels.conv import Conv, ConvPlan, conv_kernel, fold_bias
from edgebuild.kernels.depthwise import DepthwisePlan, depthwise_kernel, is_depthwise
from edgebuild.kernels.epilogue import ANY, BYTES, Bounds, Types
from edgebuild.kernels.isa import ISAS, Isa

SHAPES = 40
TYPES = [Types(source, result, wide) for source, wide in (("uint8", False), ("int16", False), ("int16", True))
         for result in ("uint8", "int16", "float32")]  # fmt: skip


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
    types=st.sampled_from([BYTES, BYTES, *TYPES]),
    seed=st.integers(0, 2**32 - 1),
)
def test_drawn_shape(name: str, conv: Conv, bounds: Bounds, types: Types, seed: int) -> None:
    assume(types.source == "uint8" or types.wide or conv.depth <= 128)
    target = runnable(name)
    isa = ISAS[target.isa]
    kernel = (depthwise_kernel if _by_depth(conv, types) else conv_kernel)(conv, isa, bounds=bounds, types=types)
    run = Native([kernel], target)
    _check(run, 0, conv, isa, np.random.default_rng(seed), bounds, types)


@pytest.mark.parametrize("name", ["x86_64-generic", "x86_64-avx2", "x86_64-avx512vnni"])
@pytest.mark.parametrize("depth", [511, 512, 1022, 1023, 5000])
def test_no_sum_of_16_bits_overflows(name: str, depth: int) -> None:
    """Every product is as large as it can be, and all have one sign."""
    target = runnable(name)
    conv, types = Conv(1, 5, 1, depth, 5, 1, 19), Types("int16", "float32", wide=True)
    run = Native([conv_kernel(conv, ISAS[target.isa], types=types)], target)
    one, zero = np.ones(19, np.float32), np.zeros(19)
    for x, w, zero_x in ((-(2**15), -128, 0), (-(2**15), 127, 2**15 - 1), (2**15 - 1, -128, -(2**15))):
        image, weights = np.full((1, 5, 1, depth), x, np.int16), np.full((19, 1, 1, depth), w, np.int8)
        args = [image, *_constants(conv, ISAS[target.isa], weights, zero, one, zero_x, types)]
        got = run(0, [*args, np.array([0, 0, 0, 0, zero_x], np.int32)], np.zeros((5, 19), np.float32))
        assert (got == np.float32((x - zero_x) * w * depth)).all()


def _by_depth(conv: Conv, types: Types) -> bool:
    return is_depthwise(conv) and not types.wide


def _check(
    run: Native, index: int, conv: Conv, isa: Isa, rng: np.random.Generator, bounds: Bounds, types: Types = BYTES
) -> None:
    source, result = np.iinfo(types.source), np.iinfo("uint8" if types.result == "float32" else types.result)
    shape = (conv.batch, conv.height, conv.width, conv.channels)
    x = rng.integers(source.min, source.max, shape, endpoint=True).astype(types.source)
    weights = rng.integers(-127, 128, (conv.out_channels, *conv.kernel, conv.group_channels)).astype(np.int8)
    bias = rng.integers(-20000, 20000, conv.out_channels)
    spread = (result.max - result.min) / 5 / (source.max - source.min)
    multiplier = (rng.uniform(0.3, 1.5, conv.out_channels) * spread / (conv.depth**0.5 * 21)).astype(np.float32)
    if bounds.large:
        multiplier *= np.float32(rng.choice([1.0, 1e7]))
    zero_x = int(rng.choice([source.min, source.min + 3, (source.min + source.max + 1) // 2, source.max]))
    zero_y = int(rng.choice([result.min, result.min + 77, result.max]))
    low, high = sorted(rng.integers(result.min, result.max, 2, endpoint=True).tolist())
    low, high = low if bounds.low else int(result.min), high if bounds.high else int(result.max)
    scaled = _sums(conv, x, weights, bias, zero_x).astype(np.float32) * multiplier
    clipped = np.clip(scaled, np.float32(low - zero_y), np.float32(high - zero_y))
    wanted = scaled if types.result == "float32" else (np.rint(clipped) + zero_y).astype(types.result)
    top = int(np.float32(high - zero_y).view(np.int32))
    quant = np.array([top, zero_y, low, high, zero_x], np.int32)
    args = [x, *_constants(conv, isa, weights, bias, multiplier, zero_x, types), quant]
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


def _constants(conv: Conv, isa: Isa, weights, bias, multiplier, zero_x: int, types: Types = BYTES) -> list[np.ndarray]:
    if _by_depth(conv, types):
        plan = DepthwisePlan(conv, types.depthwise(isa))
        packed = plan.pack_weights(weights[..., 0])
    else:
        plan = ConvPlan(conv, types.gemm(isa))
        packed = plan.pack_weights(weights)
    folded = fold_bias(plan.isa, bias, weights, zero_x, types)
    return [packed, plan.pack_channels(folded), plan.pack_channels(multiplier)]


def _sums(conv: Conv, x, weights, bias, zero_x: int) -> np.ndarray:
    """SPEC section 7, written down once more: int64."""
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
    return acc

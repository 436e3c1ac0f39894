"""Rewrites keep the function; ONNX Runtime runs both sides."""

import numpy as np
import pytest
from quantize.models import model, normal, operators, run

from edgebuild.stages.quantize import keep_float

RNG = np.random.default_rng(11)


def _same(proto, **inputs: np.ndarray):
    kept = keep_float(proto).model
    for name, expected in run(proto, inputs).items():
        assert np.ptp(expected) > 0
        assert np.allclose(run(kept, inputs)[name], expected, atol=2e-5)
    return kept


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "strides = [2, 2]",
        "strides = [2, 3], pads = [1, 0, 2, 1]",
        "strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]",
        "strides = [2, 1], dilations = [1, 2], pads = [2, 2, 2, 2]",
        "strides = [3, 3], pads = [3, 2, 2, 3]",
        'auto_pad = "SAME_UPPER", strides = [2, 2]',
    ],
)
@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution(attributes: str, group: int) -> None:
    listed = ", ".join(filter(None, [f"group = {group}", attributes]))
    text = f"(float[2, 4, 5, 6] x) => (float[N, M, H, W] y) {{ y = ConvTranspose<{listed}>(x, w, b) }}"
    proto = model(text, w=normal(RNG, 4, 3, 3, 3), b=normal(RNG, 3 * group))
    kept = _same(proto, x=normal(RNG, 2, 4, 5, 6))
    assert "ConvTranspose" not in operators(kept)


def test_transposed_convolution_of_one_dimension() -> None:
    text = "(float[1, 4, 9] x) => (float[N, M, W] y) { y = ConvTranspose<strides = [4], pads = [1, 2]>(x, w) }"
    _same(model(text, w=normal(RNG, 4, 3, 8)), x=normal(RNG, 1, 4, 9))


def test_instance_normalization() -> None:
    text = "(float[2, 3, 4, 5] x) => (float[2, 3, 4, 5] y) { y = InstanceNormalization<epsilon = 0.01>(x, s, b) }"
    kept = _same(model(text, s=normal(RNG, 3), b=normal(RNG, 3)), x=normal(RNG, 2, 3, 4, 5))
    assert "LayerNormalization" in operators(kept)


_DEVIATION = """(float[2, 7, 12] x) => (float[2, 7, 12] y) {
    mean = ReduceMean<keepdims = 1>(x, axes)
    centred = Sub(x, mean)
    square = %s
    variance = ReduceMean<keepdims = 1>(square, axes)
    safe = Add(variance, epsilon)
    deviation = Sqrt(safe)
    normal = Div(centred, deviation)
    scaled = Mul(%s)
    y = Add(scaled, offset)
}"""


@pytest.mark.parametrize("square", ["Pow(centred, two)", "Mul(centred, centred)"])
@pytest.mark.parametrize("scaled", ["normal, gain", "gain, normal"])
def test_written_out_layer_normalization(square: str, scaled: str) -> None:
    constants = {"epsilon": 1e-5, "gain": normal(RNG, 12), "offset": normal(RNG, 12), "axes": np.array([-1])}
    if "two" in square:
        constants["two"] = 2.0
    kept = _same(model(_DEVIATION % (square, scaled), **constants), x=normal(RNG, 2, 7, 12))
    assert operators(kept) == ["LayerNormalization"]


def test_a_normalization_over_another_axis_stays() -> None:
    constants = {"epsilon": 1e-5, "gain": normal(RNG, 12), "offset": normal(RNG, 12), "axes": np.array([1])}
    proto = model(_DEVIATION % ("Mul(centred, centred)", "normal, gain"), **constants)
    assert "LayerNormalization" not in operators(keep_float(proto).model)


def test_the_scale_of_attention_scores_moves_into_the_layer_before() -> None:
    text = """(float[4, 6] x) => (float[2, 4, 4] y) {
        q = Gemm<transB = 1>(x, wq)
        k = Gemm<transB = 1>(x, wk)
        qs = Reshape(q, shape)
        ks = Reshape(k, shape)
        qt = Transpose<perm = [1, 0, 2]>(qs)
        kt = Transpose<perm = [1, 2, 0]>(ks)
        product = MatMul(qt, kt)
        scaled = Div(product, root)
        y = Softmax<axis = -1>(scaled)
    }"""
    weights = {"wq": normal(RNG, 6, 6), "wk": normal(RNG, 6, 6)}
    kept = _same(model(text, shape=np.array([4, 2, 3]), root=3.0**0.5, **weights), x=normal(RNG, 4, 6))
    assert "Div" not in operators(kept)

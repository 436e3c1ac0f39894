"""Which operators are quantized, where Q/DQ stand, and who shares parameters."""

import numpy as np
import onnx
from quantize.models import boundaries, model, normal, operators, run, samples

from edgebuild.reference import Interpreter
from edgebuild.stages.quantize import Quantized, quantize

RNG = np.random.default_rng(7)
K = normal(RNG, 4, 4, 3, 3, scale=0.2)
IN, OUT = "(float[1,4,8,8] x) =>", "(float[1,4,8,8] y)"


def quantized(proto: onnx.ModelProto, shape: tuple[int, ...] = (1, 4, 8, 8)) -> Quantized:
    return quantize(proto, lambda: samples(np.random.default_rng(0), shape))


def body(text: str, **constants: object) -> dict[str, str]:
    """Boundaries of `text` between two convolutions a and y."""
    conv = "Conv<pads=[1,1,1,1]>"
    return boundaries(
        quantized(model(f"{IN} {OUT} {{ a = {conv}(x, k) {text} y = {conv}(z, k) }}", k=K, **constants)).model
    )


def test_a_relu_behind_a_conv_is_part_of_it() -> None:
    assert list(body("z = Relu(a)")) == ["x", "z"]


def test_a_clip_behind_an_addition_is_part_of_it() -> None:
    found = body("b = Sigmoid(a) c = Add(a, b) d = MaxPool<kernel_shape=[1,1]>(a) e = Add(c, d) z = Clip(e, lo, hi)",
                 lo=np.float32(0), hi=np.float32(6))  # fmt: skip
    assert "e" not in found


def test_a_relu_whose_input_is_read_twice_has_an_own_boundary() -> None:
    found = (
        body("r = Relu(a) z = Concat<axis=1>(a, r)", k=normal(RNG, 4, 4, 3, 3))
        if False
        else body("r = Relu(a) z = Mul(r, p) q = Add(a, r)", p=np.float32(2))
    )
    assert {"a", "z"} <= set(found)


def test_silu_is_one_function_of_one_tensor() -> None:
    assert list(body("s = Sigmoid(a) z = Mul(a, s)")) == ["x", "a", "z"]


def test_a_decomposed_hard_swish_is_one_function_of_one_tensor() -> None:
    found = body("b = Add(a, three) c = Clip(b, lo, hi) d = Mul(a, c) z = Div(d, hi)",
                 three=np.float32(3), lo=np.float32(0), hi=np.float32(6))  # fmt: skip
    assert list(found) == ["x", "a", "z"]


def test_squeeze_and_excite_multiplies_two_tensors() -> None:
    found = body("g = GlobalAveragePool(a) f = Conv(g, w) s = HardSigmoid(f) z = Mul(a, s)", w=normal(RNG, 4, 4, 1, 1))
    assert list(found) == ["x", "a", "g", "f", "s", "z"]


RESIZE = 'Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">'


def test_moves_share_parameters_by_name() -> None:
    pool = "MaxPool<kernel_shape=[2,2], strides=[2,2]>"
    found = body(
        f"t = Transpose<perm=[0,1,3,2]>(a) m = {pool}(t) z = {RESIZE}(m, none, two)",
        two=np.float32([1, 1, 2, 2]),
        none=np.zeros(0, np.float32),
    )
    assert found["a"] == found["t"] == found["m"] == found["z"] == "a_scale"


def test_a_concat_shares_with_inputs_that_nothing_else_reads() -> None:
    joined = "b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, k) e = Concat<axis=1>(b, c) z = Conv(e, w)"
    found = body(joined, w=normal(RNG, 4, 8, 1, 1))
    assert found["e"] == found["c"] != found["b"]


def test_a_concat_of_pools_of_one_tensor_moves_bytes() -> None:
    pool = "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>"
    found = body(f"m = {pool}(a) n = {pool}(m) e = Concat<axis=1>(a, m, n) z = Conv(e, w)", w=normal(RNG, 4, 12, 1, 1))
    assert found["e"] == found["a"] == found["m"] == found["n"]


def test_what_follows_the_last_layer_stays_float() -> None:
    result = quantized(
        model(
            f"{IN} (float[1,4,8,8] p, int64[1,1,8,8] i) {{ a = Conv<pads=[1,1,1,1]>(x, k) s = Sigmoid(a) "
            "m = Mul(s, two) p = Softmax<axis=1>(m) i = ArgMax<axis=1>(p) }",
            k=K,
            two=np.float32(2),
        )
    )
    assert list(boundaries(result.model)) == ["x"]
    reasons = {row["operator"]: row["reason"] for row in result.report["float"]}
    assert reasons["Sigmoid"] == reasons["Mul"] == "no quantized operator needs its result"
    assert reasons["Softmax"] == "no quantized operator needs its result"


def test_preprocessing_stays_float_also_a_small_colour_matrix() -> None:
    colours = model(
        "(float[1,3,8,8] x) => (float[1,4,8,8] y) "
        "{ n = Sub(x, mean) g = Conv(n, grey) y = Conv<pads=[1,1,1,1]>(g, k) }",
        mean=normal(RNG, 1, 3, 1, 1),
        grey=normal(RNG, 1, 3, 1, 1),
        k=normal(RNG, 4, 1, 3, 3),
    )
    result = quantized(colours, (1, 3, 8, 8))
    assert list(boundaries(result.model)) == ["g"]
    reasons = [row["reason"] for row in result.report["float"]]
    assert reasons == ["before the first layer with weights", "part of the preprocessing"]


def test_a_linear_resize_inside_the_network_stays_float() -> None:
    linear = 'Resize<mode="linear">'
    found = body(
        f"r = {linear}(a, none, half) z = {linear}(r, none, two)",
        none=np.zeros(0, np.float32),
        half=np.float32([1, 1, 0.5, 0.5]),
        two=np.float32([1, 1, 2, 2]),
    )
    assert list(found) == ["x", "z"]


def test_a_sum_that_could_leave_int32_stays_float() -> None:
    wide = model("(float[1,70000] x) => (float[1,2] y) { y = MatMul(x, w) }", w=normal(RNG, 70000, 2))
    result = quantized(wide, (1, 70000))
    assert boundaries(result.model) == {}
    assert "a sum of 70000 products may leave int32" in result.report["float"][0]["reason"]


def test_a_last_average_stays_float_and_one_before_a_layer_does_not() -> None:
    last = quantized(model(f"{IN} (float[1,4,1,1] y) {{ a = Conv(x, k) r = Relu(a) y = GlobalAveragePool(r) }}", k=K))
    assert list(boundaries(last.model)) == ["x", "r"]
    inner = "g = GlobalAveragePool(a) y = Conv(g, w)"
    before = quantized(model(f"{IN} (float[1,4,1,1] y) {{ a = Conv(x, k) {inner} }}", k=K, w=normal(RNG, 4, 4, 1, 1)))
    assert list(boundaries(before.model)) == ["x", "a", "g"]


_ATTENTION = """(float[1, 8, 12] x) => (float[1, 8, 5] y) {
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    qh = Reshape(q, heads)
    kh = Reshape(k, heads)
    vh = Reshape(v, heads)
    qt = Transpose<perm = [0, 2, 1, 3]>(qh)
    kt = Transpose<perm = [0, 2, 3, 1]>(kh)
    vt = Transpose<perm = [0, 2, 1, 3]>(vh)
    scores = MatMul(qt, kt)
    scaled = Div(scores, root)
    weights = Softmax<axis = -1>(scaled)
    mixed = MatMul(weights, vt)
    together = Transpose<perm = [0, 2, 1, 3]>(mixed)
    flat = Reshape(together, shape)
    out = MatMul(flat, wo)
    sum = Add(x, out)
    normal = LayerNormalization<axis = -1>(sum, gain, offset)
    bent = Gelu(normal)
    y = MatMul(bent, wy)
}"""


def test_masked_scores_stay_float_and_their_products_do_not() -> None:
    rng = np.random.default_rng(8)
    text = """(float[1, 8, 12] x, float[1, 1, 8] mask) => (float[1, 8, 12] y) {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        kt = Transpose<perm = [0, 2, 1]>(k)
        scores = MatMul(q, kt)
        masked = Add(scores, mask)
        weights = Softmax<axis = -1>(masked)
        mixed = MatMul(weights, v)
        y = MatMul(mixed, wo)
    }"""
    proto = model(text, **{name: normal(rng, 12, 12, scale=0.3) for name in ("wq", "wk", "wv", "wo")})
    hidden = np.zeros((1, 1, 8), np.float32)
    hidden[..., 5:] = -3e38
    data = [sample | {"mask": hidden} for sample in samples(rng, (1, 8, 12))]
    result = quantize(proto, lambda: data)
    assert {row["operator"] for row in result.report["float"]} <= {"Add", "Softmax", "Reshape"}
    assert sum(row["operator"] == "MatMul" for row in result.report["quantized"]) == 2
    expected, found = run(proto, data[0])["y"], Interpreter(result.model).run(data[0])["y"]
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.99


def test_attention_is_quantized_as_a_whole() -> None:
    """Only the reshaping of the input stays float32; the scale of the scores is gone; bytes stay near float32."""
    rng = np.random.default_rng(8)
    weights = {name: normal(rng, 12, 12, scale=0.3) for name in ("wq", "wk", "wv", "wo")}
    shapes = {"heads": np.array([1, 8, 3, 4]), "shape": np.array([1, 8, 12]), "root": 2.0}
    proto = model(_ATTENTION, wy=normal(rng, 12, 5), gain=normal(rng, 12), offset=normal(rng, 12), **weights, **shapes)
    data = samples(rng, (1, 8, 12), count=16)
    result = quantize(proto, lambda: data)
    integer = {row["operator"] for row in result.report["quantized"]}
    assert {"Softmax", "LayerNormalization", "Gelu", "MatMul", "Add", "Gemm"} <= integer
    assert {row["operator"] for row in result.report["float"]} <= {"Reshape"}
    assert "Div" not in operators(result.model)
    expected, found = run(proto, data[0])["y"], Interpreter(result.model).run(data[0])["y"]
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.99

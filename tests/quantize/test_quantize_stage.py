"""The stage as a whole: QDQ form, determinism, errors, and integers that agree with ONNX Runtime's."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize.models import boundaries, model, normal, run, samples, structure

from edgebuild.core.errors import CalibrationError, ModelError, UsageError
from edgebuild.reference import Interpreter
from edgebuild.stages.quantize import Settings, quantize
from edgebuild.stages.quantize.observers import OBSERVERS

CNN = """(float[1,3,16,16] x) => (float[1,10] p) {
  n = Div(x, spread)
  a = Conv<pads=[1,1,1,1], strides=[2,2]>(n, k1, b1)
  ar = Clip(a, lo, hi)
  d = Conv<pads=[1,1,1,1], group=8>(ar, k2)
  dn = BatchNormalization(d, g, b, m, v)
  dr = Relu(dn)
  e = Conv(dr, k3, b3)
  r = Add(ar, e)
  s = Sigmoid(r)
  t = Mul(r, s)
  u = MaxPool<kernel_shape=[2,2], strides=[2,2]>(t)
  f = GlobalAveragePool(u)
  h = Flatten(f)
  y = Gemm<transB=1>(h, w, c)
  p = Softmax(y)
}"""
SHAPE = (1, 3, 16, 16)


def cnn(seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    return model(
        CNN,
        spread=np.float32(2), lo=np.float32(0), hi=np.float32(6),
        k1=normal(rng, 8, 3, 3, 3, scale=0.3), b1=normal(rng, 8), k2=normal(rng, 8, 1, 3, 3),
        g=normal(rng, 8), b=normal(rng, 8), m=normal(rng, 8), v=np.abs(normal(rng, 8)) + 0.1,
        k3=normal(rng, 8, 8, 1, 1, scale=0.3), b3=normal(rng, 8), w=normal(rng, 10, 8), c=normal(rng, 10),
    )  # fmt: skip


def stream(count: int = 16) -> list[dict[str, np.ndarray]]:
    return samples(np.random.default_rng(1), SHAPE, count)


def without_samples() -> Iterator[dict[str, np.ndarray]]:
    return iter(())


def test_interpreter_and_onnxruntime_agree_on_what_comes_out() -> None:
    result = quantize(cnn(0), stream).model
    onnx.checker.check_model(result, full_check=True)
    judge = Interpreter(result)
    for sample in stream(8):
        np.testing.assert_allclose(judge.run(sample)["p"], run(result, sample)["p"], atol=0.02)


def test_the_integers_stay_close_to_the_float_model() -> None:
    result = quantize(cnn(0), stream).model
    errors = [np.abs(Interpreter(result).run(s)["p"] - run(cnn(0), s)["p"]).max() for s in stream(8)]
    assert max(errors) < 0.05


@pytest.mark.parametrize("observer", ["auto", *OBSERVERS])
def test_equal_inputs_give_equal_bytes(observer: str) -> None:
    first, second = (
        quantize(cnn(0), stream, Settings(observer)).model.SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second


def test_two_trainings_differ_in_values_only() -> None:
    first, second = (quantize(cnn(seed), stream).model for seed in (0, 1))
    assert structure(first) == structure(second)
    assert first.SerializeToString() != second.SerializeToString()


def test_the_input_model_is_not_changed() -> None:
    given = cnn(0)
    before = given.SerializeToString(deterministic=True)
    quantize(given, stream)
    assert given.SerializeToString(deterministic=True) == before


def test_weights_and_biases_have_the_form_of_section_9() -> None:
    result = quantize(cnn(0), stream).model
    constants = {t.name: numpy_helper.to_array(t) for t in result.graph.initializer}
    made = {n.output[0]: n for n in result.graph.node}
    for conv in (n for n in result.graph.node if n.op_type in {"Conv", "Gemm"}):
        x, weight, bias = (made[name] for name in conv.input)
        s_x, s_w = constants[x.input[1]], constants[weight.input[1]]
        assert constants[weight.input[0]].dtype == np.int8
        assert constants[bias.input[0]].dtype == np.int32
        expected = (s_x.astype(np.float64) * s_w.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(constants[bias.input[1]], expected)


def test_relu6_starts_at_zero_and_moves_keep_their_scale() -> None:
    tensors = {row["name"]: row for row in quantize(cnn(0), stream).report["tensors"]}
    assert tensors["ar"]["zero_point"] == 0
    assert tensors["ar"]["scale"] <= 6 / 255 * (1 + 1e-6)
    assert tensors["t"]["scale"] == tensors["u"]["scale"]


def test_an_override_replaces_what_was_observed() -> None:
    tensors = {r["name"]: r for r in quantize(cnn(0), stream, Settings(ranges={"ar": (0.0, 3.0)})).report["tensors"]}
    assert tensors["ar"]["scale"] == pytest.approx(3 / 255, rel=1e-6)
    with pytest.raises(UsageError, match="no quantized tensor 'nothing'"):
        quantize(cnn(0), stream, Settings(ranges={"nothing": (0.0, 1.0)}))


def test_progress_counts_samples() -> None:
    seen: list[int] = []
    quantize(cnn(0), lambda: stream(3), progress=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6]


def test_samples_are_read_one_at_a_time() -> None:
    alive, most = [0], [0]

    class Sample(dict[str, np.ndarray]):
        def __init__(self, value: np.ndarray) -> None:
            super().__init__(x=value)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self) -> None:
            alive[0] -= 1

    quantize(cnn(0), lambda: (Sample(s["x"]) for s in stream(20)))
    assert most[0] <= 3


def test_a_quantized_model_passes_through() -> None:
    first = quantize(cnn(0), stream).model
    again = quantize(first, without_samples)
    assert again.model.SerializeToString() == first.SerializeToString()
    assert again.report["passed_through"]
    assert len(again.report["tensors"]) == len(boundaries(first))


def test_a_quantized_model_with_int8_activations_is_refused() -> None:
    text = "(float[1,4] x) => (float[1,4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    foreign = model(text, s=np.float32(0.1), z=np.int8(0))
    with pytest.raises(
        ModelError,
        match=r"QuantizeLinear 'QuantizeLinear_0': an activation is int8; uint8, uint16 and int16 are supported",
    ):
        quantize(foreign, without_samples)


def test_bias_correction_removes_the_mean_error() -> None:
    rng = np.random.default_rng(3)
    layer = model("(float[1,64] x) => (float[1,32] y) { y = Gemm<transB=1>(x, w, c) }",
                  w=normal(rng, 32, 64), c=normal(rng, 32))  # fmt: skip
    data = [{"x": rng.uniform(3, 5, (1, 64)).astype(np.float32)} for _ in range(200)]
    judge = Interpreter(quantize(layer, lambda: data).model)
    errors = np.stack([judge.run(s)["y"] - run(layer, s)["y"] for s in data])
    assert np.abs(errors.mean(axis=0)).max() < 0.35 * errors.std()


def test_no_samples_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="there are no calibration samples"):
        quantize(cnn(0), without_samples)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"image": np.zeros(SHAPE, np.float32)}, r"calibration sample 0 lacks array 'x'; it has 'image'"),
        ({"x": np.zeros(SHAPE, np.float32), "z": np.zeros(1)}, r"calibration array 'z' is not an input of the model"),
        (
            {"x": np.zeros((1, 3, 8, 8), np.float32)},
            r"'x', sample 0: expected shape \[1, 3, 16, 16\], found \[1, 3, 8, 8\]",
        ),
        ({"x": np.zeros(SHAPE, np.float64)}, r"'x', sample 0: expected dtype float32, found float64"),
        ({"x": np.full(SHAPE, np.nan, np.float32)}, r"'x', sample 0: holds NaN or infinite values"),
    ],
)
def test_a_sample_that_does_not_fit_is_named(sample: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        quantize(cnn(0), lambda: [sample])


def test_a_tensor_that_overflows_is_named() -> None:
    broken = model("(float[1,5] x) => (float[1,5] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, w) }",
                   w=(np.eye(5) * 1e30).astype(np.float32))  # fmt: skip
    with pytest.raises(CalibrationError, match="tensor 'y' becomes NaN or infinite on calibration sample 0"):
        quantize(broken, lambda: [{"x": np.ones((1, 5), np.float32)}])


def test_nan_weights_are_an_error() -> None:
    broken = model("(float[1,4] x) => (float[1,5] y) { y = MatMul(x, w) }", w=np.full((4, 5), np.nan, np.float32))
    with pytest.raises((CalibrationError, ModelError), match="NaN"):
        quantize(broken, lambda: [{"x": np.ones((1, 4), np.float32)}])


def test_an_old_opset_is_refused() -> None:
    old = cnn(0)
    old.opset_import[0].version = 13
    with pytest.raises(ModelError, match="the model has ONNX opset 13"):
        quantize(old, stream)


def test_degenerate_ranges_give_a_model_that_runs() -> None:
    still = [{"x": np.zeros(SHAPE, np.float32)}]
    result = quantize(cnn(0), lambda: still).model
    assert np.isfinite(Interpreter(result).run(still[0])["p"]).all()


def test_a_quantized_model_gets_one_name_for_equal_parameters() -> None:
    """Each Q/DQ with constants of its own, as other tools write it; the values are the same."""
    nodes, constants = [], []
    name = "x"
    for i in range(4):
        constants += [numpy_helper.from_array(np.float32(0.1), f"s{i}"), numpy_helper.from_array(np.uint8(7), f"z{i}")]
        op = "DequantizeLinear" if i % 2 else "QuantizeLinear"
        nodes.append(helper.make_node(op, [name, f"s{i}", f"z{i}"], [f"t{i}"], name=f"n{i}"))
        name = f"t{i}"
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in ("x", "t3")]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = quantize(model, list).model
    assert {tuple(n.input[1:]) for n in found.graph.node} == {("s0", "z0")}


def test_the_float_network_behind_a_quantized_one_differs_only_by_the_rounding_of_weights() -> None:
    quantized = quantize(cnn(0), stream)
    recovered = quantize(quantized.model, without_samples).floating
    operators = {node.op_type for node in recovered.graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear"}
    for sample in stream(4):
        exact = run(quantized.floating, sample)["p"]
        np.testing.assert_allclose(exact, run(cnn(0), sample)["p"], atol=1e-5)
        np.testing.assert_allclose(run(recovered, sample)["p"], exact, atol=0.02)

"""Section 7 against arithmetic written out, and against ONNX Runtime."""

import numpy as np
import pytest
from conformance.graphs import CASES, Builder
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from quantize.models import model, run

from edgebuild.core.errors import ModelError
from edgebuild.reference import Interpreter, integer, tables
from edgebuild.reference.values import Params, View

DIFFERENT = {
    "resize_antialias",  # section 8.1 leaves out what lies outside, ONNX only with exclude_outside = 1
    "steps_beyond_int32",  # ONNX Runtime's conversion overflows
}

scales = st.floats(2.0**-13, 8, width=32).map(np.float32)
params = st.builds(Params, scales, st.integers(0, 255))


def view(rng: np.random.Generator, shape: tuple[int, ...], p: Params) -> View:
    return View(rng.integers(0, 256, shape, dtype=np.uint8), p)


@pytest.mark.parametrize(
    ("acc", "m", "z", "expected"),
    [(5, 0.5, 0, 2), (7, 0.5, 0, 4), (-5, 0.5, 10, 8), (1000, 1, 0, 255), (-1000, 1, 5, 0), (16777217, 2**-17, 0, 128)],
)
def test_requantize_rounds_half_to_even_and_saturates(acc: int, m: float, z: int, expected: int) -> None:
    found = integer.requantize(np.array([acc], np.int32), np.float32([m]), Params(np.float32(1), z), -np.inf, np.inf)
    assert found[0] == expected


@given(
    st.integers(-(2**31) + 1, 2**31 - 1), st.floats(2.0**-30, 1, width=32), params, st.floats(-50, 50), st.floats(0, 60)
)
def test_requantize_follows_the_formula(acc: int, m: float, y: Params, low: float, width: float) -> None:
    q = [min(max(int(np.rint(v / float(y.scale))) + y.zero_point, 0), 255) for v in (low, low + width)]
    product = np.float32(acc) * np.float32(m)
    expected = np.rint(min(max(product, q[0] - y.zero_point), q[1] - y.zero_point)) + y.zero_point
    assert integer.requantize(np.array([acc], np.int32), np.float32([m]), y, low, low + width)[0] == expected


@given(st.integers(0, 99), params, params, params)
def test_add_is_within_one_of_the_exact_sum(seed: int, a: Params, b: Params, y: Params) -> None:
    rng = np.random.default_rng(seed)
    x1, x2 = view(rng, (50,), a), view(rng, (50,), b)
    exact = (x1.q.astype(float) - a.zero_point) * a.s + (x2.q.astype(float) - b.zero_point) * b.s
    expected = np.clip(np.rint(exact / y.s) + y.zero_point, 0, 255)
    found = integer.add(x1, x2, y, -np.inf, np.inf).astype(float)
    # The smaller factor has at least 14 bits less than the larger one's error: half a unit in 2^14 of 255 steps each.
    tolerance = 1 + 255 * (1 + max(a.s, b.s) / y.s) * 2**-14
    assert np.abs(found - expected).max() <= tolerance


@given(st.integers(0, 99), params, params)
def test_tables_of_the_identity_requantize(seed: int, x: Params, y: Params) -> None:
    found = tables.table(lambda v: v, x, y)
    exact = x.s * (np.arange(256.0) - x.zero_point) / y.s
    np.testing.assert_array_equal(found, np.clip(np.rint(exact) + y.zero_point, 0, 255))


@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv_is_the_sum_over_the_window(group: int) -> None:
    rng = np.random.default_rng(group)
    x, w = (
        view(rng, (1, 4, 5, 5), Params(np.float32(1), 7)),
        rng.integers(-127, 128, (8, 4 // group, 3, 2), dtype=np.int8),
    )
    shape = integer.Window((3, 2), (2, 1), (1, 2), (1, 0), (0, 1), (0, 0), (2, 4))
    found = integer.conv(x, w, shape, group)
    padded = np.pad(x.q.astype(np.int64) - 7, [(0, 0), (0, 0), (1, 0), (0, 1)])
    for m, i, j in np.ndindex(8, 2, 4):
        channels = padded[0, (m // (8 // group)) * (4 // group) :][: 4 // group]
        assert found[0, m, i, j] == (channels[:, 2 * i : 2 * i + 3, j : j + 3 : 2] * w[m]).sum()


def test_sums_are_exact_where_float32_would_round() -> None:
    x = View(np.full((1, 2000), 255, np.uint8), Params(np.float32(1), 0))
    w = np.full((2000, 1), 127, np.int8)
    w[0] = 126
    assert integer.matmul(x, w)[0, 0] == 255 * 127 * 2000 - 255


@pytest.mark.parametrize("name", [name for name in CASES if name not in DIFFERENT])
def test_every_lowered_operator_agrees_with_onnxruntime(name: str) -> None:
    """Within one step of its last QuantizeLinear: ONNX Runtime computes in float32 between Q/DQ. With 16 bits the last
    step may be smaller than those before it: there it is two of the largest.
    """
    builder = Builder(name, np.random.default_rng(11))
    output = CASES[name](builder)
    graph = helper.make_graph(
        builder.nodes, name, builder.inputs, [helper.make_empty_tensor_value_info(output)], builder.initializers
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    rng = np.random.default_rng(3)
    inputs = {
        i.name: _random(rng, i.type.tensor_type.elem_type, [d.dim_value for d in i.type.tensor_type.shape.dim])
        for i in builder.inputs
    }
    try:
        expected = run(proto, inputs, optimized=False)[output]
    except Exception as problem:
        pytest.skip(f"ONNX Runtime cannot run it: {problem}")
    found = Interpreter(proto).run(inputs)[output]
    assert found.shape == expected.shape
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    assert difference.max(initial=0) <= _step(builder)
    # exact ties of round scales fall either way in float32; a bias is rounded to a unit of the sum
    assert np.mean(difference > max(1e-5, _step(builder) / 100)) <= 0.1


def _random(rng: np.random.Generator, kind: int, shape: list[int]) -> np.ndarray:
    if kind == TensorProto.FLOAT:
        return rng.normal(size=shape).astype(np.float32)
    return rng.integers(0, 100, shape).astype(helper.tensor_dtype_to_np_dtype(kind))


def _step(builder: Builder) -> float:
    quantizers = [n for n in builder.nodes if n.op_type == "QuantizeLinear"]
    constants = {t.name: np.frombuffer(t.raw_data, np.float32) for t in builder.initializers if t.data_type == 1}
    steps = [float(constants[node.input[1]][0]) for node in quantizers]
    if builder.prefix.startswith("words"):
        return 2.02 * max(steps)
    return steps[-1] * 1.01 if steps else 1e-4


def test_a_result_without_quantize_runs_in_float() -> None:
    proto = model(
        "(float[1,4] x) => (float[1,3] y) { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Gemm(d, w) }",
        s=np.float32(0.1), z=np.uint8(100), w=np.arange(12).reshape(4, 3),
    )  # fmt: skip
    found = Interpreter(proto).run({"x": np.float32([[0.12, 1, 2, 3]])})["y"]
    np.testing.assert_allclose(found, np.float32([[0.1, 1, 2, 3]]) @ np.arange(12).reshape(4, 3), rtol=1e-6)


def test_int8_activations_are_refused() -> None:
    proto = model(
        "(float[1,4] x) => (float[1,4] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }",
        s=np.float32(0.1), z=np.int8(0),
    )  # fmt: skip
    with pytest.raises(ModelError, match="activations are uint8, uint16 or int16 with one scale, found int8"):
        Interpreter(proto).run({"x": np.zeros((1, 4), np.float32)})


def test_an_unknown_operator_is_named() -> None:
    proto = model("(float[1,4] x) => (float[1,4] y) { y = LpNormalization(x) }")
    with pytest.raises(ModelError, match=r"operator LpNormalization \('LpNormalization_0'\) is not supported"):
        Interpreter(proto).run({"x": np.zeros((1, 4), np.float32)})


def test_inputs_are_checked() -> None:
    judge = Interpreter(model("(float[1,4] x) => (float[1,4] y) { y = Relu(x) }"))
    with pytest.raises(ModelError, match="inputs are z; the model has x"):
        judge.run({"z": np.zeros((1, 4), np.float32)})
    with pytest.raises(ModelError, match=r"input 'x' is float64 \[1, 4\]; the model has float32 \[1, 4\]"):
        judge.run({"x": np.zeros((1, 4))})

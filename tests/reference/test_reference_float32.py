"""Section 8 against ONNX Runtime (values) and against itself written out (order and rounding)."""

import numpy as np
import pytest
from quantize.models import model, normal, run

from edgebuild.reference import Interpreter, float32, resize
from edgebuild.reference.model import Node

RNG = np.random.default_rng(2)
UNARY = ["Abs", "Ceil", "Exp", "Floor", "HardSigmoid", "HardSwish", "LeakyRelu", "Neg", "Reciprocal", "Relu", "Round",
         "Sigmoid", "Softmax", "Tanh", "Celu", "Elu", "Erf", "Gelu", "Log", "LogSoftmax", "Mish", "Selu", "Softplus",
         "Softsign", "ThresholdedRelu"]  # fmt: skip
RESIZES = [
    (mode, transform, size)
    for mode in ("nearest", "linear")
    for transform in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    for size in ((5, 7), (13, 16), (1, 20))
]


@pytest.mark.parametrize("op", UNARY)
def test_unary_operators(op: str) -> None:
    proto = model(f"(float[3,50] x) => (float[3,50] y) {{ y = {op}(x) }}")
    inputs = {"x": normal(RNG, 3, 50, scale=3)}
    np.testing.assert_allclose(Interpreter(proto).run(inputs)["y"], run(proto, inputs)["y"], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div", "Min", "Max"])
def test_binary_operators_are_one_ieee_operation(op: str) -> None:
    proto = model(f"(float[3,5] x, float[5] z) => (float[3,5] y) {{ y = {op}(x, z) }}")
    inputs = {"x": normal(RNG, 3, 5), "z": normal(RNG, 5)}
    np.testing.assert_array_equal(Interpreter(proto).run(inputs)["y"], run(proto, inputs)["y"])


GRAPHS = {
    "sums": "(float[2,3,4] x) => (float[2,1,1] y) { y = ReduceSum(x, axes) }",
    "means": "(float[2,3,4] x) => (float[2,1,1] y) { y = ReduceMean(x, axes) }",
    "largest": "(float[2,3,4] x) => (float[2,1,1] y) { y = ReduceMax(x, axes) }",
    "argmax": "(float[2,3,4] x) => (int64[2,1,4] y) { y = ArgMax<axis=1>(x) }",
    "grouped conv": "(float[1,4,7,7] x) => (float[1,6,4,3] y) "
                    "{ y = Conv<group=2, strides=[2,2], pads=[1,0,2,1], dilations=[1,2]>(x, k) }",
    "same conv": "(float[1,4,7,7] x) => (float[1,6,4,4] y) "
                 '{ y = Conv<group=2, strides=[2,2], auto_pad="SAME_LOWER">(x, k) }',
    "average pool": "(float[1,4,7,7] x) => (float[1,4,4,4] y) "
                    "{ y = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], "
                    "ceil_mode=1, count_include_pad=1>(x) }",
    "max pool": "(float[1,4,8,8] x) => (float[1,4,4,4] y) "
                "{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[0,0,1,1], ceil_mode=1>(x) }",
    "gemm": "(float[4,3] x) => (float[3,5] y) { y = Gemm<transA=1, alpha=0.5>(x, w, c) }",
    "matmul": "(float[2,3,4] x) => (float[2,3,5] y) { y = MatMul(x, w) }",
    "slice": "(float[2,3,4] x) => (float[2,3,2] y) { y = Slice(x, from, to, last, step) }",
    "cast": "(float[2,3,4] x) => (uint8[2,3,4] y) { a = Abs(x) b = Mul(a, c0) y = Cast<to=2>(b) }",
    "where": "(float[2,3,4] x) => (float[2,3,4] y) { a = Greater(x, c0) y = Where(a, x, c0) }",
}  # fmt: skip
CONSTANTS = {
    "axes": np.array([1, 2]), "k": normal(RNG, 6, 2, 3, 3), "w": normal(RNG, 4, 5), "c": normal(RNG, 5),
    "c0": np.float32(9),
    "from": np.array([-1]), "to": np.array([-9]), "last": np.array([2]), "step": np.array([-2]),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_operators_agree_with_onnxruntime(name: str) -> None:
    proto = model(GRAPHS[name], **CONSTANTS)
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    inputs = {"x": normal(RNG, *shape)}
    found, expected = Interpreter(proto).run(inputs)["y"], run(proto, inputs)["y"]
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "transform", "size"), RESIZES)
def test_resize_agrees_with_onnxruntime(mode: str, transform: str, size: tuple[int, int]) -> None:
    proto = model(
        f'(float[1,2,10,8] x) => (float[1,2,{size[0]},{size[1]}] y) '
        f'{{ y = Resize<mode="{mode}", coordinate_transformation_mode="{transform}">(x, none, none, sizes) }}',
        none=np.zeros(0, np.float32), sizes=np.array([1, 2, *size]),
    )  # fmt: skip
    inputs = {"x": normal(RNG, 1, 2, 10, 8)}
    np.testing.assert_allclose(Interpreter(proto).run(inputs)["y"], run(proto, inputs)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (5, 20), (3, 7)])
def test_antialias_agrees_with_torch(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    proto = model(
        f"(float[1,3,20,20] x) => (float[1,3,{size[0]},{size[1]}] y) "
        '{ y = Resize<mode="linear", antialias=1, exclude_outside=1>(x, none, none, sizes) }',
        none=np.zeros(0, np.float32), sizes=np.array([1, 3, *size]),
    )  # fmt: skip
    x = normal(RNG, 1, 3, 20, 20)
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), size=size, mode="bilinear", antialias=True)
    np.testing.assert_allclose(Interpreter(proto).run({"x": x})["y"], expected.numpy(), rtol=1e-5, atol=1e-5)


def test_taps_of_one_axis_have_one_length_and_stay_inside() -> None:
    node = Node("Resize", "r", ("x",), ("y",), {"mode": b"linear", "antialias": 1, "exclude_outside": 1})
    starts, weights = resize.taps(node, [(j + 0.5) * 2.5 - 0.5 for j in range(4)], 10, 0.4)
    assert weights.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-6)
    assert starts.min() >= 0
    assert (starts + weights.shape[1]).max() <= 10


def test_sums_run_in_order() -> None:
    x = np.float32([[1e8, 1, -1e8, 1]])
    assert float32.ordered_sum(x, (1,), keepdims=False)[0] == 1.0


def test_products_are_rounded_before_they_are_added() -> None:
    a = np.float32([[1 + 2**-12, 1]])
    b = np.float32([[1 + 2**-12], [-1 - 2**-11]])
    assert float32.matmul(a, b)[0, 0] == 0.0  # a fused multiply-add would keep 2^-24


def test_exp_is_close_and_clamped() -> None:
    x = np.linspace(-87, 88, 10_001).astype(np.float32)
    np.testing.assert_allclose(float32.exp(x), np.exp(x.astype(np.float64)), rtol=3e-7)
    assert float32.exp(np.float32([-200]))[0] == float32.exp(np.float32([-87]))[0]


def test_casts_saturate() -> None:
    proto = model("(float[4] x) => (uint8[4] y) { y = Cast<to=2>(x) }")
    found = Interpreter(proto).run({"x": np.float32([-5, 3.9, 255.5, 1e9])})["y"]
    assert found.tolist() == [0, 3, 255, 255]

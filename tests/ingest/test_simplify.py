"""Simpler operators, the same numbers."""

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnx import numpy_helper

from edgebuild.stages.ingest.onnx import normalize

ONE_DIMENSIONAL = """<ir_version: 8, opset_import: ["": 18]> net (float[1,4,20] x) => (float[1,6,1] y)
<float[6,4,5] w, float[6] b, float[6,1,3] v, float[6] g> {
  a = Conv<pads = [2, 1], strides = [2]>(x, w, b)
  n = BatchNormalization(a, g, b, b, g)
  r = Relu(n)
  d = Conv<pads = [2, 2], dilations = [2], group = 6>(r, v)
  s = Add(d, r)
  p = MaxPool<kernel_shape = [3], strides = [2]>(s)
  q = AveragePool<kernel_shape = [2]>(p)
  axes = Constant<value_ints = [-1]>()
  y = ReduceMean<keepdims = 1>(q, axes)
}"""


def parsed(text: str) -> onnx.ModelProto:
    """The model, with positive random values for what has no value."""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    given = {tensor.name for tensor in model.graph.initializer}
    for value in [*model.graph.value_info]:
        if value.name not in given:
            shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            array = rng.uniform(0.1, 1, shape).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, value.name))
    return model


def outputs(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(1)
    feeds = {i.name: rng.uniform(0.1, 2, i.shape).astype(np.float32) for i in session.get_inputs()}
    return session.run(None, feeds)[0]


def simplified(text: str) -> list[str]:
    """The operators of the simplified model, which gives the same."""
    model = parsed(text)
    normal = normalize(model)
    np.testing.assert_allclose(outputs(normal), outputs(model), rtol=1e-5, atol=1e-6)
    assert [value.name for value in normal.graph.output] == [value.name for value in model.graph.output]
    return [node.op_type for node in normal.graph.node]


@pytest.mark.parametrize(("power", "wanted"), [("2.0", ["Mul"]), ("0.5", ["Sqrt"]), ("3.0", ["Pow"])])
def test_power(power: str, wanted: list[str]) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 18]> net (float[1,4] x) => (float[1,4] y)
    {{ p = Constant<value_float = {power}>()  y = Pow(x, p) }}"""
    assert simplified(text) == wanted


def test_an_exponent_that_is_a_weight_stays() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> net (float[1,4] x) => (float[1,4] y) <float p = {2.0}>
    { y = Pow(x, p) }"""
    assert simplified(text) == ["Pow"]


def test_sum() -> None:
    text = """<ir_version: 8, opset_import: ["": 18]> net (float[1,4] x, float[1,4] z, float[4] u) => (float[1,4] y)
    { y = Sum(x, z, u) }"""
    assert simplified(text) == ["Add", "Add"]


def test_one_dimensional_layers() -> None:
    found = simplified(ONE_DIMENSIONAL)
    moves = [operator for operator in found if operator in ("Squeeze", "Unsqueeze")]
    assert moves == ["Unsqueeze", "Squeeze"]
    assert found[0] == "Unsqueeze"
    assert found[-1] == "Squeeze"


def test_one_dimensional_layers_have_no_trace_of_values() -> None:
    model = parsed(ONE_DIMENSIONAL)
    for tensor in model.graph.initializer:
        tensor.raw_data = bytes(len(tensor.raw_data))
    zeros, other = normalize(model), normalize(parsed(ONE_DIMENSIONAL))
    for each in (zeros, other):
        for tensor in each.graph.initializer:
            tensor.ClearField("raw_data")
    assert zeros == other

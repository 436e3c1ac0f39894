"""ONNX files: hostile ones are refused with a file and a remedy, good ones come out in one form."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import Tensor
from edgebuild.stages.ingest.onnx import ingest, load, model_inputs, model_outputs, normalize


def network(batch: object = 1, opset: int = 18, side: object = 8) -> onnx.ModelProto:
    """Conv, Relu, a Reshape whose target is computed from the shape, Gemm."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], name="conv"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.array(0))),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Constant", [], ["axes"], value=numpy_helper.from_array(np.array([0]))),
        helper.make_node("Unsqueeze", ["n", "axes"], ["n1"]),
        helper.make_node("Constant", [], ["rest"], value=numpy_helper.from_array(np.array([-1]))),
        helper.make_node("Concat", ["n1", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["r", "t"], ["f"]),
        helper.make_node("Dropout", ["f"], ["d"]),
        helper.make_node("Identity", ["d"], ["i"]),
        helper.make_node("Gemm", ["i", "m"], ["y"], name="dense"),
        helper.make_node("Relu", ["c"], ["dead"]),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "b": np.zeros(4, np.float32),
        "m": rng.normal(size=(144, 5)).astype(np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "/home/someone/net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        doc_string="text",
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(tmp_path: Path, model: onnx.ModelProto) -> Path:
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_normal_form(tmp_path: Path) -> None:
    model = normalize(load(saved(tmp_path, network())))
    assert [node.op_type for node in model.graph.node] == ["Conv", "Relu", "Reshape", "Gemm"]
    assert [node.name for node in model.graph.node] == ["conv", "relu", "Reshape", "dense"]
    assert model.graph.doc_string == ""
    assert model.graph.name == "model"
    assert not model.metadata_props
    assert {value.name for value in model.graph.value_info} >= {"c", "r", "f"}
    assert model.graph.node[2].input[1] in {tensor.name for tensor in model.graph.initializer}
    x = np.random.default_rng(1).normal(size=(1, 3, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(run(model, x), run(network(), x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", ["batch", None, 0])
def test_dynamic_batch_becomes_one(batch: object) -> None:
    model = normalize(network(batch))
    assert model_inputs(model) == (Tensor("x", "float32", (1, 3, 8, 8)),)
    assert model_outputs(model) == (Tensor("y", "float32", (1, 5)),)


def test_other_dynamic_axis_is_refused() -> None:
    with pytest.raises(ModelError, match=r"net.onnx: input 'x' is dynamic in axis 2 \('side'\)") as caught:
        normalize(network(side="side"), "net.onnx")
    assert "static shapes" in caught.value.hint


def test_older_opset_is_converted() -> None:
    model = normalize(network(opset=13))
    assert model.opset_import[0].version >= 18


def test_normalize_is_idempotent_and_deterministic() -> None:
    once = normalize(network())
    assert normalize(once).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
    assert normalize(network()).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)


def test_structure_does_not_depend_on_values() -> None:
    zeros = network()
    for tensor in zeros.graph.initializer:
        tensor.raw_data = bytes(len(tensor.raw_data))
    first, second = normalize(network()), normalize(zeros)
    for model in (first, second):
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
    assert first == second


def test_names_that_a_manifest_cannot_hold_are_replaced() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[1,4] x) => (float[1,4] y) { y = Relu(x) }"""
    )
    model.graph.input[0].name = model.graph.node[0].input[0] = "serving:0"
    model.graph.output[0].name = model.graph.node[0].output[0] = "1/out"
    normal = normalize(model)
    assert model_inputs(normal)[0].name == "serving_0"
    assert model_outputs(normal)[0].name == "_1_out"


def test_quantized_models_keep_their_qdq() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[1,4] x) => (float[1,2] y)
        <float s = {0.5}, uint8 z = {3}, int8[4,2] w = {1,2,3,4,5,6,7,8}, float t = {0.25}, int8 zero = {0}> {
          q = QuantizeLinear(x, s, z)
          d = DequantizeLinear(q, s, z)
          f = DequantizeLinear(w, t, zero)
          y = MatMul(d, f)
        }"""
    )
    normal = [node.op_type for node in normalize(model).graph.node]
    assert normal == ["QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]


def test_ingest_names_the_function_after_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path, network())
    renamed = path.rename(tmp_path / "my-net.v2.onnx")
    model = ingest(renamed)
    assert model.entry.name == "my_net_v2"
    assert model.entry.trigger.kind == "none"
    assert model.quality == "trained"


def refused(path: Path, message: str, hint: str = "") -> None:
    with pytest.raises(ModelError, match=message) as caught:
        normalize(load(path), str(path))
    assert str(path) in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("share", [0.1, 0.5, 0.97])
def test_cut_file(tmp_path: Path, share: float) -> None:
    path = saved(tmp_path, network())
    load(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    refused(path, "cut off|no ONNX model|no valid ONNX", "again")


@pytest.mark.parametrize("content", [b"", b"hello, I am text\n", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(1000)])
def test_not_a_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    refused(path, "no ONNX model", "again")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        load(tmp_path / "none.onnx")


def external(tmp_path: Path, location: str) -> Path:
    model = network()
    model.graph.initializer[0].CopyFrom(
        TensorProto(
            name="w",
            dims=[4, 3, 3, 3],
            data_type=TensorProto.FLOAT,
            data_location=TensorProto.EXTERNAL,
            external_data=[onnx.StringStringEntryProto(key="location", value=location)],
        )
    )
    return saved(tmp_path, model)


def test_external_data(tmp_path: Path) -> None:
    path = external(tmp_path, "net.data")
    refused(path, "external data .*net.data", "beside the model")
    (tmp_path / "net.data").write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())
    assert normalize(load(path)).graph.initializer[0].raw_data
    (tmp_path / "net.data").write_bytes(bytes(10))
    refused(path, r"weight 'w', FLOAT \[4, 3, 3, 3\], takes 432 bytes and has 10", "again")


def test_external_data_outside_of_the_folder_is_refused(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (tmp_path / "secret").write_bytes(np.ones((4, 3, 3, 3), np.float32).tobytes())
    refused(external(inner, "../secret"), "external data")


def test_cyclic_graph(tmp_path: Path) -> None:
    model = network()
    model.graph.node[0].input[0] = "r"
    refused(saved(tmp_path, model), "the graph is cyclic")


def test_newer_opset(tmp_path: Path) -> None:
    refused(saved(tmp_path, network(opset=999)), "opset 999 is newer", "opset_version=18")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    model = network()
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[0, 0, 0, 0] = value
    model.graph.initializer[0].raw_data = array.tobytes()
    refused(saved(tmp_path, model), "weight 'w' of Conv 'conv' holds NaN or infinity", "checkpoint")


def test_unknown_operator(tmp_path: Path) -> None:
    model = network()
    model.graph.node[1].op_type = "Frobnicate"
    refused(saved(tmp_path, model), "operator Frobnicate of node 'relu' is unknown to ONNX")


def test_operator_of_another_domain(tmp_path: Path) -> None:
    model = network()
    model.graph.node[1].op_type, model.graph.node[1].domain = "FusedThing", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    refused(saved(tmp_path, model), "operator com.example::FusedThing of node 'relu' is not of ONNX's standard set")


def test_shape_that_depends_on_values(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[4] x) => (int64[1,n] y) { y = NonZero(x) }"""
    )
    refused(saved(tmp_path, model), "the shape of NonZero 'NonZero' depends on values")


def test_shapes_that_do_not_fit(tmp_path: Path) -> None:
    model = network()
    model.graph.initializer[2].CopyFrom(numpy_helper.from_array(np.zeros((100, 5), np.float32), "m"))
    refused(saved(tmp_path, model), "Gemm 'dense': shapes or types do not fit: .* 100 and 144")


def test_missing_input(tmp_path: Path) -> None:
    model = network()
    model.graph.node[0].input[1] = "nowhere"
    refused(saved(tmp_path, model), "'?nowhere'?")


def test_huge_constant(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[1] x) => (float[n,m] y)
        <int64[2] shape = {1000000, 1000000}> { c = ConstantOfShape(shape)  y = Add(c, x) }"""
    )
    refused(saved(tmp_path, model), "ConstantOfShape .* gives a tensor of shape .1000000, 1000000.", "smaller")


def test_an_output_that_is_an_input(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 18]> net (float[1,4] x) => (float[1,4] y, float[1,4] z, float[1,4] u)
        { y = Identity(x)  z = Relu(x)  u = Identity(z) }"""
    )
    normal = normalize(load(saved(tmp_path, model)))
    assert [value.name for value in normal.graph.output] == ["y", "z", "u"]
    assert [value.name for value in normal.graph.input] == ["x"]

"""TFLite files, float and quantized, compared with TensorFlow's interpreter; int8 activations as uint8."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import shared_data
from onnx import TensorProto, helper, numpy_helper

from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import Tensor
from edgebuild.projects import Overrides, resolve
from edgebuild.stages.ingest import FloatModel
from edgebuild.stages.ingest.adapters import ingest
from edgebuild.stages.ingest.onnx import model_inputs, model_outputs
from edgebuild.stages.ingest.unsigned import with_unsigned_activations
from edgebuild.stages.quantize import quantize

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")

SHAPE = (1, 24, 24, 3)


def network() -> Any:
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(3)
    picture = tf.keras.Input(SHAPE[1:], name="picture")
    x = layers.ReLU(6.0)(layers.Conv2D(8, 3, strides=2, padding="same")(picture))
    x = layers.Add()([x, layers.DepthwiseConv2D(3, padding="same", activation="relu")(x)])
    x = layers.MaxPooling2D(2)(layers.Concatenate()([x, layers.Conv2D(4, 1, activation="relu")(x)]))
    x = layers.Conv2D(16, 3)(x)  # TFLite leaves weights of fewer than 1,024 values in float32
    x = layers.Dense(6)(layers.GlobalAveragePooling2D()(x))
    return tf.keras.Model(picture, layers.Softmax()(x))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 1, (count, *SHAPE[1:])).astype(np.float32)


def converter(model: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    call = tf.function(lambda picture: model(picture, training=False))
    concrete = call.get_concrete_function(tf.TensorSpec(SHAPE, tf.float32, name="picture"))
    return tf.lite.TFLiteConverter.from_concrete_functions([convert_variables_to_constants_v2(concrete)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as float.tflite, dynamic.tflite (int8 weights), float_ports.tflite and int8.tflite."""
    folder, model = tmp_path_factory.mktemp("tflite"), network()
    (folder / "float.tflite").write_bytes(converter(model).convert())
    for name in ("dynamic", "float_ports", "int8"):
        made = converter(model)
        made.optimizations = [tf.lite.Optimize.DEFAULT]
        if name != "dynamic":
            made.representative_dataset = lambda: ([picture[None]] for picture in pictures(8))
            made.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        if name == "int8":
            made.inference_input_type = made.inference_output_type = tf.int8
        (folder / f"{name}.tflite").write_bytes(made.convert())
    np.savez(folder / "samples.npz", picture=pictures(4))
    np.savez(folder / "int8.npz", picture=(pictures(4) * 255 - 128).round().astype(np.int8))
    return folder


def ingested(path: Path, samples: Path) -> FloatModel:
    return ingest(resolve(str(path), Overrides(calibration=samples)))


def kinds(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(("name", "limit"), [("float", 1e-4), ("dynamic", 0.05)])
def test_float(files: Path, name: str, limit: float) -> None:
    """Weights in fewer bits are weights all the same; TFLite computes with them in integers, which we report."""
    found = ingested(files / f"{name}.tflite", files / "samples.npz")
    assert model_inputs(found.model) == (Tensor("picture", "float32", SHAPE),)
    assert found.parity is not None
    assert max(found.parity["max_relative_error"].values()) <= limit
    assert ("agreement" in found.parity) == (name == "dynamic")
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(kinds(found.model))


@pytest.mark.parametrize(("name", "dtype"), [("float_ports", "float32"), ("int8", "int8")])
def test_int8_keeps_its_scales(files: Path, name: str, dtype: str) -> None:
    samples = files / ("int8.npz" if dtype == "int8" else "samples.npz")
    found = ingested(files / f"{name}.tflite", samples)
    assert model_inputs(found.model) == (Tensor("picture", dtype, SHAPE),)
    assert [item.dtype for item in model_outputs(found.model)] == [dtype]
    assert found.parity is not None
    assert min(found.parity["agreement"].values()) >= 0.95
    assert max(found.parity["max_relative_error"].values()) <= 0.05
    passed = quantize(found.model, lambda: iter(()))
    assert passed.report["passed_through"]
    assert parameters(found.model) == interpreter_parameters(files / f"{name}.tflite")


def parameters(model: onnx.ModelProto) -> set[tuple[float, int]]:
    """Scale and zero point of every activation."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node.input[1:3] for node in model.graph.node if node.op_type.endswith("uantizeLinear")]
    values = [(constants[scale], constants[zero]) for scale, zero in pairs if constants[zero].dtype == np.uint8]
    return {(float(scale), int(zero)) for scale, zero in values}


def interpreter_parameters(path: Path) -> set[tuple[float, int]]:
    interpreter = tf.lite.Interpreter(str(path), experimental_preserve_all_tensors=True)
    interpreter.allocate_tensors()
    activations = {index for op in interpreter._get_ops_details() for index in op["outputs"]}
    activations |= {detail["index"] for detail in interpreter.get_input_details()}
    found = [(d["dtype"], d["quantization"]) for d in interpreter.get_tensor_details() if d["index"] in activations]
    return {(float(np.float32(scale)), zero + 128) for dtype, (scale, zero) in found if dtype == np.int8 and scale}


@pytest.mark.parametrize(("content", "message"), [(b"", "refuses it"), (b"TFL3" * 20, "refuses it")])
def test_damaged(tmp_path: Path, files: Path, content: bytes, message: str) -> None:
    (tmp_path / "net.tflite").write_bytes(content)
    with pytest.raises(ModelError, match=rf"net\.tflite: TensorFlow's interpreter {message}") as caught:
        ingested(tmp_path / "net.tflite", files / "samples.npz")
    assert "\n" not in caught.value.message


def test_cut_off(tmp_path: Path, files: Path) -> None:
    data = (files / "int8.tflite").read_bytes()
    (tmp_path / "net.tflite").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"net\.tflite: TensorFlow's interpreter refuses it"):
        ingested(tmp_path / "net.tflite", files / "samples.npz")


@pytest.mark.parametrize("name", ["resnet8_cifar10_int8", "kws_ds_cnn_int8", "mobilenet_v1_025_96_vww_int8"])
def test_published_int8(tmp_path: Path, name: str) -> None:
    path = shared_data.require(shared_data.REFERENCE / f"{name}.tflite")
    interpreter = tf.lite.Interpreter(str(path))
    shape = interpreter.get_input_details()[0]["shape"][1:]
    name_of_input = "input_1" if name.startswith("kws") else "input_1_int8"
    values = np.random.default_rng(0).integers(-128, 128, (4, *shape)).astype(np.int8)
    np.savez(tmp_path / "s.npz", **{name_of_input: values})
    found = ingested(path, tmp_path / "s.npz")
    assert found.parity is not None
    assert min(found.parity["agreement"].values()) >= 0.9


def signed_model(*, move: str = "Transpose") -> onnx.ModelProto:
    """int8 input → move → DequantizeLinear → Relu → QuantizeLinear, all int8."""
    ports = [helper.make_tensor_value_info(n, TensorProto.INT8, shape) for n, shape in (("x", [2, 3]), ("y", [3, 2]))]
    attributes = {"perm": [1, 0]} if move == "Transpose" else {}
    nodes = [
        helper.make_node(move, ["x"], ["t"], **attributes),
        helper.make_node("DequantizeLinear", ["t", "s", "z"], ["f"]),
        helper.make_node("Relu", ["f"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["y"]),
    ]
    constants = [numpy_helper.from_array(np.float32(0.5), "s"), numpy_helper.from_array(np.int8(-3), "z")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return onnx.shape_inference.infer_shapes(model)


def test_unsigned_activations_mean_the_same() -> None:
    import onnxruntime

    before = signed_model()
    after = with_unsigned_activations(before, "m")
    verified = quantize(after, lambda: iter(()))
    assert verified.report["passed_through"]
    values = np.array([[-128, 127, 0], [-3, 5, -100]], np.int8)
    results = []
    for model in (before, after):
        model.ir_version = 10
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        results.append(session.run(None, {"x": values})[0])
    np.testing.assert_array_equal(*results)
    zeros = {numpy_helper.to_array(tensor).dtype for tensor in after.graph.initializer}
    assert np.dtype(np.int8) not in zeros


def test_unsigned_models_stay_as_they_are() -> None:
    model = with_unsigned_activations(signed_model(), "m")
    assert with_unsigned_activations(model, "m") is model


def test_integers_without_dequantization_are_refused() -> None:
    with pytest.raises(ModelError, match=r"m: Abs '' works on quantized int8 values"):
        with_unsigned_activations(signed_model(move="Abs"), "m")

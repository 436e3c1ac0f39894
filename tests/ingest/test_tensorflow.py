"""Keras models, SavedModels, tf.functions and handlers of TensorFlow operations, compared with TensorFlow."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ingest.recipes import write_recipe

from edgebuild.core.errors import EdgebuildError, EnvironmentProblem, ModelError
from edgebuild.core.manifest import Tensor
from edgebuild.core.recipe import load_recipe
from edgebuild.core.resources import resource
from edgebuild.projects import Overrides, resolve
from edgebuild.stages.ingest import FloatModel, adapters
from edgebuild.stages.ingest.adapters import ingest
from edgebuild.stages.ingest.onnx import model_inputs, model_outputs

tf = pytest.importorskip("tensorflow")
pytest.importorskip("tf2onnx")

MODEL = """
import keras
from keras import layers


def build(channels=4):
    frame = keras.Input((16, 20, 3))
    x = layers.Conv2D(channels, 3, strides=2, padding="same", use_bias=False)(frame)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    return keras.Model(frame, layers.GlobalAveragePooling2D()(x))
"""

FUNCTION = """
import numpy as np
import tensorflow as tf
import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=15, size=(20, 16)))
{decorator}
def run(frame, model):
    {body}
"""
BODY_LINE = 10
SCALED = "x = tf.cast(frame, tf.float32)[tf.newaxis] / 255.0; "

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(body: str, model: str = "", code: str = MODEL, decorator: str = "") -> Path:
        write_recipe(tmp_path, model)
        (tmp_path / "model.py").write_text(code)
        text = FUNCTION.format(body=body.replace("; ", "\n    "), decorator=decorator or "# plain")
        (tmp_path / "function.py").write_text(text)
        return tmp_path

    return write


def untrained(folder: Path) -> FloatModel:
    return ingest(load_recipe(folder), untrained=True)


def network(seed: int = 0) -> Any:
    """What MobileNets, EfficientNets, residual networks and detectors are made of."""
    layers = tf.keras.layers
    tf.keras.utils.set_random_seed(seed)
    picture = tf.keras.Input((32, 32, 3), name="picture")
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="stem")(picture)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="depthwise")(
        layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    )
    x = layers.Conv2D(8, 1, activation="swish", name="pointwise")(x)
    gate = layers.Conv2D(8, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    y = layers.Conv2D(8, 3, padding="same", dilation_rate=2)(layers.Multiply()([x, gate]))
    x = layers.Concatenate()([layers.Add()([x, y]), layers.MaxPooling2D(3, 1, padding="same")(x)])
    x = layers.UpSampling2D(2, interpolation="bilinear")(layers.AveragePooling2D(2, padding="same")(x))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return tf.keras.Model(picture, layers.Dense(10, activation="softmax", name="classes")(x))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network in every format, with samples."""
    folder, model = tmp_path_factory.mktemp("saved"), network()
    rng = np.random.default_rng(0)
    np.savez(folder / "samples.npz", picture=rng.uniform(0, 1, (4, 32, 32, 3)).astype(np.float32))
    model.save(folder / "net.keras")
    model.save(folder / "net.h5")
    model.export(folder / "net", verbose=False)
    return folder


def between_convolutions(model: Any) -> list[str]:
    """The Transpose nodes that have a Conv somewhere before and behind them."""

    def reached(nodes: list[Any], ends: str, starts: str) -> set[str]:
        values: set[str] = set()
        for node in nodes:
            if node.op_type == "Conv" or values.intersection(getattr(node, ends)):
                values.update(getattr(node, starts))
        return values

    nodes = list(model.graph.node)
    behind, before = reached(nodes, "input", "output"), reached(nodes[::-1], "output", "input")
    turned = [node for node in nodes if node.op_type == "Transpose"]
    return [node.name for node in turned if node.input[0] in behind and node.output[0] in before]


def ingested(path: Path, samples: Path) -> FloatModel:
    return ingest(resolve(str(path), Overrides(calibration=samples)))


@pytest.mark.parametrize("name", ["net.keras", "net.h5", "net"])
def test_saved_models(saved: Path, name: str) -> None:
    found = ingested(saved / name, saved / "samples.npz")
    assert model_inputs(found.model) == (Tensor("picture", "float32", (1, 32, 32, 3)),)
    assert model_outputs(found.model)[0].shape == (1, 10)
    assert found.quality == "trained"
    assert found.parity is not None
    assert max(found.parity["max_relative_error"].values()) <= 1e-4
    assert between_convolutions(found.model) == []
    assert any("depthwise" in node.name for node in found.model.graph.node)


def test_two_trainings_give_one_structure(tmp_path: Path, saved: Path) -> None:
    network(seed=1).save(tmp_path / "net.keras")
    first, second = (ingested(folder / "net.keras", saved / "samples.npz").model for folder in (saved, tmp_path))
    assert [(n.op_type, n.name, n.input, n.output) for n in first.graph.node] == [
        (n.op_type, n.name, n.input, n.output) for n in second.graph.node
    ]


def test_keras_2_files_with_groups(tmp_path: Path, saved: Path) -> None:
    """What Keras 2 wrote of a DepthwiseConv2D, Keras 3 refuses."""
    import h5py

    text = (saved / "net.h5").read_bytes()
    (tmp_path / "old.h5").write_bytes(text)
    with h5py.File(tmp_path / "old.h5", "r+") as file:
        config = file.attrs["model_config"].replace('"depth_multiplier"', '"groups": 1, "depth_multiplier"')
        assert '"groups": 1, "depth' in config
        file.attrs["model_config"] = config
    with pytest.raises(Exception, match="groups"):
        tf.keras.models.load_model(tmp_path / "old.h5", compile=False)
    assert ingested(tmp_path / "old.h5", saved / "samples.npz").parity is not None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.keras", b"no zip", "net.keras: Keras cannot load it"),
        ("net.h5", b"", "net.h5: Keras cannot load it"),
        ("net/saved_model.pb", b"\xff\xff", "net: TensorFlow cannot load it"),
    ],
)
def test_damaged_files(tmp_path: Path, saved: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        ingested(path.parent if path.suffix == ".pb" else path, saved / "samples.npz")
    assert "\n" not in caught.value.message
    assert caught.value.hint


def test_an_open_size_is_refused(tmp_path: Path, saved: Path) -> None:
    picture = tf.keras.Input((None, None, 3), name="picture")
    tf.keras.Model(picture, tf.keras.layers.Conv2D(2, 3)(picture)).save(tmp_path / "open.keras")
    with pytest.raises(ModelError, match="input 'picture' is open in axis 1") as caught:
        ingested(tmp_path / "open.keras", saved / "samples.npz")
    assert "keras.Input(shape=" in caught.value.hint


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    layers = tf.keras.layers
    first, second = tf.keras.Input((4,), name="first"), tf.keras.Input((2, 3), name="second")
    joined = layers.Concatenate()([first, layers.Flatten()(second)])
    outputs = {"sum": layers.Dense(1)(joined), "all": layers.Dense(3)(joined)}
    tf.keras.Model([first, second], outputs).save(tmp_path / "two.keras")
    rng = np.random.default_rng(0)
    samples = {"first": rng.normal(size=(3, 4)), "second": rng.normal(size=(3, 2, 3))}
    np.savez(tmp_path / "s.npz", **{name: value.astype(np.float32) for name, value in samples.items()})
    found = ingested(tmp_path / "two.keras", tmp_path / "s.npz")
    assert [item.name for item in model_inputs(found.model)] == ["first", "second"]
    assert {item.name: item.shape for item in model_outputs(found.model)} == {"sum": (1, 1), "all": (1, 3)}


def test_a_handler_of_tensorflow_operations(make: Make) -> None:
    body = SCALED + "x = tf.image.resize(x, (16, 20), antialias=False); y = model(x); p = tf.nn.softmax(y)[0]; "
    found = untrained(make(body + "return {'p': p, 'best': tf.argmax(p)}"))
    assert model_inputs(found.model) == (Tensor("frame", "uint8", (16, 20, 3)),)
    assert model_outputs(found.model) == (Tensor("p", "float32", (4,)), Tensor("best", "int64", ()))
    assert found.quality == "speed-only"
    assert (found.entry.name, found.entry.trigger.value) == ("run", 15)


def test_a_tf_function_beneath_the_decorator(make: Make) -> None:
    found = untrained(make(SCALED + "return {'zebra': model(x), 'ape': x[0, 0, 0]}", decorator="@tf.function"))
    assert [item.name for item in model_outputs(found.model)] == ["zebra", "ape"]


def test_a_numpy_handler_around_a_keras_model(make: Make) -> None:
    body = "x = frame.astype(np.float32)[None] / 255.0; y = model(x)[0]; return {'y': np.exp(y), 'best': np.argmax(y)}"
    found = untrained(make(body))
    assert model_outputs(found.model) == (Tensor("y", "float32", (4,)), Tensor("best", "int64", ()))
    assert "Conv" in {node.op_type for node in found.model.graph.node}


def test_a_handler_around_a_saved_model(make: Make, saved: Path) -> None:
    import shutil

    folder = make(
        "return model(tf.image.resize(tf.cast(frame, tf.float32)[tf.newaxis] / 255.0, (32, 32)))", 'saved_model = "net"'
    )
    shutil.copytree(saved / "net", folder / "net", dirs_exist_ok=True)
    found = ingest(load_recipe(folder))
    assert found.quality == "trained"
    assert model_outputs(found.model)[0].shape == (1, 10)


TF_FUNCTION = """
import tensorflow as tf

W = tf.Variable(tf.random.stateless_uniform([3, 3, 3, 2], [1, 2]))


@tf.function
def net(x):
    return tf.nn.relu(tf.nn.conv2d(x, W, 2, "SAME"))


def build():
    return net
"""

LOADING = (
    MODEL.replace("return keras.Model", "model = keras.Model").rstrip()
    + """
    model.set_weights([w * 0 + 0.5 for w in model.get_weights()])
    return model
"""
)


def test_a_factory_may_return_a_tf_function(make: Make) -> None:
    found = ingest(load_recipe(make(SCALED + "return model(x)", code=TF_FUNCTION)))
    assert found.quality == "trained"
    assert model_outputs(found.model) == (Tensor("output", "float32", (1, 8, 10, 2)),)


def test_weights(make: Make, tmp_path: Path) -> None:
    """Random ones are refused, those that the factory or a file gives are taken."""
    with pytest.raises(ModelError, match="the recipe 'tiny' has no weights"):
        ingest(load_recipe(make(SCALED + "return model(x)")))
    assert ingest(load_recipe(make(SCALED + "return model(x)", code=LOADING))).quality == "trained"
    scope: dict[str, Any] = {}
    exec(MODEL, scope)
    scope["build"]().save_weights(tmp_path / "own.weights.h5")
    folder = make(SCALED + "return model(x)", 'weights = "own.weights.h5"')
    assert ingest(load_recipe(folder)).quality == "trained"
    scope["build"](channels=5).save_weights(tmp_path / "own.weights.h5")
    with pytest.raises(ModelError, match=r"own\.weights\.h5: does not fit the model"):
        ingest(load_recipe(folder))


@pytest.mark.parametrize(
    ("body", "decorator", "message"),
    [
        ("return model(x) if tf.reduce_mean(x) > 0.5 else model(-x)", "", "the handler cannot be traced in `return"),
        (
            "return model(x) if tf.reduce_mean(x) > 0.5 else model(-x)",
            "@tf.function",
            "cannot be traced: .*If branches",
        ),
        ("return model(x) * np.sum(x)", "", "the handler cannot be traced in `return"),
        ("return model(x) * x.numpy().sum()", "", "the handler cannot be traced in `return"),
        (
            "return tf.numpy_function(lambda v: v, [model(x)], tf.float32)",
            "",
            "cannot be traced: .*PyFunc calls Python",
        ),
        ("return tf.linalg.svd(model(x), compute_uv=False)", "", "TensorFlow operator Svd"),
        ("return tf.nothing(x)", "", "the handler fails on a real sample: AttributeError"),
    ],
)
def test_what_cannot_be_traced_is_named_with_its_line(make: Make, body: str, decorator: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        untrained(make(SCALED + body, decorator=decorator))
    assert f"function.py:{BODY_LINE + 1}: " in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint or "AttributeError" in caught.value.message


TORCH_MODEL = """
import torch


def build():
    return torch.nn.Linear(3, 2)
"""


def test_a_tensorflow_handler_wants_a_tensorflow_model(make: Make) -> None:
    with pytest.raises(ModelError, match="handler is made of TensorFlow operations, the model is not"):
        untrained(make(SCALED + "return model(x)", code=TORCH_MODEL))


def test_without_tensorflow(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    real = adapters.importlib.util.find_spec
    monkeypatch.setattr(adapters.importlib.util, "find_spec", lambda name: None if name == "tf2onnx" else real(name))
    with pytest.raises(EnvironmentProblem, match=r"net\.keras: TensorFlow models need the package tf2onnx") as caught:
        ingested(saved / "net.keras", saved / "samples.npz")
    assert "pip install 'edgebuild[tensorflow]'" in caught.value.hint
    assert issubclass(EnvironmentProblem, EdgebuildError)


def test_the_recipe_in_keras() -> None:
    """Its handler is a tf.function; untrained, because training takes half a minute."""
    found = ingest(load_recipe(resource("recipes") / "digits_keras"), untrained=True)
    assert model_inputs(found.model) == (Tensor("frame", "uint8", (64, 64, 3)),)
    assert model_outputs(found.model) == (Tensor("label", "int64", ()), Tensor("confidence", "float32", ()))
    assert between_convolutions(found.model) == []

"""Recipes of published networks: each has the published size, exports, and tells inputs apart when untrained."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import shared_data
import torch

from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.manifest import Tensor
from edgebuild.core.recipe import load_recipe
from edgebuild.core.resources import resource
from edgebuild.stages.ingest import handler, pytorch, samples
from edgebuild.stages.ingest.onnx import model_inputs

RECIPES = resource("recipes")

SIZES = {
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet50": (25_557_032, 4_089_184_256),
    "mobilenetv2": (3_504_872, 300_774_272),
    "mobilenet_v3_large": (5_483_032, 216_589_760),
    "mobilenet_v3_small": (2_542_856, 56_510_400),
    "efficientnet_b0": (5_288_548, 385_814_752),
    "efficientnet_lite0": (4_652_008, 385_187_552),
    "resnet8": (77_946, 12_501_632),
    "ds_cnn": (23_180, 2_656_768),
    "mobilenet_v1_025_96": (213_586, 7_489_664),
    "ad_autoencoder": (267_928, 264_192),
    "yolov5n": (1_872_157, 2_234_060_800),
    "yolov5n_320": (1_872_157, 558_515_200),
    "minilm": (22_565_376, 1_434_451_968),
}
"""Parameters and multiply-accumulates.

MLPerf Tiny counts the running statistics as well, and biases that its BatchNorm layers make superfluous; a published
state_dict of YOLOv5n holds its anchors beside its parameters, one of MiniLM a pooler that is not used.
"""
EXPORTED = (
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "resnet8",
    "ds_cnn",
    "mobilenet_v1_025_96",
    "ad_autoencoder",
    "yolov5n_320",
    "minilm",
)
"""One of each architecture: an export takes seconds."""

SAMPLES = 6


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name: str) -> None:
    recipe = load_recipe(RECIPES / name)
    with handler.recipe_imports(recipe.folders):
        build = handler.load_module(recipe.folder / recipe.model.file).build
        network = build(**recipe.model.args)
    assert sum(value.numel() for value in network.parameters()) == SIZES[name][0]


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples.real_samples, "__defaults__", (4,))
    monkeypatch.setattr(pytorch, "PARITY_SAMPLES", 1)


@pytest.mark.parametrize("name", sorted(SIZES.keys() - EXPORTED))
def test_multiply_accumulates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples.real_samples, "__defaults__", (1,))
    recipe = load_recipe(RECIPES / name)
    bound = pytorch.module(recipe, untrained=True)
    counted: list[int] = []
    for layer in bound.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(lambda made, _, out: counted.append(out.numel() * made.weight[0].numel()))
    assert recipe.calibration.set is not None
    frame = next(load_set(find_set(recipe.calibration.set)).samples(inputs_of(name)))["frame"]
    with torch.no_grad():
        bound(torch.from_numpy(frame.copy()))
    assert sum(counted) == SIZES[name][1]


def inputs_of(name: str) -> tuple[Tensor, ...]:
    recipe = load_recipe(RECIPES / name)
    with handler.recipe_imports(recipe.folders):
        return handler.load_function(recipe).inputs


@pytest.mark.parametrize("name", EXPORTED)
def test_untrained_outputs_vary(name: str) -> None:
    recipe = load_recipe(RECIPES / name)
    found = pytorch.export(recipe, untrained=True)
    assert found.quality == "speed-only"
    assert multiply_accumulates(found.model) == SIZES[name][1]
    session = onnxruntime.InferenceSession(found.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert recipe.calibration.set is not None
    samples = load_set(find_set(recipe.calibration.set)).samples(model_inputs(found.model), SAMPLES)
    first, *_ = zip(*(session.run(None, sample) for sample in samples), strict=True)
    values = np.stack(first).reshape(SAMPLES, -1)
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 5000
    assert values.std(axis=0).mean() > 0.02 * values.std()
    assert len(np.unique(values, axis=0)) == SAMPLES


def multiply_accumulates(model: onnx.ModelProto) -> int:
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            terms = shapes[node.input[1]][1:] if node.op_type == "Conv" else shapes[node.input[0]][-1:]
            total += int(np.prod(shapes[node.output[0]])) * int(np.prod(terms))
    return total


def test_architectures_that_recipes_share() -> None:
    """A change in another recipe's folder is a change of the recipe that takes its architecture from there."""
    for name in ("resnet50", "mobilenet_v3_small", "efficientnet_lite0", "mobilenet_v1_025_96", "yolov5n_320"):
        recipe = load_recipe(RECIPES / name)
        assert recipe.model.file.startswith("../")
        assert recipe.model.file in recipe.sources()


@pytest.mark.parametrize(
    ("name", "labelled", "least"),
    [
        ("resnet8", shared_data.cifar10_set, 0.875),
        ("ds_cnn", shared_data.keywords_set, 0.905),
        ("mobilenet_v1_025_96", shared_data.people_set, 0.80),
    ],
)
def test_accuracy_with_real_weights(name: str, labelled: Callable[[Path], Path], least: float, tmp_path: Path) -> None:
    weights = shared_data.keras_weights(name, tmp_path / "weights.safetensors")
    model = pytorch.export(load_recipe(RECIPES / name, weights=weights)).model
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    samples = load_set(labelled(tmp_path / "set"), "test").labelled(model_inputs(model))
    assert np.mean([int(session.run(["label"], sample)[0]) == label for sample, label in samples]) >= least


def test_real_weights_of_the_autoencoder_are_those_of_its_int8_form(tmp_path: Path) -> None:
    """Its recordings are not at hand, so an INT8 file made of the same training is the judge."""
    from safetensors.numpy import load_file

    state = load_file(shared_data.keras_weights("ad_autoencoder", tmp_path / "weights.safetensors"))
    layers = shared_data.tflite_layers(shared_data.require(shared_data.REFERENCE / "ad01_int8.tflite"))
    assert len(layers) == 10
    for index, (wanted, _) in enumerate(layers):
        weight = state[f"fc.{index}.weight"]
        if index < 9:
            factor = state[f"bn.{index}.weight"] / np.sqrt(state[f"bn.{index}.running_var"] + 1e-3)
            weight = weight * factor[:, None]
        assert np.abs(weight - wanted).max() <= np.abs(wanted).max() / 200

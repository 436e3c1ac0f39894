"""The recipes for 1000 classes: architecture, refusal without weights, and accuracy where real weights are there."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import shared_data

from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.errors import ModelError
from edgebuild.core.recipe import load_recipe
from edgebuild.core.resources import resource
from edgebuild.stages.ingest import pytorch
from edgebuild.stages.ingest.onnx import model_inputs

RECIPES = resource("recipes")
IMAGES = 150
"""Of the 650 labelled pictures: the whole set is for the benchmark."""


def parameters(model: onnx.ModelProto) -> int:
    """Trainable ones, in torch's count: without the running statistics, and without what the exporter adds."""
    kept = [t for t in model.graph.initializer if t.name.endswith((".weight", ".bias"))]
    return sum(int(np.prod(tensor.dims)) for tensor in kept)


@pytest.mark.parametrize("name", ["mobilenetv2", "squeezenet1_1", "mobilenet_v1_025"])
def test_without_weights_it_refuses(name: str) -> None:
    with pytest.raises(ModelError, match=rf"\[model\] weights: no such file: .*{name}\.safetensors") as caught:
        pytorch.export(load_recipe(RECIPES / name))
    assert "--untrained" in caught.value.hint


def test_untrained_mobilenetv2_varies_with_the_picture() -> None:
    found = pytorch.export(load_recipe(RECIPES / "mobilenetv2"), untrained=True)
    assert found.quality == "speed-only"
    assert parameters(found.model) == 3_504_872  # torchvision's count
    session = onnxruntime.InferenceSession(found.model.SerializeToString(), providers=["CPUExecutionProvider"])
    pictures = load_set(find_set("photos")).samples(model_inputs(found.model), 16)
    logits, labels, confidences = zip(*(session.run(None, picture) for picture in pictures), strict=True)
    assert np.std(logits, axis=0).mean() > 0.02
    assert len({int(label) for label in labels}) > 1
    assert len({float(confidence) for confidence in confidences}) == 16


def top1(model: onnx.ModelProto, folder: Path) -> float:
    images = shared_data.imagenet_set(folder / "imagenet")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pairs = load_set(images, "test").labelled(model_inputs(model), IMAGES)
    return float(np.mean([int(session.run(["label"], picture)[0]) == label for picture, label in pairs]))


@pytest.mark.parametrize(
    ("name", "count", "least"), [("squeezenet1_1", 1_235_496, 0.66), ("mobilenet_v1_025", 470_072, 0.56)]
)
def test_accuracy_with_real_weights(name: str, count: int, least: float, tmp_path: Path) -> None:
    weights = shared_data.require(shared_data.WEIGHTS[name])
    model = pytorch.export(load_recipe(RECIPES / name, weights=weights)).model
    assert parameters(model) == count
    assert top1(model, tmp_path) >= least


def test_accuracy_of_the_dequantized_mobilenetv2(tmp_path: Path) -> None:
    model = pytorch.export(load_recipe(shared_data.mobilenetv2_recipe(tmp_path / "mobilenetv2"))).model
    assert top1(model, tmp_path) >= 0.70

"""The default recipe: trained within a minute, the same every time, accurate."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.recipe import load_recipe
from edgebuild.core.resources import resource
from edgebuild.stages.ingest import FloatModel, pytorch
from edgebuild.stages.ingest.onnx import model_inputs

DIGITS = resource("recipes") / "digits"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FloatModel, Path]:
    """The recipe exported with an empty cache, and the cache."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEBUILD_CACHE", str(cache))
        return pytorch.export(load_recipe(DIGITS)), cache


def weights(model: FloatModel) -> dict[str, bytes]:
    return {tensor.name: tensor.raw_data for tensor in model.model.graph.initializer}


def test_trained_and_equal_to_eager_pytorch(trained: tuple[FloatModel, Path]) -> None:
    model, _ = trained
    assert model.quality == "trained"
    assert model.parity is not None


def test_accuracy_on_held_out_digits(trained: tuple[FloatModel, Path]) -> None:
    model = trained[0].model
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    right = []
    for sample, label in load_set(find_set("digits"), "test").labelled(model_inputs(model)):
        found, confidence = session.run(["label", "confidence"], sample)
        assert 0 <= confidence <= 1
        right.append(int(found) == label)
    assert np.mean(right) >= 0.97


def test_second_use_takes_the_cached_weights(trained: tuple[FloatModel, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEBUILD_CACHE", str(trained[1]))
    monkeypatch.setattr(pytorch.Cache, "put", lambda *_: pytest.fail("trained again"))
    assert pytorch.export(load_recipe(DIGITS)).model == trained[0].model


def test_another_seed_gives_other_weights_and_the_same_structure(
    trained: tuple[FloatModel, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path))
    other = pytorch.export(load_recipe(DIGITS, seed=1))
    first = weights(trained[0])
    assert weights(other)["model.head.0.weight"] != first["model.head.0.weight"]
    assert list(weights(other)) == list(first)
    for tensor in (*other.model.graph.initializer, *trained[0].model.graph.initializer):
        tensor.ClearField("raw_data")
    assert other.model == trained[0].model
    for tensor in trained[0].model.graph.initializer:
        tensor.raw_data = first[tensor.name]


def test_training_is_deterministic(
    trained: tuple[FloatModel, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    torch.rand(3)
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path))
    assert weights(pytorch.export(load_recipe(DIGITS))) == weights(trained[0])

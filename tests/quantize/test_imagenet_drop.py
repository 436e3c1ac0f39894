"""Trained networks on real pictures: what quantization costs, and whether ONNX Runtime sees the same integers."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import shared_data
from quantize.models import session

from edgebuild.core.calibration import load_set
from edgebuild.core.recipe import load_recipe
from edgebuild.core.resources import resource
from edgebuild.reference import Interpreter
from edgebuild.stages.ingest import pytorch
from edgebuild.stages.ingest.onnx import model_inputs
from edgebuild.stages.quantize import quantize

CALIBRATION, PICTURES = 64, 200


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v1_025"])
def test_top1_stays_within_two_points(name: str, tmp_path: Path) -> None:
    weights = shared_data.require(shared_data.WEIGHTS[name])
    images = shared_data.imagenet_set(tmp_path / "imagenet")
    model = pytorch.export(load_recipe(resource("recipes") / name, weights=weights)).model
    inputs = model_inputs(model)
    quantized = quantize(model, lambda: load_set(images).samples(inputs, CALIBRATION)).model
    pairs = list(load_set(images, "test").labelled(inputs, PICTURES))
    labels = [label for _, label in pairs]
    judge = Interpreter(quantized)
    found = [int(judge.run(picture)["label"]) for picture, _ in pairs]
    floating, other = (_labels(m, [picture for picture, _ in pairs]) for m in (model, quantized))
    drop = 100 * (np.equal(floating, labels).mean() - np.equal(found, labels).mean())
    assert drop <= 2.0
    assert np.equal(found, other).mean() >= 0.98


def _labels(model: onnx.ModelProto, pictures: list[dict[str, np.ndarray]]) -> list[int]:
    loaded = session(model)
    return [int(loaded.run(["label"], picture)[0]) for picture in pictures]

"""Trained networks on real pictures and sounds: healthy ones are left in peace, faults in them are found."""

from collections.abc import Callable
from pathlib import Path

import pytest
import shared_data
from diagnose import faults
from diagnose.networks import Sample, Trained

from edgebuild.core.calibration import load_set
from edgebuild.core.recipe import load_recipe
from edgebuild.core.resources import resource
from edgebuild.stages.diagnose import diagnose
from edgebuild.stages.ingest import pytorch
from edgebuild.stages.ingest.onnx import model_inputs
from edgebuild.stages.quantize import quantize

CALIBRATION, JUDGED = 32, 8
SETS: dict[str, Callable[[Path], Path]] = {
    "resnet8": shared_data.cifar10_set,
    "ds_cnn": shared_data.keywords_set,
    "mobilenet_v1_025_96": shared_data.people_set,
    "squeezenet1_1": shared_data.imagenet_set,
    "mobilenet_v1_025": shared_data.imagenet_set,
}


@pytest.fixture(scope="module", params=SETS)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """With held-out samples, which calibration has not seen."""
    name, folder = request.param, tmp_path_factory.mktemp("real")
    place = SETS[name](folder / "set")
    known = shared_data.WEIGHTS.get(name)
    weights = shared_data.require(known) if known else shared_data.keras_weights(name, folder / "weights.safetensors")
    model = pytorch.export(load_recipe(resource("recipes") / name, weights=weights)).model
    inputs = model_inputs(model)
    held_out: list[Sample] = list(load_set(place, "test").samples(inputs, JUDGED))
    return Trained(model, held_out, quantize(model, lambda: load_set(place).samples(inputs, CALIBRATION)))


def test_a_healthy_network_has_no_fault(subject: Trained) -> None:
    found = diagnose(subject.model, subject.quantized.floating, subject.quantized.model, subject.samples)
    assert [(f["cause"], f["what"]) for f in found["findings"] if f["severity"] == "high"] == []
    assert found["output_sqnr_db"] > 12


def test_a_scale_eight_times_too_large(subject: Trained) -> None:
    qdq = subject.quantized.model
    planted, tensors = faults.activation_scale(qdq, len(faults.pairs(qdq)) // 2, 8)
    first = diagnose(subject.model, subject.quantized.floating, planted, subject.samples)["findings"][0]
    assert (first["cause"], first["severity"]) == ("scale too large", "high")
    assert first["tensor"] in tensors


def test_a_channel_a_hundred_times_too_large(subject: Trained) -> None:
    number = len(faults.layers(subject.model)) // 2
    planted, layer = faults.large_channel(subject.model, number, 1, 100)
    found = quantize(planted, lambda: iter(subject.samples))
    first = diagnose(planted, found.floating, found.model, subject.samples)["findings"][0]
    assert (first["cause"], first["layer"], first["evidence"]["channel"]) == ("outlier channel", layer, 1)

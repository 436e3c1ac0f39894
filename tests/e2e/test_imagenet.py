"""Trained networks on real pictures: accuracy of what ships, and the same bits everywhere."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import shared_data
from builds import Machine
from programs import Arrays, differences, misses, outputs_of, trial_of

from edgebuild.core.calibration import load_set
from edgebuild.core.recipe import Recipe, load_recipe
from edgebuild.core.resources import resource
from edgebuild.core.target_file import load_target
from edgebuild.reference.interpreter import Interpreter
from edgebuild.stages.ingest.onnx import model_inputs
from edgebuild.stages.ingest.pytorch import export
from edgebuild.stages.quantize import quantize

NETWORKS = ("mobilenetv2", "squeezenet1_1", "mobilenet_v1_025")
REAL_INPUTS = 32
EMULATED_INPUTS = 2
PICTURES = 200


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_data.imagenet_set(tmp_path_factory.mktemp("imagenet"))


@dataclass(frozen=True)
class Network:
    """A quantized model and real inputs that calibration has not seen."""

    qdq: onnx.ModelProto
    samples: list[Arrays]

    def expected(self, count: int) -> list[tuple[Arrays, Arrays]]:
        interpreter = Interpreter(self.qdq)
        return [(sample, interpreter.run(sample)) for sample in self.samples[:count]]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Network:
    model = export(_recipe(request.param, tmp_path_factory.mktemp("recipe"))).model
    inputs = model_inputs(model)
    qdq = quantize(model, lambda: load_set(pictures).samples(inputs, 64)).model
    return Network(qdq, list(load_set(pictures, "test").samples(inputs, PICTURES)))


def _recipe(name: str, folder: Path) -> Recipe:
    if name == "mobilenetv2":
        return load_recipe(shared_data.mobilenetv2_recipe(folder / name))
    return load_recipe(resource("recipes") / name, weights=shared_data.require(shared_data.WEIGHTS[name]))


def test_same_bits_as_the_interpreter_and_labels_of_onnxruntime(network: Network, tmp_path: Path) -> None:
    pairs = network.expected(REAL_INPUTS)
    trial = trial_of(network.qdq, load_target("host"), pairs, tmp_path)
    got = outputs_of(trial, network.samples, pairs[0][1], tmp_path)
    assert not differences(got[:REAL_INPUTS], [wanted for _, wanted in pairs])
    labels = _onnxruntime_labels(network)
    same = np.mean([int(mine["label"]) == label for mine, label in zip(got, labels, strict=True)])
    sys.stdout.write(f"same top-1 as ONNX Runtime on {100 * same:.1f} % of {len(labels)} pictures\n")
    assert same >= 0.99
    assert len({int(mine["label"]) for mine in got}) > 1


def _onnxruntime_labels(network: Network) -> list[int]:
    """The same QDQ graph, with products that do not saturate on CPUs without VNNI."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(network.qdq.SerializeToString(), options)
    return [int(session.run(["label"], sample)[0]) for sample in network.samples]


@pytest.mark.parametrize("target", ["x86_64-avx2", "aarch64-generic", "raspberry-pi-5"])
def test_same_bits_on_other_cpus(network: Network, target: str, tmp_path: Path) -> None:
    pairs = network.expected(EMULATED_INPUTS)
    trial = trial_of(network.qdq, load_target(target), pairs, tmp_path)
    assert not misses(trial, pairs, tmp_path)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v1_025"])
def test_accuracy_of_the_bundle(name: str, machine: Machine, pictures: Path) -> None:
    weights = shared_data.require(shared_data.WEIGHTS[name])
    options = ("--weights", weights, "--calibration", pictures, "--samples", "500", "--target", "host", "--out", "out")
    report = machine.compile(name, *options).report
    accuracy = report["accuracy"]
    sys.stdout.write(f"{name}: top-1 float {accuracy['float']:.2f} %, INT8 {accuracy['int8']:.2f} %\n")
    assert accuracy["samples"] == 650
    assert accuracy["engine"] == "edgebuild-run"
    assert accuracy["drop"] <= 2.0
    assert report["macs"]["integer"] == report["macs"]["total"]

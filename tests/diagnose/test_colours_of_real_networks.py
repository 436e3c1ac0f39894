"""Every trained colour network that keeps its BatchNormalization: the order of channels on its own pictures and on
others' is known, and swapped channels are named first.
"""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import shared_data
from diagnose import faults

from edgebuild.core.calibration import Split, load_set
from edgebuild.core.recipe import load_recipe
from edgebuild.core.resources import resource
from edgebuild.stages.diagnose import PICTURES, diagnose
from edgebuild.stages.diagnose.colours import colours
from edgebuild.stages.diagnose.floats import Network
from edgebuild.stages.ingest import pytorch
from edgebuild.stages.ingest.onnx import model_inputs
from edgebuild.stages.quantize import quantize

Sets = dict[str, Callable[[Path], Path]]
CIFAR: Sets = {"cifar10": shared_data.cifar10_set}
LARGE: Sets = {"imagenet": shared_data.imagenet_set, "people": shared_data.people_set}
NETWORKS = {
    "resnet8": CIFAR | LARGE,
    "resnet20_cifar10": CIFAR | LARGE,
    "mobilenet_v1_025": LARGE,
    "mobilenet_v1_025_96": LARGE,
}
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks" / "recipes"


def exported(name: str, folder: Path) -> onnx.ModelProto:
    place = resource("recipes") / name
    known = (shared_data.WEIGHTS | shared_data.BENCHMARK_WEIGHTS).get(name)
    weights = shared_data.require(known) if known else shared_data.keras_weights(name, folder / "weights.safetensors")
    recipe = place if place.exists() else BENCHMARKS / name
    return pytorch.export(load_recipe(recipe, weights=weights)).model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_order_of_channels_is_known(name: str, tmp_path: Path) -> None:
    model = exported(name, tmp_path)
    parts: tuple[Split, Split] = ("calibration", "test")
    for kind, described in NETWORKS[name].items():
        place = described(tmp_path / kind)
        for graph, wanted in ((model, "as in training"), (faults.swapped_channels(model), "swapped")):
            network = Network(graph)
            for part in parts:
                pictures = load_set(place, part).samples(model_inputs(graph), PICTURES)
                found, looked = colours(network, network.first_layers(), pictures)
                assert ([c["order"] for c in looked], len(found)) == ([wanted], wanted == "swapped"), (kind, part)


@pytest.mark.parametrize(("name", "own"), [("resnet8", "cifar10"), ("mobilenet_v1_025_96", "people")])
def test_swapped_channels_are_named_first(name: str, own: str, tmp_path: Path) -> None:
    model = exported(name, tmp_path)
    part = load_set(NETWORKS[name][own](tmp_path / own))
    inputs = model_inputs(model)
    for graph, wrong in ((model, False), (faults.swapped_channels(model), True)):
        built = quantize(graph, lambda: part.samples(inputs, 32))
        told = diagnose(
            graph, built.floating, built.model, part.samples(inputs, 8), pictures=part.samples(inputs, PICTURES)
        )
        named = [number for number, f in enumerate(told["findings"]) if "channels look swapped" in f["what"]]
        assert named == ([0] if wrong else []), [(f["cause"], f["what"]) for f in told["findings"]]


def test_a_network_without_normalization_says_nothing(tmp_path: Path) -> None:
    network = Network(exported("squeezenet1_1", tmp_path))
    assert colours(network, network.first_layers(), iter(())) == ([], [])

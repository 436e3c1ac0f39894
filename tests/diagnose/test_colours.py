"""Swapped colour channels are named where BatchNormalization remembers colours, and nothing is guessed elsewhere."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from diagnose import faults, networks
from diagnose.networks import Sample

from edgebuild.stages.diagnose import PICTURES, diagnose
from edgebuild.stages.diagnose.colours import colours
from edgebuild.stages.diagnose.floats import Network
from edgebuild.stages.quantize import quantize

COUNT = 64
Looked = dict[str, Any]


def frames(values: np.ndarray) -> list[Sample]:
    return [{"frame": np.ascontiguousarray(value)} for value in values]


def looked(model: onnx.ModelProto, values: np.ndarray) -> Looked | None:
    """What was compared at the first layer; a finding is there where it says so, and only there."""
    network = Network(model)
    found, compared = colours(network, network.first_layers(), frames(values))
    assert [f.evidence["colours"] for f in found] == [c for c in compared if c["order"] == "swapped"]
    return compared[0] if compared else None


def order(model: onnx.ModelProto, values: np.ndarray) -> str:
    compared = looked(model, values)
    assert compared is not None
    return str(compared["order"])


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return networks.coloured()


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return networks.pictures(COUNT)


@pytest.mark.parametrize("bgr", [False, True])
def test_a_handler_that_swaps_channels_is_named_first(bgr: bool, pictures: np.ndarray) -> None:
    """Trained on either order, with a handler that does too much or too little."""
    healthy = networks.coloured(bgr=bgr)
    for graph, wrong in ((healthy, False), (faults.swapped_channels(healthy), True)):
        built = quantize(graph, lambda: iter(frames(pictures[:24])))
        told = diagnose(graph, built.floating, built.model, frames(pictures[:24]), pictures=frames(pictures))
        swapped = [f for f in told["findings"] if "channels look swapped" in f["what"]]
        assert bool(swapped) == wrong
        assert any("Swapped colour channels" in said for said in told["unseen"]) is False
    first = told["culprit"]
    assert first == told["findings"][0] == swapped[0]
    assert (first["cause"], first["severity"], first["layer"]) == ("preprocessing mismatch", "medium", "layer0")
    assert "BGR2RGB" in first["remedy"]
    compared = first["evidence"]["colours"]
    assert compared["misfit_reversed"] < compared["misfit"] / 2
    assert (compared["layer"], compared["pictures"]) == ("layer1", COUNT)


def test_both_directions(model: onnx.ModelProto, pictures: np.ndarray) -> None:
    bgr = networks.coloured(bgr=True)
    assert order(model, pictures) == order(bgr, pictures) == "as in training"
    assert order(model, pictures[..., ::-1]) == order(bgr, pictures[..., ::-1]) == "swapped"


@pytest.mark.parametrize("change", [lambda x: x // 2, lambda x: x // 2 + 64, lambda x: np.minimum(x * 1.4, 255)])
def test_darker_or_brighter_pictures_are_not_swapped(model: onnx.ModelProto, pictures: np.ndarray, change: Any) -> None:
    assert order(model, change(pictures.astype(np.float32)).astype(np.uint8)) != "swapped"


def test_where_the_statistics_say_nothing_nothing_is_guessed(model: onnx.ModelProto, pictures: np.ndarray) -> None:
    swapped = pictures[..., ::-1]
    assert order(model, swapped) == "swapped"
    assert order(model, swapped[:15]) == "not known"  # few
    grey = np.repeat(swapped.mean(axis=-1, keepdims=True), 3, axis=-1).astype(np.uint8)
    assert order(model, grey) == "not known"
    scene = networks.pictures(1)[..., ::-1]
    noise = np.random.default_rng(2).integers(0, 3, (COUNT, 16, 16, 1))
    assert order(model, np.clip(scene.astype(int) + noise, 0, 255).astype(np.uint8)) == "not known"  # of one scene
    assert order(networks.coloured(lean=0.0), swapped) != "swapped"  # trained on pictures of no colour on average
    assert order(networks.coloured(channels=4), swapped) == "not known"  # colours alone explain any mean


def test_a_running_mean_that_training_left_behind_says_nothing(model: onnx.ModelProto, pictures: np.ndarray) -> None:
    """Weights that moved on: the means lie where no colour of the pictures could bring them."""
    known = faults.constants(model)
    moved = faults.copied(model)
    chance = np.random.default_rng(3)
    deviation = np.sqrt(known["layer1.3"])
    off = known["layer1.2"] + 0.3 * deviation * chance.normal(size=len(deviation))
    faults.put(moved, "layer1.2", off.astype(np.float32))
    assert order(moved, pictures) == order(moved, pictures[..., ::-1]) == "not known"


def test_normalization_that_has_not_seen_training_is_no_witness(model: onnx.ModelProto, pictures: np.ndarray) -> None:
    fresh = faults.copied(model)
    faults.put(fresh, "layer1.2", np.zeros(16, np.float32))
    assert looked(fresh, pictures) is None


def test_normalization_folded_into_weights_is_no_witness(pictures: np.ndarray) -> None:
    """What remains is behind another layer, and is not asked."""
    model = networks.coloured()
    norm = next(n for n in model.graph.node if n.name == "layer1")
    reader = next(n for n in model.graph.node if norm.output[0] in n.input)
    reader.input[0] = norm.input[0]
    model.graph.node.remove(norm)
    network = Network(model)

    def unread() -> Iterator[Sample]:
        raise AssertionError("read in vain")
        yield

    assert colours(network, network.first_layers(), unread()) == ([], [])
    built = quantize(model, lambda: iter(frames(pictures[:8])))
    told = diagnose(model, built.floating, built.model, frames(pictures[:8]), pictures=unread())
    assert any("Swapped colour channels" in said for said in told["unseen"])


def test_a_float_input_with_channels_first(model: onnx.ModelProto, pictures: np.ndarray) -> None:
    """As ONNX files of others come: normalized outside, [1, 3, 16, 16]."""
    bare = onnx.utils.Extractor(model).extract_model(["normalize_sub.out"], [model.graph.output[0].name])
    values = pictures.transpose(0, 3, 1, 2)[:, None].astype(np.float32) / np.float32(127.5) - 1
    network = Network(bare)
    for turned, wanted in ((values, "as in training"), (values[:, :, ::-1], "swapped")):
        samples = [{"normalize_sub.out": np.ascontiguousarray(v)} for v in turned]
        assert colours(network, network.first_layers(), samples)[1][0]["order"] == wanted


def test_normalized_twice_comes_alone(model: onnx.ModelProto, pictures: np.ndarray) -> None:
    """Colours are judged where nothing else is wrong with the input."""
    planted = faults.normalized_twice(faults.swapped_channels(model))
    built = quantize(planted, lambda: iter(frames(pictures[:24])))
    told = diagnose(planted, built.floating, built.model, frames(pictures[:24]))
    assert "normalizes twice" in told["culprit"]["what"]
    assert told["preprocessing"]["colours"] == []


def test_pictures_are_read_up_to_a_limit(model: onnx.ModelProto, pictures: np.ndarray) -> None:
    taken = 0

    def stream() -> Iterator[Sample]:
        nonlocal taken
        while True:
            taken += 1
            yield {"frame": pictures[taken % COUNT]}

    built = quantize(model, lambda: iter(frames(pictures[:8])))
    diagnose(model, built.floating, built.model, frames(pictures[:8]), pictures=stream())
    assert taken == PICTURES

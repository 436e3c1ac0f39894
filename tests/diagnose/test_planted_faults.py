"""Every planted fault is the first finding, by layer and cause, wherever in the network it lies."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import pytest
from diagnose import faults, networks
from diagnose.networks import Trained

from edgebuild.stages.diagnose import diagnose
from edgebuild.stages.quantize import Settings, quantize

Findings = dict[str, Any]


@pytest.fixture(scope="module", params=list(networks.NETWORKS))
def subject(request: pytest.FixtureRequest) -> Trained:
    return networks.trained(request.param)


def spread(items: Iterable[int], most: int = 3) -> list[int]:
    """Early, middle and late ones."""
    found = list(items)
    return sorted({found[round(i)] for i in np.linspace(0, len(found) - 1, most)})


def compared(subject: Trained, qdq: onnx.ModelProto) -> Findings:
    """The diagnosis of other integers for the same float network."""
    return diagnose(subject.model, subject.quantized.floating, qdq, subject.samples)


def rebuilt(model: onnx.ModelProto, subject: Trained) -> Findings:
    """The diagnosis of another model, quantized (or passed through) anew."""
    found = quantize(model, lambda: iter(subject.samples))
    return diagnose(model, found.floating, found.model, subject.samples)


def assert_first(diagnosis: Findings, cause: str, *, layer: str = "", tensors: Iterable[str] = ()) -> Findings:
    """The first finding is the culprit and is this one."""
    first: Findings = diagnosis["findings"][0]
    told = [(f["severity"], f["cause"], f["layer"], f["tensor"]) for f in diagnosis["findings"]]
    assert first["cause"] == cause, told
    assert first["severity"] in {"high", "medium"}, told
    assert diagnosis["culprit"] == first
    assert first["what"]
    assert first["remedy"]
    if layer:
        assert first["layer"] == layer, told
    if tensors:
        assert first["tensor"] in set(tensors), told
    return first


def test_a_healthy_network_has_no_fault(subject: Trained) -> None:
    found = compared(subject, subject.quantized.model)
    assert [f for f in found["findings"] if f["severity"] == "high"] == []
    assert found["culprit"] is None or found["culprit"]["severity"] == "medium"
    assert found["output_sqnr_db"] > 20
    tensors = {n.input[0] for n in faults.pairs(subject.quantized.model)}
    assert {row["tensor"] for row in found["network"]} == tensors


def test_a_scale_eight_times_too_large(subject: Trained) -> None:
    qdq = subject.quantized.model
    for number in spread(range(len(faults.pairs(qdq)))):
        planted, tensors = faults.activation_scale(qdq, number, 8)
        first = assert_first(compared(subject, planted), "scale too large", tensors=tensors)
        assert first["severity"] == "high"
        assert 5 < first["evidence"]["ratio"] < 16


def test_a_range_too_narrow(subject: Trained) -> None:
    qdq = subject.quantized.model
    for number in spread(range(len(faults.pairs(qdq)))):
        planted, tensors = faults.activation_scale(qdq, number, 1 / 8)
        first = assert_first(compared(subject, planted), "clipped range", tensors=tensors)
        assert first["evidence"]["clipped_share"] > 0.001
        assert "saturates" in first["what"]


def test_a_calibrated_range_too_narrow(subject: Trained) -> None:
    rows = subject.quantized.report["tensors"]
    row = rows[len(rows) // 2]
    narrow = {row["name"]: (row["min"] / 8, row["max"] / 8)}
    found = quantize(subject.model, lambda: iter(subject.samples), Settings(ranges=narrow))
    diagnosis = diagnose(subject.model, found.floating, found.model, subject.samples)
    assert_first(diagnosis, "clipped range", tensors=[row["name"]])


@pytest.mark.parametrize(("factor", "channel"), [(8, None), (8, 1), (0.125, 2)])
def test_a_weight_scale_that_is_wrong(subject: Trained, factor: float, channel: int | None) -> None:
    layers = [n for n in subject.quantized.model.graph.node if n.op_type in {"Conv", "Gemm"}]
    for number in spread(range(len(layers))):
        planted, name = faults.weight_scale(subject.quantized.model, number, factor, channel)
        first = assert_first(compared(subject, planted), "weight scale wrong", layer=name)
        assert first["evidence"]["channels"] == ([channel] if channel is not None else first["evidence"]["channels"])


def test_both_sides_of_a_pair_differ(subject: Trained) -> None:
    planted, tensor = faults.different_scale(subject.quantized.model, 1, 2)
    assert_first(compared(subject, planted), "scales differ", tensors=[tensor])


def test_a_channel_a_hundred_times_too_large(subject: Trained) -> None:
    for number in spread(range(len(faults.layers(subject.model)))):
        planted, name = faults.large_channel(subject.model, number, 3, 100)
        assert assert_first(rebuilt(planted, subject), "outlier channel", layer=name)["evidence"]["channel"] == 3


def test_a_large_channel_that_the_next_layer_takes_back() -> None:
    subject = networks.trained("plain")
    for number in (0, 1):
        planted, name = faults.large_channel(subject.model, number, 2, 100, compensate=True)
        assert assert_first(rebuilt(planted, subject), "outlier channel", layer=name)["evidence"]["channel"] == 2


@pytest.mark.parametrize("by", ["bias", "weights"])
@pytest.mark.parametrize("name", ["with_norms", "gated"])
def test_a_saturated_layer(name: str, by: str) -> None:
    subject = networks.trained(name)
    for number in spread(faults.saturating(subject.model)):
        planted, layer = faults.saturated(subject.model, number, by=by)
        assert_first(rebuilt(planted, subject), "saturation", layer=layer)


def test_a_handler_that_normalizes_twice(subject: Trained) -> None:
    first = assert_first(rebuilt(faults.normalized_twice(subject.model), subject), "preprocessing mismatch")
    assert first["severity"] == "high"
    assert "normalizes twice" in first["what"]


def test_a_division_by_255_too_much(subject: Trained) -> None:
    """Other constants than the model's own: no step is repeated, but the values say it."""
    steps = [("Div", np.float32(255))]
    planted = faults.inserted(subject.model, "normalize_sub", steps)
    assert assert_first(rebuilt(planted, subject), "preprocessing mismatch")["severity"] == "high"


def test_batch_normalization_remembers_what_it_was_trained_on() -> None:
    """A missing division: the values look usual by themselves, the statistics do not fit."""
    subject = networks.trained("with_norms")
    planted = faults.inserted(subject.model, "normalize_sub", [("Mul", np.float32(0.15))])
    first = assert_first(rebuilt(planted, subject), "preprocessing mismatch")
    assert "remembers training data" in first["what"]


class TestPassedThrough:
    """A QDQ file: the float network is known from its integers only."""

    def test_a_scale_eight_times_too_large(self, subject: Trained) -> None:
        qdq = subject.quantized.model
        for number in spread(range(len(faults.pairs(qdq)))):
            planted, tensors = faults.activation_scale(qdq, number, 8)
            assert_first(rebuilt(planted, subject), "scale too large", tensors=tensors)

    def test_a_range_too_narrow(self, subject: Trained) -> None:
        qdq = subject.quantized.model
        for number in spread(range(len(faults.pairs(qdq)))):
            planted, tensors = faults.activation_scale(qdq, number, 1 / 8)
            assert_first(rebuilt(planted, subject), "clipped range", tensors=tensors)

    @pytest.mark.parametrize("channel", [None, 1])
    def test_a_weight_scale_that_is_wrong(self, subject: Trained, channel: int | None) -> None:
        layers = [n for n in subject.quantized.model.graph.node if n.op_type in {"Conv", "Gemm"}]
        for number in spread(range(len(layers))):
            planted, name = faults.weight_scale(subject.quantized.model, number, 8, channel)
            assert_first(rebuilt(planted, subject), "weight scale wrong", layer=name)

    def test_a_healthy_one_has_no_fault(self, subject: Trained) -> None:
        found = rebuilt(subject.quantized.model, subject)
        assert [f for f in found["findings"] if f["severity"] == "high"] == []


def test_memory_does_not_grow_with_the_samples() -> None:
    """What is taken of a stream has a limit."""
    subject = networks.trained("plain")
    taken = 0

    def stream() -> Iterable[networks.Sample]:
        nonlocal taken
        while True:
            taken += 1
            yield subject.samples[taken % len(subject.samples)]

    found = diagnose(subject.model, subject.quantized.floating, subject.quantized.model, stream(), limit=6)
    assert (found["samples"], taken) == (6, 6)


def test_few_samples_are_told() -> None:
    subject = networks.trained("plain")
    model, quantized = subject.model, subject.quantized
    found = diagnose(model, quantized.floating, quantized.model, subject.samples, calibrated_on=3)
    assert ("few samples", "medium") in [(f["cause"], f["severity"]) for f in found["findings"]]

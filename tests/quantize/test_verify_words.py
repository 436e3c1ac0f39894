"""16-bit activations in graphs that are quantized already."""

from importlib import import_module

import numpy as np
import pytest
from conformance.graphs import CASES, Builder, merged

from edgebuild.core.errors import ModelError

verify = import_module("edgebuild.stages.quantize.verify")  # the package exports the function of that name


def _mixed(b: Builder) -> str:
    """One scale and one number as zero point, of three types."""
    parts = [b.words(b.input(2, 3), 0.01, 117, dtype) for dtype in (np.uint8, np.uint16, np.int16, np.uint16)]
    return b.node("Concat", *parts, axis=0)


def test_16_bits_are_accepted() -> None:
    verify.verify(merged({name: build for name, build in CASES.items() if name.startswith("words_poi")}))
    verify.verify(merged({"mixed": _mixed}))


def test_parameters_of_other_types_are_not_shared() -> None:
    shared = verify.share_parameters(merged({"mixed": _mixed}))
    used = [tuple(node.input[1:]) for node in shared.graph.node if node.op_type == "QuantizeLinear"]
    assert used[1] == used[3]
    assert len(set(used)) == 3


def test_ranges_are_those_of_the_type() -> None:
    rows = verify.activation_tensors(merged({"mixed": _mixed}))
    scale = float(np.float32(0.01))
    ends = [(-117, 138), (-117, 65_418), (-32_885, 32_650), (-117, 65_418)]
    assert [(row["min"], row["max"]) for row in rows] == [(low * scale, high * scale) for low, high in ends]


def test_int8_activations_are_still_refused() -> None:
    with pytest.raises(ModelError, match="an activation is int8; uint8, uint16 and int16 are supported"):
        verify.verify(merged({"case": lambda b: b.words(b.input(2, 3), 0.01, 5, np.int8)}))

"""What the end of a build says of layers that fell back and of a network that is float32 as a whole."""

import itertools
from typing import Any

import pytest

from edgebuild import report, views

NUMBERS = itertools.count()


def row(precision: str, cost_us: float | None, keys: str = "") -> dict[str, Any]:
    named = list(keys) or [f"c{next(NUMBERS)}"]
    cost = {} if cost_us is None else {"cost_us": cost_us}
    return {"layer": "conv", "keys": named, "precision": precision} | cost


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], ""),
        ([row("int16", 1.04)], "1 layer: 1 int16, +1.0 µs"),
        ([row("int16", 1.0), row("float32", 2.6), row("int16", 0.8)], "3 layers: 2 int16, 1 float32, +4.4 µs"),
        ([row("float32", 1234.4), row("float32", 0.3)], "2 layers: 2 float32, +1,235 µs"),
        ([row("int16", -0.3)], "1 layer: 1 int16, -0.3 µs"),
        ([row("int16", 1.0, "abc"), row("float32", 2.0, "b")], "3 layers: 2 int16, 1 float32, +3.0 µs"),
        ([row("int16", None), row("int16", None)], "2 layers: 2 int16; as recipe.lock says"),
    ],
)
def test_layers_that_fell_back(rows: list[dict[str, Any]], line: str) -> None:
    assert views.fallback_line({"quantization": {"fallback": rows}}) == line
    assert views.fallback_line({}) == ""


ACCURACY = {
    "metric": "top1", "unit": "%", "float": 99.0, "int8": 98.5, "drop": 0.5, "interval": [0.1, 0.9], "samples": 400,
    "agreement": None, "kl": None, "sqnr_db": None, "data": "test", "engine": "edgebuild-run", "budget": "met",
}  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "rows", "kind"),
    [
        ("int8", [], "INT8"),
        ("int8", [row("int16", 1.0), row("int16", None)], "INT8 with int16 layers"),
        ("int8", [row("float32", 1.0)], "INT8 with float32 layers"),
        ("int8", [row("float32", 1.0), row("int16", 1.0)], "INT8 with int16 and float32 layers"),
        ("float32", [], "compiled float32"),
    ],
)
def test_accuracy_says_what_was_measured(chosen: str, rows: list[dict[str, Any]], kind: str) -> None:
    found = {"precision": {"chosen": chosen}, "quantization": {"fallback": rows}, "accuracy": ACCURACY}
    assert report.shipped(found) == kind
    assert f"top1: float 99.00 %, {kind} 98.50 % (drop 0.50, 95 % interval" in views.accuracy_line(found)
    found["accuracy"] = ACCURACY | {"metric": "cosine", "int8": 0.9}
    assert views.accuracy_line(found).startswith(f"cosine of {kind} and float outputs 0.90000 over 400 ")


def test_a_report_of_an_earlier_version() -> None:
    assert views.accuracy_line({"accuracy": ACCURACY}).startswith("top1: float 99.00 %, INT8 98.50 % ")


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"chosen": "int8"}, ""),
        ({"chosen": "int8", "int8_us": 41.0, "float32_us": 55.0}, ""),
        ({"chosen": "float32", "int8_us": 55.2, "float32_us": 41.4}, "float32: 41 µs against 55 µs in INT8"),
        ({"chosen": "float32", "int8_us": 5.51, "float32_us": 4.1}, "float32: 4.1 µs against 5.5 µs in INT8"),
        ({"chosen": "float32"}, "float32, as the recipe or its lock says"),
    ],
)
def test_a_network_in_float32(found: dict[str, Any], line: str) -> None:
    assert views.precision_line({"precision": found}) == line
    assert views.precision_line({}) == ""

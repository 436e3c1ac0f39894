"""The page: whole, self-contained, and nothing in it that a model's names could make of it."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from diagnose import faults, networks

from edgebuild import page
from edgebuild.stages.diagnose import diagnose

VOID = {"meta"}


class Checker(HTMLParser):
    """Tags are closed in the order in which they were opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


@pytest.fixture(scope="module")
def diagnosis() -> dict[str, Any]:
    """Of a network with one scale eight times too large."""
    subject = networks.trained("plain")
    planted, _ = faults.activation_scale(subject.quantized.model, 2, 8)
    return diagnose(subject.model, subject.quantized.floating, planted, subject.samples)


@pytest.fixture
def report(diagnosis: dict[str, Any]) -> dict[str, Any]:
    """A report as a build writes it."""
    return {
        "name": "digits", "version": "1.0.0", "target": "host", "quality": "trained", "checked": True,
        "check_reason": "", "signer": "0123456789ABCDEF",
        "accuracy": {"metric": "top1", "unit": "%", "float": 99.0, "int8": 98.5, "drop": 0.5, "interval": [0.1, 0.9],
                     "samples": 400, "agreement": 99.2, "kl": 0.01, "sqnr_db": 30.0, "data": "test",
                     "engine": "edgebuild-run", "budget": "met"},
        "size": {"float_bytes": 4000, "int8_bytes": 1000, "ratio": 0.25},
        "latency_us": {"min": 20.0, "median": 21.0, "p99": 30.0}, "latency_reason": "",
        "macs": {"total": 1000, "integer": 1000}, "float_operators": [{"name": "softmax", "kind": "softmax"}],
        "arena_bytes": 5000, "scratch_bytes": 10, "runtime_bytes": 130000, "bundle_bytes": 200000,
        "seconds": {"ingest": 1.0, "quantize": 2.0},
        "parity": {"samples": 4, "max_relative_error": {"logits": 1e-7}, "decided_by_rounding": []},
        "quantization": {"passed_through": False, "samples": 64, "observer": "mse", "tensors": [], "quantized": [],
                         "float": [{"operator": "Softmax", "name": "softmax", "reason": "nothing follows"}],
                         "fallback": [{"layer": "layer4", "precision": "int16", "gain": 0.3, "cost_us": 12.5}]},
        "diagnosis": json.loads(json.dumps(diagnosis)),
    }  # fmt: skip


def test_it_answers_what_a_reader_asks(report: dict[str, Any]) -> None:
    html = page.render(report)
    checker = checked(html)
    text = re.sub(r"<[^>]+>", " ", html.split("</style>", 1)[1])
    culprit = report["diagnosis"]["culprit"]
    for said in (
        "digits 1.0.0 for host", "INT8 with int16 layers loses 0.50 points", "0.10 to 0.90", "within the budget",
        "Scale too large", culprit["layer"], culprit["remedy"].split(":")[0], "Along the network", "layer4", "int16",
        "12.5", "edgebuild-run", "the same answer for 99.20 %", "largest relative error 1e-07", "nothing follows",
    ):  # fmt: skip
        assert said in text, said
    tags = [tag for tag, _ in checker.tags]
    assert tags.count("svg") == 1 + len(report["diagnosis"]["worst"])
    assert tags.count("polyline") == 2
    assert tags.count("circle") == 2 * len(report["diagnosis"]["network"])


def test_it_is_one_file(report: dict[str, Any]) -> None:
    html = page.render(report)
    checker = checked(html)
    assert not {tag for tag, _ in checker.tags} & {"link", "img", "script", "iframe", "object"}
    assert not [a for _, given in checker.tags for a in given if a in {"src", "href"} or a.startswith("on")]
    assert "url(" not in html
    assert "@import" not in html
    assert len(html) < 500_000


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a&b 'c'", "日本"])
def test_names_stay_text(report: dict[str, Any], name: str) -> None:
    def hostile(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: hostile(item) for key, item in value.items()}
        if isinstance(value, list):
            return [hostile(item) for item in value]
        return f"{value}{name}" if isinstance(value, str) else value

    changed = report | {
        "diagnosis": hostile(report["diagnosis"]),
        "name": name,
        "quantization": hostile(report["quantization"]),
    }
    html = page.render(changed)
    before = [tag for tag, _ in checked(page.render(report)).tags]
    assert {tag for tag, _ in checked(html).tags} == set(before)
    assert "<script" not in html


def test_a_report_without_a_diagnosis_is_shown(report: dict[str, Any]) -> None:
    del report["diagnosis"]
    assert "No diagnosis" in page.render(report)
    assert "No diagnosis: no session" in page.render(report | {"diagnosis": {"failed": "no session"}})
    checked(page.render({"name": "a", "version": "1", "target": "host"}))


def test_no_fault_is_said(report: dict[str, Any]) -> None:
    diagnosis = report["diagnosis"]
    diagnosis["findings"] = [f for f in diagnosis["findings"] if f["severity"] == "low"]
    diagnosis["culprit"] = None
    assert "No fault found" in page.render(report)


@pytest.mark.parametrize(
    ("accuracy", "said"),
    [
        ({"metric": "cosine", "float": 1.0, "int8": 0.999, "drop": 0.001}, "cosine 0.99900"),
        (
            {"metric": "map", "unit": "", "float": 0.34, "int8": 0.33, "drop": 0.01},
            "layers loses 0.0100 map",
        ),
        ({"drop": -0.25}, "layers gains 0.25 points"),
        ({"drop": 0.0}, "layers keeps the top1"),
        ({"budget": "not judged: no labels"}, "budget not judged"),
    ],
)
def test_the_verdict_in_a_sentence(report: dict[str, Any], accuracy: dict[str, Any], said: str) -> None:
    assert said in page.render(report | {"accuracy": report["accuracy"] | accuracy})


FLOAT32: dict[str, Any] = {"precision": {"chosen": "float32"}, "quantization": {"fallback": []}}


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"quantization": {"fallback": []}}, "INT8"),
        ({}, "INT8 with int16 layers"),
        (FLOAT32, "compiled float32"),
    ],
)
def test_it_says_what_is_shipped(report: dict[str, Any], changed: dict[str, Any], kind: str) -> None:
    html = page.render(report | changed)
    for said in (
        f"{kind[0].upper()}{kind[1:]} loses 0.50 points of top1", f">top1 in {kind}, 400 held-out",
        f"Runtime, {kind} in edgebuild-run", f"outputs, {kind} against float<",
    ):  # fmt: skip
        assert said in html, said
    report["accuracy"] |= {"metric": "cosine", "drop": 0.0}
    assert f"cosine of {kind} and float outputs" in page.render(report | changed)

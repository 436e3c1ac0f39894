import itertools
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from edgebuild.bench import chart
from edgebuild.bench.case import Case
from edgebuild.bench.profile import by_kind, profile

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def found(case: Case) -> dict[str, Any]:
    return profile(case, 1)


def test_every_operator_stands_beside_its_limits(case: Case, found: dict[str, Any]) -> None:
    assert [op["name"] for op in found["ops"]] == [op.name for op in case.plan.ops]
    assert sum(op["share"] for op in found["ops"]) == pytest.approx(1.0, abs=0.01)
    assert any(op["bound"] == "compute" or op["compute_us"] for op in found["ops"])
    for op in found["ops"]:
        assert op["roofline_us"] == max(op["compute_us"] or 0.0, op["memory_us"])
        assert op["bytes"] > 0


def test_kinds_add_up(found: dict[str, Any]) -> None:
    kinds = by_kind(found)
    assert sum(kind["us"] for kind in kinds) == pytest.approx(found["total_us"], abs=0.1)
    assert sum(kind["count"] for kind in kinds) == len(found["ops"])
    assert [kind["us"] for kind in kinds] == sorted((kind["us"] for kind in kinds), reverse=True)


def many(count: int) -> dict[str, Any]:
    """A profile with long names that hold characters XML reserves."""
    ops = [
        {
            "name": f"model.features.{i}.block<&>.0.conv.with.a.name.that.is.longer.than.its.column.Conv",
            "kind": f"kind{i % 11}",
            "us": 1.0 + i,
            "share": 0.01,
            "macs": 1000 * i,
            "gmacs": 1.0,
            "bytes": 64,
            "compute_us": 0.5,
            "memory_us": 0.1,
            "roofline_us": 0.5 + 2 * i,
            "bound": "compute",
        }
        for i in range(count)
    ]
    head = {"model": "many", "target": "host", "threads": 2, "instruction": "dot", "peak_gmacs": 100.0, "gbytes": {}}
    return {**head, "total_us": sum(op["us"] for op in ops), "roofline_us": 10.0, "ops": ops}


@pytest.mark.parametrize("count", [1, 21, 160])
def test_the_chart_is_an_image_that_holds_every_operator_twice(count: int) -> None:
    root = ET.fromstring(chart.svg(many(count)))
    groups = [group for group in root.iter(f"{SVG}g") if group.find(f"{SVG}title") is not None]
    assert len(groups) == 2 * count
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for rect in root.iter(f"{SVG}rect"):
        assert float(rect.attrib.get("x", 0)) + float(rect.attrib["width"]) <= width + 0.1
        assert float(rect.attrib.get("y", 0)) + float(rect.attrib["height"]) <= height


def test_labels_do_not_overlap() -> None:
    root = ET.fromstring(chart.svg(many(160)))
    texts = [(float(t.attrib["x"]), float(t.attrib["y"]), t.attrib["text-anchor"]) for t in root.iter(f"{SVG}text")]
    names = sorted(y for x, y, anchor in texts if anchor == "end" and x < 400)
    assert len(names) == 160
    assert min(later - earlier for earlier, later in itertools.pairwise(names)) >= 14
    longest = max(len(t.text or "") for t in root.iter(f"{SVG}text") if t.attrib["text-anchor"] == "end")
    assert longest * 6.3 < 270


def test_an_empty_profile_draws() -> None:
    assert chart.svg(many(0)).startswith("<svg")

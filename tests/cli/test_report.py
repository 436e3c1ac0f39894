"""`edgebuild report`: the page of a build, found beside its bundle."""

import json
import webbrowser
from pathlib import Path
from typing import Any

import pytest

WHOLE = '{"name": "a", "version": "1", "target": "b", %s}'
FINDING = {
    "cause": "outlier channel", "severity": "high", "layer": "conv [2]", "tensor": "t", "operator": "Conv",
    "what": "Channel 3 of conv [2] is 100 times as large.", "remedy": "Look at it.", "score_db": 40.0, "evidence": {},
}  # fmt: skip
DIAGNOSIS = {
    "samples": 2, "output_sqnr_db": 12.0, "probes": [], "network": [], "weights": [], "worst": [], "suspects": [],
    "preprocessing": {"inputs": [], "normalization": []}, "findings": [FINDING], "culprit": FINDING, "unseen": [],
}  # fmt: skip


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A bundle with its report."""
    report = {"name": "gate", "version": "1.0.0", "target": "host", "diagnosis": DIAGNOSIS}
    (tmp_path / "gate-1.0.0-host.report.json").write_text(json.dumps(report))
    bundle = tmp_path / "gate-1.0.0-host.ebundle"
    bundle.write_bytes(b"")
    return bundle


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a browser was asked to show."""
    found: list[str] = []
    monkeypatch.setattr(webbrowser, "open", found.append)
    monkeypatch.setenv("DISPLAY", ":0")
    return found


def test_it_opens_the_page(edgebuild: Any, built: Path, opened: list[str]) -> None:
    ran = edgebuild("report", built)
    page = built.with_name("gate-1.0.0-host.report.html")
    assert ran.code == 0
    assert opened == [page.as_uri()]
    assert "Outlier channel" in page.read_text()
    said = " ".join(ran.out.split())
    assert "outlier channel: Channel 3 of conv [2] is 100 times as large." in said
    assert "Look at it." in said


def test_without_a_display_it_names_the_page(
    edgebuild: Any, built: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    ran = edgebuild("report", built)
    assert (ran.code, opened) == (0, [])
    assert "gate-1.0.0-host.report.html" in "".join(ran.out.split())


def test_no_open_output_and_json(edgebuild: Any, built: Path, opened: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    report = built.with_name("gate-1.0.0-host.report.json")
    assert edgebuild("report", report, "--no-open", "--output", page).code == 0
    assert page.is_file()
    assert not report.with_suffix(".html").exists()
    assert edgebuild("report", built, "--json").json == json.loads(report.read_text())
    assert opened == []


def test_a_page_that_is_there_already_is_left_alone(edgebuild: Any, built: Path, opened: list[str]) -> None:
    edgebuild("report", built)
    page = built.with_name("gate-1.0.0-host.report.html")
    before = page.stat().st_mtime_ns
    edgebuild("report", page)
    assert page.stat().st_mtime_ns == before
    assert len(opened) == 2


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("missing.ebundle", None, 2, "no such file"),
        ("alone.ebundle", "", 2, "there is no report beside it: alone.report.json"),
        ("missing.report.json", None, 9, "No such file or directory"),
        ("odd.report.json", "{", 2, "is no report"),
        ("odd.report.json", "[]", 2, "it has no key 'name'"),
        ("odd.report.json", '{"name": "a", "version": 1, "target": "b"}', 2, "it has no key 'version'"),
        ("odd.report.json", WHOLE % '"diagnosis": 3', 2, "cannot be shown"),
        ("odd.report.json", WHOLE % '"accuracy": {"metric": 3}', 2, "cannot be shown"),
        ("odd.txt", "", 2, "is neither a bundle nor a report"),
    ],
)
def test_what_is_no_report_is_refused(
    edgebuild: Any, tmp_path: Path, name: str, content: str | None, code: int, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    ran = edgebuild("report", path)
    assert ran.code == code
    assert said in ran.err
    assert "hint: " in ran.err


def test_a_folder_that_is_not_ours(edgebuild: Any, built: Path, opened: list[str], tmp_path: Path) -> None:
    ran = edgebuild("report", built, "--output", tmp_path / "nowhere" / "page.html")
    assert ran.code == 9
    assert "hint: choose another folder" in ran.err

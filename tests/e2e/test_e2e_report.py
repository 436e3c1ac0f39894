"""A build writes its report as a page, and names the fault that was planted in its handler."""

import json
import shutil
from pathlib import Path

import pytest
from builds import Machine

from edgebuild.core.resources import resource

ONCE = "    return small / 127.5 - 1"
TWICE = "    return (small / 127.5 - 1) / 127.5 - 1"


@pytest.fixture
def twice(machine: Machine) -> Path:
    """The digits, trained as they are, but compiled with a handler that normalizes twice."""
    folder = machine.home / "digits"
    shutil.copytree(resource("recipes") / "digits", folder)
    handler = folder / "function.py"
    (folder / "training.py").write_text(handler.read_text())
    model = folder / "model.py"
    model.write_text(model.read_text().replace("from function import", "from training import"))
    handler.write_text(handler.read_text().replace(ONCE, TWICE))
    assert TWICE in handler.read_text()
    return folder


def test_a_handler_that_normalizes_twice_is_named_first(machine: Machine, twice: Path) -> None:
    built = machine.compile(twice, "--target", "host", "--out", "out")
    first = built.report["diagnosis"]["findings"][0]
    assert (first["cause"], first["severity"]) == ("preprocessing mismatch", "high")
    page = built.bundle.with_name(built.bundle.name.removesuffix(".ebundle") + ".report.html")
    assert "Preprocessing mismatch" in page.read_text()
    assert len(page.read_bytes()) < 500_000
    assert len(json.dumps(built.report)) < 1_000_000
    shown = machine.edgebuild("report", built.bundle, "--no-open").stdout
    assert "preprocessing mismatch" in " ".join(shown.split())

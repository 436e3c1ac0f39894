import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime"))  # for tiny, store, published

import tiny
from machine import HOST
from power.calls import build_shim
from power.operations import Releases
from power.sweep import Bench, scratch_root


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    built = tmp_path_factory.mktemp("built")
    with tempfile.TemporaryDirectory(prefix="power-", dir=scratch_root()) as name:
        releases = Releases(Path(name), tiny.program_so(built, f"{HOST}-linux-gnu"))
        yield Bench(build_shim(built), Path(name), releases)

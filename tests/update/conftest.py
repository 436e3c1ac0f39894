from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import Edgebuild, edgebuild
from networks import GRAPH, Release, samples, values, write

__all__ = ["edgebuild"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with samples, and a configuration of its own."""
    folder = tmp_path_factory.mktemp("update")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        patch.delenv("EDGEBUILD_KEY", raising=False)
        samples(folder / "c.npz")
        yield folder


@pytest.fixture
def compiled(edgebuild: Edgebuild, place: Path) -> Callable[..., Release]:
    """Compiles the network with these values."""

    def run(given: Any, version: str, *options: object, calibration: str = "c.npz", graph: str = GRAPH) -> Release:
        path = write(place / "net.onnx", given, graph)
        out = place / version
        named = ("--name", "net", "--version", version, "--calibration", place / calibration, "--out", out)
        ran = edgebuild("compile", path, *named, "--json", *options)
        assert ran.code == 0, ran.err
        return Release(out / f"net-{version}-host.ebundle", ran.json)

    return run


@pytest.fixture
def old(compiled: Callable[..., Release]) -> Release:
    """The first release; built once a module, by the cache."""
    return compiled(values(), "1.0.0")


@pytest.fixture
def refused(edgebuild: Edgebuild, place: Path) -> Callable[..., str]:
    """The error of a compilation that must fail; nothing is written."""

    def run(code: int, *options: object, graph: str = GRAPH, version: str = "2.0.0", given: Any = None) -> str:
        path = write(place / "net.onnx", given or values(), graph)
        out = place / "refused"
        named = ("--name", "net", "--version", version, "--calibration", place / "c.npz", "--out", out)
        ran = edgebuild("compile", path, *named, *options)
        assert ran.code == code, ran.err
        assert not list(out.glob("*")) if out.exists() else True
        return ran.err

    return run

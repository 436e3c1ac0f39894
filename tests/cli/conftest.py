from pathlib import Path

import pytest
from command_line import Edgebuild, Ran, edgebuild

__all__ = ["Edgebuild", "Ran", "edgebuild"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of its own, and a working folder without a recipe."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("EDGEBUILD_KEY", raising=False)
    monkeypatch.delenv("EDGEBUILD_KEY_PASSWORD", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path

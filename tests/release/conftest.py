"""Two releases, made once for all tests of this folder."""

import shutil
from pathlib import Path

import pytest
from releases import KEY, TARGETS, Home, run, stage_cache, write_recipe

from edgebuild.core import keys


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp("release")
    key, trust = folder / "release.key", folder / "trust"
    keys.write_new(key, KEY)
    trust.write_bytes(KEY.public.file())
    variables = {
        "EDGEBUILD_CACHE": str(stage_cache(folder / "cache")),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "EDGEBUILD_KEY": str(key),
        "COLUMNS": "200",
    }
    recipe, tuned = write_recipe(folder / "recipe"), write_recipe(folder / "tuned", 0.5)
    first, second = folder / "1", folder / "2"
    made = run("release", recipe, "--targets", TARGETS, "--out", first, "--made", "2026-01-31", **variables)
    assert made.code == 0, made.err
    arguments = ("--targets", TARGETS, "--previous", first, "--version", "1.1.0", "--out", second, "--made")
    said = run("release", tuned, *arguments, "2026-02-28", "--expires", "+90d", **variables)
    assert said.code == 0, said.err
    return Home(folder, variables, recipe, tuned, key, trust, first, second, said)


@pytest.fixture
def copy(home: Home, tmp_path: Path) -> Path:
    """A copy of the second release, to be damaged."""
    return shutil.copytree(home.second, tmp_path / "copy")

"""A network of full size through the command line: size, integer share, cache. `make bench` measures times."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import shared_data
from builds import Machine

from edgebuild.core.cache import cache_dir


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe with the weights of ../shared/data."""
    return shared_data.mobilenetv2_recipe(tmp_path_factory.mktemp("mobilenetv2") / "recipe")


@pytest.fixture(scope="module")
def cold(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """An empty cache, but for the native runtime: the bar is about the model."""
    home = tmp_path_factory.mktemp("cold")
    (home / "cache").mkdir()
    for name in ("runtime", "libsodium"):
        if (cache_dir() / name).is_dir():
            shutil.copytree(cache_dir() / name, home / "cache" / name)
    return Machine(home, home / "cache")


def test_build_share_and_latency(recipe: Path, cold: Machine) -> None:
    pictures = shared_data.require(shared_data.ROOT / "imagenet-sample-500" / "images")
    arguments = (recipe, "--target", "host", "--samples", "64", "--calibration", pictures, "--out", "out")
    built = cold.compile(*arguments)
    report = built.report
    assert report["checked"] is True
    assert report["size"]["ratio"] <= 0.28
    assert report["macs"]["integer"] == report["macs"]["total"]
    assert cold.compile(*arguments).data == built.data

    found = json.loads(cold.edgebuild("inspect", built.bundle, "--json").stdout)
    assert all(op["integer"] for op in found["ops"] if op["macs"])
    measured = cold.compile(*arguments, "--baseline").report["baseline"]
    sys.stdout.write(f"seconds per stage, cold: {report['seconds']}\nlatency in turns, microseconds: {measured}\n")

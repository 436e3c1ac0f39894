"""The bars of a network of full size: time to build, integer share, latency."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import shared_data
from builds import Machine

from edgebuild.core.cache import cache_dir

COLD_SECONDS = 90.0
WARM_SECONDS = 2.0
SLOWER_THAN_ONNXRUNTIME = 2.0


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
    assert sum(report["seconds"].values()) <= COLD_SECONDS, report["seconds"]

    start = time.perf_counter()
    again = cold.compile(*arguments)
    assert time.perf_counter() - start <= WARM_SECONDS
    assert again.data == built.data

    found = json.loads(cold.edgebuild("inspect", built.bundle, "--json").stdout)
    assert all(op["integer"] for op in found["ops"] if op["macs"])
    measured = cold.compile(*arguments, "--baseline").report["baseline"]
    assert measured["edgebuild"]["min"] <= SLOWER_THAN_ONNXRUNTIME * measured["onnxruntime"]["min"], measured
    sys.stdout.write(f"seconds per stage, cold: {report['seconds']}\nlatency in turns, microseconds: {measured}\n")

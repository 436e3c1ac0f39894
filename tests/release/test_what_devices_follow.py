"""A device follows what `edgebuild release` wrote: `edgebuild-run follow` takes the delta, and what it has runs."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from releases import OTHER, Home

from edgebuild.core.target_file import load_target
from edgebuild.stages.runtime import runtime_binary


@pytest.fixture(scope="module")
def next_release(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that no clock finds expired."""
    out = tmp_path_factory.mktemp("next") / "release"
    words = ("release", home.tuned, "--targets", "host", "--previous", home.first, "--version", "1.2.0", "--out", out)
    ran = home.run(*words, "--made", "2026-03-01", "--expires", "9999-12-31")
    assert ran.code == 0, ran.err
    return out


def run(*words: object) -> subprocess.CompletedProcess[str]:
    program = runtime_binary(load_target("host").triple)
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)


def follow(*words: object) -> Any:
    done = run("follow", *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[0])


def test_the_first_as_a_whole_and_the_second_as_a_delta(home: Home, next_release: Path, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store", "--trust", home.trust)
    whole = follow(home.first, *store, "--target", "host")
    assert (whole["up_to_date"], whole["delta"]) == (False, False)
    assert follow(home.first, *store)["up_to_date"]
    delta = follow(next_release, *store)
    assert (delta["up_to_date"], delta["delta"]) == (False, True)
    (listed,) = json.loads((next_release / "release.json").read_text())["bundles"]
    said = json.loads(run("status", *store[:2], "--json").stdout)
    assert listed["id"] in json.dumps(said)
    back = run("follow", home.first, *store)
    assert back.returncode != 0  # the counter never falls


def test_a_release_of_another_key_is_not_followed(home: Home, tmp_path: Path) -> None:
    (tmp_path / "trust").write_bytes(OTHER.public.file())
    words = ("--store", tmp_path / "store", "--trust", tmp_path / "trust", "--target", "host")
    done = run("follow", home.first, *words)
    assert done.returncode != 0
    assert "signed by the key" in done.stderr

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgebuild.bench.case import Case
from edgebuild.bench.peers import PEERS

ROW = {"engine", "variant", "version", "threads", "min_ms", "median_ms", "p99_ms", "sd_ms", "first_result_ms"}


def spawn(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgebuild", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "120"})
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--against", "onnxruntim"], 2, "--against onnxruntim: no such peer\nhint: did you mean 'onnxruntime'"),
        (["--threads", "0"], 2, "--threads 0: this process may use"),
        (["--threads", "99"], 2, "--threads 99: this process may use"),
        (["--threads", "1,1"], 2, "--threads: name each number of threads once"),
        (["--threads", "one"], 2, "--threads one: no list of numbers"),
        (["--target", "jetson"], 2, "digits for jetson: this machine is "),
    ],
)
def test_wrong_options_are_refused_before_anything_is_built(options: list[str], code: int, said: str) -> None:
    assert said in spawn("bench", "digits", *options, code=code).stderr


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
def test_a_peer_that_is_named_must_be_there(peer) -> None:
    if not peer.missing():
        pytest.skip(f"{peer.name} is installed")
    said = spawn("bench", "digits", "--against", peer.name, code=9).stderr
    assert said == f"error: --against {peer.name}: {peer.missing()} is not installed\nhint: {peer.install}\n"


@pytest.mark.parametrize("command", ["bench", "profile"])
def test_a_bundle_that_is_not_there(command: str, tmp_path: Path) -> None:
    said = spawn(command, tmp_path / "no.ebundle", code=9).stderr
    assert said.startswith(f"error: {tmp_path}/no.ebundle: No such file or directory")


@pytest.mark.parametrize("command", ["bench", "profile"])
def test_a_file_that_is_no_bundle(command: str, tmp_path: Path) -> None:
    (tmp_path / "bad.ebundle").write_bytes(b"no bundle")
    assert f"{tmp_path}/bad.ebundle: " in spawn(command, tmp_path / "bad.ebundle", code=8).stderr


def test_a_recipe_against_onnx_runtime(recipe: Path) -> None:
    options = ("--untrained", "--against", "onnxruntime", "--threads", "1", "--runs", "10", "--json")
    found = json.loads(spawn("bench", recipe, *options).stdout)
    assert found["model"] == "tiny"
    assert all(set(row) >= ROW for row in found["rows"])
    assert {(row["engine"], row["variant"]) for row in found["rows"]} == {
        ("edgebuild", "qdq"),
        ("onnxruntime", "qdq"),
        ("onnxruntime", "own"),
        ("onnxruntime", "float32"),
    }
    peers = [row["min_ms"] for row in found["rows"] if row["engine"] == "onnxruntime"]
    assert found["best_peer"]["min_ms"] == min(peers)
    assert found["ratio"] == pytest.approx(min(peers) / found["rows"][0]["min_ms"], abs=0.01)
    assert 0 < found["peak_share"] < 1
    assert found["macs"] > 0
    assert found["bytes_moved"] > 0
    assert all(row["runs"] >= 10 for row in found["rows"])


def test_a_bundle_alone_is_timed_and_says_why_no_peer_is(case: Case) -> None:
    options = ("--trust", case.trust, "--threads", "1", "--runs", "10")
    found = json.loads(spawn("bench", case.bundle, *options, "--json").stdout)
    assert [row["engine"] for row in found["rows"]] == ["edgebuild"]
    assert (found["best_peer"], found["ratio"]) == (None, None)
    reasons = {item["engine"]: item["reason"] for item in found["unavailable"]}
    assert set(reasons) == set(PEERS)
    assert reasons["onnxruntime"].startswith("a bundle holds no model that a peer can read")
    text = " ".join(spawn("bench", case.bundle, *options).stdout.split())
    assert "no peer ran" in text
    assert "name its recipe or .onnx file" in text


def test_profile_prints_json_tables_and_a_picture(case: Case, tmp_path: Path) -> None:
    picture = tmp_path / "profile.svg"
    found = json.loads(spawn("profile", case.bundle, "--trust", case.trust, "--json", "-o", picture).stdout)
    assert len(found["ops"]) == len(case.plan.ops)
    assert picture.read_text().startswith("<svg")
    text = spawn("profile", case.bundle, "--trust", case.trust).stdout
    assert all(op.name in text for op in case.plan.ops)


def test_a_picture_that_cannot_be_written(case: Case, tmp_path: Path) -> None:
    where = tmp_path / "no" / "p.svg"
    assert str(where) in spawn("profile", case.bundle, "--trust", case.trust, "-o", where, code=9).stderr


def test_a_recipe_in_float32(recipe: Path, tmp_path: Path) -> None:
    """Its rows are not called quantized, and peers do not run the same model twice."""
    copy = shutil.copytree(recipe, tmp_path / "tiny")
    text = (copy / "recipe.toml").read_text()
    (copy / "recipe.toml").write_text(text.replace("[model]", '[model]\nprecision = "float32"'))
    options = ("--untrained", "--against", "onnxruntime", "--threads", "1", "--runs", "10", "--json")
    found = json.loads(spawn("bench", copy, *options).stdout)
    assert {(row["engine"], row["variant"]) for row in found["rows"]} == {
        ("edgebuild", "float32"),
        ("onnxruntime", "own"),
        ("onnxruntime", "float32"),
    }

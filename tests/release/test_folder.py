"""The folder that a release is built in: what a killed build left goes, and what another one works in stays."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import edgebuild
from edgebuild.release import folder

ROOT = Path(edgebuild.__file__).resolve().parents[1]
BUILDS = """
import pathlib, sys
from edgebuild.release import folder
with folder.staged(pathlib.Path(sys.argv[1])) as stage:
    (stage / "half").write_bytes(b"x")
    print(stage.name, flush=True)
    sys.stdin.read()
"""


def build(out: Path) -> tuple[subprocess.Popen[str], str]:
    """Another process at work, and the name of its folder."""
    command = [sys.executable, "-c", BUILDS, str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def parts(where: Path) -> set[str]:
    return {path.name for path in where.iterdir() if path.name.endswith(".part")}


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_build_left_goes_with_the_next(tmp_path: Path, signum: signal.Signals) -> None:
    out = tmp_path / "v[1]"
    process, left = build(out)
    process.send_signal(signum)
    process.communicate()
    assert parts(tmp_path) == {left}
    with folder.staged(out) as stage:
        assert parts(tmp_path) == {stage.name} != {left}
    assert parts(tmp_path) == set()


def test_what_another_build_works_in_stays(tmp_path: Path) -> None:
    process, other = build(tmp_path / "out")
    try:
        with folder.staged(tmp_path / "out") as stage:
            assert parts(tmp_path) == {stage.name, other}
            assert (tmp_path / other / "half").is_file()
    finally:
        process.communicate("")
    assert parts(tmp_path) == set()


def test_folders_of_other_names_stay(tmp_path: Path) -> None:
    kept = {".out.mine.part", ".outer.abcdefgh.part", ".out.ABCDEFGH.part"}
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".out.linklink.part").symlink_to(tmp_path / "elsewhere")
    with folder.staged(tmp_path / "out"):
        pass
    assert parts(tmp_path) == kept | {".out.linklink.part"}
    assert (tmp_path / "elsewhere").is_dir()

import dataclasses
import shutil
import subprocess

import pytest

from edgebuild.core import runner, target_file
from edgebuild.core.target_file import load_target


def test_this_machine_needs_no_emulator() -> None:
    assert runner.prefix_for(load_target("host")) == ((), "")


def test_another_cpu_needs_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "host_features", lambda: ("x86_64", ()))
    monkeypatch.setattr(runner, "runs_here", lambda _: False)
    target = load_target("aarch64-generic")
    prefix, reason = runner.prefix_for(target)
    assert prefix is not None, reason
    assert prefix[1:] == ("-L", "/usr/aarch64-linux-gnu")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    none, reason = runner.prefix_for(target)
    assert none is None
    assert reason == "qemu-aarch64 is not installed (Debian: apt-get install qemu-user)"


def test_vectors_are_emulated_as_wide_as_the_target_says() -> None:
    target = load_target("riscv64-v")
    prefix, reason = runner.prefix_for(target)
    assert prefix is not None, reason
    assert prefix[1:3] == ("-cpu", "rv64,v=true,vext_spec=v1.0,vlen=128,elen=64")
    wide, _ = runner.prefix_for(dataclasses.replace(target, features=("v", "zvl256b")))
    assert wide is not None
    assert "vlen=256" in wide[2]
    assert "-cpu" not in (runner.prefix_for(load_target("riscv64-generic"))[0] or ())


def test_what_the_emulator_hides_is_not_checked_here() -> None:
    target = dataclasses.replace(load_target("riscv64-v"), features=("zba", "zbb", "v"))
    assert runner.prefix_for(target) == (None, "qemu-riscv64 does not tell programs that it has zba, zbb")


def test_an_older_cpu_of_the_same_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    target = load_target("x86_64-avx2")
    older = ("x86_64", tuple(feature for feature in target.features if feature not in ("avx2", "fma")))
    monkeypatch.setattr(target_file, "host_features", lambda: older)
    monkeypatch.setattr(runner, "host_features", lambda: older)
    assert runner.prefix_for(dataclasses.replace(target)) == (None, "this machine's CPU lacks avx2, fma")


def test_summary_of_latencies() -> None:
    assert runner.summary([5.0, 1.0, 3.0]) == {"min": 1.0, "median": 3.0, "p99": 5.0}
    assert runner.summary([float(i) for i in range(1, 201)]) == {"min": 1.0, "median": 101.0, "p99": 198.0}


def test_what_a_failed_run_said() -> None:
    failed = subprocess.CompletedProcess([], 3, b"", b"error: golden sample 0\nhint: x\n")
    assert runner.said(failed) == "golden sample 0 hint: x"
    assert runner.said(subprocess.CompletedProcess([], -11, b"", b"")) == "it ended with exit code -11"

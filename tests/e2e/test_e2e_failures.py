"""Builds that cannot end well leave nothing behind."""

import os
import resource as limits
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from builds import Built, Machine

from edgebuild import cli
from edgebuild.pipeline.stages import Stages


def spawn(machine: Machine, out: Path, limit: int | None = None) -> "subprocess.Popen[str]":
    def limited() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests themselves run in the background
        if limit is not None:
            limits.setrlimit(limits.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "edgebuild", "compile", "digits", "--target", "host", "--out", str(out)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=machine.environment,
        cwd=machine.home,
        preexec_fn=limited,  # noqa: PLW1509 - this process has no threads that matter
        start_new_session=True,
    )


def left_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")] if folder.exists() else []


def test_a_full_disk_leaves_no_half_bundle(machine: Machine, digits: Built, tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk: everything is cached, and the bundle does not fit."""
    assert len(digits.data) > 200_000
    process = spawn(machine, tmp_path / "out", limit=100_000)
    _, err = process.communicate()
    assert process.returncode == 9, err
    assert "no room left on the disk" in err
    assert "hint: free some space" in err
    assert left_in(tmp_path / "out") == []


def test_a_full_disk_leaves_no_half_cache(digits: Built, tmp_path: Path) -> None:
    process = spawn(Machine(tmp_path, tmp_path / "cache"), tmp_path / "out", limit=20_000)
    _, err = process.communicate()
    assert process.returncode == 9, err
    assert left_in(tmp_path / "out") == []
    assert [name for name in left_in(tmp_path / "cache") if ".new-" in name] == []


def test_an_interrupt_leaves_nothing(digits: Built, tmp_path: Path) -> None:
    process = spawn(Machine(tmp_path, tmp_path / "cache"), tmp_path / "out")
    time.sleep(4)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT), err  # a shell says 130 for both
    assert err.endswith("error: interrupted\n")
    assert left_in(tmp_path / "out") == []


@pytest.fixture
def here(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command line in this process, with the configuration of `machine`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", machine.environment["XDG_CONFIG_HOME"])
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["edgebuild", "compile", "digits", "--target", "host", "--out", str(out)])
    return out


def test_a_bundle_that_fails_its_check_is_never_written(
    digits: Built, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = Stages.golden

    def other(self: Stages, *arguments: object) -> dict[str, bytes]:
        files = golden(self, *arguments)  # type: ignore[arg-type]
        return {
            name: data[:-1] + bytes([data[-1] ^ 1]) if name.startswith("out-1") else data
            for name, data in files.items()
        }

    monkeypatch.setattr(Stages, "golden", other)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 7
    assert "error: the compiled program does not reproduce its golden outputs" in capsys.readouterr().err
    assert left_in(here) == []


def test_a_model_file_without_weights_is_refused(machine: Machine, tmp_path: Path) -> None:
    ran = machine.edgebuild("compile", "mobilenetv2", "--target", "host", "--out", tmp_path, code=4)
    assert "hint: " in ran.stderr
    assert "--untrained" in ran.stderr
    assert left_in(tmp_path) == []


def test_an_onnx_file_with_real_samples(machine: Machine, tmp_path: Path) -> None:
    """A model file without a recipe: `--calibration FILE.npz` is all it needs."""
    import onnx
    from onnx import TensorProto, helper

    random = np.random.default_rng(0)
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 4], random.normal(size=32).astype(np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["m"], name="m"), helper.make_node("Relu", ["m"], ["y"], name="r")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "Small.onnx")
    np.savez(tmp_path / "c.npz", x=random.normal(size=(16, 8)).astype(np.float32))
    arguments = ("--calibration", tmp_path / "c.npz", "--target", "host", "--out", str(tmp_path / "out"))
    built = machine.compile(tmp_path / "Small.onnx", *arguments)
    assert built.bundle.name == "small-1.0.0-host.ebundle"
    assert built.report["checked"] is True
    assert built.report["accuracy"]["data"] == "calibration"

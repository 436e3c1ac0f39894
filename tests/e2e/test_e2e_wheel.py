"""The wheel works outside the checkout: targets, recipes, calibration data and the runtime's sources come along."""

import json
import os
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from builds import Machine

import edgebuild

CHECKOUT = Path(edgebuild.__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; the packages that it needs are borrowed, not downloaded again."""
    root = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", root / "dist", CHECKOUT], check=True)
    (wheel,) = (root / "dist").glob("edgebuild-*.whl")
    venv.create(root / "venv", with_pip=False)
    python = root / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    folder = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    borrowed = [path for path in site.getsitepackages() if Path(path).is_dir()]
    (Path(folder.stdout.strip()) / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return root


def run(installed: Path, machine: Machine, *arguments: str) -> str:
    environment = {name: value for name, value in machine.environment.items() if name != "PYTHONPATH"}
    command = [str(installed / "venv" / "bin" / "edgebuild"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=installed, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_not_the_checkout(installed: Path, machine: Machine) -> None:
    found = json.loads(run(installed, machine, "recipes", "--json"))
    assert all(Path(item["folder"]).is_relative_to(installed) for item in found)
    assert {item["name"] for item in found} >= {"digits", "mobilenetv2"}


def test_targets_come_along(installed: Path, machine: Machine) -> None:
    assert {item["name"] for item in json.loads(run(installed, machine, "targets", "--json"))} >= {
        "host",
        "jetson-orin",
    }


def test_it_compiles_and_the_runtime_runs(installed: Path, machine: Machine) -> None:
    report = json.loads(run(installed, machine, "compile", "digits", "--target", "host", "--out", "out", "--json"))
    assert report["checked"] is True
    run(installed, machine, "runtime", "--install")
    native = installed / "venv" / "bin" / "edgebuild-run"
    assert native.read_bytes().startswith(b"\x7fELF")
    assert os.access(native, os.X_OK)
    check = [native, installed / "out" / "digits-1.0.0-host.ebundle", "--check", "--trust", machine.trust]
    subprocess.run(check, check=True, capture_output=True)

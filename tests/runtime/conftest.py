import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from machine import FUZZERS, HOST, QEMU_AARCH64, QEMU_RISCV64, Machine
from store import Release, Store, release

from edgebuild.stages.runtime import build_runtime, runtime_binary, sanitized_build


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    """The release build for this machine."""
    return Machine(runtime_binary(f"{HOST}-linux-gnu"), tmp_path)


@pytest.fixture
def aarch64(tmp_path: Path) -> Machine:
    """The release build for aarch64, emulated."""
    return Machine(runtime_binary("aarch64-linux-gnu"), tmp_path, QEMU_AARCH64)


@pytest.fixture
def riscv64(tmp_path: Path) -> Machine:
    """The release build for riscv64, emulated without vectors."""
    return Machine(runtime_binary("riscv64-linux-gnu"), tmp_path, QEMU_RISCV64)


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """A folder of programs with ASan and UBSan: edgebuild-run, test drivers, fuzzers."""
    tests = ("edgebuild-run", "drive", "test_sha256", "test_pool", "test_trial", "tamper")
    return build_runtime(sanitized_build(targets=(*tests, *(f"fuzz_{name}" for name in FUZZERS))))


@pytest.fixture
def checked(sanitized: Path, tmp_path: Path) -> Machine:
    """The build with ASan and UBSan: a report of theirs is exit code 1 with a text that no error of ours has."""
    return Machine(sanitized / "edgebuild-run", tmp_path)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """program.so for an arch; keyword arguments as tiny.program_so."""
    folder = tmp_path_factory.mktemp("programs")
    return lambda arch=HOST, **changes: tiny.program_so(folder, f"{arch}-linux-gnu", **changes)


@pytest.fixture
def bundle(program: Callable[..., bytes]) -> tiny.Bundle:
    """The untouched bundle for this machine."""
    return tiny.Bundle(program(), arch=HOST)


@pytest.fixture(scope="session")
def runtime() -> bytes:
    """The release build for this machine."""
    return runtime_binary(f"{HOST}-linux-gnu").read_bytes()


@pytest.fixture
def store(sanitized: Path, tmp_path: Path) -> Store:
    """An empty store, for the build with ASan and UBSan."""
    return Store(sanitized / "edgebuild-run", tmp_path)


@pytest.fixture
def fast(tmp_path: Path) -> Store:
    """The same for the release build."""
    return Store(runtime_binary(f"{HOST}-linux-gnu"), tmp_path)


@pytest.fixture
def make(bundle: tiny.Bundle, runtime: bytes) -> Release:
    """Bytes of release `number`; keyword arguments as tiny.Bundle's."""
    return lambda number, own=runtime, **changes: release(bundle, number, own, **changes).build()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", disk], check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgebuild.stages.runtime import build_runtime, runtime_binary, sanitized_build
from tests.runtime import tiny

HOST = platform.machine()
FUZZERS = ("manifest", "minisign", "bundle", "plan", "npy", "y4m")
QEMU_AARCH64 = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")


@dataclass(frozen=True)
class Machine:
    """A built edgebuild-run, what starts it, and a folder with a trust file."""

    program: Path
    folder: Path
    prefix: tuple[str, ...] = ()

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def run(
        self, bundle: bytes, *arguments: str | Path, stdin: bytes = b"", trust: bytes | None = tiny.KEY.trust
    ) -> "subprocess.CompletedProcess[str]":
        command = [*self.prefix, self.program, self.write("tiny.ebundle", bundle), *arguments]
        if trust is not None:
            command += ["--trust", self.write("trust", trust)]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        done = subprocess.run(command, input=stdin, capture_output=True, env=environment, check=False, timeout=60)
        return subprocess.CompletedProcess(command, done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def host(tmp_path: Path) -> Machine:
    """The release build for this machine."""
    return Machine(runtime_binary(f"{HOST}-linux-gnu"), tmp_path)


@pytest.fixture
def aarch64(tmp_path: Path) -> Machine:
    """The release build for aarch64, emulated."""
    return Machine(runtime_binary("aarch64-linux-gnu"), tmp_path, QEMU_AARCH64)


@pytest.fixture(scope="session")
def sanitized() -> Path:
    """A folder of programs with ASan and UBSan: edgebuild-run, test drivers, fuzzers."""
    tests = ("edgebuild-run", "drive", "test_sha256", "test_pool")
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

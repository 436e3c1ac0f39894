"""edgebuild-run as a test sees it: a program, perhaps emulated, that is given a bundle."""

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import tiny

HOST = platform.machine()
FUZZERS = ("manifest", "minisign", "trust", "bundle", "delta", "index", "chunks", "state", "plan", "npy", "y4m")
QEMU_AARCH64 = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
QEMU_RISCV64 = ("qemu-riscv64", "-L", "/usr/riscv64-linux-gnu")


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

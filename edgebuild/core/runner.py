"""Runs bundles with the real `edgebuild-run`: on this CPU, or under qemu's user emulation for another one."""

import json
import math
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.core.errors import CheckError
from edgebuild.core.target import Target
from edgebuild.core.target_file import host_features, runs_here

if TYPE_CHECKING:
    import numpy as np

    Arrays = Mapping[str, np.ndarray[Any, Any]]

REPORT = "this is a bug in edgebuild; no bundle was written"
_CROSS_LIBC = {"aarch64": "libc6-arm64-cross", "riscv64": "libc6-riscv64-cross", "x86_64": "libc6-amd64-cross"}
# What qemu can be told to emulate and tells programs that it does (it answers no riscv_hwprobe before 8.1).
_EMULATED = {"riscv64": ("v", "zvl256b")}


@dataclass(frozen=True)
class Trial:
    """A bundle on the disk and how it is run. `prefix` starts a program of its CPU; empty on this machine's own."""

    prefix: tuple[str, ...]
    runtime: Path
    bundle: Path
    trust: Path

    @property
    def native(self) -> bool:
        return not self.prefix

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        """One thread, no waiting for ticks; the caller judges the exit code."""
        command = [*self.prefix, str(self.runtime), str(self.bundle), "--trust", str(self.trust), *arguments]
        return subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)

    def frames(self, stacked: "Arrays", folder: Path) -> list[dict[str, Any]]:
        """Runs the function on each row of the inputs' arrays; the JSON lines that edgebuild-run prints.

        `folder` is where the arrays are put for it. Raises CheckError when it fails.
        """
        import numpy as np  # noqa: PLC0415 - an unchanged build does without it

        arguments = []
        for name, array in stacked.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
            arguments += ["--input", f"{name}={folder / name}.npy"]
        done = self.run("--threads", "1", "--no-pace", *arguments)
        if done.returncode != 0:
            raise CheckError(f"edgebuild-run fails on the compiled program: {said(done)}", REPORT)
        return [json.loads(line) for line in done.stdout.splitlines()]


def said(done: "subprocess.CompletedProcess[bytes]") -> str:
    """What a failed edgebuild-run wrote, in one line."""
    text = " ".join(done.stderr.decode(errors="replace").split())
    return text.removeprefix("error: ") or f"it ended with exit code {done.returncode}"


def prefix_for(target: Target) -> tuple[tuple[str, ...] | None, str]:
    """What starts a program for `target` here, or None and the reason why nothing can."""
    arch, features = host_features()
    if runs_here(target):
        return (), ""
    if target.arch == arch:
        missing = [feature for feature in target.features if feature not in features]
        return None, f"this machine's CPU lacks {', '.join(missing)}"
    qemu = shutil.which(f"qemu-{target.arch}") or shutil.which(f"qemu-{target.arch}-static")
    if qemu is None:
        return None, f"qemu-{target.arch} is not installed (Debian: apt-get install qemu-user)"
    sysroot = Path("/usr") / target.triple
    if not sysroot.is_dir():
        return None, f"{sysroot} is not there (Debian: apt-get install {_CROSS_LIBC[target.arch]})"
    silent = [feature for feature in target.features if feature not in _EMULATED.get(target.arch, target.features)]
    if silent:
        return None, f"qemu-{target.arch} does not tell programs that it has {', '.join(silent)}"
    return (qemu, *_qemu_cpu(target), "-L", str(sysroot)), ""


def _qemu_cpu(target: Target) -> tuple[str, ...]:
    """Vectors exactly as wide as the target says, so that code for wider ones does not pass by chance."""
    if "v" not in target.features:
        return ()
    bits = 256 if "zvl256b" in target.features else 128
    return ("-cpu", f"rv64,v=true,vext_spec=v1.0,vlen={bits},elen=64")


def summary(times: Sequence[float]) -> dict[str, float]:
    """`min`, `median` and `p99` (nearest rank) of times, in their unit."""
    ordered = sorted(times)
    rank = math.ceil(0.99 * len(ordered)) - 1
    figures = {"min": ordered[0], "median": ordered[len(ordered) // 2], "p99": ordered[rank]}
    return {name: round(value, 1) for name, value in figures.items()}

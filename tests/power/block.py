"""The power goes for a disk with a file system of the kernel's on it, and not for a model of one.

The store lies in an ext4, XFS or Btrfs on a loop device. When edgebuild-run is killed at a call, the image is copied as
it is: what the kernel has in memory only is not in the copy. That is mounted, its journal replayed, and judged.
"""

import functools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from power.operations import Device, Operation
from power.sweep import WORKERS, Bench, Found, Verdict, allowed, judge


@dataclass(frozen=True)
class FileSystem:
    """`options` keep the kernel from writing before it is told to: else the moment would decide what is lost."""

    name: str
    make: tuple[str, ...]
    options: str
    mebibytes: int


_LATE = "commit=900"
_HOSTILE = f"{_LATE},data=writeback,noauto_da_alloc,journal_async_commit"
FILE_SYSTEMS = (
    FileSystem("ext4", ("mkfs.ext4", "-q"), _LATE, 16),
    FileSystem("ext4, data=writeback", ("mkfs.ext4", "-q"), _HOSTILE, 16),
    FileSystem("XFS", ("mkfs.xfs", "-q"), "nouuid", 300),
    FileSystem("Btrfs", ("mkfs.btrfs", "-q"), "commit=300", 128),
)


@functools.cache
def cannot(system: FileSystem) -> str:
    """Why this machine cannot mount such a disk; empty where it can."""
    if os.geteuid():
        return "only root may mount"
    if not shutil.which(system.make[0]):
        return f"{system.make[0]} is not installed"
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image"
        try:
            _format(system, image)
            with _mounted(system, image):
                return ""
        except subprocess.CalledProcessError as error:
            return f"{error.cmd[0]}: {error.stderr.strip()}"


def _format(system: FileSystem, image: Path) -> None:
    with image.open("wb") as file:
        file.truncate(system.mebibytes << 20)
    subprocess.run([*system.make, str(image)], capture_output=True, text=True, check=True)


@contextmanager
def _mounted(system: FileSystem, image: Path) -> Iterator[Path]:
    """The file system's root; it goes at once behind this, whoever is still in it."""
    with tempfile.TemporaryDirectory(prefix="mount-", dir=image.parent) as place:
        options = f"loop,{system.options}"
        subprocess.run(["mount", "-o", options, str(image), place], capture_output=True, text=True, check=True)
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", "-l", place], check=True)


class Disks:
    """Disks with the stores that operations start from, all durable."""

    def __init__(self, bench: Bench, system: FileSystem, *, deaf: bool = False) -> None:
        """`deaf`: syncs do nothing, and say that they did; to see that it is found."""
        self._bench, self._system, self._deaf = bench, system, deaf
        self._images: dict[str, Path] = {}

    def _image(self, operation: Operation) -> Path:
        if operation.name not in self._images:
            image = Path(tempfile.mkdtemp(prefix="disk-", dir=self._bench.folder)) / "image"
            _format(self._system, image)
            with _mounted(self._system, image) as root:
                base = self._bench.base(operation) / "store"
                if base.exists():
                    shutil.copytree(base, root / "store")
                os.sync()
            self._images[operation.name] = image
        return self._images[operation.name]

    def lose(self, operation: Operation, every: int = 1) -> Found:
        """Before every so manieth call, in the middle of every so manieth write, and after the last call."""
        calls = self._bench.journal(operation)
        cuts = [(number, False) for number in range(len(calls))]
        cuts += [(number, True) for number, call in enumerate(calls) if len(call.data) > 1]
        chosen = [*cuts[::every], (len(calls), False)]
        self._image(operation)

        def look(cut: tuple[int, bool]) -> Verdict:
            number, half = cut
            at = f"{'in' if half else 'before'} call {number}, {calls[number]}" if number < len(calls) else "at the end"
            wanted = allowed(operation) if number < len(calls) else (operation.after,)
            with self._lost(operation, number, half=half) as device:
                return judge(device, operation, f"{self._system.name}: power lost {at}", wanted)

        with ThreadPoolExecutor(WORKERS) as pool:
            return Found(operation.name, len(calls), list(pool.map(look, chosen)))

    @contextmanager
    def _lost(self, operation: Operation, number: int, *, half: bool) -> Iterator[Device]:
        """The device behind the loss of power."""
        variables = {"POWER_CUT": str(number)} | ({"POWER_HALF": "1"} if half else {})
        variables |= {"POWER_DEAF": "1"} if self._deaf else {}
        with self._bench.device(operation) as device:
            image, copy = device.folder / "image", device.folder / "copy"
            _copy(self._image(operation), image)
            with _mounted(self._system, image) as root:
                used = replace(device, folder=root)
                done = used.run(*operation.arguments(self._bench.releases), environment=used.recorded(**variables))
                _copy(image, copy)
            assert done.returncode in {-signal.SIGKILL, operation.code}, done
            with _mounted(self._system, copy) as root:
                yield replace(device, folder=root)


def _copy(image: Path, to: Path) -> None:
    subprocess.run(["cp", "--sparse=always", str(image), str(to)], check=True)

"""The calls by which edgebuild-run changes a store, as tests/power/power.c counts and records them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from machine import HOST

from edgebuild.core.zig import zig_cc

SOURCE = Path(__file__).with_name("power.c")
WRAPPED = {
    "open",
    "openat",
    "write",
    "fsync",
    "syncfs",
    "ftruncate",
    "fchmod",
    "mkdir",
    "mkdirat",
    "unlinkat",
    "renameat",
}
"""Functions of the C library that power.c stands in for."""
UNUSED = {
    *("creat", "fopen", "openat2", "mknod", "mknodat", "mkfifo", "mkfifoat", "mkstemp", "mkostemp", "mkdtemp"),
    *("pwrite", "writev", "pwritev", "pwritev2", "fwrite", "sendfile", "copy_file_range", "splice", "msync"),
    *("fdatasync", "sync", "sync_file_range", "truncate", "fallocate", "posix_fallocate"),
    *("chmod", "fchmodat", "chown", "fchown", "fchownat", "lchown", "utimensat", "futimens", "setxattr", "fsetxattr"),
    *("unlink", "rmdir", "remove", "rename", "renameat2", "link", "linkat", "symlink", "symlinkat", "io_submit"),
}
"""Others that change a disk: where edgebuild-run comes to use one, power.c has to stand in for it."""


@dataclass(frozen=True)
class Call:
    """One call; `number` is an offset (write), a size (ftruncate) or a mode (open, mkdir, fchmod)."""

    name: str
    failed: bool
    path: str
    other: str
    number: int
    data: bytes

    def __str__(self) -> str:
        target = f" -> {self.other}" if self.name == "rename" else ""
        return f"{self.name} {self.path}{target}" + (" (failed)" if self.failed else "")


def build_shim(folder: Path) -> Path:
    library = folder / "power.so"
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    subprocess.run([*zig_cc(f"{HOST}-linux-gnu"), *flags, str(SOURCE), "-o", str(library)], check=True)
    return library


def read_journal(path: Path) -> list[Call]:
    data, at, calls = path.read_bytes(), 0, []
    while at < len(data):
        end = data.index(b"\n", at)
        name, result, first, second, number, size = data[at:end].decode().split("\t")
        at = end + 1 + int(size)
        calls.append(Call(name, result == "failed", first, second, int(number), data[end + 1 : at]))
    return calls

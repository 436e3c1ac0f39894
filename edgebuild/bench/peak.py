"""What this machine could do at most, measured: its dot instruction's rate, and how fast memory is read.

`peak.c`, compiled for the instruction set that a bundle's code may use, runs in one pinned process per core.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edgebuild.bench.engines import cores
from edgebuild.core import digest
from edgebuild.core.cache import Cache, cache_dir
from edgebuild.core.errors import EnvironmentProblem
from edgebuild.core.zig import zig_cc

BLOCKS = tuple(1 << power for power in range(14, 28, 2))
"""Bytes of the memory blocks that are read: 16 KiB to 64 MiB, from the first cache to beyond the last."""

# The widest dot product first: (a CPU feature of SPEC section 6, the instruction, options of the compiler).
_INSTRUCTIONS = {
    "x86_64": (
        ("avx512vnni", "vpdpbusd, 512 bits", ("-mcpu=x86_64_v4+avx512vnni",)),
        ("avxvnni", "vpdpbusd, 256 bits", ("-mcpu=x86_64_v3+avxvnni",)),
        ("avx2", "vpmaddwd, 256 bits", ("-mcpu=x86_64_v3",)),
    ),
    "aarch64": (
        ("i8mm", "usmmla", ("-mcpu=generic+i8mm",)),
        ("dotprod", "sdot", ("-mcpu=generic+dotprod",)),
        ("neon", "smlal", ()),
    ),
}


@dataclass(frozen=True)
class Peak:
    """`instruction`: the dot product that was timed. `gmacs`: giga multiply-accumulates a second, of all threads.
    `gbytes`: gigabytes a second of reading, by block size in bytes, of all threads.
    """

    instruction: str
    gmacs: float
    gbytes: dict[int, float]

    def bandwidth(self, footprint: int) -> float:
        """Gigabytes a second of reading `footprint` bytes that lie in the nearest memory that holds them."""
        fitting = [size for size in self.gbytes if size >= footprint]
        return self.gbytes[min(fitting) if fitting else max(self.gbytes)]


def measure(arch: str, needs: Sequence[str], threads: int) -> Peak:
    """Of this machine, with the instructions that code for a CPU with the features `needs` may use."""
    feature, instruction, options = _best(arch, needs)
    program = _program(arch, feature, options)
    with _executable(program) as path:
        gmacs = _together(path, threads, "dot")
        gbytes = {size: _together(path, threads, "read", str(size // threads)) for size in BLOCKS}
    return Peak(instruction, gmacs, gbytes)


def dot_rate(arch: str, needs: Sequence[str], threads: int) -> tuple[str, float]:
    """The instruction, and giga multiply-accumulates a second of all threads."""
    feature, instruction, options = _best(arch, needs)
    with _executable(_program(arch, feature, options)) as path:
        return instruction, _together(path, threads, "dot")


def _best(arch: str, needs: Sequence[str]) -> tuple[str, str, tuple[str, ...]]:
    rows = _INSTRUCTIONS.get(arch, ())
    return next((row for row in rows if row[0] in needs), ("plain", "one multiplication at a time", ()))


def _program(arch: str, feature: str, options: Sequence[str]) -> bytes:
    """The compiled `peak.c`, from the cache."""
    source = Path(__file__).with_name("peak.c")
    cache = Cache(cache_dir() / "bench")
    key = digest.of_parts("peak", arch, digest.of_file(source), feature, *options, digest.package_version("ziglang"))
    folder = cache.get(key) or cache.put(key, {"peak": _compile(source, arch, feature, options)})
    return (folder / "peak").read_bytes()


def _compile(source: Path, arch: str, feature: str, options: Sequence[str]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgebuild-peak-") as folder:
        target = Path(folder) / "peak"
        command = [*zig_cc(f"{arch}-linux-gnu"), "-O3", *options, f"-DEDGEBUILD_{feature.upper()}"]
        done = subprocess.run([*command, str(source), "-o", str(target)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or [""]
            raise EnvironmentProblem(f"the micro-benchmark does not compile: {lines[0]}", "pip install ziglang")
        return target.read_bytes()


@contextmanager
def _executable(program: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="edgebuild-peak-") as folder:
        path = Path(folder) / "peak"
        path.write_bytes(program)
        path.chmod(0o755)
        yield path


def _together(program: Path, threads: int, *arguments: str) -> float:
    """The sum over one process per core, all at the same time."""
    running = [_pinned([str(program), *arguments], core) for core in cores(threads)]
    return sum(float(process.communicate()[0]) for process in running)


def _pinned(command: Sequence[str], core: int) -> "subprocess.Popen[str]":
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    finally:
        os.sched_setaffinity(0, mine)

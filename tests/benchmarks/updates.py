"""What an update costs: the bytes of deltas beside other tools', and the time and memory of installing them.

python tests/benchmarks/updates.py [OLD.ebundle NEW.ebundle]...   without pairs: the fine-tunes of delta_models.py

Entropy is that of the changed integers given the old ones, in two readings: of the differences in each int8 tensor,
H(Δ), and of new given old by the tensor's own counts, H(new | old). The latter is too low for small tensors: it leaves
out what a decoder would have to be told of 255 distributions. Both with H(Δ) of all biases, and of all multipliers as
integers of the same order. Needs hdiffpatch beside edgebuild's own dependencies (`pip install '.[bench]'`).
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "runtime"), str(TESTS / "benchmarks")]

import numpy as np  # noqa: E402
import tiny  # noqa: E402
from rich.console import Console  # noqa: E402

from edgebuild import views  # noqa: E402
from edgebuild.core import keys  # noqa: E402
from edgebuild.core.bundle import file_rows, read_unverified  # noqa: E402
from edgebuild.core.plan import read_plan  # noqa: E402
from edgebuild.core.zig import zig_cc  # noqa: E402
from edgebuild.pipeline.delta import make_delta  # noqa: E402
from edgebuild.stages.runtime import runtime_binary  # noqa: E402
from edgebuild.stages.sign import sign  # noqa: E402

LARGE = 100 << 20
CYCLES = 1000


@dataclass(frozen=True)
class Pair:
    name: str
    old: bytes
    new: bytes


def with_runtime(data: bytes) -> bytes:
    """The bundle with this edgebuild's runtime, signed by the development key: what a build of today would give."""
    read = read_unverified(data)
    files = {path: bytes(content) for path, content in read.files.items()}
    files["edgebuild-run"] = runtime_binary("x86_64-linux-gnu").read_bytes()
    manifest = read.manifest
    return sign(replace(manifest, files=file_rows(files)), files, keys.signing_key(None))


def pairs(arguments: list[str], folder: Path) -> Iterator[Pair]:
    if arguments:
        for old, new in zip(arguments[::2], arguments[1::2], strict=True):
            name = Path(old).parent.name
            yield Pair(name, with_runtime(Path(old).read_bytes()), with_runtime(Path(new).read_bytes()))
        return
    import delta_models

    for name, old, new in delta_models.pairs(folder):
        yield Pair(name, with_runtime(old.read_bytes()), with_runtime(new.read_bytes()))


def entropy(values: Any) -> float:
    """Bytes: the count times the empirical entropy."""
    _, counts = np.unique(values, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@dataclass
class Entropies:
    """In bytes, summed over the tensors that changed."""

    changed: int = 0
    difference: float = 0
    given_old: float = 0
    words: float = 0


def entropies(old: bytes, new: bytes) -> Entropies:
    """Of the int8 tensors of weights.bin, and of its words."""
    before, after = read_unverified(old).files, read_unverified(new).files
    found = Entropies()
    words: dict[str, list[Any]] = {}
    for tensor in read_plan(bytes(after["plan.bin"])).tensors:
        place = slice(tensor.offset, tensor.offset + tensor.nbytes)
        a, b = bytes(before["weights.bin"][place]), bytes(after["weights.bin"][place])
        if tensor.space != "weights" or a == b:
            continue
        if tensor.dtype == "int8":
            x, y = (np.frombuffer(part, np.int8).astype(np.int64) for part in (a, b))
            found.changed += int((x != y).sum())
            found.difference += entropy(y - x)
            found.given_old += entropy(1000 * x + y) - entropy(x)
        elif tensor.nbytes % 4 == 0:
            x, y = (np.frombuffer(part, np.int32).astype(np.int64) for part in (a, b))
            if tensor.dtype == "float32":
                x, y = (np.where(bits < 0, ~(bits & 0x7FFFFFFF), bits) for bits in (x, y))
            words.setdefault(tensor.dtype, []).append(y - x)
    found.words = sum(entropy(np.concatenate(parts)) for parts in words.values())
    return found


def zstd_patch(old: bytes, new: bytes) -> int:
    """`zstd --patch-from OLD --ultra -22 --long`."""
    import zstandard

    log = min(27, max(10, (len(old) + len(new)).bit_length()))
    settings = zstandard.ZstdCompressionParameters.from_level(22, window_log=log, enable_ldm=True)
    dictionary = zstandard.ZstdCompressionDict(old, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    return len(zstandard.ZstdCompressor(dict_data=dictionary, compression_params=settings).compress(new))


def hdiffpatch(old: bytes, new: bytes) -> int:
    """The smallest of its compressions."""
    import hdiffpatch as tool

    kinds = (tool.COMPRESSION_ZLIB, tool.COMPRESSION_BZIP2, tool.COMPRESSION_LZMA2, tool.COMPRESSION_ZSTD)
    return min(len(tool.diff(old, new, kind)) for kind in kinds)


def bsdiff(old: bytes, new: bytes) -> int:
    import bsdiff4

    return len(bsdiff4.diff(old, new))


def delta_rows(found: list[Pair]) -> Iterator[list[str]]:
    for pair in found:
        made = make_delta(pair.old, pair.new)
        weights = next(row.cost for row in made.rows if row.path == "weights.bin")
        known = entropies(pair.old, pair.new)
        whole, given = known.difference + known.words, known.given_old + known.words
        others = [f"{tool(pair.old, pair.new):,}" for tool in (zstd_patch, bsdiff, hdiffpatch)]
        share = f"{len(made.data) / len(pair.new):.2%}"
        yield [
            pair.name, f"{known.changed:,}", f"{len(made.data):,}", share, f"{weights:,}",
            f"{whole:,.0f}", f"{weights / whole:.3f}", f"{given:,.0f}", f"{weights / given:.3f}", *others,
        ]  # fmt: skip


PEAK = """
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
  struct rusage usage;
  int state;
  pid_t child = fork();
  if (child == 0) execv(argv[1], argv + 1);
  wait4(child, &state, 0, &usage);
  fprintf(stderr, "%ld\\n", argc > 1 ? usage.ru_maxrss : 0);
  return WIFEXITED(state) ? WEXITSTATUS(state) : 70;
}
"""
"""Says how much memory a process took; what a process of Python starts is credited with Python's own."""


class Device:
    """A store of its own."""

    def __init__(self, folder: Path, trust: Path) -> None:
        self.program, self.folder, self.trust = runtime_binary("x86_64-linux-gnu"), folder, trust
        folder.mkdir(parents=True, exist_ok=True)
        self._peak = folder / "peak"
        self._peak.with_suffix(".c").write_text(PEAK)
        subprocess.run([*zig_cc("x86_64-linux-gnu"), "-O1", self._peak.with_suffix(".c"), "-o", self._peak], check=True)

    def run(self, *arguments: object) -> tuple[float, int]:
        """Seconds, and the largest resident memory of edgebuild-run itself, without the canary's, in KiB."""
        own = [self.program, *arguments, "--store", self.folder / "store", "--trust", self.trust]
        start = time.perf_counter()
        done = subprocess.run([str(a) for a in (self._peak, *own)], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{own}: {done.stderr}")
        return seconds, int(done.stderr.splitlines()[-1])


def install_rows(found: list[Pair], folder: Path, trust: Path) -> Iterator[tuple[str, str]]:
    for pair in found:
        device = Device(folder / f"device-{pair.name}", trust)
        old, delta = folder / "old.ebundle", folder / "new.edelta"
        old.write_bytes(pair.old)
        delta.write_bytes(make_delta(pair.old, pair.new).data)
        device.run("install", old)
        seconds, peak = device.run("install", delta)
        yield f"install a delta: {pair.name}", f"{seconds:.2f} s with canary, at most {peak / 1024:.1f} MiB resident"


def large_rows(folder: Path, trust_key: tiny.Key) -> Iterator[tuple[str, str]]:
    """A bundle of 100 MB of weights that the model hardly uses: verification, and installation with its canary."""
    trust = folder / "tiny-trust"
    trust.write_bytes(trust_key.trust)
    weights = np.random.default_rng(0).bytes(LARGE)
    program = tiny.program_so(folder, "x86_64-linux-gnu")
    runtime = runtime_binary("x86_64-linux-gnu").read_bytes()
    bundle = tiny.Bundle(program).but(
        plan=tiny.plan_bin(weights=LARGE),
        weights=tiny.table().tobytes() + weights[len(tiny.table().tobytes()) :],
        golden={"edgebuild-run": runtime},
    )
    path = folder / "large.ebundle"
    path.write_bytes(bundle.build())
    size = path.stat().st_size
    command = [str(runtime_binary("x86_64-linux-gnu")), str(path), "--verify", "--trust", str(trust)]
    times = []
    for _ in range(7):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    best, middle = min(times), sorted(times)[3]
    yield "verify 100 MB from page cache", f"{size / best / 1e6:.0f} MB/s (median {size / middle / 1e6:.0f})"
    for name, source in (("a file", [path]), ("a pipe", ["-"])):
        times = []
        for turn in range(3):
            device = Device(folder / f"large-{name.split()[1]}-{turn}", trust)
            start = time.perf_counter()
            store = ["--store", device.folder / "store", "--trust", trust]
            command = [str(a) for a in (device.program, "install", *source, *store)]
            with path.open("rb") as stream:
                subprocess.run(command, check=True, capture_output=True, stdin=stream)
            times.append(time.perf_counter() - start)
            shutil.rmtree(device.folder)
        yield f"install 100 MB from {name}, with fsync and canary", f"{size / min(times) / 1e6:.0f} MB/s"


def cycle_rows(pair: Pair, folder: Path, trust: Path) -> Iterator[tuple[str, str]]:
    """Install, roll back, install: the store must not grow."""
    device = Device(folder / "cycles", trust)
    old, new = folder / "old.ebundle", folder / "new.ebundle"
    old.write_bytes(pair.old)
    new.write_bytes(pair.new)
    name = read_unverified(pair.old).manifest.name
    device.run("install", old)
    sizes, peaks = [], []
    for _ in range(CYCLES):
        _, peak = device.run("install", new)
        device.run("rollback", name)
        sizes.append(sum(p.stat().st_blocks * 512 for p in (device.folder / "store").rglob("*") if p.is_file()))
        peaks.append(peak)
    yield (
        f"{CYCLES} cycles of install and rollback",
        (f"store {sizes[0]:,} → {sizes[-1]:,} bytes, memory {peaks[0]:,} → {peaks[-1]:,} KiB (most {max(peaks):,})"),
    )


def start_row(pair: Pair, folder: Path, trust: Path) -> tuple[str, str]:
    """From exec to the first result, every SHA-256 checked, from the store: `run` and the release's own runtime."""
    device = Device(folder / "start", trust)
    path = folder / "old.ebundle"
    path.write_bytes(pair.old)
    device.run("install", path)
    read = read_unverified(pair.old)
    frames = folder / "frames.npy"
    frames.write_bytes(bytes(read.files["golden/in-0.npy"]))
    name = read.manifest.name
    whole, direct = [], []
    for _ in range(31):
        for times, what in ((whole, ("run", name)), (direct, (path,))):
            start = time.perf_counter()
            store = ("--store", device.folder / "store") if what[0] == "run" else ()
            command = [
                str(a) for a in (device.program, *what, *store, "--trust", trust, "--input", frames, "--threads", 1)
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
                assert process.stdout
                process.stdout.readline()
                times.append(1e3 * (time.perf_counter() - start))
                process.kill()
    shown = [f"{min(times):.1f} ms (median {sorted(times)[15]:.1f})" for times in (whole, direct)]
    return f"start to first result, {len(pair.old) / 1e6:.1f} MB", f"from the store {shown[0]}, the file {shown[1]}"


def trust_file(folder: Path) -> Path:
    path = folder / "trust"
    path.write_text(keys.signing_key(None).public.line() + "\n")
    return path


def main() -> None:
    console = Console(width=200)
    with tempfile.TemporaryDirectory(prefix="edgebuild-updates-") as name:
        folder = Path(name)
        found, trust = list(pairs(sys.argv[1:], folder)), trust_file(folder)
        heads = [
            "update",
            "changed int8",
            "delta",
            "of the bundle",
            "weights",
            "H(Δ)",
            "ratio",
            "H(new | old)",
            "ratio",
        ]
        heads += ["zstd --patch-from", "bsdiff", "HDiffPatch"]
        console.print(views.columns("deltas, bytes", heads, delta_rows(found)))
        rows = [*install_rows(found, folder, trust), *large_rows(folder, tiny.KEY), start_row(found[0], folder, trust)]
        rows += cycle_rows(found[0], folder, trust)
        size = runtime_binary("x86_64-linux-gnu").stat().st_size
        console.print(views.rows("device", [*rows, ("edgebuild-run, stripped", f"{size:,} bytes")]))


if __name__ == "__main__":
    main()

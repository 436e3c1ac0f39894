"""Engines under measurement: each is a process of its own, pinned, stopped while another one runs.

`Native` is the real edgebuild-run, fed frame by frame; `Hosted` is a peer in a Python process (`worker.py`).
A stopped process cannot spin, whatever its thread pool does when it has nothing to do.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgebuild.bench.case import Case

if TYPE_CHECKING:
    import numpy as np

    Arrays = Sequence[np.ndarray[Any, Any]]

OURS = "edgebuild"
ANSWER_SECONDS = 900.0
"""What does not answer within this time hangs."""
_ENDLESS = 10**9


class EngineFailure(Exception):
    """An engine ended, or did not answer; one line says what it said."""


@dataclass(frozen=True)
class Start:
    """A fresh process: milliseconds from its start, and from its library's import, to the first result; its peak memory
    then, and what it held before it loaded the engine (an interpreter), in KiB.
    """

    first_result_ms: float
    load_ms: float
    peak_kb: int
    host_kb: int


class Engine(Protocol):
    """A started engine; `start` says how its start went."""

    start: Start

    def run(self, count: int) -> list[float]:
        """Microseconds of `count` runs, on the samples in turn."""

    def outputs(self) -> "Arrays":
        """Of every sample, by output, samples along the first axis."""

    def close(self) -> None: ...


def cores(threads: int) -> list[int]:
    """The cores that `threads` threads are pinned to: the last ones, as the first serve most interrupts."""
    return sorted(os.sched_getaffinity(0))[-threads:]


class _Process:
    """A pinned child process that answers in JSON lines; stopped unless somebody waits for its answer."""

    def __init__(self, command: Sequence[str], threads: int, **options: Any) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores(threads))  # inherited; a preexec_fn would make the start slower
        try:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, **options)
        finally:
            os.sched_setaffinity(0, mine)
        self._rest = b""

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGSTOP)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + ANSWER_SECONDS
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise EngineFailure(f"no answer within {ANSWER_SECONDS:.0f} s")
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                raise EngineFailure(self._last_words())
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def _last_words(self) -> str:
        code = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = lines[-1] if lines else ""
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{how}: {said.removeprefix('error: ')}"[:240] if said else how

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stdin, self._errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


class Native:
    """Edgebuild-run on endless .npy streams, one pipe per input."""

    def __init__(self, case: Case, threads: int) -> None:
        self._samples = _load(case.samples)
        self._count = len(next(iter(self._samples.values())))
        self._names = case.outputs
        self._folder = tempfile.TemporaryDirectory(prefix="edgebuild-bench-")
        self._pipes = {name: self._pipe(name) for name in case.inputs}
        self._child = _Process([*self._command(case, threads)], threads, stdin=subprocess.DEVNULL)
        try:
            for name, pipe in self._pipes.items():
                os.write(pipe, _header(self._samples[name]))
            self._frames([0])
            elapsed = 1e3 * (time.perf_counter() - self._child.started)
            self.start = Start(elapsed, elapsed, _peak_kb(self._child.process.pid), 0)
        except BaseException:
            self.close()
            raise

    def _command(self, case: Case, threads: int) -> Iterator[str]:
        yield from (str(case.runtime), str(case.bundle), "--trust", str(case.trust), "--threads", str(threads))
        yield from ("--no-pace", "--format", "npy")
        for name in case.inputs:
            yield from ("--input", f"{name}={self._folder.name}/{name}")

    def _pipe(self, name: str) -> int:
        path = Path(self._folder.name) / name
        os.mkfifo(path)
        return os.open(path, os.O_RDWR)  # opened for both, it waits for nobody

    def _frames(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Feeds samples ahead of the answers, so that the program never waits for the next one."""
        feeder = threading.Thread(target=self._feed, args=(indices,), daemon=True)
        feeder.start()
        found = [self._child.answer() for _ in indices]
        feeder.join()
        return found

    def _feed(self, indices: Sequence[int]) -> None:
        for index in indices:
            for name, pipe in self._pipes.items():
                data = memoryview(self._samples[name][index]).cast("B")
                with contextlib.suppress(BrokenPipeError):
                    while data:
                        data = data[os.write(pipe, data) :]

    def run(self, count: int) -> list[float]:
        with self._child.awake():
            return [line["latency_us"] for line in self._frames([index % self._count for index in range(count)])]

    def outputs(self) -> "Arrays":
        import numpy as np  # noqa: PLC0415

        with self._child.awake():
            lines = self._frames(range(self._count))
        return [np.array([line["outputs"][name] for line in lines]) for name in self._names]

    def close(self) -> None:
        self._child.close()
        for pipe in self._pipes.values():
            os.close(pipe)
        self._folder.cleanup()


class Hosted:
    """A prepared peer in `edgebuild.bench.worker serve`."""

    def __init__(self, peer: str, folder: Path, case: Case, threads: int) -> None:
        self._scratch = case.folder
        command = [*worker("serve"), peer, str(folder), str(case.samples), str(threads)]
        self._child = _Process(command, threads, stdin=subprocess.PIPE, env=_environment(threads))
        try:
            ready = self._told()
            elapsed = 1e3 * (time.perf_counter() - self._child.started)
            self.start = Start(elapsed, ready["load_ms"], ready["peak_kb"], ready["host_kb"])
            self._child.process.send_signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    def _told(self) -> dict[str, Any]:
        found = self._child.answer()
        if "unsupported" in found:
            raise EngineFailure(found["unsupported"])
        return found

    def _ask(self, line: str) -> dict[str, Any]:
        stdin = self._child.process.stdin
        assert stdin is not None
        with self._child.awake():
            try:
                stdin.write(f"{line}\n".encode())
                stdin.flush()
            except BrokenPipeError as reason:
                raise EngineFailure("it ended") from reason
            return self._told()

    def run(self, count: int) -> list[float]:
        times: list[float] = self._ask(f"run {count}")["times_us"]
        return times

    def outputs(self) -> "Arrays":
        with tempfile.NamedTemporaryFile(suffix=".npz", dir=self._scratch) as file:
            self._ask(f"outputs {file.name}")
            found = _load(Path(file.name))
        return [found[f"out-{index}"] for index in range(len(found))]

    def close(self) -> None:
        self._child.close()


def worker(task: str) -> list[str]:
    """The command of a peer's process."""
    return [sys.executable, "-m", "edgebuild.bench.worker", task]


def _environment(threads: int) -> dict[str, str]:
    """Thread pools that take their size from a variable only."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "TVM_NUM_THREADS": str(threads)}


def _load(path: Path) -> "dict[str, np.ndarray[Any, Any]]":
    import numpy as np  # noqa: PLC0415

    with np.load(path) as file:
        return {name: np.ascontiguousarray(file[name]) for name in file.files}


def _header(stacked: "np.ndarray[Any, Any]") -> bytes:
    """The head of an .npy file with very many of the rows of `stacked`."""
    shape = (_ENDLESS, *stacked.shape[1:])
    text = f"{{'descr': '{stacked.dtype.str}', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def _peak_kb(pid: int) -> int:
    """Of a living process: rusage of a child counts its parent's memory too, up to exec."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

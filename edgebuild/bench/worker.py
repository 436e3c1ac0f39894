"""A process for one peer: `prepare` converts a model, `serve` loads one and runs it when told.

    python -m edgebuild.bench.worker prepare PEER VARIANT SOURCE.json FOLDER
    python -m edgebuild.bench.worker serve PEER FOLDER SAMPLES.npz THREADS

Both answer with JSON lines on standard output; what libraries print there goes to standard error. `serve` first runs
once and says so, then takes one command a line: `run N` answers with N run times, `outputs FILE.npz` with the outputs
of every sample, one array `out-I` each, samples along the first axis.
"""

import gc
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from edgebuild.bench.peers import PEERS, Session, Source, Unsupported

if TYPE_CHECKING:
    from edgebuild.core.calibration import Sample


def main(arguments: list[str]) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        {"prepare": _prepare, "serve": _serve}[arguments[0]](answers, *arguments[1:])
    except Unsupported as reason:
        _answer(answers, unsupported=str(reason))
    except Exception as reason:  # whatever a peer raises is its answer
        _answer(answers, unsupported=_one_line(reason))
        if os.environ.get("EDGEBUILD_DEBUG"):
            raise


def _adapter(peer: str) -> Any:
    return importlib.import_module(f"edgebuild.bench.peers.{PEERS[peer].module}")


def _prepare(answers: IO[str], peer: str, variant: str, source: str, folder: str) -> None:
    fields = json.loads(Path(source).read_text())
    paths = {name: Path(fields[name]) for name in ("float_model", "qdq_model", "calibration")}
    _adapter(peer).prepare(Source(**paths, recipe=fields["recipe"]), variant, Path(folder))
    _answer(answers, prepared=True)


def _serve(answers: IO[str], peer: str, folder: str, samples: str, threads: str) -> None:
    stacked = _arrays(Path(samples))
    count = len(next(iter(stacked.values())))
    rows: list[Sample] = [{name: array[i] for name, array in stacked.items()} for i in range(count)]
    host_kb = _status_kb("VmRSS")
    start = time.perf_counter()
    session: Session = _adapter(peer).load(Path(folder), int(threads), rows)
    session.bind(0)
    session.run()
    load_ms = 1e3 * (time.perf_counter() - start)
    _answer(answers, ready=True, load_ms=load_ms, peak_kb=_status_kb("VmHWM"), host_kb=host_kb)
    gc.disable()
    for line in sys.stdin:
        command, argument = line.split()
        if command == "run":
            _answer(answers, times_us=_run(session, count, int(argument)))
        else:
            _write_outputs(session, count, Path(argument))
            _answer(answers, written=argument)


def _run(session: Session, samples: int, count: int) -> list[float]:
    times = []
    for index in range(count):
        session.bind(index % samples)
        start = time.perf_counter_ns()
        session.run()
        times.append((time.perf_counter_ns() - start) / 1e3)
    return times


def _write_outputs(session: Session, samples: int, target: Path) -> None:
    import numpy as np  # noqa: PLC0415

    rows = []
    for index in range(samples):
        session.bind(index)
        session.run()
        rows.append([np.array(output) for output in session.outputs()])
    arrays: dict[str, Any] = {f"out-{i}": np.stack(column) for i, column in enumerate(zip(*rows, strict=True))}
    np.savez(target, **arrays)


def _arrays(path: Path) -> "dict[str, Any]":
    import numpy as np  # noqa: PLC0415

    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def _status_kb(field: str) -> int:
    """A memory figure of this process, in KiB; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), 0)


def _answer(answers: IO[str], **fields: object) -> None:
    answers.write(json.dumps(fields) + "\n")


def _one_line(reason: Exception) -> str:
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()] or [""]
    return f"{type(reason).__name__}: {lines[0]}"[:240]


if __name__ == "__main__":
    main(sys.argv[1:])

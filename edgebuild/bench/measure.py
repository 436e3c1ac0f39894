"""`edgebuild bench`: one model in our runtime and in the peers."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgebuild.bench import document, outputs, peak, rounds
from edgebuild.bench.case import BUNDLE_ALONE, Case, write_source
from edgebuild.bench.engines import OURS, Engine, EngineFailure, Hosted, Native, Start, worker
from edgebuild.bench.peers import FLOAT32, PEERS, QDQ, Peer
from edgebuild.bench.statistics import Timing
from edgebuild.core import digest, runner
from edgebuild.core.cache import Cache, cache_dir
from edgebuild.core.errors import CheckError, EnvironmentProblem, UsageError
from edgebuild.core.plan import Plan
from edgebuild.core.toml import did_you_mean

STARTS = 3
"""Fresh processes at the first thread count, of which the fastest counts."""
PATIENCE_MS = 3000.0
"""What takes longer to start is started once."""
RUN_CHECK = "edgebuild-run BUNDLE --check says more"
PREPARE_SECONDS = 1800.0
_REFUSED = "refused.json"


class Listener(Protocol):
    """Hears what is being done; `what` is one line."""

    def says(self, what: str) -> None: ...


@dataclass(frozen=True)
class Settings:
    """`against`: names of peers, all that are installed when None. `threads`: counts, the first is reported on top."""

    against: tuple[str, ...] | None = None
    threads: tuple[int, ...] = (1, 2)
    runs: int = rounds.RUNS

    def check(self) -> None:
        """Raises UsageError for peers that do not exist, EnvironmentProblem for one that is not installed."""
        check_threads(self.threads)
        for name in self.against or ():
            if name not in PEERS:
                raise UsageError(f"--against {name}: no such peer", did_you_mean(name, PEERS))
            if missing := PEERS[name].missing():
                raise EnvironmentProblem(f"--against {name}: {missing} is not installed", PEERS[name].install)


@dataclass(frozen=True)
class _Candidate:
    """A peer and what it runs; `folder` holds the converted model."""

    peer: Peer
    variant: str
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.peer.name} {self.variant}"


def bench(case: Case, settings: Settings, listener: Listener) -> dict[str, Any]:
    """The document of one model (`document.py`), with settings that were checked.

    Raises CheckError when our outputs do not vary over the inputs, or our program fails.
    """
    candidates, unavailable = _prepared(case, settings, listener)
    found = _Found([], unavailable, [], {})
    for threads in settings.threads:
        listener.says(f"{case.name}: {threads} thread{'s' if threads > 1 else ''}, {len(candidates) + 1} engines")
        _measure(case, settings, candidates, threads, found)
    first = found.by_threads[str(settings.threads[0])]
    return {
        "model": case.name,
        "target": case.target,
        "instruction": found.instruction,
        "macs": case.plan.macs_total,
        "bytes_moved": sum(op_bytes(case.plan)),
        "quality": case.quality,
        "rows": found.rows,
        "unavailable": found.unavailable,
        "agreement": found.agreement,
        "best_peer": first["best_peer"],
        "ratio": first["ratio"],
        "peak_share": first["peak_share"],
        "by_threads": found.by_threads,
    }


def baseline(case: Case) -> dict[str, dict[str, float]]:
    """Microseconds (min, median, p99) of one thread, by `edgebuild` and `onnxruntime` on our quantized graph."""
    peer = PEERS["onnxruntime"]
    candidate = _Candidate(peer, QDQ, _converted(case, peer, QDQ))
    with contextlib.ExitStack() as stack:
        ours = _started(case, None, 1, again=False, stack=stack)
        engines = {OURS: ours, peer.name: _started(case, candidate, 1, again=False, stack=stack)}
        return {name: runner.summary(times) for name, times in rounds.measure(engines).items()}


@dataclass
class _Found:
    rows: list[dict[str, Any]]
    unavailable: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    by_threads: dict[str, dict[str, Any]]
    instruction: str = ""


def op_bytes(plan: Plan) -> Iterator[int]:
    """Bytes that each operator reads and writes: weights and activations."""
    return (sum(plan.tensors[index].nbytes for index, _ in op.args) for op in plan.ops)


def check_threads(threads: Sequence[int]) -> None:
    """Raises UsageError unless each thread of each count can have a core of its own."""
    if not threads or len(set(threads)) < len(threads):
        raise UsageError("--threads: name each number of threads once", "e.g. --threads 1,2")
    most = len(os.sched_getaffinity(0))
    for count in threads:
        if not 1 <= count <= most:
            hint = f"1 to {most}: every thread gets a core of its own"
            raise UsageError(f"--threads {count}: this process may use {most} cores", hint)


def _prepared(case: Case, settings: Settings, listener: Listener) -> tuple[list[_Candidate], list[dict[str, Any]]]:
    """Peers with a converted model, and why the others have none."""
    candidates, unavailable = [], []
    for peer in (PEERS[name] for name in settings.against or PEERS):
        reason = peer.missing() and f"{peer.missing()} is not installed: {peer.install}"
        if not reason and case.float_model is None:
            reason = BUNDLE_ALONE
        if reason:
            unavailable.append({"engine": peer.name, "variant": None, "reason": reason})
            continue
        for variant in peer.variants:
            if variant == QDQ and not case.quantized:
                continue  # it would be the float32 model once more
            listener.says(f"{case.name}: prepares {peer.name} {variant}")
            folder = _converted(case, peer, variant)
            if (folder / _REFUSED).exists():
                refused = json.loads((folder / _REFUSED).read_text())["reason"]
                unavailable.append({"engine": peer.name, "variant": variant, "reason": refused})
            else:
                candidates.append(_Candidate(peer, variant, folder))
    return candidates, unavailable


def _converted(case: Case, peer: Peer, variant: str) -> Path:
    """The folder of a peer's converted model, or of the reason why there is none; from the cache."""
    own = digest.of_modules((f"bench/peers/{peer.module}",))
    packages = digest.of_packages(peer.packages)
    key = digest.of_parts("peer", peer.name, variant, own, packages, case.digest())
    cache = Cache(cache_dir() / "bench")
    return cache.get(key) or cache.put(key, _convert(case, peer, variant))


def _convert(case: Case, peer: Peer, variant: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="edgebuild-peer-") as name:
        folder = Path(name)
        source = case.folder / "source.json"
        write_source(case, source)
        command = [*worker("prepare"), peer.name, variant, str(source), name]
        try:
            done = subprocess.run(command, capture_output=True, check=False, timeout=PREPARE_SECONDS)
        except subprocess.TimeoutExpired:
            return _refusal(f"its conversion takes more than {PREPARE_SECONDS / 60:.0f} minutes")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        if not answers:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or [""]
            return _refusal(f"its conversion ends with exit code {done.returncode}: {lines[-1]}"[:240])
        if "unsupported" in answers[-1]:
            return _refusal(answers[-1]["unsupported"])
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def _refusal(reason: str) -> dict[str, bytes]:
    return {_REFUSED: json.dumps({"reason": reason}).encode()}


def _measure(case: Case, settings: Settings, candidates: Sequence[_Candidate], threads: int, found: _Found) -> None:
    """Adds the rows of one thread count."""
    found.instruction, gmacs = peak.dot_rate(case.arch, case.needs, threads)
    first = threads == settings.threads[0]
    with contextlib.ExitStack() as stack:
        engines: dict[str, Engine] = {OURS: _started(case, None, threads, again=first, stack=stack)}
        for candidate in candidates:
            try:
                engines[candidate.name] = _started(case, candidate, threads, again=first, stack=stack)
            except EngineFailure as failure:
                if first:
                    fields = {"engine": candidate.peer.name, "variant": candidate.variant, "reason": str(failure)}
                    found.unavailable.append(fields)
        starts = {name: engine.start for name, engine in engines.items()}
        if first:
            ours = engines[OURS].outputs()
            outputs.check_vary(case.name, ours)
            found.agreement += _agreement(candidates, engines, ours)
        times = rounds.measure(engines, settings.runs)
    by_name = {candidate.name: candidate for candidate in candidates}
    for name, series in times.items():
        timing = Timing.of(series)
        share = 1e-3 * case.plan.macs_total / timing.min / gmacs
        row = _row(case, by_name.get(name), threads, timing, starts[name], share)
        few = f"{timing.runs} runs: far slower than the fastest" if timing.runs < settings.runs else ""
        found.rows.append(row | {"note": few})
    best = document.ours_and_best(found.rows, threads)
    found.by_threads[str(threads)] = {**best, "peak_gmacs": round(gmacs, 1)}


def _started(
    case: Case, candidate: _Candidate | None, threads: int, *, again: bool, stack: contextlib.ExitStack
) -> Engine:
    """A running engine, closed with `stack`; `again`: the fastest of STARTS fresh starts counts."""
    engine = _start(case, candidate, threads)
    stack.callback(engine.close)
    for _ in range(STARTS - 1 if again and engine.start.first_result_ms < PATIENCE_MS else 0):
        with contextlib.closing(_start(case, candidate, threads)) as fresh:
            engine.start = _faster(engine.start, fresh.start)
    return engine


def _start(case: Case, candidate: _Candidate | None, threads: int) -> Engine:
    if candidate is not None:
        return Hosted(candidate.peer.name, candidate.folder, case, threads)
    try:
        return Native(case, threads)
    except EngineFailure as failure:
        raise CheckError(f"{case.name}: edgebuild-run fails: {failure}", RUN_CHECK) from failure


def _faster(one: Start, other: Start) -> Start:
    return other if other.first_result_ms < one.first_result_ms else one


def _row(
    case: Case, candidate: _Candidate | None, threads: int, timing: Timing, start: Start, share: float
) -> dict[str, Any]:
    if candidate is not None:
        whole = None if candidate.variant == FLOAT32 else share
        peer = candidate.peer
        return document.row(peer.name, candidate.variant, peer.version, threads, timing, start, whole)
    version = digest.package_version("edgebuild")
    made = document.row(OURS, QDQ if case.quantized else FLOAT32, version, threads, timing, start, share)
    held = case.plan.weights_bytes + case.plan.arena_bytes
    return made | {"over_rss_mb": round(start.peak_kb / document.MIB_KB - held / (1 << 20), 2)}


def _agreement(
    candidates: Sequence[_Candidate], engines: dict[str, Engine], ours: "outputs.Arrays"
) -> list[dict[str, Any]]:
    return [
        {"engine": item.peer.name, "variant": item.variant, **outputs.agreement(ours, engines[item.name].outputs())}
        for item in candidates
        if item.name in engines
    ]

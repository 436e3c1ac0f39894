"""`edgebuild profile`: the time of every operator beside its roofline.

An operator can be no faster than its multiply-accumulates at the machine's integer peak, nor than its bytes at the rate
at which the smallest memory that holds them is read; both rates are measured (`peak.py`). The roofline is the larger of
the two times.

Document: `model, target, threads, instruction, peak_gmacs, gbytes` {block bytes: GB/s}`, total_us, roofline_us`; `ops`,
in the order in which they run: [{name, kind, us, share, macs, gmacs, bytes, compute_us, memory_us, roofline_us,
bound}].
`us` is the least time of an operator; `compute_us` is null for one that does not compute in integers.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from edgebuild.bench import peak
from edgebuild.bench.case import Case
from edgebuild.bench.engines import cores
from edgebuild.bench.measure import RUN_CHECK, check_threads, op_bytes
from edgebuild.core.errors import CheckError
from edgebuild.core.plan import PlanOp
from edgebuild.core.runner import said

SECONDS = 2.0
"""About as long the operators are timed."""
MIN_RUNS, MAX_RUNS = 50, 20_000


def profile(case: Case, threads: int) -> dict[str, Any]:
    """The document. Raises UsageError for too many threads, CheckError when the bundle does not run."""
    check_threads((threads,))
    once = sum(line["latency_us"] for line in _timed(case, threads, MIN_RUNS))
    runs = min(MAX_RUNS, max(MIN_RUNS, int(SECONDS * 1e6 / max(once, 1e-3))))
    lines = _timed(case, threads, runs)
    limits = peak.measure(case.arch, case.needs, threads)
    total = sum(line["latency_us"] for line in lines)
    rows = zip(case.plan.ops, lines, op_bytes(case.plan), strict=True)
    ops = [_op(op, line["latency_us"], total, moved, limits) for op, line, moved in rows]
    return {
        "model": case.name,
        "target": case.target,
        "threads": threads,
        "instruction": limits.instruction,
        "peak_gmacs": round(limits.gmacs, 1),
        "gbytes": {str(size): round(rate, 1) for size, rate in limits.gbytes.items()},
        "total_us": round(total, 3),
        "roofline_us": round(sum(op["roofline_us"] for op in ops), 3),
        "ops": ops,
    }


def _timed(case: Case, threads: int, runs: int) -> list[dict[str, Any]]:
    """What `edgebuild-run --profile` says of each operator, pinned."""
    with tempfile.TemporaryDirectory(prefix="edgebuild-profile-") as folder:
        command = [str(case.runtime), str(case.bundle), "--trust", str(case.trust), "--threads", str(threads)]
        command += ["--profile", "--json", "--no-pace", "--repeat", str(runs), *_inputs(case, Path(folder))]
        mine = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores(threads))
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        finally:
            os.sched_setaffinity(0, mine)
    if done.returncode != 0:
        raise CheckError(f"{case.name}: edgebuild-run fails: {said(done)}", RUN_CHECK)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    return [line for line in lines if "op" in line]


def _inputs(case: Case, folder: Path) -> list[str]:
    """Options that give the program the first sample."""
    import numpy as np  # noqa: PLC0415

    options = []
    with np.load(case.samples) as samples:
        for name in case.inputs:
            np.save(folder / f"{name}.npy", samples[name][:1])
            options += ["--input", f"{name}={folder}/{name}.npy"]
    return options


def _op(op: PlanOp, time_us: float, total_us: float, moved: int, limits: peak.Peak) -> dict[str, Any]:
    compute = op.macs / limits.gmacs * 1e-3 if op.integer and op.macs else None
    memory = moved / limits.bandwidth(moved) * 1e-3
    bound = "compute" if compute is not None and compute > memory else "memory"
    return {
        "name": op.name,
        "kind": op.kind,
        "us": round(time_us, 3),
        "share": round(time_us / total_us, 4) if total_us else 0.0,
        "macs": op.macs,
        "gmacs": round(op.macs / time_us * 1e-3, 2) if time_us else 0.0,
        "bytes": moved,
        "compute_us": None if compute is None else round(compute, 3),
        "memory_us": round(memory, 3),
        "roofline_us": round(max(compute or 0.0, memory), 3),
        "bound": bound,
    }


def by_kind(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Kinds of operators with their number, time and roofline, the longest first."""
    kinds: dict[str, dict[str, Any]] = {}
    for op in found["ops"]:
        kind = kinds.setdefault(op["kind"], {"kind": op["kind"], "count": 0, "us": 0.0, "roofline_us": 0.0})
        kind["count"] += 1
        kind["us"] += op["us"]
        kind["roofline_us"] += op["roofline_us"]
    return sorted(kinds.values(), key=lambda kind: -float(kind["us"]))

"""The document of `edgebuild bench --json`: plain values with stable keys, documented here.

One model: `model, target, instruction` (the dot product behind the peak)`, macs, bytes_moved` (an inference's reads and
writes of weights and activations, from plan.bin)`, quality`; `rows` [{engine, variant, version, threads, runs, min_ms,
median_ms, p99_ms, sd_ms, mad_ms, peak_share, first_result_ms, load_ms, peak_rss_mb, host_rss_mb, over_rss_mb, note}];
`unavailable` [{engine, variant, reason}]; `agreement` [{engine, variant, same_top1, max_difference}]: outputs against
ours, as shares of the samples and of the largest value; `best_peer` {engine, variant, min_ms}, `ratio` (its minimum
over ours: above 1 we are faster), `peak_share` of the first thread count, and all of them by thread count in
`by_threads` {"1": {best_peer, ratio, peak_share, peak_gmacs}}.

`variant`: `qdq` our quantized graph, `own` the peer's own quantizer, `float32`. `first_result_ms` counts from the start
of a fresh process (a peer's Python included), `load_ms` from the import of the peer's library. `host_rss_mb` of
`peak_rss_mb` are the interpreter's before the peer is imported; `over_rss_mb` is what ours takes above weights and
arena.

Several models: `models` [documents], `summary` {"1": {geometric_mean, worst: {model, ratio}}} by thread count.
"""

from collections.abc import Sequence
from typing import Any

from edgebuild.bench.engines import OURS, Start
from edgebuild.bench.statistics import Timing, geometric_mean

MIB_KB = 1024


def row(
    engine: str, variant: str, version: str, threads: int, timing: Timing, start: Start, share: float | None
) -> dict[str, Any]:
    """One engine at one thread count; `share` of the machine's integer peak."""
    figures = {f"{name}_ms": round(getattr(timing, name) / 1e3, 5) for name in ("min", "median", "p99", "sd", "mad")}
    return {
        "engine": engine,
        "variant": variant,
        "version": version,
        "threads": threads,
        "runs": timing.runs,
        **figures,
        "peak_share": None if share is None else round(share, 4),
        "first_result_ms": round(start.first_result_ms, 2),
        "load_ms": round(start.load_ms, 2),
        "peak_rss_mb": round(start.peak_kb / MIB_KB, 2),
        "host_rss_mb": round(start.host_kb / MIB_KB, 2),
        "over_rss_mb": None,
        "note": "",
    }


def ours_and_best(rows: Sequence[dict[str, Any]], threads: int) -> dict[str, Any]:
    """`best_peer`, `ratio` and `peak_share` at a thread count; None where no peer ran."""
    here = [item for item in rows if item["threads"] == threads]
    ours = next(item for item in here if item["engine"] == OURS)
    peers = [item for item in here if item["engine"] != OURS]
    best = min(peers, key=lambda item: float(item["min_ms"]), default=None)
    return {
        "best_peer": {key: best[key] for key in ("engine", "variant", "min_ms")} if best else None,
        "ratio": round(best["min_ms"] / ours["min_ms"], 3) if best else None,
        "peak_share": ours["peak_share"],
    }


def summary(documents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric mean and worst model by thread count, over the models that a peer ran."""
    found: dict[str, Any] = {}
    for threads in documents[0]["by_threads"]:
        ratios = {item["model"]: item["by_threads"][threads]["ratio"] for item in documents}
        known = {model: ratio for model, ratio in ratios.items() if ratio is not None}
        if known:
            worst = min(known, key=lambda model: known[model])
            mean = round(geometric_mean(list(known.values())), 3)
            found[threads] = {"geometric_mean": mean, "worst": {"model": worst, "ratio": known[worst]}}
    return found

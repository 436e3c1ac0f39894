from typing import Any

import pytest

from edgebuild.bench import document
from edgebuild.bench.engines import Start
from edgebuild.bench.statistics import Timing

KEYS = {"engine", "variant", "version", "threads", "runs", "min_ms", "median_ms", "p99_ms", "sd_ms", "mad_ms"}
KEYS |= {"peak_share", "first_result_ms", "load_ms", "peak_rss_mb", "host_rss_mb", "over_rss_mb", "note"}


def row(engine: str, min_us: float, threads: int = 1, variant: str = "qdq") -> dict[str, Any]:
    timing = Timing.of([min_us, 2 * min_us])
    return document.row(engine, variant, "1", threads, timing, Start(10.0, 5.0, 2048, 1024), 0.5)


def test_a_row_has_these_keys_and_units() -> None:
    made = row("edgebuild", 1500.0)
    assert set(made) == KEYS
    assert (made["min_ms"], made["median_ms"], made["peak_rss_mb"], made["host_rss_mb"]) == (1.5, 2.25, 2.0, 1.0)


def test_the_best_peer_is_the_fastest_row_of_any_variant() -> None:
    rows = [row("edgebuild", 10.0), row("x", 30.0), row("y", 20.0, variant="float32"), row("y", 5.0, threads=2)]
    found = document.ours_and_best(rows, 1)
    assert found["best_peer"] == {"engine": "y", "variant": "float32", "min_ms": 0.02}
    assert found["ratio"] == 2.0


def test_without_a_peer_there_is_no_ratio() -> None:
    found = document.ours_and_best([row("edgebuild", 10.0)], 1)
    assert (found["best_peer"], found["ratio"], found["peak_share"]) == (None, None, 0.5)


def test_summary_leaves_out_models_that_no_peer_ran() -> None:
    ratios = {"a": (2.0, 1.0), "b": (0.5, 4.0), "c": (None, None)}
    documents = [
        {"model": name, "by_threads": {"1": {"ratio": one}, "2": {"ratio": two}}} for name, (one, two) in ratios.items()
    ]
    assert document.summary(documents) == {
        "1": {"geometric_mean": pytest.approx(1.0), "worst": {"model": "b", "ratio": 0.5}},
        "2": {"geometric_mean": pytest.approx(2.0), "worst": {"model": "a", "ratio": 1.0}},
    }

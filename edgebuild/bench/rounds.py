"""Lets engines run in turns, so that a slower phase of the machine meets all of them."""

import math
import time
from collections.abc import Mapping

from edgebuild.bench.engines import Engine

ROUNDS = 10
RUNS = 50
"""Of each engine, at least."""
ROUND_SECONDS = 0.12
"""Of each engine in a round, at least: fast models run more often."""
WARM_SECONDS = 0.25
REFRESH_SECONDS = 0.01
"""Runs at the start of a round that do not count: others have used caches and cores meanwhile."""
SLOW_FACTOR = 20
SLOW_RUNS = 5
"""Of an engine SLOW_FACTOR times slower than the fastest: nobody waits minutes for the last digit of its time."""


def measure(engines: Mapping[str, Engine], runs: int = RUNS) -> dict[str, list[float]]:
    """Run times in microseconds by engine, from rounds whose order rotates."""
    once = {name: _warm(engine) for name, engine in engines.items()}
    fastest = min(once.values())
    wanted = {name: _wanted(time_us, fastest, runs) for name, time_us in once.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    names = list(engines)
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            count, refresh = _per_round(once[name], wanted[name])
            if wanted[name] <= SLOW_RUNS <= len(times[name]):
                continue
            times[name] += engines[name].run(count + refresh)[refresh:]
    return times


def _warm(engine: Engine) -> float:
    """Runs it until it is warm; its least time in microseconds."""
    found: list[float] = []
    end = time.monotonic() + WARM_SECONDS
    while not found or time.monotonic() < end:
        found += engine.run(1 if not found else max(1, min(50, int(20_000 / min(found)))))
    return min(found)


def _wanted(time_us: float, fastest: float, runs: int) -> int:
    return min(runs, SLOW_RUNS) if time_us > SLOW_FACTOR * fastest else runs


def _per_round(time_us: float, runs: int) -> tuple[int, int]:
    """Runs that count, and runs before them that do not."""
    refresh = max(1, math.ceil(REFRESH_SECONDS * 1e6 / time_us)) if runs > SLOW_RUNS else 0
    return max(math.ceil(runs / ROUNDS), int(ROUND_SECONDS * 1e6 / time_us)), min(refresh, 200)

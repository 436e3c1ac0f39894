"""Figures of a series of run times, and of ratios over several models."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """Of `runs` run times, in microseconds; `p99` by nearest rank, `mad` the median absolute deviation."""

    runs: int
    min: float
    median: float
    p99: float
    sd: float
    mad: float

    @classmethod
    def of(cls, times_us: Sequence[float]) -> "Timing":
        """Raises ValueError when there is no time."""
        if not times_us:
            raise ValueError("there are no run times")
        ordered = sorted(times_us)
        middle = statistics.median(ordered)
        return cls(
            runs=len(ordered),
            min=ordered[0],
            median=middle,
            p99=ordered[math.ceil(0.99 * len(ordered)) - 1],
            sd=statistics.pstdev(ordered),
            mad=statistics.median(abs(time - middle) for time in ordered),
        )


def geometric_mean(ratios: Sequence[float]) -> float:
    """Of positive numbers, at least one."""
    return math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))

"""Paired bootstrap intervals: how much of a drop is chance of which samples were at hand.

Samples are drawn with replacement, the same for float and INT8, and the drop is computed again (Efron and Tibshirani,
1993, chapter 13). The generator is seeded: a build says the same twice.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

RESAMPLES = 2000
LEVEL = 95.0
_SEED = 20_191
_FEW_VALUES = 64
_ELEMENTS = 4_000_000
"""Of the largest array that is held at once."""


def generator() -> np.random.Generator:
    """The same numbers in every build."""
    return np.random.default_rng(_SEED)


def interval(drops: Array) -> tuple[float, float] | None:
    """The middle 95 % of resampled drops; None when no resample had one."""
    known = drops[np.isfinite(drops)]
    if not known.size:
        return None
    low, high = np.percentile(known, [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def means(differences: Array) -> Array:
    """Means of resamples of `differences` [samples]: [RESAMPLES].

    Of few distinct values (right or wrong), only how often each is drawn counts, which is multinomial.
    """
    rng, count = generator(), len(differences)
    values, often = np.unique(differences, return_counts=True)
    if len(values) <= _FEW_VALUES:
        return np.asarray(rng.multinomial(count, often / count, size=RESAMPLES) @ values / count)
    return np.concatenate([weights @ differences / count for weights in draws(count)])


def draws(count: int) -> Iterator[Array]:
    """How often each of `count` samples is drawn, for RESAMPLES resamples in parts: float64 [resamples, count]."""
    rng, rows = generator(), max(1, _ELEMENTS // max(count, 1))
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)

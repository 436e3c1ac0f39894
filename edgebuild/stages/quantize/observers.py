"""Observers: the range of a tensor from a stream of samples, in memory that does not grow with their number."""

import math
from typing import Protocol

import numpy as np

from edgebuild.core.errors import UsageError
from edgebuild.stages.quantize.graph import Array

Range = tuple[float, float]


class Watcher(Protocol):
    """Sees arrays of finite float32 values one after the other."""

    def observe(self, values: Array, low: float, high: float) -> None:
        """Takes the values of one sample, whose smallest and largest are `low` and `high`."""


class Observer(Watcher, Protocol):
    """A watcher that says which range to represent."""

    def range(self) -> Range | None:
        """The range found so far; None before any value."""


class MinMax:
    """The smallest and the largest value seen."""

    def __init__(self) -> None:
        self._range: Range | None = None

    def observe(self, values: Array, low: float, high: float) -> None:  # noqa: ARG002 - the protocol's signature
        """Widens the range."""
        seen = self._range or (low, high)
        self._range = (min(seen[0], low), max(seen[1], high))

    def range(self) -> Range | None:
        """The range found so far."""
        return self._range


class Percentile:
    """The range that leaves out (100 - percentile) % of the values at either end.

    A histogram of `2 * _BINS` bins over [-2^e, 2^e). When a value lies outside, e grows and neighbouring bins merge:
    bins nest exactly, so the histogram is the same for every order of the samples. Within a bin, values count as spread
    evenly; the range never exceeds the smallest and the largest value.
    """

    _BINS = 1 << 14

    def __init__(self, percentile: float) -> None:
        if not 50.0 < percentile <= 100.0:
            raise UsageError(f"percentile {percentile} is not above 50 and at most 100", "99.99 is a usual value")
        self._tail = (100.0 - percentile) / 100.0
        self._extremes = MinMax()
        self._exponent: int | None = None
        self._zeros = 0
        self._counts = np.zeros(2 * self._BINS, np.int64)

    def observe(self, values: Array, low: float, high: float) -> None:
        """Counts the values."""
        self._extremes.observe(values, low, high)
        largest = max(abs(low), abs(high))
        if largest == 0.0:
            self._zeros += values.size
            return
        self._grow(math.frexp(largest)[1])
        assert self._exponent is not None
        bins = np.floor(np.ldexp(values.reshape(-1).astype(np.float64), self._bin_shift(self._exponent)))
        index = np.clip(bins, -self._BINS, self._BINS - 1).astype(np.int64) + self._BINS
        self._counts += np.bincount(index, minlength=2 * self._BINS)

    def _bin_shift(self, exponent: int) -> int:
        return int(math.log2(self._BINS)) - exponent

    def _grow(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[self._BINS // 2 : self._BINS // 2 + self._BINS] = pairs
            self._exponent += 1

    def range(self) -> Range | None:
        """The range found so far."""
        extremes = self._extremes.range()
        if extremes is None or self._exponent is None or self._tail == 0.0:
            return extremes
        counts = self._counts.copy()
        counts[self._BINS] += self._zeros
        width = math.ldexp(1.0, -self._bin_shift(self._exponent))
        left = self._cut(counts) - self._BINS
        right = self._BINS - self._cut(counts[::-1])
        low, high = max(extremes[0], left * width), min(extremes[1], right * width)
        return (low, high) if low <= high else extremes

    def _cut(self, counts: Array) -> float:
        """The position, in bins from the front, before which a share of `_tail` of all values lies."""
        total = np.cumsum(counts)
        wanted = self._tail * float(total[-1])
        i = int(np.searchsorted(total, wanted, side="right"))
        before = float(total[i - 1]) if i else 0.0
        return i + (wanted - before) / float(counts[i])


def observer(name: str, percentile: float) -> Observer:
    """A new observer by its name in recipes: `minmax` or `percentile`."""
    if name == "minmax":
        return MinMax()
    if name == "percentile":
        return Percentile(percentile)
    raise UsageError(f"unknown observer {name!r}", "the observers are: minmax, percentile")

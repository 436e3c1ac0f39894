"""Observers: the range of a tensor from a stream of samples, in memory that does not grow with their number.

| name | range |
|---|---|
| minmax | the smallest and the largest value |
| moving-average | their running averages over the samples, as PyTorch's MovingAverageMinMaxObserver has them |
| percentile | what remains without a share of the values at either end |
| entropy | the least Kullback-Leibler divergence between the values and the rounded values |
| mse | the least expected squared error of rounding and cutting off |
"""

import math
from collections.abc import Callable
from typing import Protocol

import numpy as np

from edgebuild.core.errors import UsageError
from edgebuild.stages.quantize.graph import Array

Range = tuple[float, float]
LEVELS = 255
_AVERAGING = 0.01
"""The weight of a new sample in a moving average, PyTorch's default."""


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


class MovingAverage:
    """The running averages of each sample's smallest and largest value."""

    def __init__(self) -> None:
        self._range: Range | None = None

    def observe(self, values: Array, low: float, high: float) -> None:  # noqa: ARG002 - the protocol's signature
        """Moves both averages towards the sample's."""
        seen = self._range or (low, high)
        self._range = (seen[0] + _AVERAGING * (low - seen[0]), seen[1] + _AVERAGING * (high - seen[1]))

    def range(self) -> Range | None:
        """The range found so far."""
        return self._range


class Histogram:
    """How often which values occur, and the extremes.

    `2 * BINS` bins over [-2^e, 2^e). When a value lies outside, e grows and neighbouring bins merge: bins nest exactly,
    so the histogram is the same for every order of the samples. Of a sample's values at most _COUNTED, evenly chosen,
    are counted; its extremes always are.
    """

    BINS = 1 << 13
    _COUNTED = 1 << 16

    def __init__(self) -> None:
        self.extremes = MinMax()
        self._exponent: int | None = None
        self._zeros = 0
        self._counts = np.zeros(2 * self.BINS, np.int64)

    def observe(self, values: Array, low: float, high: float) -> None:
        """Counts the values."""
        self.extremes.observe(values, low, high)
        step = -(-values.size // self._COUNTED)
        flat = values.reshape(-1)[::step].astype(np.float32)
        if step > 1:
            flat = np.append(flat, np.array([low, high], np.float32))
        largest = max(abs(low), abs(high))
        zeros = int(np.count_nonzero(flat == 0.0))
        self._zeros += zeros
        if largest == 0.0:
            return
        self._grow(math.frexp(largest)[1])
        assert self._exponent is not None
        scale = math.ldexp(1.0, int(math.log2(self.BINS)) - self._exponent)
        bins = np.multiply(flat, scale, dtype=np.float64)
        np.clip(np.floor(bins, out=bins), -self.BINS, self.BINS - 1, out=bins)
        index = bins.astype(np.int64)
        index += self.BINS
        self._counts += np.bincount(index, minlength=2 * self.BINS)
        self._counts[self.BINS] -= zeros  # they are kept apart

    def _grow(self, exponent: int) -> None:
        if self._exponent is None:
            self._exponent = exponent
        while self._exponent < exponent:
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[self.BINS // 2 : self.BINS // 2 + self.BINS] = pairs
            self._exponent += 1

    @property
    def width(self) -> float:
        """The width of a bin; 1 where all values were zero."""
        return 1.0 if self._exponent is None else math.ldexp(1.0, self._exponent) / self.BINS

    @property
    def zeros(self) -> int:
        """How many values were exactly 0: rounding leaves them as they are."""
        return self._zeros

    def counts(self) -> Array:
        """How many values lie in each bin, int64 [2 * BINS]; bin i is [(i - BINS) * width, (i + 1 - BINS) * width)."""
        found = self._counts.copy()
        found[self.BINS] += self._zeros
        return found

    def centres(self) -> Array:
        """The middle of each bin, float64 [2 * BINS]."""
        return np.asarray((np.arange(-self.BINS, self.BINS) + 0.5) * self.width)

    def is_flat(self) -> bool:
        """Whether there was no value, or none but zeros."""
        return self._exponent is None


class _Chosen:
    """An observer that chooses a range from the histogram; it never exceeds the extremes."""

    def __init__(self) -> None:
        self.histogram = Histogram()

    def observe(self, values: Array, low: float, high: float) -> None:
        """Counts the values."""
        self.histogram.observe(values, low, high)

    def range(self) -> Range | None:
        """The range found so far."""
        extremes = self.histogram.extremes.range()
        if extremes is None or self.histogram.is_flat():
            return extremes
        low, high = self.choose(extremes)
        low, high = max(extremes[0], low), min(extremes[1], high)
        return (low, high) if low <= high else extremes

    def choose(self, extremes: Range) -> Range:
        """The range, from values that are not all zero."""
        raise NotImplementedError


class Percentile(_Chosen):
    """The range that leaves out (100 - percentile) % of the values at either end; values lie evenly within a bin."""

    def __init__(self, percentile: float) -> None:
        super().__init__()
        if not 50.0 < percentile <= 100.0:
            raise UsageError(f"percentile {percentile} is not above 50 and at most 100", "99.99 is a usual value")
        self._tail = (100.0 - percentile) / 100.0

    def choose(self, extremes: Range) -> Range:
        """The two percentiles."""
        if self._tail == 0.0:
            return extremes
        counts, bins = self.histogram.counts(), self.histogram.BINS
        left, right = self._cut(counts) - bins, bins - self._cut(counts[::-1])
        return left * self.histogram.width, right * self.histogram.width

    def _cut(self, counts: Array) -> float:
        """The position, in bins from the front, before which a share of `_tail` of all values lies."""
        total = np.cumsum(counts)
        wanted = self._tail * float(total[-1])
        i = int(np.searchsorted(total, wanted, side="right"))
        before = float(total[i - 1]) if i else 0.0
        return i + (wanted - before) / float(counts[i])


class MeanSquare(_Chosen):
    """The range with the least expected squared error: s²/12 for a value inside (none for 0), the distance outside."""

    _TRIED = 128

    def choose(self, extremes: Range) -> Range:
        """Each end in turn, with the other as it is."""
        error = RangeError(self.histogram)
        low, high = min(extremes[0], 0.0), max(extremes[1], 0.0)
        shares = np.arange(1, self._TRIED + 1) / self._TRIED
        for _ in range(3):
            high = self._best([(low, high * s) for s in shares], error)[1] if high > 0 else high
            low = self._best([(low * s, high) for s in shares], error)[0] if low < 0 else low
        return low, high

    def _best(self, ranges: list[Range], error: "RangeError") -> Range:
        found = error.of(np.array([r[0] for r in ranges]), np.array([r[1] for r in ranges]))
        # of equal ones the widest
        return ranges[len(ranges) - 1 - int(np.argmin(found[::-1]))]


class RangeError:
    """The expected squared error of a value when a tensor is rounded to a range."""

    def __init__(self, histogram: Histogram) -> None:
        counts, self._centres = histogram.counts().astype(np.float64), histogram.centres()
        self._total = counts.sum()
        self._rounded = self._total - histogram.zeros
        self._below = [np.concatenate([[0.0], np.cumsum(counts * self._centres**p)]) for p in range(3)]
        self._above = [np.concatenate([np.cumsum((counts * self._centres**p)[::-1])[::-1], [0.0]]) for p in range(3)]

    def of(self, low: Array, high: Array, levels: int = LEVELS) -> Array:
        """Mean squared errors of ranges [low, high], which hold 0."""
        step = (high - low) / levels
        i, j = np.searchsorted(self._centres, low), np.searchsorted(self._centres, high)
        count, first, second = (sums[i] for sums in self._below)
        under = second - 2 * low * first + low**2 * count
        cut = count
        count, first, second = (sums[j] for sums in self._above)
        over = second - 2 * high * first + high**2 * count
        inside = np.maximum(self._rounded - cut - count, 0.0)
        return np.asarray((inside * step**2 / 12 + under + over) / max(self._total, 1.0))


class Entropy(_Chosen):
    """The threshold on |x| whose rounded distribution diverges least from the true one, as TensorRT chooses it
    (Migacz, 8-bit Inference with TensorRT, 2017); a side that no value is on stays empty.
    """

    _BINS = 2048
    _FIRST = 128
    _STRIDE = 16

    def choose(self, extremes: Range) -> Range:
        """The best threshold, on both sides."""
        largest = max(abs(extremes[0]), abs(extremes[1]))
        counts = self._magnitudes(largest)
        limits = np.arange(self._FIRST, self._BINS + 1, self._STRIDE)
        divergence = [self._divergence(counts, int(limit)) for limit in limits]
        threshold = float(limits[int(np.argmin(divergence))]) / self._BINS * largest
        return max(extremes[0], -threshold), min(extremes[1], threshold)

    def _magnitudes(self, largest: float) -> Array:
        """How many |x| lie in each of _BINS bins up to the largest; zeros say nothing of the distribution."""
        counts, centres = self.histogram.counts(), self.histogram.centres()
        counts[self.histogram.BINS] -= self.histogram.zeros
        index = np.minimum((np.abs(centres) / largest * self._BINS).astype(np.int64), self._BINS - 1)
        return np.bincount(index, weights=counts, minlength=self._BINS)

    def _divergence(self, counts: Array, limit: int) -> float:
        inside = counts[:limit]
        wanted = inside.copy()
        wanted[-1] += counts[limit:].sum()
        group = np.arange(limit) * self._FIRST // limit
        taken = inside > 0
        sums = np.bincount(group, weights=inside, minlength=self._FIRST)
        held = np.bincount(group, weights=taken, minlength=self._FIRST)
        found = np.where(taken, (sums / np.maximum(held, 1))[group], 0.0)
        if not wanted.sum() or not found.sum():
            return math.inf
        p, q = wanted / wanted.sum(), found / found.sum()
        seen = p > 0
        return float((p[seen] * np.log(p[seen] / np.maximum(q[seen], 1e-12))).sum())


_OBSERVERS: dict[str, Callable[[float], Observer]] = {
    "minmax": lambda _: MinMax(),
    "moving-average": lambda _: MovingAverage(),
    "percentile": Percentile,
    "entropy": lambda _: Entropy(),
    "mse": lambda _: MeanSquare(),
}
OBSERVERS = tuple(_OBSERVERS)


def observer(name: str, percentile: float) -> Observer:
    """A new observer by its name in recipes, one of OBSERVERS."""
    if name not in _OBSERVERS:
        raise UsageError(f"unknown observer {name!r}", f"the observers are: {', '.join(OBSERVERS)}")
    return _OBSERVERS[name](percentile)

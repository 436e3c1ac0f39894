"""Streams samples through the float network and the integers, and keeps what each tensor showed.

The signal to quantization noise ratio (SQNR) is 10·log10(signal power / noise power) in dB. The local SQNR of a tensor
counts its own rounding and clipping alone; the accumulated one all that comes before it as well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgebuild.stages.diagnose.graph import Array, channels
from edgebuild.stages.diagnose.switch import Activation, Sample, Switched, Weights

SILENT = 120.0  # dB that stand for no noise at all
BINS = 64


def decibels(signal: float, noise: float) -> float:
    """SQNR; at most SILENT, and SILENT where there is no signal to lose."""
    if noise <= 0 or signal <= 0:
        return SILENT if noise <= 0 else -SILENT
    return float(min(SILENT, max(-SILENT, 10 * np.log10(signal / noise))))


@dataclass
class Moments:
    """Per channel, over all samples: extremes, sums, and for quantized tensors the noise."""

    low: Array
    high: Array
    total: Array
    squares: Array
    count: int = 0

    @classmethod
    def of(cls, channel_count: int) -> "Moments":
        empty = np.zeros(channel_count)
        return cls(np.full(channel_count, np.inf), np.full(channel_count, -np.inf), empty.copy(), empty.copy())

    def add(self, rows: Array) -> None:
        """Adds values [channels, n]."""
        np.minimum(self.low, rows.min(axis=1), out=self.low)
        np.maximum(self.high, rows.max(axis=1), out=self.high)
        self.total += rows.sum(axis=1, dtype=np.float64)
        self.squares += np.einsum("cn,cn->c", rows, rows, dtype=np.float64)
        self.count += rows.shape[1]

    @property
    def mean(self) -> Array:
        return np.asarray(self.total / max(self.count, 1))

    @property
    def variance(self) -> Array:
        return np.asarray(np.maximum(self.squares / max(self.count, 1) - self.mean**2, 0.0))

    @property
    def largest(self) -> Array:
        """The largest magnitude of each channel."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass
class Track:
    """What a quantized tensor showed."""

    activation: Activation
    moments: Moments | None = None
    noise: Array = field(default_factory=lambda: np.zeros(0))
    accumulated: float = 0.0
    clipped_low: int = 0
    clipped_high: int = 0
    at_low: int = 0
    at_high: int = 0
    zeros: int = 0

    def add(self, exact: Array, integer: Array) -> None:
        """One sample: the float value, and what the integers made of it."""
        rows = channels(exact)
        if self.moments is None:
            self.moments, self.noise = Moments.of(len(rows)), np.zeros(len(rows))
        self.moments.add(rows)
        rounded = self.activation.rounded(exact)
        low, high = self.activation.range
        half = self.activation.scale / 2
        if rows.min() < low - half:
            self.clipped_low += int(np.count_nonzero(exact < low - half))
        if rows.max() > high + half:
            self.clipped_high += int(np.count_nonzero(exact > high + half))
        self.at_low += int(np.count_nonzero(rounded <= low + half))
        self.at_high += int(np.count_nonzero(rounded >= high - half))
        self.zeros += int(np.count_nonzero(exact == 0))
        rounded -= exact
        own = channels(rounded)
        self.noise += np.einsum("cn,cn->c", own, own, dtype=np.float64)
        rest = np.asarray(integer, np.float32) - exact
        self.accumulated += float(np.einsum("i,i->", rest.reshape(-1), rest.reshape(-1), dtype=np.float64))

    @property
    def seen(self) -> Moments:
        assert self.moments is not None
        return self.moments

    @property
    def elements(self) -> int:
        return self.seen.count * len(self.seen.low)

    @property
    def needed(self) -> tuple[float, float]:
        """The range of the values, widened so that 0 is one of them."""
        return min(0.0, float(self.seen.low.min())), max(0.0, float(self.seen.high.max()))

    @property
    def local_db(self) -> float:
        return decibels(float(self.seen.squares.sum()), float(self.noise.sum()))

    @property
    def sqnr_db(self) -> float:
        return decibels(float(self.seen.squares.sum()), self.accumulated)

    @property
    def fitted_db(self) -> float:
        """The local SQNR of the range that just holds all values: steps of (max - min) / 255, uniform error; zeros and
        clipped activations are exact.
        """
        low, high = self.needed
        step = (high - low) / (self.activation.highest - self.activation.lowest)
        moving = max(self.elements - self.zeros, 0)
        return decibels(float(self.seen.squares.sum()), step * step / 12 * moving)

    @property
    def channel_db(self) -> Array:
        """Local SQNR of every channel that carries a signal."""
        live = self.seen.squares > 0
        noise = np.maximum(self.noise[live], self.seen.squares[live] * 10 ** (-SILENT / 10))
        return np.asarray(10 * np.log10(self.seen.squares[live] / noise))


@dataclass(frozen=True)
class WeightError:
    """A layer's rounded weights beside the exact ones; arrays by output channel."""

    weights: Weights
    sqnr_db: float
    channel_db: Array
    gain: Array  # least squares factor: stored = gain * exact
    fitted_db: Array  # what a grid of max|w| / 127 would reach
    energy: Array  # share of the layer's energy
    codes_used: Array  # largest |code|

    @classmethod
    def of(cls, weights: Weights) -> "WeightError":
        assert weights.exact is not None
        exact, stored, codes = (
            np.asarray(a, np.float64).reshape(len(a), -1) for a in (weights.exact, weights.stored, weights.codes)
        )
        power, noise = (exact**2).sum(axis=1), ((stored - exact) ** 2).sum(axis=1)
        safe = np.where(power > 0, power, 1.0)
        step = np.abs(exact).max(axis=1) / np.iinfo(weights.codes.dtype).max
        tiny = 10 ** (-SILENT / 10)
        return cls(
            weights,
            decibels(float(power.sum()), float(noise.sum())),
            10 * np.log10(safe / np.maximum(noise, safe * tiny)),
            np.where(power > 0, (stored * exact).sum(axis=1) / safe, 1.0),
            10 * np.log10(safe / np.maximum(step**2 / 12 * exact.shape[1], safe * tiny)),
            power / max(float(power.sum()), 1e-300),
            np.abs(codes).max(axis=1),
        )


@dataclass(frozen=True)
class Measured:
    """What the runs showed: tracks in topological order, and the SQNR of the network's outputs."""

    tracks: list[Track]
    weights: list[WeightError]
    output_db: float
    samples: list[Sample]


def measure(switched: Switched, samples: list[Sample]) -> Measured:
    """Two runs a sample: all switches at float, all at integers."""
    names = list(dict.fromkeys(a.result for a in switched.activations))
    tracks = {a.result: Track(a) for a in switched.activations}
    probes = switched.probes()
    outputs = Outputs(len(probes))
    for sample in samples:
        exact = switched.run(sample, switched.switches, [*names, *probes])
        integer = switched.run(sample, (), [*names, *probes])
        for name, wanted, found in zip(names, exact, integer, strict=False):
            if wanted.size:
                tracks[name].add(wanted, found)
        outputs.add(exact[len(names) :], integer[len(names) :])
    seen = [track for track in tracks.values() if track.moments is not None]
    errors = [WeightError.of(w) for w in switched.weights if w.exact is not None]
    return Measured(seen, errors, outputs.decibels, samples)


class Outputs:
    """Signal and noise of the network's outputs; each output counts relative to its own power."""

    def __init__(self, count: int) -> None:
        self._signal, self._noise = np.zeros(count), np.zeros(count)

    def add(self, wanted: Sequence[Array], found: Sequence[Array]) -> None:
        """One sample."""
        for i, (exact, other) in enumerate(zip(wanted, found, strict=True)):
            power = float(np.square(exact, dtype=np.float64).sum())
            if np.isfinite(power):
                self._signal[i] += power
                self._noise[i] += float(np.square(np.subtract(other, exact, dtype=np.float64)).sum())

    @property
    def decibels(self) -> float:
        """The SQNR of all outputs together."""
        live = self._signal > 0
        share = self._noise[live] / self._signal[live]
        return decibels(1.0, float(share.mean())) if len(share) else SILENT


class Trials:
    """The network's outputs under other settings of the switches, beside its float outputs on a few samples."""

    def __init__(self, switched: Switched, samples: Sequence[Sample]) -> None:
        self._switched, self._samples, self._probes = switched, samples, switched.probes()
        self._wanted = [switched.run(sample, switched.switches, self._probes) for sample in samples]

    def undone(self, exact: Iterable[str] = ()) -> float:
        """The SQNR with the switches `exact` at float, and all others at integers."""
        outputs, chosen = Outputs(len(self._probes)), list(exact)
        for sample, wanted in zip(self._samples, self._wanted, strict=True):
            outputs.add(wanted, self._switched.run(sample, chosen, self._probes))
        return outputs.decibels

    def alone(self, rounded: Iterable[str]) -> float:
        """The SQNR with only the switches `rounded` at integers."""
        chosen = set(rounded)
        return self.undone(name for name in self._switched.switches if name not in chosen)


def histograms(switched: Switched, tracks: Sequence[Track], samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
    """64 bins over the values and the representable range of each tensor, in float."""
    edges = {t.activation.result: _edges(t) for t in tracks}
    counts = {name: np.zeros(BINS, np.int64) for name in edges}
    for sample in samples if tracks else ():
        for name, values in zip(edges, switched.run(sample, switched.switches, list(edges)), strict=True):
            counts[name] += np.histogram(values, BINS, edges[name])[0]
    return {
        name: {"low": edges[name][0], "high": edges[name][1], "counts": [int(c) for c in counts[name]]}
        for name in edges
    }


def _edges(track: Track) -> tuple[float, float]:
    low, high = min(track.needed[0], track.activation.range[0]), max(track.needed[1], track.activation.range[1])
    return (low, high) if high > low else (low, low + 1.0)

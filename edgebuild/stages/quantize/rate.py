"""Weights rounded near those of an earlier training: what changes costs bytes in the update, what stays costs none.

A weight is rounded to the integer with the least D + price · R: D the error that it adds to the layer's output, given
how the other weights of its row can take it back (rounding.py), R the bits that its difference from the old integer
takes in a delta (rate-distortion optimised quantization, as video coders do it: Sullivan and Wiegand, Rate-distortion
optimization for video compression, 1998).
"""

import numpy as np

from edgebuild.stages.quantize.graph import Array
from edgebuild.stages.quantize.rounding import factor

LARGEST = 127
_BLOCK = 64
_SMOOTH = 0.5


class Bits:
    """What differences of integers cost, in bits, by their size."""

    def __init__(self, table: Array) -> None:
        self._table = table

    @classmethod
    def first(cls) -> "Bits":
        """Before anything is known: most weights stay, small differences are likelier than large ones."""
        size = np.arange(2 * LARGEST + 1)
        table = 3.0 + 2.0 * np.log2(np.maximum(size, 1))
        table[0] = 0.3
        return cls(table)

    @classmethod
    def of(cls, differences: Array) -> "Bits":
        """By how often each size occurs among `differences`; a sign is a bit."""
        counts = np.bincount(np.abs(differences).reshape(-1).astype(np.int64), minlength=2 * LARGEST + 1)
        known = cls.first()._table
        prior = 2.0**-known
        shares = (counts + _SMOOTH * len(counts) * prior / prior.sum()) / (counts.sum() + _SMOOTH * len(counts))
        table = -np.log2(shares)
        table[1:] += 1.0
        return cls(table)

    def __call__(self, differences: Array) -> Array:
        return np.asarray(self._table[np.abs(differences).astype(np.int64)])


def entropy(old: Array, new: Array) -> float:
    """The empirical entropy of new − old, in bits in all: what an ideal coder without context would need."""
    _, counts = np.unique(new.astype(np.int64) - old.astype(np.int64), return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def near(steps: Array, old: Array, covariance: Array, price: Array, bits: Bits) -> Array:
    """Integers in [-127, 127] near `steps` [groups, O, K] and not far from `old`, float64 [groups, O, K].

    `price` [groups, O]: error energy, in squared steps times the covariance [groups, K, K], that a bit is worth.
    """
    order = np.argsort(-np.einsum("gkk->gk", covariance), axis=1, kind="stable")
    h = np.take_along_axis(np.take_along_axis(covariance, order[:, :, None], 1), order[:, None, :], 2)
    left = np.take_along_axis(steps.transpose(0, 2, 1), order[:, :, None], 1).astype(np.float64)  # [groups, K, O]
    kept = np.take_along_axis(old.transpose(0, 2, 1), order[:, :, None], 1).astype(np.float64)
    spread = factor(h)
    found = np.empty_like(left)
    terms = left.shape[1]
    for start in range(0, terms, _BLOCK):
        stop = min(start + _BLOCK, terms)
        errors = np.empty((left.shape[0], stop - start, left.shape[2]))
        for i in range(start, stop):
            own = spread[:, i, i, None]
            found[:, i] = _cheapest(left[:, i], kept[:, i], price * own**2, bits)
            error = (left[:, i] - found[:, i]) / own
            errors[:, i - start] = error
            left[:, i + 1 : stop] -= spread[:, i, i + 1 : stop, None] * error[:, None]
        left[:, stop:] -= spread[:, start:stop, stop:].transpose(0, 2, 1) @ errors
    back = np.argsort(order, axis=1, kind="stable")
    return np.take_along_axis(found, back[:, :, None], 1).transpose(0, 2, 1)


def _cheapest(wanted: Array, kept: Array, price: Array, bits: Bits) -> Array:
    """Of the nearest integer, its neighbours on the way to the old one, and the old one."""
    nearest = np.clip(np.rint(wanted), -LARGEST, LARGEST)
    toward = np.sign(kept - nearest)
    best, least = kept, np.square(wanted - kept) + price * bits(np.zeros_like(kept))
    for candidate in (nearest, nearest + toward, nearest + 2 * toward):
        cost = np.square(wanted - candidate) + price * bits(np.minimum(np.abs(candidate - kept), 2 * LARGEST))
        better = cost < least
        best, least = np.where(better, candidate, best), np.where(better, cost, least)
    return np.asarray(best)

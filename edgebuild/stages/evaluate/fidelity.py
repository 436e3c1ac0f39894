"""How near INT8's outputs are to float's, whatever they mean: agreement, KL divergence and SQNR. All of it streams."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

DETECTION = frozenset(("boxes", "scores", "labels"))
"""A detector's outputs: which box stands where changes with the order of the scores, so place by place says nothing."""

_SUMS_TO_ONE = 1e-3
_LEAST = 1e-12
"""What a probability of 0 counts as: float32's softmax underflows there."""


@dataclass
class Fidelity:
    """Running sums over samples."""

    samples: int = 0
    predicted: int = 0
    agreed: int = 0
    compared: int = 0
    divergence: float = 0.0
    signal: float = 0.0
    noise: float = 0.0

    def add(self, wanted: Arrays, got: Arrays) -> None:
        """`wanted` are float's outputs of one sample, `got` INT8's."""
        self.samples += 1
        if wanted.keys() >= DETECTION:
            return
        of_float, of_int8 = predicted(wanted), predicted(got)
        if of_float is not None:
            self.predicted += 1
            self.agreed += of_float == of_int8
        if (name := scores(wanted)) is not None:
            self.compared += 1
            self.divergence += kl_divergence(wanted[name], got[name])
        if (name := largest_float(wanted)) is not None:
            reference = wanted[name].astype(np.float64)
            self.signal += float(np.square(reference).sum())
            self.noise += float(np.square(reference - got[name].astype(np.float64)).sum())

    def to_json(self) -> dict[str, float | None]:
        """`agreement`: percent of the samples for which INT8 predicts what float does; `kl`: mean divergence in nats,
        over the largest vector of the outputs; `sqnr_db`: of the largest float output, energies summed over all
        samples. None where the outputs have no such thing (a detector's), and for the SQNR of outputs that are equal.
        """
        whole = self.samples and self.predicted == self.samples
        return {
            "agreement": round(100.0 * self.agreed / self.samples, 3) if whole else None,
            "kl": _digits(self.divergence / self.compared) if self.compared else None,
            "sqnr_db": self.sqnr_db(),
        }

    def sqnr_db(self) -> float | None:
        """Signal to quantization noise in decibels."""
        if not self.signal or not self.noise or not math.isfinite(self.signal + self.noise):
            return None
        return round(10.0 * math.log10(self.signal / self.noise), 2)


def predicted(outputs: Arrays) -> int | None:
    """The class that the outputs name; None when they name none."""
    scalars = {name: array for name, array in outputs.items() if array.dtype.kind in "iu" and array.size == 1}
    if "label" in scalars:
        return int(scalars["label"].reshape(()))
    if len(scalars) == 1:
        return int(next(iter(scalars.values())).reshape(()))
    name = scores(outputs)
    return None if name is None else int(np.argmax(outputs[name]))


def scores(outputs: Arrays) -> str | None:
    """The largest output that is one vector of floats: scores of classes."""
    vectors = [name for name, array in outputs.items() if array.dtype.kind == "f" and _is_vector(array)]
    return max(vectors, key=lambda name: outputs[name].size, default=None)


def largest_float(outputs: Arrays) -> str | None:
    """The float output of the most elements."""
    return max(
        (name for name in outputs if outputs[name].dtype.kind == "f"), key=lambda n: outputs[n].size, default=None
    )


def kl_divergence(wanted: Array, got: Array) -> float:
    """KL(p of `wanted` || p of `got`) in nats; both are logits, or both probabilities when `wanted` sums to 1."""
    p, q = wanted.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if p.min() >= 0.0 and abs(p.sum() - 1.0) < _SUMS_TO_ONE:
        logs = np.log(np.maximum(p, _LEAST)), np.log(np.maximum(q, _LEAST) / np.maximum(q, _LEAST).sum())
    else:
        logs = _log_softmax(p), _log_softmax(q)
    found = float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())
    return max(found, 0.0)


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max()
    result: Array = shifted - np.log(np.exp(shifted).sum())
    return result


def _is_vector(array: Array) -> bool:
    return sum(int(side) > 1 for side in array.shape) == 1


def _digits(value: float) -> float | None:
    """Five that count."""
    return float(f"{value:.5g}") if math.isfinite(value) else None

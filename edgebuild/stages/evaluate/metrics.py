"""Metrics of a function's outputs, each a tally that takes one sample at a time and keeps what it needs of it.

`top1`, `top5`: the label is the class with the best score, or one of the best five. `agreement`: INT8 predicts what
float does. `auc`: area under the ROC curve of one score a sample, labels 0 and 1. `map`: of boxes. All of these are in
percent. `cosine`: of all outputs, in 0..1.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgebuild.core.calibration import Label
from edgebuild.core.errors import CalibrationError, RecipeError
from edgebuild.stages.evaluate import bootstrap, detection
from edgebuild.stages.evaluate.fidelity import DETECTION, Array, Arrays, predicted, scores

Custom = Callable[[list[Arrays], list[Label]], float]

BOXES = ("boxes", "scores", "labels")
NAMED_SCORE = "score"
PERCENT = "%"
_FIVE = 5
_PERCENT_DIGITS, _DIGITS = 3, 6
_CUSTOM_SECONDS = 30.0
"""For the resamples of a metric of the recipe's own, which may be slow."""


class Unfit(Exception):
    """A metric does not fit what it is given; the message says why."""


class Unlabelled(Unfit):
    """There is no label to measure with."""


@dataclass(frozen=True)
class Figures:
    """`drop` is float minus INT8; `interval` holds the resampled drops' middle 95 %; `more` goes into the report."""

    of_float: float
    of_int8: float
    interval: tuple[float, float] | None
    more: Mapping[str, Any] = field(default_factory=dict)


class Tally(Protocol):
    """One metric."""

    name: str
    digits: int
    unit: str

    def add(self, wanted: Arrays, got: Arrays, label: Label) -> None:
        """Takes a sample: float's outputs, INT8's, the label. Raises Unfit."""

    def figures(self) -> Figures:
        """Of all samples. Raises Unfit."""


class Share:
    """The percentage of samples that are right."""

    digits, unit = _PERCENT_DIGITS, PERCENT

    def __init__(self, name: str, right: Callable[[Arrays, Arrays, Label], tuple[bool, bool]]) -> None:
        self.name = name
        self._right = right
        self._pairs: list[tuple[bool, bool]] = []

    def add(self, wanted: Arrays, got: Arrays, label: Label) -> None:
        self._pairs.append(self._right(wanted, got, label))

    def figures(self) -> Figures:
        pairs = 100.0 * np.array(self._pairs, np.float64)
        return _of_means(pairs[:, 0], pairs[:, 1])


class Cosine:
    """Of all outputs together."""

    name = "cosine"
    digits, unit = _DIGITS, ""

    def __init__(self) -> None:
        self._values: list[float] = []

    def add(self, wanted: Arrays, got: Arrays, label: Label) -> None:  # noqa: ARG002 - the protocol's signature
        self._values.append(_cosine(wanted, got))

    def figures(self) -> Figures:
        values = np.array(self._values)
        return _of_means(np.ones_like(values), values)


class Auc:
    """Area under the ROC curve: how often a sample labelled 1 scores higher than one labelled 0 (ties count half)."""

    name = "auc"
    digits, unit = _PERCENT_DIGITS, PERCENT

    def __init__(self) -> None:
        self._scores: list[tuple[float, float]] = []
        self._labels: list[int] = []

    def add(self, wanted: Arrays, got: Arrays, label: Label) -> None:
        pair = _score(wanted), _score(got)
        if class_of(label) not in (0, 1):
            raise Unfit(f"the label {label} of sample {len(self._labels)} is neither 0 nor 1")
        self._scores.append(pair)
        self._labels.append(class_of(label))

    def figures(self) -> Figures:
        if len(set(self._labels)) == 1:
            raise Unfit(f"all {len(self._labels)} samples are labelled {self._labels[0]}")
        table, labels = np.array(self._scores), np.array(self._labels)
        ones = np.ones((1, len(labels)))
        of_float, of_int8 = (float(100 * area(column, labels, ones)[0]) for column in table.T)
        drops = [
            100 * (area(table[:, 0], labels, weights) - area(table[:, 1], labels, weights))
            for weights in bootstrap.draws(len(labels))
        ]
        return Figures(of_float, of_int8, bootstrap.interval(np.concatenate(drops)))


def area(values: Array, labels: Array, weights: Array) -> Array:
    """AUC [resamples] of scores [N] and labels [N], each sample counted `weights` [resamples, N] times; NaN where a
    resample holds one kind of label only.
    """
    values = np.nan_to_num(values, nan=-np.inf)
    order = np.argsort(values, kind="stable")
    values, positive, weights = values[order], labels[order] == 1, weights[:, order]
    below = np.cumsum(np.where(positive, 0.0, weights), axis=1)
    negatives = below[:, -1]
    below = np.concatenate([np.zeros((len(weights), 1)), below], axis=1)
    lower = below[:, np.searchsorted(values, values, "left")] + below[:, np.searchsorted(values, values, "right")]
    mine = np.where(positive, weights, 0.0)
    pairs = mine.sum(axis=1) * negatives
    return np.asarray(np.where(pairs > 0, (mine * lower / 2).sum(axis=1) / np.where(pairs > 0, pairs, 1), np.nan))


class MeanPrecision:
    """COCO's mean average precision of the outputs boxes, scores and labels."""

    name = "map"
    digits, unit = _PERCENT_DIGITS, PERCENT

    def __init__(self) -> None:
        self._float, self._int8 = detection.Precision(), detection.Precision()
        self._truths: list[Array] = []

    def add(self, wanted: Arrays, got: Arrays, label: Label) -> None:
        parts = [_boxes(outputs) for outputs in (wanted, got)]
        if label is None:
            raise Unlabelled("the samples have no labels for map")
        if not isinstance(label, np.ndarray) or label.ndim != 2 or label.shape[1] != 5:
            raise Unfit(f"the label of sample {len(self._truths)} is no list of boxes")
        self._float.found.append(detection.match(*parts[0], label))
        self._int8.found.append(detection.match(*parts[1], label))
        self._truths.append(label)

    def figures(self) -> Figures:
        if not sum(map(len, self._truths)):
            raise Unlabelled("no sample's labels hold a box")
        found = [side.mean(self._truths) for side in (self._float, self._int8)]
        drops = [side.resampled(self._truths, bootstrap.draws) for side in (self._float, self._int8)]
        (of_float, float_50), (of_int8, int8_50) = found
        at_50 = {"float": round(100 * float_50, self.digits), "int8": round(100 * int8_50, self.digits)}
        return Figures(100 * of_float, 100 * of_int8, bootstrap.interval(100 * (drops[0] - drops[1])), {"map50": at_50})


class Own:
    """The recipe's: a function of all outputs and labels, in its own unit; more is better. Holds all outputs."""

    digits, unit = _DIGITS, ""

    def __init__(self, name: str, function: Custom) -> None:
        self.name = name
        self._function = function
        self._float: list[Arrays] = []
        self._int8: list[Arrays] = []
        self._labels: list[Label] = []

    def add(self, wanted: Arrays, got: Arrays, label: Label) -> None:
        self._float.append(wanted)
        self._int8.append(got)
        self._labels.append(label)

    def figures(self) -> Figures:
        of_float, of_int8 = self._call(self._float, self._labels), self._call(self._int8, self._labels)
        drops = self._resampled()
        return Figures(of_float, of_int8, bootstrap.interval(drops), {"resamples": len(drops)})

    def _resampled(self) -> Array:
        """Fewer than for other metrics when the function is slow, or refuses some (those of one class, say)."""
        rng, count, end = bootstrap.generator(), len(self._labels), time.monotonic() + _CUSTOM_SECONDS
        drops: list[float] = []
        for _ in range(bootstrap.RESAMPLES):
            drawn = rng.integers(count, size=count)
            labels = [self._labels[i] for i in drawn]
            with contextlib.suppress(RecipeError):
                of_float, of_int8 = (self._call([side[i] for i in drawn], labels) for side in (self._float, self._int8))
                drops.append(of_float - of_int8)
            if time.monotonic() > end:
                break
        return np.array(drops)

    def _call(self, outputs: list[Arrays], labels: list[Label]) -> float:
        try:
            found = float(self._function(outputs, labels))
        except Exception as reason:
            raise RecipeError(
                f"[accept] metric {self.name}: {type(reason).__name__}: {reason}",
                "this is the recipe's code; correct it",
            ) from reason
        if not math.isfinite(found):
            raise RecipeError(f"[accept] metric {self.name}: gives {found}", "it is a finite number")
        return found


def class_of(label: Label) -> int:
    """The class index. Raises Unlabelled, Unfit."""
    if label is None:
        raise Unlabelled("the samples have no labels")
    if isinstance(label, np.ndarray) and label.ndim:
        raise Unfit("is of classes; the labels are boxes")
    if not isinstance(label, int | np.integer | np.ndarray):
        raise Unfit(f"is of classes; a label is a {type(label).__name__}")
    return int(label)


def top1() -> Tally:
    return Share("top1", _top1)


def top5() -> Tally:
    return Share("top5", _top5)


def agreement() -> Tally:
    return Share("agreement", _agreement)


BY_NAME: dict[str, Callable[[], Tally]] = {
    "map": MeanPrecision,
    "top1": top1,
    "top5": top5,
    "auc": Auc,
    "agreement": agreement,
    "cosine": Cosine,
}
BY_ITSELF = ("map", "top1", "auc", "agreement", "cosine")
"""What is measured when nothing is asked for: the first that fits all samples."""
UNLABELLED = ("agreement", "cosine")
"""What is measured when labels lack for what was asked for."""


def _top1(wanted: Arrays, got: Arrays, label: Label) -> tuple[bool, bool]:
    of_float, of_int8 = predicted(wanted), predicted(got)
    if of_float is None:
        raise Unfit("the outputs name no class: neither 'label' nor one vector of scores")
    wanted_class = _checked_class(wanted, label)
    return of_float == wanted_class, of_int8 == wanted_class


def _top5(wanted: Arrays, got: Arrays, label: Label) -> tuple[bool, bool]:
    name = scores(wanted)
    if name is None:
        raise Unfit("no output is a vector of scores")
    place = _checked_class(wanted, label)
    first, second = (int((outputs[name].ravel() > outputs[name].ravel()[place]).sum()) for outputs in (wanted, got))
    return first < _FIVE, second < _FIVE


def _agreement(wanted: Arrays, got: Arrays, label: Label) -> tuple[bool, bool]:  # noqa: ARG001 - a Share's signature
    of_float = predicted(wanted)
    if of_float is None:
        raise Unfit("the outputs name no class: neither 'label' nor one vector of scores")
    return True, of_float == predicted(got)


def _checked_class(outputs: Arrays, label: Label) -> int:
    found, name = class_of(label), scores(outputs)
    if name is not None and not 0 <= found < outputs[name].size:
        last = outputs[name].size - 1
        raise CalibrationError(
            f"label {found}: output '{name}' has the classes 0 to {last}", "correct the set's labels"
        )
    return found


def _score(outputs: Arrays) -> float:
    """The output `score`, else the only float scalar, else the second of two classes' scores over the first."""
    scalars = {name: array for name, array in outputs.items() if array.dtype.kind == "f" and array.size == 1}
    if NAMED_SCORE in scalars:
        return float(scalars[NAMED_SCORE].ravel()[0])
    if len(scalars) == 1:
        return float(next(iter(scalars.values())).ravel()[0])
    name = scores(outputs)
    if name is not None and outputs[name].size == 2:
        no, yes = outputs[name].ravel()
        return float(yes) - float(no)
    raise Unfit(f"the outputs are not one score: {', '.join(outputs)}; name the float scalar '{NAMED_SCORE}'")


def _boxes(outputs: Arrays) -> tuple[Array, Array, Array]:
    if not outputs.keys() >= DETECTION:
        raise Unfit(f"the outputs are {', '.join(outputs)}; it takes boxes [N, 4], scores [N], labels [N]")
    boxes, values, classes = (outputs[name] for name in BOXES)
    if boxes.size != 4 * values.size or values.size != classes.size:
        shapes = ", ".join(f"{name} {list(outputs[name].shape)}" for name in BOXES)
        raise Unfit(f"it takes boxes [N, 4], scores [N], labels [N]; the outputs are {shapes}")
    return boxes.reshape(-1, 4), values.ravel(), classes.ravel()


def _of_means(of_float: Array, of_int8: Array) -> Figures:
    drops = bootstrap.means(of_float - of_int8)
    return Figures(float(of_float.mean()), float(of_int8.mean()), bootstrap.interval(drops))


def _cosine(wanted: Arrays, got: Arrays) -> float:
    a = np.concatenate([wanted[name].astype(np.float64).ravel() for name in wanted])
    b = np.concatenate([got[name].astype(np.float64).ravel() for name in wanted])
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))

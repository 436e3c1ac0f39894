"""Mean average precision as COCO defines it: IoU .50:.95, 101 points of recall, at most 100 boxes a picture."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

THRESHOLDS = np.linspace(0.5, 0.95, 10)
MOST_BOXES = 100
_POINTS = 100
_GROUPS, _STEPS = 256, 100
"""For the bootstrap: in how many groups pictures are drawn, and in how many steps a class's boxes counted, at most."""
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Found:
    """A picture's boxes by score: `scores` [N], `classes` [N], `hits` [N, 10]: whether they match a true box."""

    scores: Array
    classes: Array
    hits: Array


def match(boxes: Array, scores: Array, classes: Array, truth: Array) -> Found:
    """Boxes [N, 4] (left, top, right, bottom) against `truth` [M, 5] (class first). Those of score 0 count as none.

    The best box comes first and takes the free true box of its class that it covers most.
    """
    order = np.argsort(-np.nan_to_num(scores), kind="stable")[:MOST_BOXES]
    order = order[scores[order] > 0]
    boxes, scores, classes = boxes[order], scores[order], classes[order]
    overlap = iou(boxes, truth[:, 1:]) * (classes[:, None] == truth[:, 0])
    hits = np.zeros((len(boxes), len(THRESHOLDS)), bool)
    free = np.ones((len(THRESHOLDS), len(truth)), bool)
    for i in range(len(boxes) if len(truth) else 0):
        open_ones = np.where(free & (overlap[i] >= THRESHOLDS[:, None] - _TOLERANCE), overlap[i], 0.0)
        best = open_ones.argmax(axis=1)
        hits[i] = open_ones[np.arange(len(THRESHOLDS)), best] > 0
        free[hits[i], best[hits[i]]] = False
    return Found(scores, classes, hits)


def iou(boxes: Array, others: Array) -> Array:
    """Intersection over union of every pair: [N, M]."""
    a, b = boxes.astype(np.float64)[:, None], others.astype(np.float64)[None]
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    both = np.clip(high - low, 0, None).prod(-1)
    areas = (np.clip(c[..., 2:] - c[..., :2], 0, None).prod(-1) for c in (a, b))
    union = sum(areas) - both
    return np.asarray(np.where(union > 0, both / np.where(union > 0, union, 1), 0.0))


@dataclass
class Precision:
    """Collects the pictures of one data set."""

    found: list[Found] = field(default_factory=list)

    def mean(self, truths: list[Array]) -> tuple[float, float]:
        """Means over all thresholds, and at IoU .50; in 0..1."""
        by_threshold = self._average(truths, np.zeros(len(truths), np.int64), np.ones((1, 1)), None)[0]
        return float(by_threshold.mean()), float(by_threshold[0])

    def resampled(self, truths: list[Array], draws: Callable[[int], Any]) -> Array:
        """Of resamples: `draws(count)` gives how often each of `count` groups of pictures is drawn, in parts."""
        groups = np.arange(len(truths)) * min(len(truths), _GROUPS) // len(truths)
        parts = [
            self._average(truths, groups, weights.astype(np.float32), _STEPS) for weights in draws(int(groups[-1]) + 1)
        ]
        return np.asarray(np.concatenate(parts).mean(axis=1))

    def _average(self, truths: list[Array], groups: Array, weights: Array, steps: int | None) -> Array:
        """AP [resamples, thresholds], the mean over classes that have a true box; `weights` [resamples, groups]."""
        pictures = np.repeat(np.arange(len(truths)), [len(found.scores) for found in self.found])
        scores, classes, hits = (
            np.concatenate([getattr(found, name) for found in self.found]) for name in ("scores", "classes", "hits")
        )
        true = np.concatenate([truth[:, 0] for truth in truths])
        places = groups[np.repeat(np.arange(len(truths)), [len(truth) for truth in truths])]
        total = np.zeros((len(weights), len(THRESHOLDS)))
        known = np.zeros((len(weights), 1))
        for kind in np.unique(true):
            mine = np.flatnonzero(classes == kind)
            mine = mine[np.argsort(-scores[mine], kind="stable")]
            wanted = weights @ np.bincount(places[true == kind], minlength=weights.shape[1])
            curve = _Curve(groups[pictures[mine]], hits[mine], weights, steps)
            there = (wanted > 0)[:, None]
            total += np.where(there, curve.area(np.maximum(wanted, 1)), 0.0)
            known += there
        return np.asarray(total / np.maximum(known, 1))


class _Curve:
    """Precision over recall of one class, its boxes in the order of their scores."""

    def __init__(self, groups: Array, hits: Array, weights: Array, steps: int | None) -> None:
        self._groups, self._hits, self._weights = groups, hits, weights
        count = len(groups)
        self._width = min(count, steps or count)
        self._step = np.arange(count) * self._width // max(count, 1)
        self._all = self._running(np.ones(count))

    def area(self, wanted: Array) -> Array:
        """AP [resamples, thresholds] for `wanted` [resamples] true boxes."""
        if not self._width:
            return np.zeros((len(self._weights), len(THRESHOLDS)))
        return np.stack([self._area(self._running(self._hits[:, t]), wanted) for t in range(len(THRESHOLDS))], axis=1)

    def _running(self, counts: Array) -> Array:
        """Sums up to each step, for every resample."""
        table = np.zeros((self._weights.shape[1], self._width), self._weights.dtype)
        np.add.at(table, (self._groups, self._step), counts)
        return np.cumsum(self._weights @ table, axis=1)

    def _area(self, right: Array, wanted: Array) -> Array:
        """Each of the 101 points of recall takes the best precision from there on."""
        precision = right / np.maximum(self._all, 1)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        # Exact where a box reaches a point: the product is a whole number, and so is then the quotient.
        reached = np.floor(_POINTS * right / wanted[:, None].astype(right.dtype)) + 1
        reached[:, 1:] -= reached[:, :-1].copy()
        return np.asarray((best * reached).sum(axis=1) / (_POINTS + 1))

"""Evaluate: what INT8 costs. The float graph in ONNX Runtime against the compiled program, or the interpreter.

The metric is the recipe's, else the first that fits: `map` for boxes, `top1` for classes, `auc` for scores of two
kinds, where there are labels; without labels `agreement`, else `cosine`. What a function predicts is its output
`label`, else its only integer scalar, else the argmax of its largest vector.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebuild.core import ort
from edgebuild.core.calibration import Label
from edgebuild.core.errors import RecipeError
from edgebuild.core.manifest import Tensor
from edgebuild.core.runner import Trial
from edgebuild.reference import Foreign, Interpreter
from edgebuild.stages.evaluate.fidelity import Arrays, Fidelity, predicted
from edgebuild.stages.evaluate.metrics import (
    BY_ITSELF,
    BY_NAME,
    UNLABELLED,
    Custom,
    Figures,
    Own,
    Tally,
    Unfit,
    Unlabelled,
)
from edgebuild.stages.evaluate.own import load_metric

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Accuracy",
    "Batch",
    "Custom",
    "evaluate",
    "evaluate_each",
    "graph",
    "interpreter",
    "interpreter_limit",
    "load_metric",
    "predicted",
    "program",
]

Batch = Callable[[list[Arrays]], list[Arrays]]

BATCH = 32
INTERPRETER_MACS = 20e9
"""The interpreter is for the bits, not for speed: it gets as many samples as fit these multiply-accumulates."""
INTERPRETER_LEAST = 8


@dataclass(frozen=True)
class Accuracy:
    """`drop` is float minus INT8, in the metric's points: percentage points, 0..1 for `cosine`, the recipe's own unit
    for its own metric. `interval` holds the true drop with 95 % probability (paired bootstrap). `unmeasured` says why
    another metric stands here than the one that was asked for.
    """

    metric: str
    of_float: float
    of_int8: float
    drop: float
    interval: tuple[float, float] | None
    samples: int
    fidelity: dict[str, float | None]
    more: dict[str, Any]
    unit: str
    unmeasured: str = ""

    def to_json(self) -> dict[str, Any]:
        figures = {"float": self.of_float, "int8": self.of_int8, "drop": self.drop}
        ends = {"interval": list(self.interval) if self.interval else None, "samples": self.samples}
        asked = {"unmeasured": self.unmeasured} if self.unmeasured else {}
        return {"metric": self.metric, "unit": self.unit, **figures, **ends, **self.fidelity, **self.more, **asked}


def evaluate(
    float_model: "onnx.ModelProto",
    integer: Batch,
    data: Iterable[tuple[Arrays, Label]],
    metric: str | None = None,
    own: Custom | None = None,
) -> Accuracy:
    """Runs both on `data` (samples with their label or None), a batch in memory at a time.

    `metric` is a name of the recipe's [accept]; `own` is the function of a metric that the recipe brings. Raises
    RecipeError when the outputs are nothing that the metric is of, CalibrationError for wrong labels.
    """
    return evaluate_each(float_model, [integer], data, metric, own)[0]


def evaluate_each(
    float_model: "onnx.ModelProto",
    integers: Sequence[Batch],
    data: Iterable[tuple[Arrays, Label]],
    metric: str | None = None,
    own: Custom | None = None,
) -> list[Accuracy]:
    """The same of several, for which the float graph, the slowest of them, runs once."""
    session = ort.session(float_model, "the float model")
    names = [output.name for output in float_model.graph.output]
    judges = [(integer, _Tallies(metric, own), Fidelity()) for integer in integers]
    for batch in _batches(data):
        samples = [sample for sample, _ in batch]
        wanted = [dict(zip(names, session.run(None, sample), strict=True)) for sample in samples]
        for integer, tallies, fidelity in judges:
            for one, (_, label), got in zip(wanted, batch, integer(samples), strict=True):
                tallies.add(one, got, label)
                fidelity.add(one, got)
    return [tallies.accuracy(fidelity) for _, tallies, fidelity in judges]


class _Tallies:
    """The metrics that may be reported, the first that fits before others."""

    def __init__(self, metric: str | None, own: Custom | None) -> None:
        self._asked = metric
        self._open: list[Tally] = [BY_NAME[name]() for name in (UNLABELLED if metric else BY_ITSELF) if name != metric]
        if metric:
            self._open.insert(0, Own(metric, own) if own else BY_NAME[metric]())
        self._unmeasured = ""

    def add(self, wanted: Arrays, got: Arrays, label: Label) -> None:
        for tally in list(self._open):
            try:
                tally.add(wanted, got, label)
            except Unfit as reason:
                self._close(tally, reason)

    def accuracy(self, fidelity: Fidelity) -> Accuracy:
        """Of the first metric that fitted every sample; `cosine` always does."""
        for tally in list(self._open):
            try:
                return _accuracy(tally, tally.figures(), fidelity, self._unmeasured)
            except Unfit as reason:
                self._close(tally, reason)
        raise AssertionError

    def _close(self, tally: Tally, reason: Unfit) -> None:
        """What was asked for and cannot be is an error; where only the labels are missing, it is not measured."""
        self._open.remove(tally)
        if tally.name != self._asked:
            return
        if not isinstance(reason, Unlabelled):
            raise RecipeError(
                f"[accept] metric {self._asked}: {reason}",
                "choose one that fits outputs and labels",
            )
        self._unmeasured = str(reason)


def _accuracy(tally: Tally, figures: Figures, fidelity: Fidelity, unmeasured: str) -> Accuracy:
    of_float, of_int8 = round(figures.of_float, tally.digits), round(figures.of_int8, tally.digits)
    drop = round(figures.of_float - figures.of_int8, tally.digits)
    ends = figures.interval
    rounded = (round(ends[0], tally.digits), round(ends[1], tally.digits)) if ends else None
    names = tally.name, of_float, of_int8, drop, rounded, fidelity.samples
    return Accuracy(*names, fidelity.to_json(), dict(figures.more), tally.unit, unmeasured)


def program(trial: Trial, outputs: tuple[Tensor, ...], folder: Path) -> Batch:
    """The compiled program in edgebuild-run."""

    def run(samples: list[Arrays]) -> list[Arrays]:
        stacked = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        lines = trial.frames(stacked, folder)
        return [{output.name: _array(line["outputs"][output.name], output) for output in outputs} for line in lines]

    return run


def graph(model: "onnx.ModelProto") -> Batch:
    """A QDQ graph in ONNX Runtime, with exact products: nearly the same integers, without a build."""
    session = ort.session(model)
    names = [output.name for output in session.get_outputs()]
    return lambda samples: [dict(zip(names, session.run(None, dict(sample)), strict=True)) for sample in samples]


def interpreter(model: "onnx.ModelProto", foreign: Foreign) -> Batch:
    """The NumPy interpreter: the same bits, where nothing here can run the program."""
    judge = Interpreter(model, foreign)
    return lambda samples: [judge.run(sample) for sample in samples]


def interpreter_limit(macs: int) -> int:
    """How many samples the interpreter is given for a model of `macs` multiply-accumulates."""
    return max(INTERPRETER_LEAST, int(INTERPRETER_MACS // max(macs, 1)))


def _batches(data: Iterable[tuple[Arrays, Label]]) -> Iterator[list[tuple[Arrays, Label]]]:
    rest = iter(data)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _array(value: Any, output: Tensor) -> np.ndarray[Any, Any]:
    """JSON says null for what is infinite or no number."""
    flat = value if isinstance(value, list) else [value]
    return np.array([np.nan if item is None else item for item in flat], output.dtype).reshape(output.shape)

"""Evaluate: what INT8 costs. The float graph in ONNX Runtime against the compiled program, or the interpreter.

What a function predicts is its output `label`, else its only integer scalar, else the argmax of its largest vector.
Samples with labels give `top1`; without labels, `agreement` says how often INT8 predicts what float does; outputs that
predict no class are compared by `cosine`.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from edgebuild.core.manifest import Tensor
from edgebuild.core.runner import Trial
from edgebuild.reference import Foreign, Interpreter

if TYPE_CHECKING:
    import onnx

Arrays = dict[str, np.ndarray[Any, Any]]
Batch = Callable[[list[Arrays]], list[Arrays]]

BATCH = 32
INTERPRETER_MACS = 20e9
"""The interpreter is for the bits, not for speed: it gets as many samples as fit these multiply-accumulates."""
INTERPRETER_LEAST = 8


@dataclass(frozen=True)
class Accuracy:
    """In percent; the metric `cosine` in 0..1. `drop` is float minus INT8, in percentage points (cosine: 0..1)."""

    metric: str
    of_float: float
    of_int8: float
    drop: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        figures = {"float": self.of_float, "int8": self.of_int8, "drop": self.drop}
        return {"metric": self.metric, **figures, "samples": self.samples}


@dataclass
class _Tally:
    """Running sums over samples."""

    samples: int = 0
    labelled: int = 0
    float_right: int = 0
    int8_right: int = 0
    agreed: int = 0
    predicted: int = 0
    cosine: list[float] = field(default_factory=list)

    def add(self, wanted: Arrays, got: Arrays, label: int | None) -> None:
        self.samples += 1
        self.cosine.append(_cosine(wanted, got))
        of_float, of_int8 = predicted(wanted), predicted(got)
        if of_float is None:
            return
        self.predicted += 1
        self.agreed += of_float == of_int8
        if label is not None:
            self.labelled += 1
            self.float_right += of_float == label
            self.int8_right += of_int8 == label

    def accuracy(self) -> Accuracy:
        if self.labelled == self.samples:
            return _percent("top1", self.float_right, self.int8_right, self.samples)
        if self.predicted == self.samples:
            return _percent("agreement", self.samples, self.agreed, self.samples)
        mean = sum(self.cosine) / self.samples
        return Accuracy("cosine", 1.0, round(mean, 6), round(1.0 - mean, 6), self.samples)


def evaluate(float_model: "onnx.ModelProto", integer: Batch, data: Iterable[tuple[Arrays, int | None]]) -> Accuracy:
    """Runs both on `data` (samples with their label or None), a batch in memory at a time."""
    session = onnxruntime.InferenceSession(float_model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in float_model.graph.output]
    tally = _Tally()
    for batch in _batches(data):
        samples = [sample for sample, _ in batch]
        for (sample, label), got in zip(batch, integer(samples), strict=True):
            tally.add(dict(zip(names, session.run(None, sample), strict=True)), got, label)
    return tally.accuracy()


def program(trial: Trial, outputs: tuple[Tensor, ...], folder: Path) -> Batch:
    """The compiled program in edgebuild-run."""

    def run(samples: list[Arrays]) -> list[Arrays]:
        stacked = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        lines = trial.frames(stacked, folder)
        return [{output.name: _array(line["outputs"][output.name], output) for output in outputs} for line in lines]

    return run


def interpreter(model: "onnx.ModelProto", foreign: Foreign) -> Batch:
    """The NumPy interpreter: the same bits, where nothing here can run the program."""
    judge = Interpreter(model, foreign)
    return lambda samples: [judge.run(sample) for sample in samples]


def interpreter_limit(macs: int) -> int:
    """How many samples the interpreter is given for a model of `macs` multiply-accumulates."""
    return max(INTERPRETER_LEAST, int(INTERPRETER_MACS // max(macs, 1)))


def predicted(outputs: Arrays) -> int | None:
    """The class that the outputs name; None when they name none."""
    scalars = {name: array for name, array in outputs.items() if array.dtype.kind in "iu" and array.size == 1}
    if "label" in scalars:
        return int(scalars["label"].reshape(()))
    if len(scalars) == 1:
        return int(next(iter(scalars.values())).reshape(()))
    vectors = [array for array in outputs.values() if sum(side > 1 for side in array.shape) == 1]
    return int(np.argmax(max(vectors, key=lambda array: array.size))) if vectors else None


def _batches(data: Iterable[tuple[Arrays, int | None]]) -> Iterator[list[tuple[Arrays, int | None]]]:
    rest = iter(data)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _array(value: Any, output: Tensor) -> np.ndarray[Any, Any]:
    """JSON says null for what is infinite or no number."""
    flat = value if isinstance(value, list) else [value]
    return np.array([np.nan if item is None else item for item in flat], output.dtype).reshape(output.shape)


def _cosine(wanted: Arrays, got: Arrays) -> float:
    a = np.concatenate([wanted[name].astype(np.float64).ravel() for name in wanted])
    b = np.concatenate([got[name].astype(np.float64).ravel() for name in wanted])
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))


def _percent(metric: str, of_float: int, of_int8: int, samples: int) -> Accuracy:
    share = 100.0 / samples
    drop = (of_float - of_int8) * share
    return Accuracy(metric, round(of_float * share, 3), round(of_int8 * share, 3), round(drop, 3), samples)

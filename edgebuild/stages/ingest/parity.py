"""The graph that later stages work on, against the framework that the model comes from, on real samples."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from edgebuild.core import ort
from edgebuild.core.calibration import Sample
from edgebuild.core.errors import ModelError

PARITY_SAMPLES = 4
PARITY_LIMIT = 1e-4
"""Of what is float32: the largest difference, relative to the output's largest value."""
PARITY_SHARE = 1e-3
"""Of what is not: the share of values that differ. Rounding decides between two classes that are equally likely."""
ROUNDING_FACTOR = 10.0
"""How much more than rounding in the weights may change an output that rounding decides."""

Array = np.ndarray[Any, Any]
Eager = Callable[[Sample], Sequence[Array]]
"""Runs the source framework on a sample; the outputs in the graph's order."""


def compare(model: onnx.ModelProto, eager: Eager, samples: Sequence[Sample], name: str) -> dict[str, object]:
    """The graph in ONNX Runtime against `eager` on real samples.

    `max_relative_error` holds the largest error of each output, as PARITY_LIMIT and PARITY_SHARE count it;
    `decided_by_rounding` lists outputs that differ by more, but change as much when every weight moves by one unit in
    the last place: the order of boxes that score alike, say. Raises ModelError for any other that differs.
    """
    outputs = {value.name: value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in model.graph.output}
    found = answers(model, samples, name)
    wanted = [list(eager(sample)) for sample in samples]
    errors = _errors(list(outputs), found, wanted)
    limits = {output: PARITY_LIMIT if floating else PARITY_SHARE for output, floating in outputs.items()}
    wrong = [output for output, error in errors.items() if not error <= limits[output]]
    moved = _errors(list(outputs), found, answers(_nudged(model), samples, name)) if wrong else {}
    for output in wrong:
        if not errors[output] <= ROUNDING_FACTOR * moved[output]:
            raise ModelError(
                f"{name}: output '{output}' of the exported graph differs from the handler by {errors[output]:.2g}",
                f"at most {limits[output]:g} is rounding; an operator changed its meaning, or the handler is random",
            )
    return {"samples": len(samples), "max_relative_error": errors, "decided_by_rounding": wrong}


def agreement(model: onnx.ModelProto, eager: Eager, samples: Sequence[Sample], name: str) -> dict[str, object]:
    """The same of a model that is quantized already, where the other runtime's integers round in their own way.

    `agreement` holds the share of values of each output that are equal, `max_relative_error` the largest difference
    relative to the output's largest value. Neither is a reason to refuse.
    """
    outputs = [value.name for value in model.graph.output]
    found, wanted = answers(model, samples, name), [list(eager(sample)) for sample in samples]
    equal = {
        output: float(np.mean([(mine[i] == theirs[i]).mean() for mine, theirs in zip(found, wanted, strict=True)]))
        for i, output in enumerate(outputs)
    }
    errors = {
        output: max(_relative(mine[i], theirs[i]) for mine, theirs in zip(found, wanted, strict=True))
        for i, output in enumerate(outputs)
    }
    return {"samples": len(samples), "agreement": equal, "max_relative_error": errors, "decided_by_rounding": []}


def answers(model: onnx.ModelProto, samples: Sequence[Sample], name: str) -> list[list[Array]]:
    """What ONNX Runtime gives for each sample, with nothing rewritten. Raises ModelError when it refuses the graph."""
    session = ort.session(model, f"the graph exported from {name}", "simplify the handler", optimized=False, threads=1)
    return [session.run(None, dict(sample)) for sample in samples]


def _errors(outputs: list[str], found: list[list[Array]], wanted: list[list[Array]]) -> dict[str, float]:
    """The largest error of each output over all samples."""
    errors = dict.fromkeys(outputs, 0.0)
    for mine, theirs in zip(found, wanted, strict=True):
        for output, got, want in zip(outputs, mine, theirs, strict=True):
            errors[output] = max(errors[output], _error(got, want))
    return errors


def _nudged(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every weight, a constant of at least two dimensions, one unit in the last place away."""
    rng, moved = np.random.default_rng(0), onnx.ModelProto()
    moved.CopyFrom(model)
    for weight in moved.graph.initializer:
        value = onnx.numpy_helper.to_array(weight)
        if value.dtype == np.float32 and value.ndim >= 2:
            towards = rng.choice(np.array([-np.inf, np.inf], np.float32), value.shape)
            weight.CopyFrom(onnx.numpy_helper.from_array(np.nextafter(value, towards), weight.name))
    return moved


def _error(got: Array, want: Array) -> float:
    if got.shape != want.shape or got.dtype != want.dtype:
        return float("inf")
    return _relative(got, want) if got.dtype.kind == "f" else float((got != want).mean())


def _relative(got: Array, want: Array) -> float:
    got, want = got.astype(np.float64), want.astype(np.float64)
    largest = float(np.abs(want).max(initial=0.0))
    return float(np.abs(got - want).max(initial=0.0)) / (largest or 1.0)

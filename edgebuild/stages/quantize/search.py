"""The choice between ways to quantize, by what each does to the outputs on samples that calibration did not see."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edgebuild.core import ort
from edgebuild.stages.quantize.graph import Array, Graph, key, reach
from edgebuild.stages.quantize.network import Plan, Statistics
from edgebuild.stages.quantize.observers import Entropy, MeanSquare, Percentile, Range
from edgebuild.stages.quantize.operators import is_weighted

Sample = Mapping[str, Array]
Choose = Callable[[Statistics], Range | None]

_ORDER_DECIDES = frozenset({"ArgMax", "ArgMin", "NonMaxSuppression", "TopK"})


def minmax(statistics: Statistics) -> Range | None:
    """The smallest and the largest value."""
    return statistics.histogram.extremes.range()


def _from_histogram(make: Callable[[], MeanSquare | Percentile | Entropy]) -> Choose:
    def choose(statistics: Statistics) -> Range | None:
        observer = make()
        observer.histogram = statistics.histogram
        return observer.range()

    return choose


def _wide(statistics: Statistics) -> Range | None:
    found = minmax(statistics)
    return None if found is None else (found[0] * statistics.growth, found[1] * statistics.growth)


def rules(observer: str, percentile: float) -> dict[str, Choose]:
    """The ways to choose ranges that are tried, by name: one, unless the observer is `auto`."""
    known: dict[str, Choose] = {
        "minmax": minmax,
        "moving-average": lambda s: s.average.range(),
        "percentile": _from_histogram(lambda: Percentile(percentile)),
        "entropy": _from_histogram(Entropy),
        "mse": _from_histogram(MeanSquare),
    }
    if observer != "auto":
        return {observer: known[observer]}
    return {
        "minmax": minmax,
        "wide": _wide,
        "mse": known["mse"],
        "percentile 99.999": _from_histogram(lambda: Percentile(99.999)),
    }


_HANDICAP = {"mse": 3.0, "percentile 99.999": 3.0}
"""By so many decibels a rule that cuts values off must be better: what it costs shows on rare samples, and on those of
another kind. SqueezeNet gains 1 dB by it on held-out pictures of the calibration set and loses 4 on validation's."""


@dataclass(frozen=True)
class Judge:
    """The float network's answers on held-out samples, and how far a quantized model's are from them."""

    samples: Sequence[Sample]
    outputs: tuple[str, ...]
    wanted: list[list[Array]]

    @classmethod
    def of(cls, graph: Graph, samples: Sequence[Sample]) -> "Judge":
        """Runs the float network."""
        outputs = judged_outputs(graph)
        session = ort.session(graph.to_model(outputs))
        return cls(samples, outputs, [session.run(list(outputs), dict(s)) for s in samples])

    def first(self, count: int) -> "Judge":
        """Judges by so many samples only."""
        return Judge(self.samples[:count], self.outputs, self.wanted[:count])

    def error(self, model: onnx.ModelProto) -> float:
        """Energy of the error in relation to the output's, the mean over the outputs and their features; infinite for
        NaN.

        Features of a detector (coordinates, sizes, scores) differ in size by orders of magnitude and count alike.
        """
        known = {o.name for o in model.graph.output}
        extended = onnx.ModelProto()
        extended.CopyFrom(model)
        for name in self.outputs:
            if name not in known:
                extended.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        session = ort.session(extended)
        errors, energies = [0.0 * _energy(a) for a in self.wanted[0]], [0.0 * _energy(a) for a in self.wanted[0]]
        for sample, wanted in zip(self.samples, self.wanted, strict=True):
            found = session.run(list(self.outputs), dict(sample))
            for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
                errors[i] += _energy(a.astype(np.float64) - b)
                energies[i] += _energy(a.astype(np.float64))
        if not all(np.isfinite(e).all() for e in (*errors, *energies)):
            return math.inf
        return float(np.mean([_relative(e, s) for e, s in zip(errors, energies, strict=True)]))


def decibels(error: float) -> float:
    """Signal to noise of an error in relation to the signal."""
    return -10 * math.log10(min(max(error, 1e-12), 1e12))


def _energy(values: Array) -> Array:
    """Of each feature of many places, of a vector as a whole: [features] or [1]."""
    axis = 1 if values.ndim == 4 else values.ndim - 1
    places = values.size // max(values.shape[axis], 1) if values.ndim > 1 else 1
    if places == 1:
        return np.asarray(np.square(values).sum(keepdims=True).reshape(1))
    return np.asarray(np.square(np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)).sum(axis=1))


def _relative(errors: Array, energies: Array) -> float:
    """The mean over the features; where there are several, each at most 1."""
    found = errors / np.maximum(energies, max(float(energies.max(initial=0.0)) * 1e-12, 1e-30))
    return float((np.minimum(found, 1.0) if found.size > 1 else found).mean())


def judged_outputs(graph: Graph) -> tuple[str, ...]:
    """The float32 outputs that change gradually; where there is none, what the last layers with weights give.

    Which boxes are kept, and in which order, changes by leaps, so what lies behind TopK says little.
    """
    leaps = {key(n) for n in graph.nodes if n.op_type in _ORDER_DECIDES}
    behind = leaps | reach(graph, leaps)
    gradual = [o for o in graph.float_outputs() if key(graph.producer(o) or onnx.NodeProto()) not in behind]
    vectors = [o for o in gradual if graph.sizes[o] > 1]
    if vectors:
        return tuple(vectors)
    weighted = {key(n) for n in graph.nodes if is_weighted(graph, n)}
    ends = weighted - reach(graph, weighted, forward=False)
    last = [n for n in graph.nodes if key(n) in ends]
    return tuple(n.output[0] for n in last) or tuple(gradual or graph.outputs)


@dataclass(frozen=True)
class Candidate:
    """One way to quantize: a plan, a rule for the ranges; `equalized` says which network it is."""

    plan: Plan
    rule: str
    equalized: bool


def best(
    candidates: Iterable[tuple[Candidate, onnx.ModelProto]], judge: Judge
) -> tuple[Candidate, list[dict[str, object]]]:
    """The candidate with the least error, the first of equal ones; and a row for each, for the report."""
    rows: list[dict[str, object]] = []
    chosen: tuple[float, Candidate] | None = None
    for candidate, model in candidates:
        reached = decibels(judge.error(model))
        rows.append({"equalized": candidate.equalized, "observer": candidate.rule, "sqnr_db": round(reached, 2)})
        rated = reached - _HANDICAP.get(candidate.rule, 0.0)
        if chosen is None or rated > chosen[0]:
            chosen = (rated, candidate)
    assert chosen is not None
    return chosen[1], rows

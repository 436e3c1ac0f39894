"""Quantize: float ONNX in, QDQ ONNX of SPEC section 9 and a report out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from edgebuild.core.errors import ModelError, UsageError
from edgebuild.stages.quantize import calibrate, observers, parameters
from edgebuild.stages.quantize.boundaries import Boundaries, find_boundaries
from edgebuild.stages.quantize.calibrate import InputSpec, Sample, check_sample, input_specs
from edgebuild.stages.quantize.correction import channel_means
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Graph, Types, key
from edgebuild.stages.quantize.insert import Parameters, insert
from edgebuild.stages.quantize.observers import Range, Watcher
from edgebuild.stages.quantize.select import Selection, select
from edgebuild.stages.quantize.strip import without_rounding
from edgebuild.stages.quantize.support import check_operators
from edgebuild.stages.quantize.verify import activation_tensors, is_quantized, share_parameters, verify

__all__ = ["InputSpec", "Quantized", "Sample", "check_sample", "input_specs", "keep_float", "quantize"]

_OPSET = 18
Samples = Callable[[], Iterable[Sample]]


@dataclass(frozen=True)
class Quantized:
    """A QDQ model and what was decided.

    `report`: `passed_through`, `samples` (their number), `observer`; `tensors`: {name, scale, zero_point, min, max} of
    each Q/DQ pair; `quantized`: {operator, name} and `float`: {operator, name, reason} of each operator. `floating`:
    the float32 network that was rounded; its tensors have the names and values that they have before Q in `model`.
    """

    model: onnx.ModelProto
    report: dict[str, Any]
    floating: onnx.ModelProto


def quantize(
    model: onnx.ModelProto,
    samples: Samples,
    observer: str = "minmax",
    percentile: float = 99.99,
    *,
    ranges: Mapping[str, Range] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Quantizes a float model (opset 18 or later, static shapes) with the ranges that it shows on `samples()`.

    `ranges` overrides what was observed, by tensor name. `progress` gets the number of samples done. A model that holds
    Q/DQ already is checked and passed through. Raises ModelError, CalibrationError, UsageError.
    """
    if is_quantized(model):
        verify(model)
        check_operators(Graph(model))
        report = _report(observer="", tensors=activation_tensors(model)) | {"passed_through": True}
        return Quantized(share_parameters(model), report, without_rounding(model))
    _check_opset(model)
    graph = Graph(fold(model))
    check_operators(graph)
    types = Types(graph.to_model())
    selection = select(graph, types)
    boundaries = find_boundaries(graph, types, selection.quantized)
    watched = {
        tensor: observers.observer(observer, percentile) for group in boundaries.sources.values() for tensor in group
    }
    means = channel_means(graph, selection.quantized)
    _check_overrides(ranges or {}, boundaries)
    specs = input_specs(model)
    watchers = _watchers(watched, means)
    floating = graph.to_model()
    watching = graph.to_model(t for t in watchers if t not in specs)
    count = calibrate.observe(watching, specs, samples(), watchers, progress)
    found = _ranges(boundaries, {t: o.range() for t, o in watched.items()}) | dict(ranges or {})
    chosen = {name: parameters.activation(*r) for name, r in found.items()}
    report = _report(count, observer, _tensors(boundaries, found, chosen), *_operators(graph, selection))
    insert(graph, selection.quantized, boundaries, chosen, means)
    result = graph.to_model()
    onnx.checker.check_model(result, full_check=True)
    return Quantized(result, report, floating)


def keep_float(model: onnx.ModelProto) -> Quantized:
    """The model as float32 code runs it: folded as for quantization, but without Q/DQ. Raises ModelError."""
    if is_quantized(model):
        raise ModelError("the model is quantized already", "compile it as it is, or give the float model")
    _check_opset(model)
    graph = Graph(fold(model))
    check_operators(graph)
    result = graph.to_model()
    onnx.checker.check_model(result, full_check=True)
    floating = [{"operator": n.op_type, "name": n.name, "reason": "compiled in float32"} for n in graph.nodes]
    return Quantized(result, _report(observer="", floating=floating), result)


def _watchers(*kinds: Mapping[str, Watcher]) -> dict[str, list[Watcher]]:
    """All that watch a tensor, by its name."""
    names = dict.fromkeys(name for kind in kinds for name in kind)
    return {name: [kind[name] for kind in kinds if name in kind] for name in names}


def _check_opset(model: onnx.ModelProto) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    if opset < _OPSET:
        raise ModelError(f"the model has ONNX opset {opset}", f"convert it to opset {_OPSET} or later")


def _check_overrides(ranges: Mapping[str, Range], boundaries: Boundaries) -> None:
    for name, (low, high) in ranges.items():
        if name not in boundaries.sources:
            known = ", ".join(boundaries.sources)
            raise UsageError(f"there is no quantized tensor {name!r} to override", f"the tensors are: {known}")
        if not low < high:
            raise UsageError(f"range [{low}, {high}] of tensor {name!r} is empty", "give the smaller number first")


def _ranges(boundaries: Boundaries, observed: Mapping[str, Range | None]) -> dict[str, Range]:
    """The range of each group: what its sources showed and what Pad writes into it."""
    found = {}
    for group, tensors in boundaries.sources.items():
        padding: list[Range] = [(v, v) for v in boundaries.pads.get(group, ())]
        seen = calibrate.merged([*(observed[t] for t in tensors), *padding])
        found[group] = parameters.checked_range(group, seen)
    return found


def _tensors(boundaries: Boundaries, ranges: Mapping[str, Range], chosen: Parameters) -> list[dict[str, Any]]:
    rows = []
    for tensor, group in boundaries.groups.items():
        scale, zero_point = chosen[group]
        low, high = ranges[group]
        rows.append({"name": tensor, "scale": float(scale), "zero_point": zero_point, "min": low, "max": high})
    return rows


def _operators(graph: Graph, selection: Selection) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of the quantized and of the float operators."""
    quantized, floating = [], []
    for node in graph.nodes:
        row = {"operator": node.op_type, "name": node.name}
        if key(node) in selection.quantized:
            quantized.append(row)
        else:
            floating.append(row | {"reason": selection.reasons.get(key(node), "its inputs are float32")})
    return quantized, floating


def _report(
    samples: int = 0,
    observer: str = "minmax",
    tensors: Iterable[dict[str, Any]] = (),
    quantized: Iterable[dict[str, str]] = (),
    floating: Iterable[dict[str, str]] = (),
) -> dict[str, Any]:
    return {
        "passed_through": False,
        "samples": samples,
        "observer": observer,
        "tensors": list(tensors),
        "quantized": list(quantized),
        "float": list(floating),
    }

"""Quantize: float ONNX in, QDQ ONNX of SPEC section 9 and a report out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from edgebuild.core.errors import ModelError
from edgebuild.stages.quantize.biases import with_fitting_biases
from edgebuild.stages.quantize.boundaries import Boundaries
from edgebuild.stages.quantize.budget import Coded, fitting
from edgebuild.stages.quantize.calibrate import InputSpec, Sample, check_sample, input_specs
from edgebuild.stages.quantize.calibrated import (
    Calibrated,
    Choices,
    Fallback,
    Samples,
    Settings,
    calibrated_network,
    factors_of,
)
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Array, Graph, key
from edgebuild.stages.quantize.insert import Parameters
from edgebuild.stages.quantize.kept import Basis
from edgebuild.stages.quantize.layers import Aim
from edgebuild.stages.quantize.observers import Range
from edgebuild.stages.quantize.select import Selection
from edgebuild.stages.quantize.sensitivity import Rounding, roundings
from edgebuild.stages.quantize.strip import without_rounding
from edgebuild.stages.quantize.support import check_operators
from edgebuild.stages.quantize.update import Update
from edgebuild.stages.quantize.verify import activation_tensors, is_quantized, share_parameters, verify

__all__ = [
    "Aim",
    "Basis",
    "Calibrated",
    "Choices",
    "Fallback",
    "InputSpec",
    "Quantized",
    "Rounding",
    "Sample",
    "Settings",
    "Update",
    "calibration",
    "check_sample",
    "finished",
    "input_specs",
    "is_quantized",
    "keep_float",
    "may_fall_back",
    "passed_through",
    "quantize",
    "roundings",
    "updated",
    "updated_within",
]

_OPSET = 18


@dataclass(frozen=True)
class Quantized:
    """A QDQ model and what was decided.

    `report`: `passed_through`, `samples` (their number), `observer`; `tensors`: {name, scale, zero_point, bits, min,
    max} of each Q/DQ pair; `quantized`: {operator, name} and `float`: {operator, name, reason} of each operator;
    `candidates`: {equalized, observer, sqnr_db} of each that was tried, on held-out samples, and of the last two
    `all_sqnr_db`, on others too; `equalized`: {tensor, smallest, largest}
    factor; `rescued`: tensors in 16 bits because the network is ruined without. `floating`: the float32 network that
    was rounded; its tensors have the names and values that they have before Q in `model`. `factors`: what its channels
    are multiplied by, by tensor.
    """

    model: onnx.ModelProto
    report: dict[str, Any]
    floating: onnx.ModelProto
    factors: Mapping[str, Array] = field(default_factory=dict)


def quantize(
    model: onnx.ModelProto,
    samples: Samples,
    settings: Settings | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Quantized:
    """Quantizes a float model (opset 18 or later, static shapes) with what it shows on `samples()`.

    `samples` is called once for each pass. `progress` gets the number of samples done, over both passes. A model that
    holds Q/DQ already is checked and passed through. Raises ModelError, CalibrationError, UsageError.
    """
    if is_quantized(model):
        return passed_through(model)
    return finished(calibration(model, samples, settings, progress=progress))


def passed_through(model: onnx.ModelProto) -> Quantized:
    """A model that holds Q/DQ already, checked, its own scales kept. Raises ModelError."""
    verify(model)
    check_operators(Graph(model))
    report = _report(observer="", tensors=activation_tensors(model)) | {"passed_through": True}
    return Quantized(share_parameters(with_fitting_biases(model)), report, without_rounding(model))


def calibration(
    model: onnx.ModelProto,
    samples: Samples,
    settings: Settings | None = None,
    *,
    progress: Callable[[int], None] | None = None,
) -> Calibrated:
    """All that needs samples. Raises ModelError, CalibrationError, UsageError."""
    _check_opset(model)
    graph = Graph(fold(model))
    check_operators(graph)
    return calibrated_network(model, graph, samples, settings or Settings(), progress)


def finished(found: Calibrated, fallback: Fallback | None = None) -> Quantized:
    """The quantized model, some of whose layers may fall back to 16-bit inputs or float32."""
    plan = found.plan(fallback)
    ranges, chosen = found.choose(plan, fallback)
    rows = _tensors(plan.boundaries, ranges, chosen)
    report = _report(found.count, found.rule, rows, *_operators(found.network.graph, plan.selection))
    report |= {"candidates": found.rows, "equalized": factors_of(found.network)}
    report["rescued"] = sorted(found.rescued)
    result = plan.model(chosen)
    onnx.checker.check_model(result, full_check=True)
    return Quantized(result, report, found.network.graph.to_model(), found.network.factors)


def updated(update: Update) -> Quantized:
    """A later training on the grid of an earlier build; the report's `update` says what changed."""
    return _of_update(update, *update.quantized())


@dataclass(frozen=True)
class Part:
    """A part of an update; `full`: the QDQ model of all of it; `shipped`: the float network that it stands for."""

    quantized: Quantized
    full: onnx.ModelProto
    shipped: onnx.ModelProto


def updated_within(update: Update, room: int, coded: Coded) -> Part:
    """The same in `room` bytes, as `coded` counts them. Raises CheckError."""
    fit = fitting(update, room, coded)
    shipped = update.shipped(fit.choices) if fit.relative else update.plan.network.graph.to_model()
    changes = update.changes(fit.choices) | {"sqnr_db": update.decibels(fit.model)}
    changes |= {"values_bytes": fit.size, "whole_bytes": fit.whole, "price": fit.relative}
    return Part(_of_update(update, fit.model, changes), fit.full, shipped)


def _of_update(update: Update, model: onnx.ModelProto, changes: dict[str, Any]) -> Quantized:
    found, plan = update.found, update.plan
    rows = _tensors(plan.boundaries, update.ranges, update.grid.chosen)
    report = _report(found.count, found.rule, rows, *_operators(found.network.graph, plan.selection))
    report |= {"candidates": [], "equalized": factors_of(found.network), "rescued": sorted(found.rescued)}
    return Quantized(model, report | {"update": changes}, found.network.graph.to_model(), found.network.factors)


def may_fall_back(found: Calibrated) -> frozenset[str]:
    """The keys of the operators that run as integers."""
    return found.plan().selection.quantized


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


def _check_opset(model: onnx.ModelProto) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 0)
    if opset < _OPSET:
        raise ModelError(f"the model has ONNX opset {opset}", f"convert it to opset {_OPSET} or later")


def _tensors(boundaries: Boundaries, ranges: Mapping[str, Range], chosen: Parameters) -> list[dict[str, Any]]:
    rows = []
    for tensor, group in boundaries.groups.items():
        low, high = ranges[group]
        found = chosen[group]
        row = {"name": tensor, "scale": float(found.scale), "zero_point": found.zero_point, "bits": found.bits}
        rows.append(row | {"min": low, "max": high})
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

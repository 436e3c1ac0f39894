"""What an earlier training of a network leaves to a later one: its choices, and the grid of its activations.

Activations keep scale and zero point where the old range still serves; else the scale grows or shrinks by a power of
2^(1/4).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto

from edgebuild.core.errors import ModelError
from edgebuild.stages.quantize.calibrated import Calibrated, Choices
from edgebuild.stages.quantize.graph import Graph
from edgebuild.stages.quantize.insert import Parameters
from edgebuild.stages.quantize.network import Plan
from edgebuild.stages.quantize.observers import RangeError
from edgebuild.stages.quantize.parameters import Affine

_BITS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16}
_SHAPES = (np.dtype(np.int64), np.dtype(np.bool_))
"""Constants that say shapes, axes and indices."""
_WHAT = "--update-of: not the network that the old bundle was made of"
OTHER = "the networks must be the same but for their values; compile without --update-of to ship another one in full"


@dataclass(frozen=True)
class Basis:
    """What an earlier build decided: its QDQ model, the float network that was rounded (folded, equalized), and the
    choices behind them.
    """

    model: onnx.ModelProto
    floating: onnx.ModelProto
    choices: Choices


def check_same(new: Graph, old: onnx.ModelProto) -> None:
    """ModelError where the networks differ by more than the values of constants."""
    other = Graph(old)
    if len(new.nodes) != len(other.nodes):
        raise ModelError(f"{_WHAT}: {len(other.nodes)} operators, now {len(new.nodes)}", OTHER)
    for a, b in zip(new.nodes, other.nodes, strict=True):
        if _spelled(a) != _spelled(b):
            raise ModelError(f"{_WHAT}: {_difference(a, b)}", OTHER)
    for name, value in other.constants.items():
        found = new.constants.get(name)
        used = bool(other.consumers(name))
        if used and (found is None or found.shape != value.shape or found.dtype != value.dtype):
            now = "missing" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ModelError(f"{_WHAT}: constant '{name}' was {value.dtype} {list(value.shape)}, now {now}", OTHER)
        if used and value.dtype in _SHAPES and not np.array_equal(value, new.constants[name]):
            raise ModelError(f"{_WHAT}: constant '{name}' ({value.dtype}) has another value", OTHER)


def _spelled(node: NodeProto) -> bytes:
    return bytes(node.SerializeToString(deterministic=True))


def _difference(new: NodeProto, old: NodeProto) -> str:
    if (old.op_type, old.name) != (new.op_type, new.name):
        return f"{old.op_type} '{old.name}' is now {new.op_type} '{new.name}'"
    for did, does, a, b in (("read", "reads", old.input, new.input), ("gave", "gives", old.output, new.output)):
        if list(a) != list(b):
            return f"{old.op_type} '{old.name}' {did} {', '.join(a)}, and now {does} {', '.join(b)}"
    before, after = ({a.name: _said(a) for a in node.attribute} for node in (old, new))
    name = next((n for n in {**before, **after} if before.get(n) != after.get(n)), "domain")
    was, now = (values.get(name, "not given") for values in (before, after))
    return f"{old.op_type} '{old.name}': its {name} was {was}, and is now {now}"


def _said(attribute: AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    return str(list(value) if isinstance(value, Iterable) and not isinstance(value, bytes) else value)


@dataclass(frozen=True)
class Grids:
    """`chosen` by group; `rows` of those that changed, for the report."""

    chosen: dict[str, Affine]
    rows: list[dict[str, Any]]


_WORSE = 2.0
"""A grid serves while its expected squared error is at most so many times the best one's."""
_BEYOND = 0.25
"""And while no value lies further outside, as a part of its range."""
_RATIO = 0.25


def old_affine(old: Graph, group: str) -> Affine:
    """Scale and zero point of a group in the earlier QDQ model."""
    scale, zero = old.constants[f"{group}_scale"], old.constants[f"{group}_zero_point"]
    return Affine(np.float32(scale), int(zero), _BITS[zero.dtype])


def grids(found: Calibrated, plan: Plan, fresh: Parameters, old: Graph, lenient: float = 1.0) -> Grids:
    """The old parameters where they serve; `lenient` > 1 keeps more of them."""
    chosen, rows = {}, []
    for group, best in fresh.items():
        was = old_affine(old, group)
        why = _unfit(found, plan, group, was, best, lenient)
        chosen[group] = _near(was, best) if why else was
        if chosen[group] != was:
            row = {"name": group, "old_scale": float(was.scale), "scale": float(chosen[group].scale), "reason": why}
            rows.append(row)
    return Grids(chosen, rows)


def _unfit(found: Calibrated, plan: Plan, group: str, was: Affine, best: Affine, lenient: float) -> str:
    """Why the old parameters do not serve. What the best ones cut off as well (a function behind makes one value of it,
    or the rule says so) is no reason.
    """
    (low, high), (least, most), network = _range(was), _range(best), found.network
    width = high - low
    errors = [0.0, 0.0]
    for tensor in plan.boundaries.sources[group]:
        histogram = network.statistics[tensor].histogram
        extremes = histogram.extremes.range()
        if extremes is None:
            continue
        if max(low - max(extremes[0], least), min(extremes[1], most) - high) > _BEYOND * lenient * width:
            return f"values reach from {extremes[0]:.4g} to {extremes[1]:.4g}, the range is {low:.4g} to {high:.4g}"
        error = RangeError(histogram)
        for i, (a, b) in enumerate((_range(was), _range(best))):
            errors[i] += float(error.of(np.array([a]), np.array([b]), (1 << was.bits) - 1)[0])
    if was.bits == 8 and errors[0] > _WORSE * lenient * errors[1]:
        return f"its steps are {float(was.scale / best.scale):.3g} times those that the values need"
    return ""


def _range(affine: Affine) -> tuple[float, float]:
    s, most = float(affine.scale), (1 << affine.bits) - 1
    return -s * affine.zero_point, s * (most - affine.zero_point)


def _near(was: Affine, best: Affine) -> Affine:
    """The old scale times a power of 2^(1/4) that is wide enough; the zero point moves only if it has to."""
    most = (1 << best.bits) - 1
    low, high = _range(best)
    power = np.ceil(np.log2(float(best.scale) / float(was.scale)) / _RATIO - 1e-6)
    scale = np.float32(float(was.scale) * 2.0 ** (_RATIO * power))
    wanted = Affine(scale, was.zero_point, best.bits)
    a, b = _range(wanted)
    if a <= low + 0.5 * float(scale) and b >= high - 0.5 * float(scale):
        return wanted
    return Affine(scale, int(min(max(np.rint(-low / float(scale)), 0.0), most)), best.bits)

"""Layers of a later training on the grid of an earlier one.

* A channel of weights that did not change keeps its integers. One that is a multiple of the old one (the gain of a
  BatchNorm that was folded into it) keeps them too: its multiplier changes. Otherwise the old scale stays while the
  weights fit it, and each is rounded near the old integer (rate.py).
* Multipliers that change keep their low 16 bits; biases change by multiples of a part of the output's step: few
  values, which cost few bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import NodeProto

from edgebuild.core.errors import ModelError
from edgebuild.stages.quantize import rate
from edgebuild.stages.quantize.graph import Array, Graph, key, optional_input
from edgebuild.stages.quantize.kept import OTHER, Basis, Grids, old_affine
from edgebuild.stages.quantize.multiplier import aligned_scale
from edgebuild.stages.quantize.network import Plan
from edgebuild.stages.quantize.operators import is_weighted
from edgebuild.stages.quantize.parameters import Affine, largest_bias
from edgebuild.stages.quantize.rounding import Moments
from edgebuild.stages.quantize.weights import Layer, by_group

_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})


@dataclass(frozen=True)
class Ends:
    """Scales of a layer's input and of its result (None: float32), and the input's zero point."""

    x: Affine
    y: Affine | None


@dataclass(frozen=True)
class OldLayer:
    """A layer of the earlier build. Rows [O, K]: `weight` float64, `q` int; `scale` and `bias` [O] (or None)."""

    weight: Array
    q: Array
    scale: Array
    offset: Array | None
    bias: Array | None
    ends: Ends


def rows_of(value: Array, axis: int) -> Array:
    """[channels, K]."""
    return np.moveaxis(value, axis, 0).reshape(value.shape[axis], -1)


def weight_axis(node: NodeProto) -> int:
    return 1 if node.op_type == "MatMul" else 0


def result_group(graph: Graph, node: NodeProto, groups: Mapping[str, str]) -> str | None:
    """The group that a layer's sums are rounded into; None for a float32 result."""
    name = node.output[0]
    while name not in groups:
        reader = graph.only_consumer(name)
        if reader is None or reader.op_type not in {"Add", "Clip", "Max", "Min", "Relu"}:
            return None
        name = reader.output[0]
    return groups[name]


def quantized_layers(model: onnx.ModelProto) -> dict[str, dict[str, Array]]:
    """`q`, `scale` and `bias` (if there is one) of the layers of a QDQ model, by their number among the operators."""
    graph = Graph(model)
    found: dict[str, dict[str, Array]] = {}
    number = 0
    for node in graph.nodes:
        if node.op_type in _QDQ:
            continue
        reads = [graph.producer(name) for name in node.input]
        constant = [r is not None and r.op_type == "DequantizeLinear" and r.input[0] in graph.constants for r in reads]
        if node.op_type in {"Conv", "Gemm", "MatMul"} and len(reads) > 1 and constant[1]:
            weight = reads[1]
            assert weight is not None
            row = {"q": graph.constants[weight.input[0]], "scale": graph.constants[weight.input[1]]}
            if len(reads) > 2 and constant[2]:
                bias = reads[2]
                assert bias is not None
                row["bias"] = graph.constants[bias.input[0]]
            found[str(number)] = row
        number += 1
    return found


class Layers:
    """The layers of a plan with those of the earlier build beside them; `of` by the node's key, in order."""

    def __init__(self, plan: Plan, grid: Grids, basis: Basis) -> None:
        graph, groups = plan.network.graph, plan.boundaries.groups
        old_graph, old_constants = Graph(basis.model), Graph(basis.floating).constants
        kept = quantized_layers(basis.model)
        numbers = {key(node): str(i) for i, node in enumerate(graph.nodes)}
        nodes = [n for n in graph.nodes if key(n) in plan.selection.quantized and is_weighted(graph, n)]
        lost = [n.name for n in nodes if numbers[key(n)] not in kept]
        if lost or len(kept) != len(nodes):
            raise ModelError(f"layer '{(lost or ['?'])[0]}' had another precision before", OTHER)
        self.of: dict[str, Rows] = {}
        for node in nodes:
            row = kept[numbers[key(node)]]
            before = _ends(graph, node, groups, lambda group: old_affine(old_graph, group))
            now = _ends(graph, node, groups, lambda group: grid.chosen[group])
            old = _old_layer(node, row, old_constants, before)
            self.of[key(node)] = Rows(node, graph.constants, old, now, plan.network.moments[key(node)])


def _ends(graph: Graph, node: NodeProto, groups: Mapping[str, str], affine: Callable[[str], Affine]) -> Ends:
    result = result_group(graph, node, groups)
    return Ends(affine(groups[node.input[0]]), affine(result) if result else None)


def _old_layer(node: NodeProto, row: Mapping[str, Array], constants: Mapping[str, Array], ends: Ends) -> OldLayer:
    axis, bias = weight_axis(node), optional_input(node, 2)
    weight = rows_of(constants[node.input[1]], axis).astype(np.float64)
    scale = np.broadcast_to(row["scale"], (len(weight),)).astype(np.float32)
    offset = constants[bias].astype(np.float64) if bias else None
    return OldLayer(weight, rows_of(row["q"], axis).astype(np.int64), scale, offset, row.get("bias"), ends)


@dataclass(frozen=True)
class Aim:
    """How much a bit of the delta is worth.

    `price`: as a share of the error energy that a whole step in one weight makes at the layer's output; `relative`: as
    a share of the output's energy, if that is more. `parts`: into how many steps of a bias an output step is divided at
    least.
    """

    price: float = 0.02
    relative: float = 0.0
    parts: int = 8


@dataclass(frozen=True)
class Choice:
    """A layer as it is shipped: `q` int64 [O, K], `scale` float32 [O]; `step` int64 [O] of what a bias changes by."""

    q: Array
    scale: Array
    step: Array


class Rows:
    """A layer's rows [O, K], then and now; how much of the difference is shipped is a matter of price."""

    def __init__(
        self, node: NodeProto, constants: Mapping[str, Array], old: OldLayer, ends: Ends, moments: Moments
    ) -> None:
        self.node, self.old, self.ends = node, old, ends
        self._value, self._moments = constants[node.input[1]], moments
        self.weight = rows_of(self._value, weight_axis(node)).astype(np.float64)
        bias = optional_input(node, 2)
        self.offset = constants[bias].astype(np.float64) if bias else None

    @cached_property
    def mean(self) -> Array:
        """Of the inputs of the sums, [groups, K]."""
        return self._moments.mean()

    @property
    def covariance(self) -> Array:
        """[groups, K, K]; where a sum has too many products for it, inputs count as independent."""
        found = self._moments.covariance()
        if found is not None:
            return found
        terms, spread = self.mean.shape[1], float(self.ends.x.scale) * (1 << self.ends.x.bits) / 8
        return np.asarray(np.broadcast_to(np.eye(terms) * spread**2, (len(self.mean), terms, terms)))

    @cached_property
    def energy(self) -> Array:
        """Mean square of what each weight is multiplied by, [O, K]."""
        each = np.einsum("gkk->gk", self.covariance) + self.mean**2
        return np.repeat(each, len(self.weight) // len(each), axis=0)

    @cached_property
    def variance(self) -> float:
        """Of the sums, the mean over the channels."""
        covariance = self.covariance
        grouped = self.weight.reshape(len(covariance), -1, self.weight.shape[1])
        return float(((grouped @ covariance) * grouped).sum(axis=2).mean())

    def chosen(self, aim: Aim) -> Choice:
        """Near the weights where that is worth its bits."""
        scale, kept = self._scales(aim)
        q = self.old.q.copy() if kept.all() else self._integers(scale, kept, aim)
        return Choice(q, scale, self._bias_step(scale, aim))

    def _scales(self, aim: Aim) -> tuple[Array, Array]:
        """Scale of each channel, float32 [O], and which channels keep their integers, bool [O]."""
        old, weight, energy = self.old, self.weight, self.energy
        widest = np.maximum(np.abs(weight).max(axis=1, initial=0.0), 1e-30)
        step, least = old.scale.astype(np.float64), self._least_scale()
        few, many = _FITS
        dead = ~weight.any(axis=1)
        needed = dead | (step <= 2 * least)
        fits = (step >= least) & (widest <= many * step) & (needed | (widest >= few * step))
        same = fits & (np.abs(weight - old.weight).max(axis=1, initial=0.0) <= _SAME * widest)
        power = (energy * old.weight**2).sum(axis=1)
        gain = (energy * weight * old.weight).sum(axis=1) / np.maximum(power, 1e-30)
        change = (energy * (weight - old.weight) ** 2).sum(axis=1)
        rest = (energy * (weight - gain[:, None] * old.weight) ** 2).sum(axis=1)
        far = np.abs(weight - gain[:, None] * old.weight).max(axis=1, initial=0.0)
        covers = (gain > 0) & (widest <= many * step * gain) & (widest >= few * step * gain)
        multiple = covers & (far <= _SAME * widest * 8) & (step * gain >= least)
        explained = fits & covers & (rest < _EXPLAINED * change)
        wanted = np.where(multiple | explained, gain, 1.0)
        wanted = np.where(~multiple & ~fits, widest / (127.0 * step), wanted)
        worth = np.maximum(0.25 * step**2 / 12 * energy.sum(axis=1), aim.relative * self.variance * _SCALE_BITS)
        moved = ~same & (~fits | ((wanted - 1) ** 2 * power > worth))
        ratio = np.where(moved, wanted, 1.0)
        ratio = np.where(ratio * step >= least, ratio, _BIAS_ROOM * least / step)
        up = (~multiple & ~fits) | (ratio * step <= _BIAS_ROOM * least)
        return aligned_scale(old.scale, ratio, pair(old.ends), pair(self.ends), up), same | multiple

    def _least_scale(self) -> Array:
        """What the bias needs, float64 [O]: it is an integer of the sums."""
        if self.offset is None:
            return np.zeros(len(self.weight))
        return np.abs(self.offset) / (float(self.ends.x.scale) * largest_bias(self.weight.shape[1]))

    def _integers(self, scale: Array, kept: Array, aim: Aim) -> Array:
        """Int64 [O, K]; where bits are dear, what differences cost is counted once and then used.

        Nothing is kept from one price to the next: a table that fits few changes makes them dearer still, so that a
        search among prices would miss the room that there is, and end elsewhere each time.
        """
        old, covariance = self.old.q, self.covariance
        steps = self.weight / scale.astype(np.float64)[:, None]
        shape = (len(covariance), -1, steps.shape[1])
        least = aim.price * np.einsum("gkk->gk", covariance).mean(axis=1)[:, None]
        price = np.maximum(least, aim.relative * self.variance / scale.astype(np.float64).reshape(shape[:2]) ** 2)
        near, bits = old, rate.Bits.first()
        for _ in range(2 if aim.relative else 1):
            near = rate.near(steps.reshape(shape), old.reshape(shape), covariance, price, bits).reshape(steps.shape)
            near = np.where(kept[:, None], old, near).astype(np.int64)
            bits = rate.Bits.of(near - old)
        return near

    def layer(self, choice: Choice) -> Layer:
        """As insert.py writes it."""
        axis, scale, q = weight_axis(self.node), choice.scale.astype(np.float64), choice.q
        units = float(self.ends.x.scale) * scale
        bias = None
        if self.old.bias is not None and self.offset is not None:
            error = q * scale[:, None] - self.weight
            wanted = (self.offset - by_group(error, self.mean)) / units
            still = self._still(choice)
            bias = aligned_bias(self.old, q, wanted, choice.step, self.ends.x.zero_point, still)
        return Layer(shaped(q, self._value, axis).astype(np.int8), choice.scale, bias, units.astype(np.float32))

    def shipped(self, choice: Choice) -> tuple[Array, Array | None]:
        """Float32 weights and bias that the shipped integers stand for; those of the training where they did not
        change.
        """
        axis, made = weight_axis(self.node), self.layer(choice)
        still = self._still(choice)
        whole = made.q.astype(np.float64) * np.expand_dims(made.scale.astype(np.float64), _others(made.q, axis))
        rows = np.where(still[:, None], self.weight, rows_of(whole, axis))
        weight = shaped(rows, self._value, axis).astype(np.float32)
        if made.bias is None or self.offset is None:
            return weight, None
        return weight, np.where(still, self.offset, made.bias * made.bias_scale.astype(np.float64)).astype(np.float32)

    def _still(self, choice: Choice) -> Array:
        """The channels that nothing has changed."""
        widest = np.abs(self.weight).max(axis=1, initial=0.0)
        same = np.abs(self.weight - self.old.weight).max(axis=1, initial=0.0) <= _SAME * widest
        if self.offset is not None and self.old.offset is not None:
            same &= np.abs(self.offset - self.old.offset) <= _SAME * np.abs(self.old.offset).max(initial=0.0)
        alike = pair(self.old.ends) == pair(self.ends) and self.old.ends.x.zero_point == self.ends.x.zero_point
        return np.asarray(same & (choice.scale == self.old.scale) & alike)

    def _bias_step(self, scale: Array, aim: Aim) -> Array:
        """The largest power of two, in units of the sums, that is at most a part of the output's step; or what coding
        theory says of a bit's price: a uniform step Δ has the error Δ²/12, which a bit more quarters.
        """
        y, unit = self.ends.y, float(self.ends.x.scale) * scale.astype(np.float64)
        worth = np.sqrt(6 / np.log(2) * aim.relative * self.variance)
        step = float(y.scale) if y else 6 * np.sqrt(self.variance) / 128
        room = np.log2(np.clip(worth / 2, step / aim.parts, step) / np.maximum(unit, 1e-30))
        return np.asarray(np.exp2(np.clip(np.floor(room), 0, 28))).astype(np.int64)


_SAME = 2e-6
"""Two trainings' weights are equal up to this part of the channel's largest: BatchNorm is folded in float32."""
_EXPLAINED = 0.5
"""A gain explains a channel's change if not more than this part of it remains."""
_FITS = (80.0, 127.5)
"""How many steps of the old grid a channel's largest weight may have. To cut off what lies beyond saves a byte a
channel, and costs 5 dB of an update that is nearly whole."""
_BIAS_ROOM = 1 + 2.0**-6
"""A scale that grows for its bias grows by so much more: rounding weights adds to the bias, and it may grow again."""
_SCALE_BITS = 6.0
"""What a changed multiplier takes, about."""


def pair(ends: Ends) -> tuple[np.float32, np.float32 | None]:
    """The scales of a layer's input and result."""
    return ends.x.scale, None if ends.y is None else ends.y.scale


def _others(value: Array, axis: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(i for i in range(value.ndim) if i != axis)


def aligned_bias(old: OldLayer, q: Array, wanted: Array, step: Array, zero: int, still: Array) -> Array:
    """Biases near `wanted` (in units of the sums) whose part in weights.bin, bias − z_x·Σq, differs from the old one's
    by a multiple of `step`. `still`: channels that nothing has changed keep theirs.
    """
    assert old.bias is not None
    before = old.bias.astype(np.int64) - old.ends.x.zero_point * old.q.sum(axis=1)
    after = before + zero * q.sum(axis=1)
    count = np.rint((wanted - after) / step).astype(np.int64)
    found = after + np.where(still, 0, count) * step
    limit = largest_bias(q.shape[1])
    return np.asarray(np.clip(found, -limit, limit).astype(np.int32))


def shaped(rows: Array, like: Array, axis: int) -> Array:
    """The inverse of rows_of."""
    moved = np.moveaxis(like, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))

"""Do the colours come in the order of training? The witness is BatchNormalization behind the first layer.

It keeps each channel's mean over what it saw in training. The first layers run on the pictures as they come and with
their colour channels reversed; the two differ by the pictures' colour alone, and the mean that fits better tells the
order: daylight, skin and soil lean to red.

What the statistics cannot carry stays unsaid: grey pictures; few of them, or all of one scene; normalization folded
into weights; means that training has left behind; frames that were normalized per channel and then reversed, which have
no colour on average. And a world that is bluer than training's looks like swapped channels, in every layer (a cast that
takes 20 % of the red and adds as much blue does, half as much in one case of three): so this is never more than likely.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import onnx
from onnx import NodeProto, helper

from edgebuild.stages.diagnose.findings import MEDIUM, PREPROCESSING, Finding
from edgebuild.stages.diagnose.floats import Network
from edgebuild.stages.diagnose.graph import Array, Graph, attribute, channels, title
from edgebuild.stages.diagnose.switch import Sample, ran, session

PICTURES = 96
"""Pictures that are looked at. In 4,800 draws from sets of four trained networks, their own and each other's, none was
called swapped; with swapped channels, 96 pictures told all of them, 64 told 99 %, 32 told 83 %, 16 told 60 %.
"""

_FEWEST, _FEWEST_CHANNELS = 16, 5
_SURE = 2.0  # standard errors; in those healthy draws 1.2 at most of 16 pictures, 0.3 of 32, -1.5 of 64
_FITS, _SPREAD = 0.5, 2.5  # rest of the misfit in training's standard deviations, log2 of the variance's ratio
# Where training's mean lies on the line from this order (0) to the reversed (1): swapped sets of 64 at 0.68 to 1.55.
_NEAREST, _FARTHEST = 0.65, 2.0
_VARIED = 0.35  # the colour's deviation from picture to picture by its mean: healthy sets show 0.5 and more
_RIDGE = 0.01
_COLOURS = 3

_REMEDY = (
    "Look for the order of channels in the handler (a [..., ::-1], a flip, a BGR2RGB): drop it where the network was "
    "trained on the frame's own order, add it where it was not. Accuracy on labelled samples decides: it rises if the "
    "channels were swapped. If the pictures are meant to be that blue, or that red, nothing is wrong."
)


@dataclass(frozen=True)
class Orders:
    """Channel means of each picture, in training's standard deviations from training's mean: [pictures, channels].
    `variance`: log2 of these pictures' variance by training's, the median of the channels.
    """

    given: Array
    reversed: Array
    variance: float

    @classmethod
    def of(cls, given: Array, squares: Array, other: Array, statistics: tuple[Array, Array]) -> Self | None:
        """From means (and means of squares) of pictures; None where a value is missing or no channel lives."""
        mean, variance = statistics
        live = variance > 1e-6 * np.median(variance)
        if not live.any() or not all(np.isfinite(values).all() for values in (given, squares, other)):
            return None
        seen = squares.mean(axis=0) - given.mean(axis=0) ** 2
        ratio = np.log2(np.maximum(seen[live], 0) + 1e-30) - np.log2(variance[live])
        scale = 1 / np.sqrt(variance[live])
        as_given, as_reversed = ((means[:, live] - mean[live]) * scale for means in (given, other))
        return cls(as_given, as_reversed, float(np.median(ratio)))

    @property
    def misfit(self) -> tuple[float, float]:
        """Root mean square over the channels, as they come and reversed."""
        as_given, as_reversed = (float(np.sqrt(np.mean(v.mean(axis=0) ** 2))) for v in (self.given, self.reversed))
        return as_given, as_reversed

    @cached_property
    def _weights(self) -> Array:
        """Inverse of how the means vary from picture to picture: brightness varies most, and tells no order."""
        between = (np.cov(self.given.T) + np.cov(self.reversed.T)) / 2
        return np.asarray(np.linalg.inv(np.atleast_2d(between) + _RIDGE * np.eye(self.given.shape[1])))

    @property
    def place(self) -> float:
        """Where training's mean lies from this order (0) to the reversed (1)."""
        mean, step = self.given.mean(axis=0), (self.reversed - self.given).mean(axis=0)
        return float(-(mean @ self._weights @ step) / max(float(step @ self._weights @ step), 1e-12))

    @property
    def errors(self) -> float:
        """By how many standard errors, of the pictures (jackknife) and of training, the reversed order fits better."""
        count = len(self.given)
        mean, other = self.given.mean(axis=0), self.reversed.mean(axis=0)
        without = [(v.sum(axis=0) - v) / (count - 1) for v in (self.given, self.reversed)]
        left = self._distance(without[0]) - self._distance(without[1])
        sampling = np.sqrt((count - 1) / count * np.sum((left - left.mean()) ** 2))
        drift = 2 * self._drift * np.linalg.norm(self._weights @ (other - mean))
        error = float(np.hypot(sampling, drift))
        return float(self._distance(mean) - self._distance(other)) / error if error > 0 else 0.0

    @property
    def _drift(self) -> float:
        """How far training's mean lies off what colours alone can bring about, by channel.

        Colours move the means of a first layer along three directions. What else is there, the network forgot: weights
        moved on after the running mean was taken.
        """
        both, count = np.concatenate([self.given, self.reversed]), self.given.shape[1]
        mean = both.mean(axis=0)
        around = both - mean
        directions = np.linalg.svd(around, full_matrices=False)[2][:_COLOURS]
        rest = mean - directions.T @ (directions @ mean)
        return float(np.sqrt(rest @ rest / (count - _COLOURS - 1)))

    def _distance(self, means: Array) -> Array:
        return np.asarray(np.einsum("...c,cd,...d->...", means, self._weights, means))

    @property
    def varied(self) -> bool:
        """Whether the colour varies from picture to picture: those of one scene are one picture."""
        step = self.reversed - self.given
        length = float(np.linalg.norm(step.mean(axis=0)))
        return length > 0 and float((step @ step.mean(axis=0) / length).std(ddof=1)) >= _VARIED * length

    @property
    def comparable(self) -> bool:
        """Whether the statistics carry a judgement at all."""
        enough = len(self.given) >= _FEWEST and self.given.shape[1] >= _FEWEST_CHANNELS
        return enough and self.varied and abs(self.variance) <= _SPREAD

    @property
    def swapped(self) -> bool:
        """Whether the reversed order is the one of training."""
        if not self.comparable:
            return False
        near = _NEAREST < self.place < _FARTHEST and self.misfit[1] <= _FITS
        return near and self.errors >= _SURE


def colours(
    network: Network, layers: Iterable[NodeProto], pictures: Iterable[Mapping[str, Array]]
) -> tuple[list[Finding], list[dict[str, Any]]]:
    """First layers whose pictures fit training better with their channels reversed, and what was compared.

    `pictures` is not read where no layer has a witness. Raises ModelError when ONNX Runtime cannot run these layers.
    """
    heads = [head for layer in layers if (head := _Head.of(network, layer)) is not None]
    if not heads:
        return [], []
    for picture in pictures:
        for head in heads:
            head.see(dict(picture))
    told = [(head, orders) for head in heads if (orders := head.orders()) is not None]
    return [_finding(h, o) for h, o in told if o.swapped], [_looked(h, o) for h, o in told]


class _Head:
    """The network up to its first BatchNormalization's input, run in both orders."""

    def __init__(self, network: Network, layer: NodeProto, norm: NodeProto) -> None:
        self.layer, self.norm = layer, norm
        self._statistics = network.norm_statistics(norm)
        self._tensor = norm.input[0]
        model = _until(network.graph, self._tensor)
        self._inputs = [value.name for value in model.graph.input]
        self._runner = session(model)
        self._means: list[tuple[Array, Array, Array]] = []

    @classmethod
    def of(cls, network: Network, layer: NodeProto) -> Self | None:
        """None where nothing remembers colours."""
        norm = _norm(network, layer) if _reads_colours(network.graph, layer) else None
        if norm is None:
            return None
        needed = _needed(network.graph, norm.input[0])
        # A branch or a loop reads tensors that its inputs do not name.
        whole = all(a.type not in {a.GRAPH, a.GRAPHS} for node in needed for a in node.attribute)
        return cls(network, layer, norm) if whole else None

    def see(self, picture: Sample) -> None:
        """One sample; one without colour channels says nothing."""
        given = {name: picture[name] for name in self._inputs if name in picture}
        other = {name: _reversed(value) for name, value in given.items()}
        if all(other[name] is given[name] for name in given):
            return
        rows, turned = (channels(ran(self._runner, [self._tensor], values)[0]) for values in (given, other))
        if len(rows) == len(self._statistics[0]):
            squares = np.einsum("cn,cn->c", rows, rows, dtype=np.float64) / rows.shape[1]
            self._means.append((rows.mean(1, dtype=np.float64), squares, turned.mean(1, dtype=np.float64)))

    def orders(self) -> Orders | None:
        """What all pictures showed."""
        if len(self._means) < 2:
            return None
        given, squares, other = (np.array(part) for part in zip(*self._means, strict=True))
        return Orders.of(given, squares, other, self._statistics)


def _norm(network: Network, layer: NodeProto) -> NodeProto | None:
    """The first BatchNormalization behind (or before) a first layer with no other layer between. One whose means are
    all alike has not seen training.
    """
    graph, made = network.graph, {n.output[0] for n in network.layers}
    before = graph.ancestors(layer.input[0])
    for norm in network.norms:
        layers = made & graph.ancestors(norm.input[0])
        if layers == {layer.output[0]} or (not layers and norm.output[0] in before):
            return norm if np.ptp(network.norm_statistics(norm)[0]) > 0 else None
    return None


def _reads_colours(graph: Graph, layer: NodeProto) -> bool:
    """Whether it reads colour channels, perhaps with pixels moved into channels, and not a grey picture."""
    weight = graph.weight(layer)
    return weight is not None and weight.shape[1] * int(attribute(layer, "group", 1)) % _COLOURS == 0


def _needed(graph: Graph, name: str) -> list[NodeProto]:
    above = graph.ancestors(name)
    return [node for node in graph.model.graph.node if above.intersection(node.output)]


def _until(graph: Graph, name: str) -> onnx.ModelProto:
    """The part of the model that makes a tensor."""
    whole, nodes, above = graph.model, _needed(graph, name), graph.ancestors(name)
    output = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    inputs = [value for value in whole.graph.input if value.name in above and value.name in graph.inputs]
    tensors = [tensor for tensor in whole.graph.initializer if tensor.name in above]
    part = helper.make_graph(nodes, whole.graph.name or "first layers", inputs, [output], tensors)
    return helper.make_model(
        part, opset_imports=whole.opset_import, ir_version=whole.ir_version, functions=whole.functions
    )


def _reversed(value: Array) -> Array:
    """A picture, channels last or first, with its channels reversed; anything else as it is."""
    for axis in (-1, -3):
        if value.ndim in {3, 4} and value.shape[axis] == _COLOURS:
            return np.ascontiguousarray(np.flip(value, axis))
    return value


def _looked(head: _Head, orders: Orders) -> dict[str, Any]:
    given, turned = orders.misfit
    return {
        "layer": title(head.norm, ""),
        "pictures": len(orders.given),
        "misfit": _short(given),
        "misfit_reversed": _short(turned),
        "place": _short(orders.place) if orders.comparable else None,
        "standard_errors": _short(orders.errors) if orders.comparable else None,
        "order": _order(orders),
    }


def _order(orders: Orders) -> str:
    if orders.swapped:
        return "swapped"
    turned = Orders(orders.reversed, orders.given, orders.variance)
    return "as in training" if turned.swapped else "not known"


def _finding(head: _Head, orders: Orders) -> Finding:
    given, turned = orders.misfit
    what = (
        f"The channels look swapped: BGR where RGB was seen in training, or the other way round. The means that "
        f"{title(head.norm, '')} remembers of training lie {given:.2g} standard deviations from those of the "
        f"{len(orders.given)} pictures as they come, and {turned:.2g} with their channels reversed: nearer by "
        f"{orders.errors:.1f} standard errors. Pictures far bluer or redder than training's look the same."
    )
    return Finding(
        PREPROCESSING, MEDIUM, title(head.layer, ""), head.layer.input[0], head.layer.op_type, what, 12.0, -1,
        frozenset(), {"colours": _looked(head, orders)}, _REMEDY,
    )  # fmt: skip


def _short(value: float) -> float:
    return float(f"{value:.5g}")

"""Channels far from their neighbours, and functions that are always at their end, in the float network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from edgebuild.stages.diagnose.findings import DEAD, HIGH, LOW, MEDIUM, OUTLIER, SATURATION, Finding
from edgebuild.stages.diagnose.floats import Ends, Network
from edgebuild.stages.diagnose.graph import Array, Named, title
from edgebuild.stages.diagnose.measure import Moments, Track

# Healthy trained networks stay well below: of six measured, activations of layers lie at most 10 times above the median
# of their channels (gap to the next 2), weights 36 times (gap 3), variances 4 times (64 times in a network whose
# weights came from integers).
_RATIO, _GAP = 25.0, 5.0
_TRAINED = 20.0  # standard deviations by BatchNormalization's memory
_JOINT, _EACH, _JOINT_GAP = 1000.0, 8.0, 2.5
_ALIVE = 1e-6
_FEWEST = 4
_REPAIRED = 8.0
_LOST_DB = 30.0

_AT_CEILING, _OFTEN = 0.6, 0.45
_ALWAYS_OFF = 0.999
_AT_ENDS, _AT_ENDS_OFTEN = 0.9, 0.8

Tracks = Callable[[str], Track | None]


@dataclass(frozen=True)
class _Spread:
    """How one channel stands out of a vector of magnitudes."""

    ratio: float  # to the median of the channels that are not zero
    gap: float  # to the largest channel that does not stand out

    @classmethod
    def of(cls, sizes: Array, channel: int) -> "_Spread":
        live = sizes[sizes > _ALIVE * max(float(sizes.max()), 1e-300)]
        if len(live) < 2 or sizes[channel] <= 0:
            return cls(1.0, 1.0)
        if len(live) < _FEWEST:  # too few for a median: beside the largest of the others, and never enough alone
            others = np.delete(sizes, channel).max()
            return cls(float(sizes[channel] / others) if others > 0 else 1.0, _JOINT_GAP)
        rest = np.sort(live)[::-1]
        below = rest[rest < sizes[channel] / 2]
        standing = max(1, len(rest) // 16)
        over = int(np.count_nonzero(rest >= sizes[channel] / 2))
        gap = float(sizes[channel] / below[0]) if len(below) and over <= standing else 1.0
        return cls(float(sizes[channel] / np.median(live)), gap)


def outliers(network: Network, tracks: Tracks) -> list[Finding]:
    """A finding for every layer with a channel that stands far out."""
    return [f for layer in network.layers if (f := _outlier(network, layer, tracks)) is not None]


def _outlier(network: Network, layer: NodeProto, tracks: Tracks) -> Finding | None:
    weight = network.graph.weight(layer)
    norm = next((n for n in network.norms if n.input[0] == layer.output[0]), None)
    place = layer.output[0] if norm is None else norm.output[0]
    if weight is None or place not in network.moments:
        return None
    values, free = surviving(network, place, network.moments[place])
    factor = network.graph.constants[norm.input[1]].reshape(-1) if norm is not None else None
    rows = _rows(weight, factor, len(values))
    trained = _beside_training(network, norm) if norm is not None else np.zeros(0)
    columns = _next_columns(network, place, len(values))
    for channel in _candidates(values, free, *rows, trained):
        says = _says(channel, values, free, rows, trained, columns)
        if says:
            return _finding(network, layer, place, channel, says, tracks)
    return None


def _rows(weight: Array, factor: Array | None, count: int) -> list[Array]:
    """Magnitudes by output channel: the largest weight, and the factor of a BatchNormalization behind."""
    largest = np.abs(weight.reshape(len(weight), -1)).max(axis=1).astype(np.float64)
    return [v for v in (largest, None if factor is None else np.abs(factor.astype(np.float64)))
            if v is not None and len(v) == count]  # fmt: skip


def _candidates(*vectors: Array) -> list[int]:
    return list(dict.fromkeys(int(np.argmax(v)) for v in vectors if len(v) and v.max() > 0))


def _says(
    channel: int, values: Array, free: Array, rows: list[Array], trained: Array, columns: Array
) -> dict[str, float]:
    """The evidence that a channel is an outlier; empty when there is none. `values` are what gets through a Clip,
    `free` what would without its ceiling: that counts together with the weights only.
    """
    passed, activation = _Spread.of(values, channel), _Spread.of(free, channel)
    weights = max((_Spread.of(r, channel) for r in rows), key=lambda s: s.ratio, default=_Spread(1.0, 1.0))
    found = {"activation_ratio": activation.ratio, "activation_gap": activation.gap, "weight_ratio": weights.ratio}
    enough = (passed.ratio >= _RATIO and passed.gap >= _GAP) or (weights.ratio >= _RATIO and weights.gap >= _GAP)
    joint = min(activation.ratio, weights.ratio) >= _EACH and activation.ratio * weights.ratio >= _JOINT
    enough = enough or (joint and activation.gap >= _JOINT_GAP)
    if len(columns) and columns[channel] > 0:
        compensated = float(np.median(columns[columns > 0]) / columns[channel])
        found["next_layer_divides_by"] = compensated
        both = min(activation.ratio, compensated) >= _EACH and activation.ratio * compensated >= _JOINT
        enough = enough or (both and activation.gap >= _JOINT_GAP)
    if len(trained):
        found["times_training"] = float(trained[channel])
        lonely = np.count_nonzero(trained >= _EACH) <= max(1, len(trained) // 10)
        enough = enough or bool(trained[channel] >= _TRAINED and lonely)
    return found if enough else {}


def _beside_training(network: Network, norm: NodeProto) -> Array:
    """Each channel's standard deviation by the one that BatchNormalization remembers, against the median channel."""
    moments, (_, variance) = network.moments.get(norm.input[0]), network.norm_statistics(norm)
    if moments is None or len(variance) != len(moments.low) or not (variance > 0).any():
        return np.zeros(0)
    live = variance > 1e-4 * np.median(variance)
    ratio = np.sqrt(np.where(live, moments.variance / np.where(live, variance, 1.0), 0.0))
    middle = float(np.median(ratio[live])) if live.any() else 0.0
    return ratio / middle if middle > 0 else np.zeros(0)


def _next_columns(network: Network, name: str, count: int) -> Array:
    """The largest weight of each input channel of the layer that reads a tensor, seen through functions of one tensor;
    empty when there is not exactly one.
    """
    graph = network.graph
    for _ in range(4):
        readers = graph.consumers(name)
        if len(readers) != 1:
            return np.zeros(0)
        weight = graph.weight(readers[0])
        if weight is not None:
            return _columns(weight, readers[0], count)
        if len(graph.data_inputs(readers[0])) != 1:
            return np.zeros(0)
        name = readers[0].output[0]
    return np.zeros(0)


def _columns(weight: Array, reader: NodeProto, count: int) -> Array:
    sizes = np.abs(weight).astype(np.float64)
    if weight.shape[1] == count:
        return np.asarray(np.moveaxis(sizes, 1, 0).reshape(count, -1).max(axis=1))
    if reader.op_type == "Conv" and weight.shape[1] == 1 and len(weight) == count:
        return np.asarray(sizes.reshape(count, -1).max(axis=1))
    return np.zeros(0)


def _finding(
    network: Network, layer: NodeProto, place: str, channel: int, says: dict[str, float], tracks: Tracks
) -> Finding:
    track = tracks(place)
    hidden = track is not None and _ratio_of(track) < _REPAIRED
    repaired = hidden and says.get("times_training", 1.0) < _TRAINED
    lost = float(np.median(track.channel_db)) if track is not None and len(track.channel_db) else None
    evidence: dict[str, Any] = {"channel": channel, **{k: float(f"{v:.4g}") for k, v in says.items()}}
    if lost is not None:
        evidence["median_channel_sqnr_db"] = round(lost, 1)
    ratio = max(says["activation_ratio"], says["weight_ratio"], says.get("times_training", 1.0))
    strength = (0.5 if repaired else 1.0) * 20 * float(np.log10(ratio))
    name = title(layer, place)
    what = f"Channel {channel} of {name} is {_against(says)}."
    if hidden:
        what += (
            " What INT8 rounds does not show it (equalized, or cut off by an activation), so rounding loses nothing."
        )
    elif lost is not None and lost < _LOST_DB:
        what += f" One scale serves all channels, so half of them keep less than {lost:.0f} dB."
    return Finding(
        OUTLIER, MEDIUM if repaired else HIGH, name, place, layer.op_type, what, strength,
        network.graph.position(layer.output[0]), frozenset(network.graph.ancestors(place)), evidence,
    )  # fmt: skip


def _against(says: dict[str, float]) -> str:
    parts = []
    if says["activation_ratio"] >= _EACH:
        parts.append(f"{says['activation_ratio']:.3g} times as large as the median channel")
    if says["weight_ratio"] >= _EACH:
        parts.append(f"its weights are {says['weight_ratio']:.3g} times the median channel's")
    if says.get("times_training", 0) >= _EACH:
        parts.append(f"it varies {says['times_training']:.3g} times as much as in training, unlike the others")
    if says.get("next_layer_divides_by", 0) >= _EACH:
        parts.append(f"the next layer takes it back by a factor of {says['next_layer_divides_by']:.3g}")
    return "; ".join(parts)


def _ratio_of(track: Track) -> float:
    sizes = track.seen.largest
    return _Spread.of(sizes, int(np.argmax(sizes))).ratio


def surviving(network: Network, name: str, moments: Moments) -> tuple[Array, Array]:
    """The largest magnitude of each channel that gets through the Relu or Clip that alone reads a tensor, and the same
    without the ceiling.
    """
    readers = network.graph.consumers(name)
    ends = [network.ends[n.output[0]].bounded for n in readers if n.output[0] in network.ends]
    if not readers or len(ends) < len(readers) or not all(b.rectifies for b in ends):
        return moments.largest, moments.largest
    free = np.maximum(moments.high, 0.0)
    return np.minimum(free, max(b.high for b in ends)), free


def saturations(network: Network) -> list[Finding]:
    """Bounded functions that are almost always at an end."""
    return [f for ends in network.ends.values() if (f := _saturation(network, ends)) is not None]


def _saturation(network: Network, ends: Ends) -> Finding | None:
    bounded, count = ends.bounded, max(ends.count, 1)
    low, high = ends.at_low / count, ends.at_high / count
    if bounded.rectifies:
        open_ = max(ends.count - ends.at_low, 1)
        share = ends.at_high / open_ if high >= 0.05 else 0.0
        strong, weak = share >= _AT_CEILING, share >= _OFTEN
        if low >= _ALWAYS_OFF:
            share, strong, weak = low, True, True
    else:
        share = low + high
        strong, weak = share >= _AT_ENDS, share >= _AT_ENDS_OFTEN
    if not weak:
        return None
    layer = network.graph.layer_of(bounded.source)
    name, kind = title(layer, bounded.source), bounded.node.op_type
    where = f"its floor {bounded.low:g}" if low > high else f"its ceiling {bounded.high:g}"
    of = "of the values that are not 0 " if bounded.rectifies and high >= low else ""
    what = f"{kind} behind {name} is saturated: {100 * share:.1f} % {of}lie at {where}"
    what += f" ({100 * low:.1f} % at the floor, {100 * high:.1f} % at the ceiling)." if not bounded.rectifies else "."
    evidence = {"share": round(share, 4), "at_floor": round(low, 4), "at_ceiling": round(high, 4)}
    tensor = bounded.node.output[0]
    return Finding(
        SATURATION, HIGH if strong else MEDIUM, name, tensor, kind, what, 30 * share,
        network.graph.position(tensor), frozenset(network.graph.ancestors(tensor)), evidence,
    )  # fmt: skip


def dead(tracks: list[Track], layer_name: Named) -> list[Finding]:
    """One finding for all channels that never change."""
    counts = {t.activation.tensor: int(np.count_nonzero(t.seen.high <= t.seen.low)) for t in tracks if t.seen.count > 1}
    total = sum(counts.values())
    if not total:
        return []
    worst = max(counts, key=lambda name: counts[name])
    track = next(t for t in tracks if t.activation.tensor == worst)
    name, operator = layer_name(worst)
    channels = len(track.seen.low)
    what = f"{counts[worst]} of {channels} channels of {name} never change on the samples" + (
        f", {total} in {sum(1 for c in counts.values() if c)} tensors altogether." if total > counts[worst] else "."
    )
    numbers = [int(i) for i in np.flatnonzero(track.seen.high <= track.seen.low)[:32]]
    share = counts[worst] / channels
    return [
        Finding(DEAD, LOW, name, worst, operator, what, share, 0, frozenset(), {"channels": numbers, "total": total})
    ]

"""What the integers do to each tensor: ranges and scales beside the values that they are for."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgebuild.stages.diagnose.findings import (
    CLIPPED,
    COARSE_WEIGHTS,
    FEW_SAMPLES,
    HIGH,
    LOW,
    MEDIUM,
    SCALES_DIFFER,
    TOO_LARGE,
    UNREPRESENTATIVE,
    WEIGHT_SCALE,
    Finding,
)
from edgebuild.stages.diagnose.graph import Array, Graph, Named, title
from edgebuild.stages.diagnose.measure import Track, WeightError
from edgebuild.stages.diagnose.switch import Weights

_TOO_WIDE, _WIDE = 5.0, 3.0  # times the range that the values need; a rare sample may well double it
_BYTE, _ROOM = 255, 4.0  # ranges of 16 bits are left this much wider on purpose
_EXCESS_DB, _SOME_EXCESS_DB = 9.0, 6.0
_GREAT_EXCESS_DB = 30.0  # five bits: of 16, enough may be left that the rest looks fair
_POOR_DB, _FAIR_DB = 15.0, 22.0
_RARE = 1e-3
_GAIN, _ENERGY, _COARSE_DB = 0.5, 1e-4, 26.0
_BIAS = 0.1
_FEW, _USUAL = 8, 16
_MANY = 0.3
_BEFORE = 1e-6  # a layer's weights come before what they make
_FIXED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}


def ranges(tracks: Sequence[Track], graph: Graph, named: Named) -> list[Finding]:
    """Ranges that cut values off, and ranges of which the values use a small part."""
    needed: dict[str, tuple[float, float]] = {}
    for track in tracks:
        low, high = track.needed
        before = needed.get(track.activation.group, (0.0, 0.0))
        needed[track.activation.group] = min(low, before[0]), max(high, before[1])
    told: set[str] = set()
    found = []
    for track in tracks:
        finding = _pair(track, graph, named) or _clipped(track, graph, named)
        if finding is None and track.activation.group not in told:
            finding = _too_wide(track, needed[track.activation.group], graph, named)
            told |= {track.activation.group} if finding else set()
        found += [finding] if finding else []
    return found


def _pair(track: Track, graph: Graph, named: Named) -> Finding | None:
    activation = track.activation
    if activation.read_scale == activation.scale and activation.read_zero == activation.zero_point:
        return None
    ratio = activation.read_scale / activation.scale
    what = (
        f"{activation.tensor} is written with scale {activation.scale:.4g}, zero point {activation.zero_point}, and "
        f"read with scale {activation.read_scale:.4g} ({ratio:.3g} times), zero point {activation.read_zero}."
    )
    evidence = {"scale": activation.scale, "read_scale": activation.read_scale, "ratio": ratio}
    score = 20 * abs(float(np.log10(ratio))) + 20
    return _finding(SCALES_DIFFER, HIGH, track, graph, named, what, score, evidence)


def _clipped(track: Track, graph: Graph, named: Named) -> Finding | None:
    share = (track.clipped_low + track.clipped_high) / max(track.elements, 1)
    excess = track.fitted_db - track.local_db
    strong = (excess >= _EXCESS_DB and track.local_db <= _POOR_DB) or excess >= _GREAT_EXCESS_DB
    weak = (excess >= _SOME_EXCESS_DB and track.local_db <= _FAIR_DB) or strong
    strong = strong and share >= _RARE
    if not share or not (strong or weak):
        return None
    (low, high), (lowest, highest) = track.needed, track.activation.range
    if _makes_the_same(graph, track.activation.tensor, (low, high), (lowest, highest)):
        return None
    what = (
        f"QuantizeLinear of {track.activation.tensor} saturates: {100 * share:.2g} % of its values lie outside "
        f"{lowest:.4g} to {highest:.4g}, the range of its codes; they reach {low:.4g} to {high:.4g}. That costs "
        f"{excess:.1f} dB against a range that holds them all."
    )
    evidence = {
        "clipped_share": share, "range": [lowest, highest], "values": [low, high], "lost_db": round(excess, 1),
        "local_sqnr_db": round(track.local_db, 1),
    }  # fmt: skip
    return _finding(CLIPPED, HIGH if strong else MEDIUM, track, graph, named, what, excess, evidence)


def _makes_the_same(graph: Graph, tensor: str, values: tuple[float, float], codes: tuple[float, float]) -> bool:
    """Whether a function alone reads the tensor, and gives for what is cut off nearly what it gives at the cut.

    SiLU makes the same of −6 and of −60: a range that ends at −6 is no fault.
    """
    rounded = [q for q in graph.consumers(tensor) if q.op_type == "QuantizeLinear"]
    values_back = [d for q in rounded for d in graph.consumers(q.output[0])]
    readers = [n for d in values_back for n in graph.consumers(d.output[0])]
    function = _FUNCTIONS.get(frozenset(node.op_type for node in readers))
    if function is None or not values[0] < values[1]:
        return False
    points = np.linspace(*values, 512)
    step = float(np.ptp(function(points))) / _CODES
    cut = function(np.clip(points, *codes))
    return bool(np.abs(cut - function(points)).max() <= _FLAT_STEPS * step)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))))


def _hard_sigmoid(x: Array) -> Array:
    return np.asarray(np.clip(x / 6 + 0.5, 0, 1))


_CODES = 255
_FLAT_STEPS = 2.0
"""How much a function may change by what is cut off, in steps of its own range."""
_FUNCTIONS: dict[frozenset[str], Callable[[Array], Array]] = {
    frozenset({"Sigmoid"}): _sigmoid,
    frozenset({"HardSigmoid"}): _hard_sigmoid,
    frozenset({"Tanh"}): np.tanh,
    frozenset({"Sigmoid", "Mul"}): lambda x: np.asarray(x * _sigmoid(x)),
    frozenset({"Swish"}): lambda x: np.asarray(x * _sigmoid(x)),
    frozenset({"HardSwish"}): lambda x: np.asarray(x * _hard_sigmoid(x)),
    frozenset({"HardSigmoid", "Mul"}): lambda x: np.asarray(x * _hard_sigmoid(x)),
    frozenset({"Gelu"}): lambda x: np.asarray(x * _sigmoid(1.702 * x)),
    frozenset({"Softplus"}): lambda x: np.asarray(np.logaddexp(0, x)),
}
"""By the operators that read a tensor: what they make of it, exactly enough to see where it is flat."""


def _too_wide(track: Track, needed: tuple[float, float], graph: Graph, named: Named) -> Finding | None:
    low, high = track.activation.range
    width = needed[1] - needed[0]
    steps = track.activation.highest - track.activation.lowest
    times = (high - low) / width if width > 0 else 0.0
    ratio = times / (_ROOM if steps > _BYTE else 1.0)
    if ratio < _WIDE or _fixed_by_function(track, graph):
        return None
    what = (
        f"The scale of {track.activation.tensor} is {ratio:.3g} times larger than its values need: the codes reach "
        f"{low:.4g} to {high:.4g}, the values {needed[0]:.4g} to {needed[1]:.4g}. Only {steps / times:.0f} of {steps} "
        "steps are used."
    )
    evidence = {"ratio": round(ratio, 3), "range": [low, high], "values": list(needed)}
    severity = HIGH if ratio >= _TOO_WIDE else MEDIUM
    return _finding(TOO_LARGE, severity, track, graph, named, what, 20 * float(np.log10(ratio)), evidence)


def _fixed_by_function(track: Track, graph: Graph) -> bool:
    """Some quantizers fix the range of a bounded function, whatever its values."""
    low, high = track.activation.range
    producer = graph.producer(track.activation.tensor)
    if low == 0 and abs(high - 6) < 0.06:
        return True
    bounds = _FIXED.get(producer.op_type) if producer is not None else None
    return bounds is not None and abs(low - bounds[0]) < 0.02 and abs(high - bounds[1]) < 0.02


def _finding(
    cause: str,
    severity: str,
    track: Track,
    graph: Graph,
    named: Named,
    what: str,
    score: float,
    evidence: Mapping[str, object],
) -> Finding:
    tensor = track.activation.tensor
    layer, operator = named(tensor)
    names = frozenset(graph.ancestors(tensor))
    return Finding(cause, severity, layer, tensor, operator, what, score, graph.position(tensor), names, dict(evidence))


def weights(errors: Sequence[WeightError], graph: Graph) -> list[Finding]:
    """Weights whose integers and scale do not give the float weights back."""
    return [f for error in errors if (f := _weights(error, graph)) is not None]


def _weights(error: WeightError, graph: Graph) -> Finding | None:
    matters = error.energy >= _ENERGY / len(error.energy)
    off = np.abs(np.log2(np.maximum(np.abs(error.gain), 1e-6))) * matters
    excess = (error.fitted_db - error.channel_db) * matters
    name, node = title(error.weights.layer, error.weights.name), error.weights.layer
    if off.max() >= _GAIN:
        bad = np.flatnonzero(off >= _GAIN)
        channel = int(np.argmax(off))
        what = (
            f"The INT8 weights of {name} are {error.gain[channel]:.3g} times its float weights in {_which(bad, off)}: "
            "their scale does not belong to their integers."
        )
        score = 40.0
        cause, severity = WEIGHT_SCALE, HIGH
    elif (coarse := (excess >= _EXCESS_DB) & (error.channel_db <= _COARSE_DB)).any():
        bad = np.flatnonzero(coarse)
        channel = int(np.argmax(excess * coarse))
        what = (
            f"The INT8 weights of {name} use codes up to {int(error.codes_used[channel])} of "
            f"{np.iinfo(error.weights.codes.dtype).max} only, in "
            f"{_which(bad, off)}: {excess[channel]:.1f} dB worse than a scale that fits."
        )
        score, cause, severity = float(excess[channel]), COARSE_WEIGHTS, HIGH
    else:
        return None
    evidence = {
        "weights": error.weights.name, "channels": [int(c) for c in bad[:32]], "gain": float(error.gain[channel]),
        "sqnr_db": round(float(error.channel_db[channel]), 1), "codes_used": int(error.codes_used[channel]),
    }  # fmt: skip
    names = frozenset(graph.ancestors(node.output[0]))
    place = graph.position(node.output[0]) - _BEFORE
    return Finding(cause, severity, name, node.output[0], node.op_type, what, score, place, names, evidence)


def _which(bad: np.ndarray, every: np.ndarray) -> str:
    if len(bad) == len(every):
        return "every channel"
    return f"channel {int(bad[0])}" if len(bad) == 1 else f"{len(bad)} of {len(every)} channels, as {int(bad[0])}"


def biases(items: Sequence[Weights], tracks: dict[str, Track], suspects: set[str], graph: Graph) -> list[Finding]:
    """Where only the integers are known: a bias was quantized with input scale times weight scale, and still tells.

    `suspects`: groups whose own scale is wrong already.
    """
    return [f for item in items if item.exact is None and (f := _bias(item, tracks, suspects, graph)) is not None]


def _bias(item: Weights, tracks: dict[str, Track], suspects: set[str], graph: Graph) -> Finding | None:
    track = tracks.get(item.layer.input[0])
    if item.bias_scale is None or track is None or track.activation.group in suspects:
        return None
    expected = track.activation.scale * np.broadcast_to(item.scale.reshape(-1), item.bias_scale.reshape(-1).shape)
    ratio = expected.astype(np.float64) / item.bias_scale.reshape(-1).astype(np.float64)
    off = np.abs(np.log2(ratio))
    if off.max() < _BIAS:
        return None
    bad, channel = np.flatnonzero(off >= _BIAS), int(np.argmax(off))
    name = title(item.layer, item.name)
    what = (
        f"The weight scale of {name} is {ratio[channel]:.3g} times what its bias was quantized for, in "
        f"{_which(bad, off)}: scale and integers do not belong together."
    )
    evidence = {"weights": item.name, "channels": [int(c) for c in bad[:32]], "ratio": float(ratio[channel])}
    names = frozenset(graph.ancestors(item.layer.output[0]))
    place, operator = graph.position(item.layer.output[0]) - _BEFORE, item.layer.op_type
    return Finding(WEIGHT_SCALE, HIGH, name, item.layer.output[0], operator, what, 40.0, place, names, evidence)


def calibration(tracks: Sequence[Track], calibrated_on: int | None) -> list[Finding]:
    """Too few samples, or samples unlike those that were measured here."""
    found = []
    over = [t for t in tracks if _leaves_range(t)]
    if len(over) >= 5 and len(over) >= _MANY * len(tracks):
        what = f"{len(over)} of {len(tracks)} tensors leave their calibrated range by more than a quarter of it."
        names = {"tensors": [t.activation.tensor for t in over[:16]]}
        found.append(Finding(UNREPRESENTATIVE, MEDIUM, "", "", "", what, 6.0, 0, frozenset(), names))
    if calibrated_on is not None and 0 < calibrated_on < _USUAL:
        severity = MEDIUM if calibrated_on < _FEW else LOW
        what = f"Ranges were found on {calibrated_on} sample{'s' if calibrated_on > 1 else ''} only."
        found.append(Finding(FEW_SAMPLES, severity, "", "", "", what, 3.0, 0, frozenset(), {"samples": calibrated_on}))
    return found


def _leaves_range(track: Track) -> bool:
    (low, high), (lowest, highest) = track.needed, track.activation.range
    return max(lowest - low, high - highest) > 0.25 * (highest - lowest)

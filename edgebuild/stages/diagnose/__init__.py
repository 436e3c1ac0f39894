"""Diagnose: where accuracy is lost, why, and what to do about it.

Runs the float network and the integers side by side on a few samples. Nothing that it finds changes what is built.

The result, plain values for the report:

`samples`; `output_sqnr_db`: SQNR of the network's outputs (`probes`);
`network` [{tensor, layer, operator, sqnr_db, local_db, fitted_db, channel_db, scale, zero_point, codes, range, values,
clipped, at_ends, used, channels, outlier_channel, outlier_ratio, dead}] of each quantized tensor in order of execution:
accumulated and local SQNR, what a range that just holds the values would reach, the median of the channels; shares in
0..1; `weights` [{layer, weights, operator, sqnr_db, worst_channel, worst_db}]; `worst` [{tensor, layer, range,
histogram {low, high, counts}, channels [{channel, low, high}], channel_count}]; `suspects` [{layer, tensor, kind,
gain_db, alone_db}]: output SQNR gained when this rounding alone is undone, and left when it alone is done;
`preprocessing` {inputs, normalization}; `findings` [{cause, severity, layer, tensor, operator, what, remedy, score_db,
evidence}], the culprit first; `culprit`: the first finding, if its severity is high or medium; `unseen`: what no such
comparison can see.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import onnx

from edgebuild.stages.diagnose import channels, quantized
from edgebuild.stages.diagnose.findings import HIGH, LOW, MEDIUM, SENSITIVE, Finding, ranked
from edgebuild.stages.diagnose.floats import Network
from edgebuild.stages.diagnose.graph import Array, Graph, title
from edgebuild.stages.diagnose.measure import Measured, Track, WeightError, histograms, measure, restored
from edgebuild.stages.diagnose.preprocessing import preprocessing
from edgebuild.stages.diagnose.switch import Sample, Switched

__all__ = ["SAMPLES", "diagnose"]

SAMPLES = 32
_LEAST_SAMPLES = 4
_ELEMENTS = 40_000_000  # values that are compared: networks with large feature maps get fewer samples
_RUNS = 120_000_000  # values that are computed to find out what single roundings cost
_ATTRIBUTED = 10
_WORST = 8
_DRAWN_CHANNELS = 48
_SMALL_GROUP = 4
_UNSEEN = (
    "Swapped colour channels (BGR for RGB) and other mistakes that leave all statistics alike: measure accuracy on "
    "labelled samples to see them."
)


def diagnose(
    original: onnx.ModelProto,
    floating: onnx.ModelProto,
    qdq: onnx.ModelProto,
    samples: Iterable[Mapping[str, Array]],
    *,
    limit: int = SAMPLES,
    calibrated_on: int | None = None,
) -> dict[str, Any]:
    """Compares the network as it came (`original`), as it was rounded (`floating`), and its integers (`qdq`).

    `samples` is read up to `limit` samples at most. `calibrated_on`: how many samples the ranges come from. Raises
    ModelError when ONNX Runtime cannot run one of the graphs.
    """
    passed_through = any(n.op_type == "QuantizeLinear" for n in original.graph.node)
    switched = Switched(qdq, None if passed_through else floating)
    network = Network(floating if passed_through else original)
    taken = [dict(sample) for sample in islice(samples, _enough(switched, limit))]
    network.observe(taken)
    measured = measure(switched, taken)
    named = _Names(switched.graph, network.graph)
    findings, prepared = _findings(network, switched, measured, named, calibrated_on)
    suspects = _suspects(switched, measured, findings, named)
    findings = ranked([*(_with_gain(f, suspects) for f in findings), *_sensitive(suspects, measured)],
                      cascading=passed_through)  # fmt: skip
    rows = [finding.to_json() for finding in findings]
    worst = _worst(measured.tracks, findings)
    drawn = histograms(switched, worst, taken[:_LEAST_SAMPLES])
    return {
        "samples": len(taken),
        "output_sqnr_db": round(measured.output_db, 2),
        "probes": switched.probes(),
        "network": [_row(track, named) for track in measured.tracks],
        "weights": [_weight_row(error) for error in measured.weights],
        "worst": [_drawing(track, drawn[track.activation.result], named) for track in worst],
        "suspects": suspects,
        "preprocessing": prepared,
        "findings": rows,
        "culprit": rows[0] if rows and rows[0]["severity"] != LOW else None,
        "unseen": [_UNSEEN],
    }


class _Names:
    """Layer and operator behind a tensor, as the user's model calls them."""

    def __init__(self, integers: Graph, original: Graph) -> None:
        self._integers, self._original = integers, original

    def __call__(self, tensor: str) -> tuple[str, str]:
        graph = self._integers if self._integers.producer(tensor) is not None else self._original
        node = graph.layer_of(tensor)
        return title(node, tensor), "input" if node is None else str(node.op_type)


def _enough(switched: Switched, limit: int) -> int:
    values = sum(switched.graph.elements(a.tensor) for a in switched.activations)
    return min(limit, max(_LEAST_SAMPLES, _ELEMENTS // max(values, 1)))


def _findings(
    network: Network, switched: Switched, measured: Measured, named: _Names, calibrated_on: int | None
) -> tuple[list[Finding], dict[str, Any]]:
    tracks = {t.activation.tensor.removesuffix("_float"): t for t in measured.tracks}
    results = {t.activation.result: t for t in measured.tracks}

    def behind(tensor: str) -> Track | None:
        return _track_behind(network.graph, tracks, tensor)

    prepared, looked = preprocessing(network)
    ranges = quantized.ranges(measured.tracks, switched.graph, named)
    blamed = {f.tensor for f in ranges if f.severity == HIGH}
    groups = {t.activation.group for t in measured.tracks if t.activation.tensor in blamed}
    found = [
        *prepared,
        *channels.outliers(network, behind),
        *channels.saturations(network),
        *channels.dead(measured.tracks, named),
        *ranges,
        *quantized.weights(measured.weights, switched.graph),
        *quantized.biases(switched.weights, results, groups, switched.graph),
        *quantized.calibration(measured.tracks, calibrated_on),
    ]
    return found, looked


def _track_behind(graph: Graph, tracks: Mapping[str, Track], tensor: str) -> Track | None:
    """The quantized tensor that a tensor of the float network ends up in, through functions of one tensor."""
    for _ in range(6):
        if tensor in tracks:
            return tracks[tensor]
        readers = graph.consumers(tensor)
        if len(readers) != 1 or len(graph.data_inputs(readers[0])) != 1:
            return None
        tensor = readers[0].output[0]
    return None


def _suspects(switched: Switched, measured: Measured, findings: list[Finding], named: _Names) -> list[dict[str, Any]]:
    """What single roundings cost: those that findings name, then those that lose most by themselves."""
    samples = measured.samples[:_LEAST_SAMPLES]
    base = restored(switched, samples, ())[0] if switched.switches else 0.0
    values = sum(switched.graph.elements(a.tensor) for a in switched.activations)
    number = max(2, min(_ATTRIBUTED, _RUNS // max(1, 3 * len(samples) * values)))
    blamed = {f.tensor for f in findings if f.severity in {HIGH, MEDIUM}}
    tracks = sorted(measured.tracks, key=lambda t: (t.activation.tensor not in blamed, t.local_db))
    weights = sorted(measured.weights, key=lambda w: (w.weights.layer.output[0] not in blamed, w.sqnr_db))
    groups: dict[str, list[str]] = {}
    for track in measured.tracks:
        groups.setdefault(track.activation.group, []).append(track.activation.switch)
    rows = []
    for track in tracks[:number] if samples else []:
        together = groups[track.activation.group]
        chosen = together if len(together) <= _SMALL_GROUP else [track.activation.switch]
        layer, operator = named(track.activation.tensor)
        row = {"layer": layer, "operator": operator, "tensor": track.activation.tensor, "kind": "activation"}
        rows.append(row | _cost(switched, base, samples, chosen))
    for error in weights[: max(2, number // 3)] if samples else []:
        node = error.weights.layer
        row = {"layer": title(node, error.weights.name), "operator": node.op_type, "tensor": node.output[0]}
        rows.append(row | {"kind": "weights"} | _cost(switched, base, samples, [error.weights.switch]))
    return sorted(rows, key=lambda row: -float(row["gain_db"]))


def _cost(switched: Switched, base: float, samples: list[Sample], chosen: list[str]) -> dict[str, float]:
    without, alone = restored(switched, samples, chosen)
    return {"gain_db": round(without - base, 2), "alone_db": round(alone, 2)}


def _with_gain(finding: Finding, suspects: list[dict[str, Any]]) -> Finding:
    """A finding whose rounding was undone: what that gains is evidence, and counts."""
    row = next((s for s in suspects if s["tensor"] == finding.tensor), None)
    if row is None:
        return finding
    gain = max(0.0, float(row["gain_db"]))
    return replace(finding, score=finding.score + gain, evidence=finding.evidence | {"output_gain_db": row["gain_db"]})


def _sensitive(suspects: list[dict[str, Any]], measured: Measured) -> list[Finding]:
    """No fault: the layers whose rounding costs the output most."""
    found = []
    for row in [s for s in suspects if float(s["gain_db"]) > 0][:3]:
        what = (
            f"Rounding the {'weights' if row['kind'] == 'weights' else 'output'} of {row['layer']} costs the network's "
            f"output {row['gain_db']:.2f} dB; as built it has {measured.output_db:.1f} dB."
        )
        evidence = {"output_gain_db": row["gain_db"], "alone_db": row["alone_db"]}
        score = float(row["gain_db"])
        found.append(Finding(SENSITIVE, LOW, row["layer"], row["tensor"], row["operator"], what, score, 0.0,
                             frozenset(), evidence))  # fmt: skip
    return found


def _worst(tracks: list[Track], findings: list[Finding]) -> list[Track]:
    """The tensors that are drawn: those that findings name, then those that lose most by themselves."""
    blamed = {f.tensor for f in findings if f.severity in {HIGH, MEDIUM}}
    return sorted(tracks, key=lambda t: (t.activation.tensor not in blamed, t.local_db))[:_WORST]


def _row(track: Track, named: _Names) -> dict[str, Any]:
    activation, seen = track.activation, track.seen
    layer, operator = named(activation.tensor)
    sizes = seen.largest
    live = sizes[sizes > 0]
    (low, high), elements = activation.range, max(track.elements, 1)
    return {
        "tensor": activation.tensor,
        "layer": layer,
        "operator": operator,
        "sqnr_db": round(track.sqnr_db, 2),
        "local_db": round(track.local_db, 2),
        "fitted_db": round(track.fitted_db, 2),
        "channel_db": round(float(np.median(track.channel_db)), 2) if len(track.channel_db) else None,
        "scale": activation.scale,
        "zero_point": activation.zero_point,
        "codes": activation.highest - activation.lowest + 1,
        "range": [_short(low), _short(high)],
        "values": [_short(float(seen.low.min())), _short(float(seen.high.max()))],
        "clipped": [_short(track.clipped_low / elements), _short(track.clipped_high / elements)],
        "at_ends": [_short(track.at_low / elements), _short(track.at_high / elements)],
        "used": _short(min(1.0, (track.needed[1] - track.needed[0]) / (high - low))),
        "channels": len(sizes),
        "outlier_channel": int(np.argmax(sizes)),
        "outlier_ratio": _short(float(sizes.max() / np.median(live))) if len(live) else 0.0,
        "dead": int(np.count_nonzero(seen.high <= seen.low)) if seen.count > 1 else 0,
    }


def _weight_row(error: WeightError) -> dict[str, Any]:
    live = np.where(error.energy > 0, error.channel_db, np.inf)
    worst = int(np.argmin(live))
    return {
        "layer": title(error.weights.layer, error.weights.name),
        "weights": error.weights.name,
        "operator": error.weights.layer.op_type,
        "sqnr_db": round(error.sqnr_db, 2),
        "worst_channel": worst,
        "worst_db": round(float(error.channel_db[worst]), 2),
    }


def _drawing(track: Track, histogram: dict[str, Any], named: _Names) -> dict[str, Any]:
    """A tensor's histogram, the range of its codes, and the ranges of its channels, the largest first."""
    seen = track.seen
    order = np.argsort(-seen.largest, kind="stable")[:_DRAWN_CHANNELS]
    channels_ = [{"channel": int(c), "low": _short(float(seen.low[c])), "high": _short(float(seen.high[c]))}
                 for c in order]  # fmt: skip
    return {
        "tensor": track.activation.tensor,
        "layer": named(track.activation.tensor)[0],
        "range": [_short(v) for v in track.activation.range],
        "histogram": histogram,
        "channels": channels_,
        "channel_count": len(seen.low),
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")

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
`preprocessing` {inputs, normalization, colours [{layer, pictures, misfit, misfit_reversed, place, standard_errors,
order}]}: `order` of the colour channels is "as in training", "swapped" or "not known"; `findings` [{cause, severity,
layer, tensor, operator, what, remedy, score_db, evidence}], the culprit first; `culprit`: the first finding, if its
severity is high or medium; `unseen`: what no such comparison can see.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, cast

import onnx

from edgebuild.stages.diagnose import channels, quantized, rows, suspects
from edgebuild.stages.diagnose.colours import PICTURES
from edgebuild.stages.diagnose.findings import HIGH, LOW, Finding, ranked
from edgebuild.stages.diagnose.floats import Network
from edgebuild.stages.diagnose.graph import Array, Graph, title
from edgebuild.stages.diagnose.measure import Measured, Track, histograms, measure
from edgebuild.stages.diagnose.preprocessing import preprocessing
from edgebuild.stages.diagnose.switch import Switched

__all__ = ["PICTURES", "SAMPLES", "diagnose"]

SAMPLES = 32
_LEAST_SAMPLES = 4
_ELEMENTS = 64_000_000  # values that are compared: networks with large feature maps get fewer samples
_UNSEEN = "Mistakes that leave all statistics alike: measure accuracy on labelled samples to see them."
_UNSEEN_COLOURS = (
    "Swapped colour channels (BGR for RGB): nothing here tells their order. Measure accuracy on labelled samples."
)


def diagnose(
    original: onnx.ModelProto,
    floating: onnx.ModelProto,
    qdq: onnx.ModelProto,
    samples: Iterable[Mapping[str, Array]],
    *,
    limit: int = SAMPLES,
    calibrated_on: int | None = None,
    pictures: Iterable[Mapping[str, Array]] | None = None,
) -> dict[str, Any]:
    """Compares the network as it came (`original`), as it was rounded (`floating`), and its integers (`qdq`).

    Of a model that came quantized, `floating` is what its integers stand for, and `qdq` is `original`, perhaps mended.
    `samples` is read up to `limit` samples at most. `calibrated_on`: how many samples the ranges come from.
    `pictures`: samples, better PICTURES than few, to tell the order of colours by; read only where something remembers
    it, and the same as `samples` when not given. Raises ModelError when ONNX Runtime cannot run one of the graphs.
    """
    passed_through = any(n.op_type == "QuantizeLinear" for n in original.graph.node)
    # A model that came quantized is looked at as it came: what edgebuild mends in it is a finding, too.
    switched = Switched(original, None) if passed_through else Switched(qdq, floating)
    network = Network(floating if passed_through else original)
    taken = [dict(sample) for sample in islice(samples, _enough(switched, limit))]
    network.observe(taken)
    measured = measure(switched, taken)
    named = _Names(switched.graph, network.graph)
    prepared, looked = preprocessing(network, taken if pictures is None else islice(pictures, PICTURES))
    findings = [*prepared, *_findings(network, switched, measured, named, calibrated_on)]
    tried = suspects.suspects(switched, measured, findings, named)
    findings = [suspects.with_gain(f, tried) for f in findings]
    findings = ranked([*findings, *suspects.sensitive(tried, measured, findings)], cascading=passed_through)
    told = [finding.to_json() for finding in findings]
    worst = rows.worst(measured.tracks, findings, named)
    drawn = histograms(switched, worst, taken[:_LEAST_SAMPLES])
    found = {
        "samples": len(taken),
        "output_sqnr_db": round(measured.output_db, 2),
        "probes": switched.probes(),
        "network": [rows.row(track, named) for track in measured.tracks],
        "weights": [rows.weight_row(error) for error in measured.weights],
        "worst": [rows.drawing(track, drawn[track.activation.result], named) for track in worst],
        "suspects": tried,
        "preprocessing": looked,
        "findings": told,
        "culprit": told[0] if told and told[0]["severity"] != LOW else None,
        "unseen": [*([] if _tells_colours(looked) else [_UNSEEN_COLOURS]), _UNSEEN],
    }
    return cast("dict[str, Any]", rows.plain(found))


def _tells_colours(looked: Mapping[str, Any]) -> bool:
    return any(compared["order"] != "not known" for compared in looked["colours"])


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
) -> list[Finding]:
    tracks = {t.activation.tensor.removesuffix("_float"): t for t in measured.tracks}
    results = {t.activation.result: t for t in measured.tracks}

    def behind(tensor: str) -> Track | None:
        return _track_behind(network.graph, tracks, tensor)

    ranges = quantized.ranges(measured.tracks, switched.graph, named)
    blamed = {f.tensor for f in ranges if f.severity == HIGH}
    groups = {t.activation.group for t in measured.tracks if t.activation.tensor in blamed}
    return [
        *channels.outliers(network, behind),
        *channels.saturations(network),
        *channels.dead(measured.tracks, named),
        *ranges,
        *quantized.weights(measured.weights, switched.graph),
        *quantized.biases(switched.weights, results, groups, switched.graph),
        *quantized.calibration(measured.tracks, calibrated_on),
    ]


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

"""What single roundings cost the outputs: each is undone while all others stay, and done alone."""

from dataclasses import replace
from typing import Any

from edgebuild.stages.diagnose.findings import HIGH, LOW, MEDIUM, SENSITIVE, Finding
from edgebuild.stages.diagnose.graph import Named, title
from edgebuild.stages.diagnose.measure import Measured, Trials
from edgebuild.stages.diagnose.switch import Switched

_SAMPLES = 4
_RUNS = 120_000_000  # values that are computed: large networks get fewer suspects
_MOST, _LEAST = 10, 2
_SMALL_GROUP = 4

Row = dict[str, Any]


def suspects(switched: Switched, measured: Measured, findings: list[Finding], named: Named) -> list[Row]:
    """What single roundings cost: those that findings name, then those that lose most by themselves."""
    samples = measured.samples[:_SAMPLES]
    if not samples or not switched.switches:
        return []
    trials = Trials(switched, samples)
    built = trials.undone()
    values = sum(switched.graph.elements(a.tensor) for a in switched.activations)
    number = max(_LEAST, min(_MOST, _RUNS // max(1, 3 * len(samples) * values)))
    blamed = {f.tensor for f in findings if f.severity in {HIGH, MEDIUM}}
    tracks = sorted(measured.tracks, key=lambda t: (t.activation.tensor not in blamed, t.local_db))
    weights = sorted(measured.weights, key=lambda w: (w.weights.layer.output[0] not in blamed, w.sqnr_db))
    groups: dict[str, list[str]] = {}
    for track in measured.tracks:
        groups.setdefault(track.activation.group, []).append(track.activation.switch)
    rows = []
    for track in tracks[:number]:
        together = groups[track.activation.group]
        chosen = together if len(together) <= _SMALL_GROUP else [track.activation.switch]
        layer, operator = named(track.activation.tensor)
        row = {"layer": layer, "operator": operator, "tensor": track.activation.tensor, "kind": "activation"}
        rows.append(row | _cost(trials, built, chosen))
    for error in weights[: max(_LEAST, number // 3)]:
        node = error.weights.layer
        row = {"layer": title(node, error.weights.name), "operator": node.op_type, "tensor": node.output[0]}
        rows.append(row | {"kind": "weights"} | _cost(trials, built, [error.weights.switch]))
    return sorted(rows, key=lambda row: -float(row["gain_db"]))


def _cost(trials: Trials, built: float, chosen: list[str]) -> dict[str, float]:
    return {"gain_db": round(trials.undone(chosen) - built, 2), "alone_db": round(trials.alone(chosen), 2)}


def with_gain(finding: Finding, tried: list[Row]) -> Finding:
    """A finding whose rounding was undone: what that gains is evidence, and counts."""
    row = next((s for s in tried if s["tensor"] == finding.tensor), None)
    if row is None:
        return finding
    gain = max(0.0, float(row["gain_db"]))
    return replace(finding, score=finding.score + gain, evidence=finding.evidence | {"output_gain_db": row["gain_db"]})


def sensitive(tried: list[Row], measured: Measured, findings: list[Finding]) -> list[Finding]:
    """No fault: the layers whose rounding costs the output most, and that no other finding names."""
    blamed = {f.tensor for f in findings if f.severity in {HIGH, MEDIUM}}
    found = []
    for row in [s for s in tried if float(s["gain_db"]) > 0 and s["tensor"] not in blamed][:3]:
        what = (
            f"Rounding the {'weights' if row['kind'] == 'weights' else 'output'} of {row['layer']} costs the network's "
            f"output {row['gain_db']:.2f} dB; as built it has {measured.output_db:.1f} dB."
        )
        evidence = {"output_gain_db": row["gain_db"], "alone_db": row["alone_db"]}
        score = float(row["gain_db"])
        found.append(Finding(SENSITIVE, LOW, row["layer"], row["tensor"], row["operator"], what, score, 0.0,
                             frozenset(), evidence))  # fmt: skip
    return found

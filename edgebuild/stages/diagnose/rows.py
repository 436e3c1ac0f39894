"""Measurements as the report's plain values."""

from typing import Any

import numpy as np

from edgebuild.stages.diagnose.findings import HIGH, MEDIUM, Finding
from edgebuild.stages.diagnose.graph import Named, title
from edgebuild.stages.diagnose.measure import Track, WeightError

_WORST = 8
_DRAWN_CHANNELS = 48


def worst(tracks: list[Track], findings: list[Finding], named: Named) -> list[Track]:
    """The tensors that are drawn: those that findings name, then those that lose most by themselves; one a layer."""
    blamed = {f.tensor for f in findings if f.severity in {HIGH, MEDIUM}}
    ordered = sorted(tracks, key=lambda t: (t.activation.tensor not in blamed, t.local_db))
    by_layer = {named(track.activation.tensor)[0]: track for track in reversed(ordered)}
    return [t for t in ordered if by_layer[named(t.activation.tensor)[0]] is t][:_WORST]


def row(track: Track, named: Named) -> dict[str, Any]:
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


def weight_row(error: WeightError) -> dict[str, Any]:
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


def drawing(track: Track, histogram: dict[str, Any], named: Named) -> dict[str, Any]:
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


def plain(value: Any) -> Any:
    """Without numbers that JSON lacks: NaN and infinity become None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _short(value: float) -> float:
    return float(f"{value:.5g}")

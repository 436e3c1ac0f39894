"""The pictures, as SVG: the SQNR along the network, histograms with the clipping range, ranges of channels."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgebuild.page.markup import Markup, joined, tag

_WIDTH, _HEIGHT = 1000, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 22, 26
_CARD_WIDTH, _CARD_HEIGHT, _STRIP = 320, 120, 46
_MOST_DB = 80.0


def along(rows: Sequence[dict[str, Any]], marked: Mapping[str, Any]) -> Markup:
    """Accumulated and local SQNR of each tensor in order of execution; `marked` is the culprit, or empty."""
    culprit = _where(rows, marked)
    values = [row[key] for row in rows for key in ("sqnr_db", "local_db")]
    top = min(_MOST_DB, max([40.0, *values]))
    bottom = min(0.0, max(-20.0, min(values)))

    def x(i: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (i + 0.5) / len(rows)

    def y(value: float) -> float:
        held = min(top, max(bottom, value))
        return float(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - (held - bottom) / (top - bottom)))

    grid = [
        joined([_line(_LEFT, y(v), _WIDTH - _RIGHT, y(v), class_="axis"), _text(_LEFT - 8, y(v) + 4, f"{v:g}", "end")])
        for v in range(math.ceil(bottom / 10) * 10, math.floor(top / 10) * 10 + 1, 10)
    ]
    mark = [
        joined([_line(x(i), _TOP, x(i), _HEIGHT - _BOTTOM, stroke="var(--red)", stroke_dasharray="4 3"),
                _text(x(i) + (6 if i < len(rows) * 0.7 else -6), _HEIGHT - _BOTTOM - 6, "culprit",
                      "start" if i < len(rows) * 0.7 else "end", fill="var(--red)")])
        for i in culprit
    ]  # fmt: skip
    curves = [
        _curve([(x(i), y(row[key])) for i, row in enumerate(rows)], color)
        for key, color in (("local_db", "var(--orange)"), ("sqnr_db", "var(--blue)"))
    ]
    dots = [_dot(x(i), y(row[key]), color, row, key) for i, row in enumerate(rows)
            for key, color in (("local_db", "var(--orange)"), ("sqnr_db", "var(--blue)"))]  # fmt: skip
    ends = [_text(_LEFT, _HEIGHT - 8, "input", "start"), _text(_WIDTH - _RIGHT, _HEIGHT - 8, "output", "end"),
            _text(_LEFT - 8, 10, "dB", "end")]  # fmt: skip
    return _svg(_WIDTH, _HEIGHT, "SQNR along the network", *grid, *mark, *curves, *dots, *ends)


def _where(rows: Sequence[dict[str, Any]], marked: Mapping[str, Any]) -> list[int]:
    """Where the culprit stands: at its tensor, else at what its layer makes."""
    for key in ("tensor", "layer"):
        found = [i for i, row in enumerate(rows) if marked.get(key) and row[key] == marked[key]]
        if found:
            return found[:1]
    return []


def _dot(x: float, y: float, color: str, row: dict[str, Any], key: str) -> Markup:
    what = "accumulated" if key == "sqnr_db" else "own rounding"
    said = f"{row['layer']} ({row['operator']})\n{row['tensor']}\n{what}: {row[key]:.1f} dB"
    return tag("circle", tag("title", said), cx=_n(x), cy=_n(y), r=3, fill=color)


def histogram(drawing: Mapping[str, Any]) -> Markup:
    """A tensor's values on a logarithmic scale, with what the codes can represent, and its channels' ranges below."""
    data = drawing["histogram"]
    low, high, counts = data["low"], data["high"], data["counts"]
    first, last = drawing["range"]
    most = math.log1p(max([1, *counts]))
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return float(6 + (_CARD_WIDTH - 12) * (value - low) / span)

    width = (_CARD_WIDTH - 12) / len(counts)
    shade = tag("rect", x=_n(x(first)), y=8, width=_n(max(x(last) - x(first), 1)), height=_CARD_HEIGHT - 8,
                fill="var(--blue-soft)")  # fmt: skip
    bars = []
    for i, count in enumerate(counts):
        middle = low + (i + 0.5) * span / len(counts)
        inside = first - span / 128 <= middle <= last + span / 128
        tall = (_CARD_HEIGHT - 16) * math.log1p(count) / most
        said = tag("title", f"{middle:.4g}: {count:,} values" + ("" if inside else ", cut off"))
        bars.append(tag("rect", said, x=_n(6 + i * width), y=_n(_CARD_HEIGHT - tall), width=_n(max(width - 0.6, 0.6)),
                        height=_n(tall), fill="var(--blue)" if inside else "var(--red)"))  # fmt: skip
    edges = [_line(x(v), 6, x(v), _CARD_HEIGHT + 4, stroke="var(--ink)", stroke_dasharray="3 3") for v in (first, last)]
    base = _line(6, _CARD_HEIGHT, _CARD_WIDTH - 6, _CARD_HEIGHT, class_="axis")
    labels = [
        _text(6, _CARD_HEIGHT + 15, f"{low:.4g}", "start"),
        _text(_CARD_WIDTH - 6, _CARD_HEIGHT + 15, f"{high:.4g}", "end"),
    ]
    strip = _channels(drawing, x)
    height = _CARD_HEIGHT + 22 + (_STRIP if strip else 0)
    return _svg(_CARD_WIDTH, height, f"Histogram of {drawing['tensor']}", shade, *bars, base, *edges, *labels, *strip)


def _channels(drawing: Mapping[str, Any], x: Callable[[float], float]) -> list[Markup]:
    """A thin line a channel, from its smallest to its largest value, the widest channel on top."""
    rows = drawing["channels"]
    if len(rows) < 2:
        return []
    step = min(4.0, (_STRIP - 8) / len(rows))
    top = _CARD_HEIGHT + 24
    return [
        tag("line", tag("title", f"channel {row['channel']}: {row['low']:.4g} to {row['high']:.4g}"),
            x1=_n(x(row["low"])), x2=_n(max(x(row["high"]), x(row["low"]) + 0.7)), y1=_n(top + i * step),
            y2=_n(top + i * step), stroke="var(--orange)", stroke_width=_n(max(0.7, step * 0.6)))
        for i, row in enumerate(rows)
    ]  # fmt: skip


def _svg(width: int, height: int, label: str, *content: Markup) -> Markup:
    return tag("svg", *content, viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def _curve(points: Sequence[tuple[float, float]], color: str) -> Markup:
    path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
    return tag("polyline", points=path, fill="none", stroke=color, stroke_width=2, stroke_linejoin="round")


def _line(x1: float, y1: float, x2: float, y2: float, **more: object) -> Markup:
    return tag("line", x1=_n(x1), y1=_n(y1), x2=_n(x2), y2=_n(y2), **more)


def _text(x: float, y: float, said: str, anchor: str, **more: object) -> Markup:
    return tag(
        "text", said, x=_n(x), y=_n(y), text_anchor=anchor, **({"style": f"fill:{more['fill']}"} if more else {})
    )


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")

"""The profile as a picture: an SVG with a bar per operator, and a tick where its roofline is.

At the top the kinds of operators as one bar of the whole time; below, two columns of the same operators: in the order
in which they run, and the longest first.
"""

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from edgebuild.bench.profile import by_kind

# Okabe and Ito's colours, told apart by people with any colour vision; kinds beyond them are grey.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A800", "#7A5195")
_OTHERS = "#9A9A9A"
_FONTS = "system-ui, Segoe UI, Helvetica, Arial, sans-serif"
_INK, _FAINT, _TICK = "#222222", "#767676", "#000000"

_MARGIN, _GAP = 28, 44
_COLUMN = 640
_LABELS, _VALUES = 270, 112
_ROW, _BAR = 17, 11
_HEAD = 172
_CHARACTER = 6.3
"""Width of a character of the labels, 11 px high, at most."""
_WIDTH = 2 * _MARGIN + 2 * _COLUMN + _GAP


def svg(found: dict[str, Any]) -> str:
    """`found`: the document of `edgebuild.bench.profile`."""
    kinds = by_kind(found)
    colours = {kind["kind"]: _COLOURS[i] if i < len(_COLOURS) else _OTHERS for i, kind in enumerate(kinds)}
    ops: list[dict[str, Any]] = found["ops"]
    head = _HEAD + 18 * ((len(kinds) - 1) // 4)
    height = head + 34 + _ROW * len(ops) + _MARGIN
    longest = max([op["us"] for op in ops] + [op["roofline_us"] for op in ops] + [1e-9])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}">',
        f'<g font-family="{_FONTS}">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#FFFFFF"/>',
        *_title(found),
        *_whole(kinds, colours, found["total_us"]),
    ]
    ordered = sorted(ops, key=lambda op: -float(op["us"]))
    for place, title, column in ((0, "in the order in which they run", ops), (1, "the longest first", ordered)):
        parts += _column(_MARGIN + place * (_COLUMN + _GAP), head, title, column, colours, longest)
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _title(found: dict[str, Any]) -> list[str]:
    threads = "1 thread" if found["threads"] == 1 else f"{found['threads']} threads"
    reached = found["roofline_us"] / found["total_us"] if found["total_us"] else 0.0
    line = (
        f"{threads}, {_time(found['total_us'])} in {len(found['ops'])} operators; their rooflines add up to "
        f"{_time(found['roofline_us'])} ({100 * reached:.0f} %)"
    )
    rates = f"peak {found['peak_gmacs']:,.0f} GMAC/s ({found['instruction']}); the tick in a bar is its roofline"
    return [
        _text(_MARGIN, 40, f"{found['model']} for {found['target']}", size=20, weight="600"),
        _text(_MARGIN, 62, line, size=13),
        _text(_MARGIN, 80, rates, size=12, fill=_FAINT),
    ]


def _whole(kinds: Sequence[dict[str, Any]], colours: dict[str, str], total: float) -> list[str]:
    """All of the time as one bar, and the legend."""
    width, parts, at = _WIDTH - 2 * _MARGIN, [], float(_MARGIN)
    for kind in kinds:
        part = width * kind["us"] / total if total else 0.0
        parts.append(_rect(at, 94, part, 20, colours[kind["kind"]]))
        at += part
    slot = width / 4
    for index, kind in enumerate(kinds):
        x, y = _MARGIN + slot * (index % 4), 134 + 18 * (index // 4)
        share = 100 * kind["us"] / total if total else 0.0
        text = f"{kind['kind']} ×{kind['count']}: {_time(kind['us'])}, {share:.1f} %"
        parts += [_rect(x, y - 9, 10, 10, colours[kind["kind"]]), _text(x + 15, y, _cut(text, slot - 20), size=12)]
    return parts


def _column(
    x: float, y: float, title: str, ops: Sequence[dict[str, Any]], colours: dict[str, str], longest: float
) -> list[str]:
    parts = [_text(x, y + 14, title, size=13, weight="600")]
    scale = (_COLUMN - _LABELS - _VALUES) / longest
    for index, op in enumerate(ops):
        top = y + 28 + _ROW * index
        bar = op["us"] * scale
        tick = x + _LABELS + op["roofline_us"] * scale
        value = f"{_time(op['us'])}  {100 * op['share']:.1f} %"
        parts += [
            "<g>",
            f"<title>{escape(_told(op))}</title>",
            _text(x + _LABELS - 8, top + 9, _cut(op["name"], _LABELS - 12), anchor="end"),
            _rect(x + _LABELS, top, bar, _BAR, colours[op["kind"]]),
            f'<path d="M{tick:.1f} {top - 2:.1f}v{_BAR + 4}" stroke="{_TICK}" stroke-width="1.5"/>',
            _text(max(x + _LABELS + bar, tick) + 6, top + 9, value, fill=_FAINT),
            "</g>",
        ]
    return parts


def _told(op: dict[str, Any]) -> str:
    """What a pointer over the bar shows."""
    return (
        f"{op['name']} ({op['kind']}): {_time(op['us'])}, roofline {_time(op['roofline_us'])} by {op['bound']}; "
        f"{op['macs']:,} MAC at {op['gmacs']:.1f} GMAC/s, {op['bytes']:,} bytes"
    )


def _time(us: float) -> str:
    return f"{us / 1e3:,.2f} ms" if us >= 1e3 else f"{us:.1f} µs"


def _cut(text: str, width: float) -> str:
    """`text`, without its middle where it is too long: names of layers differ at both ends."""
    most = int(width / _CHARACTER)
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}" fill="{fill}"/>'


def _text(
    x: float, y: float, text: str, *, size: int = 11, weight: str = "400", fill: str = _INK, anchor: str = "start"
) -> str:
    style = f'font-size="{size}" font-weight="{weight}" fill="{fill}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'

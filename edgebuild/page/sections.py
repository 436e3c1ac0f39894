"""The parts of the page, each from the report's keys that it shows; a part without its keys is empty."""

from collections.abc import Mapping, Sequence
from typing import Any

from edgebuild.page import plots
from edgebuild.page.markup import Markup, joined, pairs, table, tag
from edgebuild.report import shipped

Report = Mapping[str, Any]

_NOTHING = Markup("")
_POOR_DB, _BAD_DB, _EXACT_DB = 25.0, 15.0, 120.0
_UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"))
_HEADS = (
    "layer", "tensor", "#SQNR dB", "#own dB", "#median channel dB", "#range used", "#clipped", "#widest channel",
    "#codes from", "#to",
)  # fmt: skip
_FALLBACK = (
    "Chosen in the order of gain for their time, until the budget was met. Gain: the part of INT8's error at the "
    "outputs that this rounding makes alone. Cost: how much longer the program takes without it, conversions included. "
    "Where recipe.lock chose, it holds no figures."
)
_COLORS = ("var(--blue)", "var(--orange)", "var(--green)", "var(--amber)", "var(--red)")


def head(report: Report, title: str) -> Markup:
    """What was built, and whether it keeps what the float network can do."""
    trained = "" if report.get("quality", "trained") == "trained" else " Made without trained weights: for speed only."
    checked = "Golden outputs reproduced byte for byte." if report.get("checked") else (
        f"Not run here: {report.get('check_reason', '')}."
    )  # fmt: skip
    said = tag("p", _said(report.get("accuracy"), shipped(report)), class_="said")
    return joined([tag("h1", title), said, tag("p", checked, trained, class_="sub")])


def _said(accuracy: Report | None, kind: str) -> str:
    """The verdict in a sentence."""
    if not accuracy:
        return ""
    budget = {"none": "", "met": ", within the budget"}.get(str(accuracy.get("budget", "none")), ", budget not judged")
    if accuracy["metric"] == "cosine":
        return f"The outputs point the way of the float network's: cosine {accuracy['int8']:.5f}{budget}."
    drop, points = float(accuracy["drop"]), f"points of {accuracy['metric']}" if _unit(accuracy) else accuracy["metric"]
    kind = kind[0].upper() + kind[1:]
    if drop == 0:
        return f"{kind} keeps the {accuracy['metric']} of the float network{_interval(accuracy)}{budget}."
    lost = f"{'loses' if drop > 0 else 'gains'} {_figure(accuracy, abs(drop))}"
    return f"{kind} {lost} {points} against float{_interval(accuracy)}{budget}."


def _unit(accuracy: Report) -> str:
    """Percent, unless the metric is in 0..1 or of its own kind."""
    unit = str(accuracy.get("unit", "%"))
    return f" {unit}" if unit else ""


def _figure(accuracy: Report, value: float) -> str:
    return f"{value:.{2 if _unit(accuracy) else 4}f}".replace("-", "−")


def verdict(report: Report) -> Markup:
    """The figures that decide."""
    tiles = [*_accuracy_tiles(report.get("accuracy"), shipped(report)), _latency_tile(report), *_size_tiles(report)]
    shown = [tag("div", tag("b", value), tag("span", note), class_="tile") for value, note in tiles if value]
    return tag("div", *shown, class_="tiles")


def _accuracy_tiles(accuracy: Report | None, kind: str) -> list[tuple[str, str]]:
    if not accuracy:
        return []
    if accuracy["metric"] == "cosine":
        return [(f"{accuracy['int8']:.5f}", f"cosine of {kind} and float outputs, {_over(accuracy)}")]
    before, after, drop = (_figure(accuracy, accuracy[key]) for key in ("float", "int8", "drop"))
    unit = _unit(accuracy)
    kept = f"{accuracy['metric']} in {kind}, {_over(accuracy)}; float {before}{unit}"
    lost = f"{'points ' if unit else ''}of {accuracy['metric']} lost{_interval(accuracy)}; {_budget(accuracy)}"
    return [(f"{after}{unit}", kept), (drop, lost)]


def _over(accuracy: Report) -> str:
    kinds = {"test": "held-out samples", "calibration": "calibration samples"}
    data = str(accuracy.get("data", "test"))
    return f"{accuracy['samples']} {kinds.get(data, f'samples of {data}')}"


def _interval(accuracy: Report) -> str:
    bounds = accuracy.get("interval")
    if not isinstance(bounds, Sequence) or len(bounds) != 2 or not all(isinstance(b, (int, float)) for b in bounds):
        return ""
    return f" (95 % interval {_figure(accuracy, bounds[0])} to {_figure(accuracy, bounds[1])})"


def _budget(accuracy: Report) -> str:
    budget = str(accuracy.get("budget", "none"))
    return {"none": "no budget set", "met": "within the budget"}.get(budget, f"budget {budget}")


def _latency_tile(report: Report) -> tuple[str, str]:
    latency = report.get("latency_us")
    if not latency:
        return "", ""
    scale, unit = (1000.0, "ms") if latency["median"] >= 1000 else (1.0, "µs")
    low, high = latency["min"] / scale, latency["p99"] / scale
    spread = f"min {_digits(low)}, p99 {_digits(high)}"
    return f"{_digits(latency['median'] / scale)} {unit}", f"median latency, 1 thread ({spread})"


def _digits(value: float) -> str:
    """Three digits, more where there are more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _size_tiles(report: Report) -> list[tuple[str, str]]:
    size, macs, diagnosis = report.get("size"), report.get("macs"), report.get("diagnosis") or {}
    found = []
    if size:
        smaller = f", {1 / size['ratio']:.2f} times smaller than float32" if size.get("ratio") else ""
        found.append((bytes_(size["int8_bytes"]), f"weights{smaller}"))
    if macs and macs["total"]:
        found.append((f"{100 * macs['integer'] / macs['total']:.1f} %", "of the multiply-accumulates are integers"))
    if diagnosis.get("network"):
        found.append((f"{diagnosis['output_sqnr_db']:.1f} dB", f"SQNR of the outputs, {shipped(report)} against float"))
    return found


def findings(report: Report) -> Markup:
    """The culprit in a box of its own, then the rest."""
    diagnosis = report.get("diagnosis") or {"failed": "this report holds none"}
    if "failed" in diagnosis:
        return tag("p", f"No diagnosis: {diagnosis['failed']}.", class_="note")
    rows, culprit = diagnosis["findings"], diagnosis.get("culprit")
    rest = rows[1:] if culprit else rows
    box = _culprit(culprit) if culprit else _fine(rows)
    listed = [tag("div", *_finding(row), class_="finding") for row in rest if culprit or row is not _costliest(rows)]
    more = tag("details", tag("summary", f"{len(listed)} more finding{'s' if len(listed) > 1 else ''}"), *listed,
               open=None if len(listed) > 3 or not _serious(rest) else "open") if listed else _NOTHING  # fmt: skip
    return joined([box, more])


def _serious(rows: Sequence[Report]) -> bool:
    return any(row["severity"] != "low" for row in rows)


def _culprit(found: Report) -> Markup:
    place = " before " if found["cause"].startswith("preprocessing") else " in "
    where = joined([place, tag("code", found["layer"])]) if found["layer"] else _NOTHING
    return tag(
        "div",
        tag("h2", found["cause"].capitalize(), where),
        tag("p", found["what"]),
        tag("p", tag("b", "What to do: "), found["remedy"]),
        _evidence(found),
        class_=f"culprit {found['severity']}",
    )


def _evidence(found: Report) -> Markup:
    named = [("tensor", tag("code", found["tensor"]))] if found["tensor"] else []
    for key, value in found["evidence"].items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            unit = " dB" if key.endswith("_db") else ""
            named.append((key.removesuffix("_db").replace("_", " "), tag("span", f"{value:.4g}{unit}")))
    said = joined(joined([" · " if i else "", f"{key} ", value]) for i, (key, value) in enumerate(named))
    return tag("p", said, class_="note") if named else _NOTHING


def _costliest(rows: Sequence[Report]) -> Report | None:
    return next((row for row in rows if row["cause"] == "sensitive layer"), None)


def _fine(rows: Sequence[Report]) -> Markup:
    most = _costliest(rows)
    said = f"What costs most: {most['what']}" if most else "No single rounding costs a measurable part of the output."
    return tag("div", tag("h2", "No fault found"), tag("p", said), class_="culprit fine")


def _finding(row: Report) -> list[Markup]:
    where = tag("code", row["layer"]) if row["layer"] else _NOTHING
    return [
        tag(
            "p", tag("span", row["severity"], class_=f"tag {row['severity']}"), " ", tag("b", row["cause"]), " ", where
        ),
        tag("p", row["what"]),
        tag("p", row["remedy"], class_="note"),
    ]


def network(report: Report) -> Markup:
    """The SQNR along the network, and the table behind it."""
    diagnosis = report.get("diagnosis") or {}
    rows = diagnosis.get("network")
    if not rows:
        return _NOTHING
    marked = diagnosis.get("culprit") or {}
    key = [
        _key("var(--blue)", "accumulated: all roundings up to here"),
        _key("var(--orange)", "this tensor's own rounding and clipping alone"),
    ]
    note = (
        "Signal to quantization noise ratio (SQNR) of each tensor against the float network, on "
        f"{diagnosis['samples']} samples. Six dB are one bit. Where the blue line falls and the orange one does not, "
        "an earlier error shows."
    )
    drawn = tag("div", tag("div", plots.along(rows, marked), class_="wide"), class_="scroll")
    return joined(
        [
            tag("h2", "Along the network"),
            tag("p", note, class_="note"),
            tag("div", tag("div", *key, class_="key"), drawn, class_="figure"),
            _layers(rows, diagnosis.get("weights", [])),
        ]
    )


def _key(color: str, said: str) -> Markup:
    return tag("span", tag("i", style=f"background:{color}"), said)


def _layers(rows: Sequence[Report], weights: Sequence[Report]) -> Markup:
    shown = table(_HEADS, [(_kind(row["local_db"]), _cells(row)) for row in rows])
    tensors = tag("details", tag("summary", f"All {len(rows)} quantized tensors"), shown)
    if not weights:
        return tensors
    cells = [(_kind(row["sqnr_db"]), _weight_cells(row)) for row in weights]
    shown = table(("layer", "weights", "#SQNR dB", "#worst channel dB", "#channel"), cells)
    return joined([tensors, tag("details", tag("summary", f"Weights of {len(weights)} layers"), shown)])


def _weight_cells(row: Report) -> tuple[object, ...]:
    return row["layer"], row["weights"], _decibels(row["sqnr_db"]), _decibels(row["worst_db"]), row["worst_channel"]


def _decibels(value: float) -> str:
    return "exact" if value >= _EXACT_DB else f"{value:.1f}"


def _kind(decibels: float) -> str:
    return "bad" if decibels < _BAD_DB else "poor" if decibels < _POOR_DB else ""


def _cells(row: Report) -> tuple[object, ...]:
    median = "" if row["channel_db"] is None else _decibels(row["channel_db"])
    made = joined([row["layer"], " ", tag("span", row["operator"], class_="sub")])
    first, last = row["range"]
    return (
        made, row["tensor"], _decibels(row["sqnr_db"]), _decibels(row["local_db"]), median,
        f"{100 * row['used']:.0f} %", f"{100 * sum(row['clipped']):.2g} %", f"{row['outlier_ratio']:.3g}×",
        f"{first:.4g}", f"{last:.4g}",
    )  # fmt: skip


def worst(report: Report) -> Markup:
    """Histograms."""
    diagnosis = report.get("diagnosis") or {}
    drawings = diagnosis.get("worst")
    if not drawings:
        return _NOTHING
    rows = {row["tensor"]: row for row in diagnosis["network"]}
    note = (
        "Values in float on a logarithmic scale. The shaded band between the dashed lines is what the codes can "
        "represent; red is cut off. Below, in orange, the range of each channel, the widest first."
    )
    cards = [_card(drawing, rows[drawing["tensor"]]) for drawing in drawings]
    return joined(
        [tag("h2", "The tensors that lose most"), tag("p", note, class_="note"), tag("div", *cards, class_="cards")]
    )


def _card(drawing: Report, row: Report) -> Markup:
    said = f"own rounding {row['local_db']:.1f} dB; {100 * row['used']:.0f} % of the range used; widest channel "
    said += f"{row['outlier_ratio']:.3g} times the median of {drawing['channel_count']}"
    return tag("div", tag("h3", drawing["layer"]), tag("p", said, class_="note"), plots.histogram(drawing),
               class_="figure")  # fmt: skip


def costs(report: Report) -> Markup:
    """What single roundings cost the output."""
    diagnosis = report.get("diagnosis") or {}
    rows = [row for row in diagnosis.get("suspects", []) if row["gain_db"] > 0][:10]
    if not rows:
        return _NOTHING
    body = [("", (row["layer"], row["kind"], f"{row['gain_db']:.2f}", f"{row['alone_db']:.1f}")) for row in rows]
    note = (
        f"The outputs have {diagnosis['output_sqnr_db']:.1f} dB as built. Each row undoes one rounding and keeps all "
        "others, then does it alone."
    )
    shown = table(("layer", "of its", "#gained by undoing it, dB", "#output if it were alone, dB"), body)
    return joined(
        [tag("h2", "What single roundings cost"), tag("p", note, class_="note"), tag("div", shown, class_="figure")]
    )


def fallback(report: Report) -> Markup:
    """Layers that were kept at a higher precision to meet the budget."""
    rows = (report.get("quantization") or {}).get("fallback") or []
    if not rows:
        return _NOTHING
    body = [
        ("", (row.get("layer", ""), row.get("precision", ""), _number(row.get("gain")), _number(row.get("cost_us"))))
        for row in rows
    ]
    return joined([
        tag("h2", "Layers at higher precision"),
        tag("p", _FALLBACK, class_="note"),
        tag("div", table(("layer", "precision", "#gain", "#cost, µs"), body), class_="figure"),
    ])  # fmt: skip


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, (int, float)) else "" if value is None else str(value)


def size(report: Report) -> Markup:
    """What the bundle and the memory hold."""
    if "bundle_bytes" not in report or not report.get("size"):
        return _NOTHING
    weights, runtime = report["size"]["int8_bytes"], report.get("runtime_bytes", 0)
    rest = max(0, report["bundle_bytes"] - weights - runtime)
    parts = [("weights", weights), ("runtime", runtime), ("program, plan, golden samples, sources", rest)]
    total = max(1, sum(count for _, count in parts))
    pieces, keys = [], []
    for (name, count), color in zip(parts, _COLORS, strict=False):
        said = f"{name} {bytes_(count)}"
        pieces.append(tag("i", style=f"width:{100 * count / total:.2f}%;background:{color}", title=said))
        keys.append(_key(color, said))
    said = f"Bundle {bytes_(report['bundle_bytes'])}. It runs in an arena of {bytes_(report.get('arena_bytes', 0))}"
    said += f" and {bytes_(report['scratch_bytes'])} of scratch." if report.get("scratch_bytes") else "."
    bar, key = tag("div", *pieces, class_="bar"), tag("div", *keys, class_="key")
    return joined([tag("h2", "Size"), tag("div", bar, key, tag("p", said, class_="note"), class_="figure")])


def operators(report: Report) -> Markup:
    """What stays in float32, and why."""
    reasons = (report.get("quantization") or {}).get("float") or []
    rows = [("", (row.get("name", ""), row.get("operator", ""), row.get("reason", ""))) for row in reasons]
    if not rows:
        rows = [("", (row["name"], row["kind"], "")) for row in report.get("float_operators") or []]
    if not rows:
        return _NOTHING
    return tag("details", tag("summary", f"{len(rows)} operator{'s' if len(rows) > 1 else ''} in float32"),
               table(("name", "operator", "why"), rows))  # fmt: skip


def measured(report: Report) -> Markup:
    """What was measured how, in what time."""
    quantization, diagnosis = report.get("quantization") or {}, report.get("diagnosis") or {}
    rows: list[tuple[str, object]] = []
    if quantization.get("passed_through"):
        rows.append(("ranges", "the model's own: it came quantized"))
    elif quantization.get("samples"):
        rows.append(
            ("ranges", f"{quantization['samples']} calibration samples, observer {quantization.get('observer')}")
        )
    if accuracy := report.get("accuracy"):
        kind = shipped(report)
        rows.append(("accuracy", f"float in ONNX Runtime, {kind} in {accuracy.get('engine')}, on the same samples"))
        rows += _nearness(accuracy, kind)
    if reason := report.get("latency_reason"):
        rows.append(("latency", f"not measured: {reason}"))
    rows += _parity(report.get("parity"))
    rows += _input_rows(diagnosis.get("preprocessing"))
    rows += [("not seen here", said) for said in diagnosis.get("unseen", [])]
    if seconds := report.get("seconds"):
        spent = ", ".join(f"{stage} {value:.1f}" for stage, value in seconds.items())
        rows.append(("build", f"{sum(seconds.values()):.1f} s: {spent}"))
    if signer := report.get("signer"):
        rows.append(("signed by", tag("code", signer)))
    return joined([tag("h2", "How it was measured"), tag("div", pairs(rows), class_="figure")])


def _nearness(accuracy: Report, kind: str) -> list[tuple[str, object]]:
    """What holds whatever the metric is."""
    shown = {"agreement": "the same answer for {:.2f} %", "kl": "KL {:.3g} nats", "sqnr_db": "SQNR {:.1f} dB"}
    parts = [said.format(accuracy[key]) for key, said in shown.items() if isinstance(accuracy.get(key), (int, float))]
    return [(f"outputs, {kind} against float", "; ".join(parts))] if parts else []


def _parity(parity: Report | None) -> list[tuple[str, object]]:
    if not parity:
        return []
    worst_ = parity.get("max_relative_error")
    found = max(worst_.values(), default=0.0) if isinstance(worst_, Mapping) else worst_
    shown = f"{found:.2g}" if isinstance(found, (int, float)) else str(found)
    return [
        (
            "parity",
            f"graph against the source framework: largest relative error {shown} over {parity.get('samples')} samples",
        )
    ]


def _input_rows(looked: Report | None) -> list[tuple[str, object]]:
    seen: Report = looked or {}
    inputs = [(f"input of {item['layer']}", _input(item)) for item in seen.get("inputs", [])[:4] if "min" in item]
    return [*inputs, *((item["layer"], _memory(item)) for item in seen.get("normalization", [])[:4])]


def _input(item: Report) -> str:
    steps = "; ".join(item["steps"]) or "none"
    values = f"mean {item['mean']:.3g}, standard deviation {item['std']:.3g}"
    return f"{item['min']:.4g} to {item['max']:.4g}, {values}; arithmetic before it: {steps}"


def _memory(item: Report) -> str:
    ratio, shift = 2 ** (item["log2_variance_ratio"] / 2), item["mean_shift_in_std"]
    return f"its input beside what it remembers of training: standard deviation {ratio:.3g} times, mean {shift:.2g} off"


def bytes_(count: int) -> str:
    """Bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"

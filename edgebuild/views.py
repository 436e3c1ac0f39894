"""What the command line shows to people: progress, the summary of a build, tables. It decides nothing."""

from collections import Counter
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from edgebuild.report import shipped

UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"))
_SAYS = "says"
_LONGEST = 12
_HARDLY = 0.9


class _TimeLeft(TimeRemainingColumn):
    """What is still to come, where it is known how much there is."""

    def render(self, task: Task) -> Text:
        if task.finished or task.total is None or task.time_remaining is None:
            return Text("")
        return Text(f"{super().render(task).plain} left", style="progress.remaining")


class StageProgress:
    """A pipeline listener: a live line per stage on a terminal; elsewhere, if `plain`, a line per finished stage."""

    def __init__(self, console: Console, *, plain: bool = True) -> None:
        self._console = console
        self._plain = plain
        self._live = console.is_terminal
        self._tasks: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:10}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            _TimeLeft(compact=True),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
        )

    def __enter__(self) -> "StageProgress":
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def started(self, stage: str) -> None:
        if self._live:
            self._tasks[stage] = self._progress.add_task(stage, total=None, note="")

    def advanced(self, stage: str, done: int, total: int | None) -> None:
        if self._live:
            self._progress.update(self._tasks[stage], completed=done, total=total)

    def says(self, what: str) -> None:
        """A line of its own, in place of the one before it."""
        if not self._live:
            return
        if _SAYS not in self._tasks:
            self._tasks[_SAYS] = self._progress.add_task(what, total=None, note="")
        self._progress.update(self._tasks[_SAYS], description=what)

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None:
        note = f"{seconds:8.2f} s{'  cached' if cached else ''}"
        if self._live:
            self._progress.update(self._tasks[stage], completed=1, total=1, note=note)
        elif self._plain:
            self._console.print(f"{stage:10}{note}", highlight=False)


_TITLE_WIDTH = 79


def size(count: int) -> str:
    """Bytes for people."""
    for unit, name in UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def rows(title: str, pairs: Iterable[tuple[str, str]]) -> Table:
    """A table of two columns without a header."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def columns(title: str, heads: Sequence[str], cells: Iterable[Sequence[str]]) -> Table:
    """A table with a header."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.min_width = min(cell_len(title), _TITLE_WIDTH)  # a title is wrapped where its table ends
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def summary(report: dict[str, Any], path: str) -> Table:
    """The end of `edgebuild compile`."""
    weights, macs = report["size"], report["macs"]
    share = 100 * macs["integer"] / macs["total"] if macs["total"] else 0.0
    others = [operator["name"] for operator in report["float_operators"]]
    return rows(
        f"{report['name']} {report['version']} for {report['target']}",
        [
            ("bundle", f"{path} ({size(report['bundle_bytes'])})"),
            ("signed by", report["signer"]),
            ("checked", "yes: golden outputs reproduced" if report["checked"] else f"NO: {report['check_reason']}"),
            *([("quality", "speed only: made without trained weights")] if report["quality"] != "trained" else []),
            ("accuracy", accuracy_line(report)),
            *([("update", update_line(report["update"]))] if "update" in report else []),
            *([("fallback", fallen)] if (fallen := fallback_line(report)) else []),
            *([("precision", whole)] if (whole := precision_line(report)) else []),
            *([("culprit", escape(culprit))] if (culprit := culprit_line(report)) else []),
            ("weights", f"{size(weights['float_bytes'])} → {size(weights['int8_bytes'])} (x{weights['ratio']:.2f})"),
            ("latency", latency_line(report["latency_us"], report["latency_reason"])),
            *([("ONNX Runtime", baseline_line(report["baseline"]))] if "baseline" in report else []),
            ("integer work", f"{share:.1f} % of {macs['total'] / 1e6:,.1f} million multiply-accumulates"),
            ("float32 operators", ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")),
            ("memory", f"{size(report['arena_bytes'])} arena"),
            ("runtime", size(report["runtime_bytes"])),
            ("time", f"{sum(report['seconds'].values()):.1f} s"),
        ],
    )


def update_line(update: dict[str, Any]) -> str:
    """What an update changes, and what it gains."""
    found, of = update["accuracy"], update["of"]
    unit = f" {found['unit']}" if found["unit"] else ""
    accuracy = f"{found['metric']} {found['old']:.2f} → {found['shipped']:.2f}{unit}"
    gain = f"of {of['version']} (release {of['release']}): {accuracy}"
    if "weights" not in update:
        return gain
    if update["runtime"] == "kept":
        gain += f"; its runtime of {of['version']} is kept: what was mended in it since does not reach devices"
    if "max_delta" in update:
        gain += f"; delta {size(update['delta_bytes'])} of {size(update['max_delta'])}{_spent(update['delta_files'])}"
    changed = f"{update['changed']:,} of {update['weights']:,} weights changed"
    grids = len(update["grids_changed"])
    return f"{gain}; {changed}" + (f", {grids} tensors have another scale" if grids else "")


def _spent(files: dict[str, int]) -> str:
    """What takes part of a delta beside the weights, the largest first."""
    rest = sorted(((cost, path) for path, cost in files.items() if path != "weights.bin"), reverse=True)
    return f" ({', '.join(f'{path} {size(cost)}' for cost, path in rest[:3])})"


def accuracy_line(report: dict[str, Any]) -> str:
    """The metric before and after, the drop with its interval, and what the outputs lost."""
    accuracy, kind = report["accuracy"], shipped(report)
    budget = f"; budget {accuracy['budget']}" if accuracy["budget"].startswith("not judged") else ""
    kinds = {"test": "held-out samples", "calibration": "calibration samples"}
    data = f"over {accuracy['samples']} {kinds.get(accuracy['data'], 'samples of ' + accuracy['data'])}"
    if accuracy["metric"] == "cosine":
        return f"cosine of {kind} and float outputs {accuracy['int8']:.5f} {data}{_nearness(accuracy)}{budget}"
    unit = f" {accuracy['unit']}" if accuracy["unit"] else ""
    digits = 2 if unit else 4
    before, after, drop = (f"{accuracy[key]:.{digits}f}" for key in ("float", "int8", "drop"))
    if (ends := accuracy["interval"]) is not None:
        drop += f", 95 % interval {ends[0]:.{digits}f} to {ends[1]:.{digits}f}"
    return (
        f"{accuracy['metric']}: float {before}{unit}, {kind} {after}{unit} (drop {drop}) {data}"
        f"{_nearness(accuracy)}{budget}"
    )


def _nearness(accuracy: dict[str, Any]) -> str:
    """What holds whatever the metric is."""
    shown = {"agreement": "agreement {:.2f} %", "kl": "KL {:.3g} nats", "sqnr_db": "SQNR {:.1f} dB"}
    parts = [text.format(accuracy[key]) for key, text in shown.items() if accuracy[key] is not None]
    return f"; {', '.join(parts)}" if parts else ""


def fallback_line(report: dict[str, Any]) -> str:
    """How many layers left 8 bits to meet the budget, for what, and what it costs where that was measured."""
    rows = report.get("quantization", {}).get("fallback") or []
    if not rows:
        return ""
    chosen = {key: row["precision"] for row in sorted(rows, key=_is_float) for key in row["keys"]}
    kinds = Counter(chosen.values())
    counted = ", ".join(f"{kinds[kind]} {kind}" for kind in ("int16", "float32") if kinds[kind])
    known = [row["cost_us"] for row in rows if row.get("cost_us") is not None]
    cost = f", {_microseconds(sum(known), '+')}" if known else "; as recipe.lock says"
    return f"{len(chosen)} layer{'s' if len(chosen) > 1 else ''}: {counted}{cost}"


def _is_float(row: dict[str, Any]) -> bool:
    return bool(row["precision"] == "float32")


def precision_line(report: dict[str, Any]) -> str:
    """That the whole network is float32, and why."""
    found = report.get("precision", {})
    if found.get("chosen") != "float32":
        return ""
    if "float32_us" not in found:
        return "float32, as the recipe or its lock says"
    return f"float32: {_microseconds(found['float32_us'])} against {_microseconds(found['int8_us'])} in INT8"


def _microseconds(value: float, sign: str = "") -> str:
    return f"{value:{sign},.{0 if abs(value) >= 10 else 1}f} µs"


def culprit_line(report: dict[str, Any]) -> str:
    """What is wrong, and where, when it is a fault that matters."""
    found = report.get("diagnosis", {}).get("culprit") or {}
    if found.get("severity") != "high":
        return ""
    place = "before" if found["cause"].startswith("preprocessing") else "in"
    where = f" {place} {found['layer']}" if found["layer"] else ""
    return f"{found['cause']}{where}; `edgebuild report` says more"


def diagnosis(report: dict[str, Any], place: str) -> Table:
    """The end of `edgebuild report`: the findings in short."""
    found = report.get("diagnosis", {})
    listed = [row for row in found.get("findings", []) if row["severity"] != "low"] or found.get("findings", [])[:1]
    lines = [(row["severity"], escape(f"{row['cause']}: {row['what']}")) for row in listed[:4]]
    remedy = [("what to do", escape(found["culprit"]["remedy"]))] if found.get("culprit") else []
    failed = [("diagnosis", escape(found["failed"]))] if "failed" in found else []
    nothing = [("verdict", "no fault found")] if found.get("findings") is not None and not found.get("culprit") else []
    return rows(
        f"{report['name']} {report['version']} for {report['target']}",
        [("page", escape(place)), *failed, *nothing, *lines, *remedy],
    )


def latency_line(latency: dict[str, float] | None, reason: str) -> str:
    if latency is None:
        return f"not measured: {reason}"
    return f"{latency['median']:,.0f} µs (min {latency['min']:,.0f}, p99 {latency['p99']:,.0f}), 1 thread"


def baseline_line(baseline: dict[str, dict[str, float]]) -> str:
    ours, theirs = baseline["edgebuild"]["min"], baseline["onnxruntime"]["min"]
    faster = f"{theirs / ours:.1f} times as fast" if ours <= theirs else f"{ours / theirs:.1f} times as slow"
    return f"min {theirs:,.0f} µs; this bundle {ours:,.0f} µs, in turns with it: {faster}"


def bench(documents: Sequence[dict[str, Any]], summary: dict[str, Any]) -> list[Table]:
    """The tables of `edgebuild bench`: one a model, and what they say together."""
    tables = [table for found in documents for table in _bench_model(found)]
    if len(documents) > 1 and summary:
        tables.append(_bench_summary(documents, summary))
    return tables


_BENCH_HEADS = ("", "engine", "min ms", "median", "p99", "sd", "it/ours", "peak", "start", "MB")


def _bench_model(found: dict[str, Any]) -> list[Table]:
    title = f"{found['model']} for {found['target']}" + ("" if found["quality"] == "trained" else " (untrained)")
    ordered = sorted(found["rows"], key=lambda row: (row["threads"], row["min_ms"]))
    ours = {row["threads"]: row["min_ms"] for row in found["rows"] if row["engine"] == "edgebuild"}
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for head in _BENCH_HEADS:
        table.add_column(head, justify="left" if head == "engine" else "right", no_wrap=True)
    for row in ordered:
        style = "bold" if row["engine"] == "edgebuild" else ""
        table.add_row(*_bench_cells(row, ours[row["threads"]]), style=style)
    return [table, rows("", _bench_notes(found))]


def _bench_cells(row: dict[str, Any], ours: float) -> list[str]:
    times = [_milliseconds(row[name]) for name in ("min_ms", "median_ms", "p99_ms", "sd_ms")]
    share = "" if row["peak_share"] is None else f"{100 * row['peak_share']:.0f} %"
    start, memory = _milliseconds(row["first_result_ms"]), f"{row['peak_rss_mb']:.1f}"
    return [f"{row['threads']}T", _engine(row), *times, f"{row['min_ms'] / ours:.2f}×", share, start, memory]


def _milliseconds(value: float) -> str:
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 0}f}"


def _bench_notes(found: dict[str, Any]) -> list[tuple[str, str]]:
    versions = {row["engine"]: row["version"] for row in found["rows"]}
    over = next(row["over_rss_mb"] for row in found["rows"] if row["engine"] == "edgebuild")
    return [
        *((f"{threads} thread{'s' if threads != '1' else ''}", _verdict(part))
          for threads, part in found["by_threads"].items()),
        ("work", f"{found['macs'] / 1e6:,.1f} million multiply-accumulates, {size(found['bytes_moved'])} moved"),
        ("columns", f"peak: share of that of {found['instruction']}; start: ms to a fresh process's first result"),
        ("memory", f"ours peaks {over:.2f} MB above weights and arena; a peer's holds {_host_mb(found)} MB of Python"),
        ("versions", ", ".join(f"{engine} {version}" for engine, version in versions.items())),
        *((_engine(item), f"outputs: {_agreement(item)}") for item in found["agreement"]),
        *((_engine(item), escape(f"not measured: {item['reason']}")) for item in found["unavailable"]),
    ]  # fmt: skip


def _host_mb(found: dict[str, Any]) -> str:
    return f"{max(row['host_rss_mb'] for row in found['rows']):.0f}"


def _engine(item: dict[str, Any]) -> str:
    return f"{item['engine']} {item['variant'] or ''}".strip()


def _verdict(part: dict[str, Any]) -> str:
    share = f"; {100 * part['peak_share']:.0f} % of the peak of {part['peak_gmacs']:.0f} GMAC/s"
    if part["best_peer"] is None:
        return f"no peer ran{share}"
    best = part["best_peer"]
    return f"{part['ratio']:.2f} times as fast as the best peer, {_engine(best)} ({best['min_ms']:.3f} ms){share}"


def _agreement(item: dict[str, Any]) -> str:
    if item["max_difference"] is None and item["same_top1"] is None:
        return "not comparable with ours"
    parts = []
    if item["same_top1"] is not None:
        parts.append(f"the same top-1 for {100 * item['same_top1']:.0f} % of the inputs")
    if item["max_difference"] is not None:
        parts.append(f"at most {100 * item['max_difference']:.2f} % of the largest value from ours")
    return ", ".join(parts)


def _bench_summary(documents: Sequence[dict[str, Any]], summary: dict[str, Any]) -> Table:
    cells = []
    for threads, part in summary.items():
        worst = part["worst"]
        cells.append((threads, f"{part['geometric_mean']:.2f}×", f"{worst['model']} {worst['ratio']:.2f}×"))
    return columns(
        f"{len(documents)} models, against the best peer of each", ["threads", "geometric mean", "worst"], cells
    )


def profile(found: dict[str, Any], kinds: Sequence[dict[str, Any]]) -> list[Table]:
    """The tables of `edgebuild profile`: operators in their order, the longest of them, and the kinds."""
    title = f"{found['model']} for {found['target']}, {found['threads']} thread{'s' if found['threads'] > 1 else ''}"
    ordered = sorted(found["ops"], key=lambda op: -float(op["us"]))
    reached = 100 * found["roofline_us"] / found["total_us"] if found["total_us"] else 0.0
    limits = f"{found['peak_gmacs']:,.0f} GMAC/s ({found['instruction']})"
    return [
        _profile_ops(f"{title}: operators in the order in which they run", found["ops"]),
        _profile_ops(f"the longest {min(_LONGEST, len(ordered))}", ordered[:_LONGEST]),
        _profile_kinds(kinds, found["total_us"]),
        rows(
            "",
            [
                ("together", f"{found['total_us']:,.1f} µs"),
                ("rooflines", f"{found['roofline_us']:,.1f} µs, {reached:.0f} % of it; peak {limits}"),
            ],
        ),
    ]


def _profile_ops(title: str, ops: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    for head in ("µs", "share", "roofline", "of it", "by", "kind", "operator"):
        justify: Literal["left", "right"] = "left" if head in ("by", "kind", "operator") else "right"
        table.add_column(head, justify=justify, overflow="fold")
    for op in ops:
        reached = f"{100 * op['roofline_us'] / op['us']:.0f} %" if op["us"] else ""
        times = [f"{op['us']:.1f}", f"{100 * op['share']:.1f} %", f"{op['roofline_us']:.1f}", reached]
        table.add_row(*times, op["bound"], op["kind"], escape(op["name"]))
    return table


def _profile_kinds(kinds: Sequence[dict[str, Any]], total: float) -> Table:
    table = Table(title="kinds of operators", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for head in ("kind", "number", "µs", "share", "roofline"):
        table.add_column(head, justify="left" if head == "kind" else "right")
    for kind in kinds:
        share = f"{100 * kind['us'] / total:.1f} %" if total else ""
        table.add_row(kind["kind"], str(kind["count"]), f"{kind['us']:.1f}", share, f"{kind['roofline_us']:.1f}")
    return table


def inspection(found: dict[str, Any]) -> list[Table]:
    """The tables of `edgebuild inspect`."""
    signer = found["signer"] if found["verified"] else f"{found['signer']} (unverified: no --trust given)"
    macs = found["macs"]
    head = rows(
        f"{found['name']} {found['version']} for {found['target']}",
        [
            ("signer", signer),
            ("release", _release_line(found)),
            ("quality", found["quality"]),
            ("checked", "by the build" if found["checked"] else "not yet: the device does it before its first result"),
            ("needs", f"{found['arch']} {' '.join(found['needs'])}"),
            ("function", f"{found['function']} (trigger: {found['trigger']})"),
            *(("input", _tensor(item)) for item in found["inputs"]),
            *(("output", _tensor(item)) for item in found["outputs"]),
            ("arena", size(found["arena_bytes"])),
            ("multiply-accumulates", f"{macs['total']:,}, {macs['integer']:,} of them int8 x int8"),
        ],
    )
    files = columns("files", ["path", "size", "SHA-256"], _file_cells(found["files"]))
    ops = columns(
        "operators", ["name", "kind", "inputs", "outputs", "MACs", "arithmetic"], map(_op_cells, found["ops"])
    )
    arena = sorted((item for item in found["tensors"] if item["space"] == "arena"), key=lambda item: item["offset"])
    cells = ([f"{item['offset']:,}", f"{item['bytes']:,}", _tensor(item)] for item in arena)
    return [head, files, ops, columns("memory plan: tensors in the arena", ["offset", "bytes", "tensor"], cells)]


def _release_line(found: dict[str, Any]) -> str:
    """The counter and the days of a manifest."""
    days = (f"{said} {found[key]}" for key, said in (("made", "made"), ("expires", "expires")) if found[key])
    return ", ".join([str(found["release"]), *days])


def _file_cells(files: list[dict[str, Any]]) -> list[list[str]]:
    return [[file["path"], f"{file['size']:,}", file["sha256"][:16] + "…"] for file in files]


def _op_cells(op: dict[str, Any]) -> list[str]:
    inputs = [item for item in op["inputs"] if item["space"] == "arena"]
    shapes = (" ".join(f"{item['dtype']}{item['shape']}" for item in items) for items in (inputs, op["outputs"]))
    return [op["name"], op["kind"], *shapes, f"{op['macs']:,}", "integer" if op["integer"] else "float32"]


def _tensor(item: dict[str, Any]) -> str:
    return f"{item['name']} {item['dtype']}{item['shape']}"


def delta(found: dict[str, Any]) -> Group:
    """The end of `edgebuild delta`: each file, how it is coded, and what it costs."""
    versions = f"{found['from']['version']} → {found['to']['version']}"
    title = f"{versions}: {size(found['bytes'])}, {found['share']:.1%} of the bundle"
    cells = [("manifest and signature", "", "zstd-old", size(found["head_bytes"]))]
    cells += [(row["path"], size(row["size"]), row["codec"], size(row["cost"])) for row in found["files"]]
    return Group(columns(title, ["file", "bytes", "codec", "in the delta"], cells), *_delta_notes(found))


def _delta_notes(found: dict[str, Any]) -> list[str]:
    notes = [f"\n{found['file']}"]
    if found["share"] > _HARDLY:
        notes.append("hardly smaller than the bundle itself: the two releases have little in common")
    if found["to"]["release"] < found["from"]["release"]:
        counters = f"{found['from']['release']} to {found['to']['release']}"
        notes.append(f"the release counter falls from {counters}: devices refuse that")
    return notes


def trust(found: dict[str, Any], path: str) -> list[Table]:
    """The tables of `edgebuild trust show`."""
    keys = [[key["role"], key["key_id"], "yes" if key["signed"] else ""] for key in found["keys"]]
    if found["form"] == "keys":
        return [columns(f"{escape(path)}: keys that may sign bundles", ["role", "key"], [key[:2] for key in keys])]
    pairs = [
        ("made", found["made"]),
        ("expires", found["expires"] + (": expired, nothing is installed under it" if found["expired"] else "")),
        ("stands", _counted(found["stands"], found, "of its roots")),
    ]
    if step := found.get("follows"):
        counted = _counted(step["holds"], step, f"of the roots of version {step['version']}")
        pairs.append(("follows", escape(counted if step["holds"] else f"NO: {step['problem']}")))
    head = rows(f"{escape(path)}: trust file, version {found['version']}", pairs)
    return [head, columns("keys", ["role", "key", "signed"], keys)]


def _counted(holds: bool, found: dict[str, Any], whose: str) -> str:
    return (
        f"{'yes' if holds else 'NO'}: signed by {found['signed_by_roots']} {whose}, it takes {found['root_threshold']}"
    )

"""What the command line shows to people: progress, the summary of a build, tables. It decides nothing."""

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

UNITS = ((1 << 20, "MiB"), (1 << 10, "KiB"))


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

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None:
        note = f"{seconds:8.2f} s{'  cached' if cached else ''}"
        if self._live:
            self._progress.update(self._tasks[stage], completed=1, total=1, note=note)
        elif self._plain:
            self._console.print(f"{stage:10}{note}", highlight=False)


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
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in cells:
        table.add_row(*row)
    return table


def summary(report: dict[str, Any], path: str) -> Table:
    """The end of `edgebuild compile`."""
    accuracy, weights, macs = report["accuracy"], report["size"], report["macs"]
    share = 100 * macs["integer"] / macs["total"] if macs["total"] else 0.0
    others = [operator["name"] for operator in report["float_operators"]]
    return rows(
        f"{report['name']} {report['version']} for {report['target']}",
        [
            ("bundle", f"{path} ({size(report['bundle_bytes'])})"),
            ("signed by", report["signer"]),
            ("checked", "yes: golden outputs reproduced" if report["checked"] else f"NO: {report['check_reason']}"),
            *([("quality", "speed only: made without trained weights")] if report["quality"] != "trained" else []),
            ("accuracy", accuracy_line(accuracy)),
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


def accuracy_line(accuracy: dict[str, Any]) -> str:
    budget = f"; budget {accuracy['budget']}" if accuracy["budget"].startswith("not judged") else ""
    if accuracy["metric"] == "cosine":
        return f"cosine of INT8 and float outputs {accuracy['int8']:.5f} over {accuracy['samples']} samples{budget}"
    unit = "held-out" if accuracy["data"] == "test" else "calibration"
    return (
        f"{accuracy['metric']}: float {accuracy['float']:.2f} %, INT8 {accuracy['int8']:.2f} % "
        f"(drop {accuracy['drop']:.2f}) over {accuracy['samples']} {unit} samples{budget}"
    )


def latency_line(latency: dict[str, float] | None, reason: str) -> str:
    if latency is None:
        return f"not measured: {reason}"
    return f"{latency['median']:,.0f} µs (min {latency['min']:,.0f}, p99 {latency['p99']:,.0f}), 1 thread"


def baseline_line(baseline: dict[str, dict[str, float]]) -> str:
    ours, theirs = baseline["edgebuild"]["min"], baseline["onnxruntime"]["min"]
    faster = f"{theirs / ours:.1f} times as fast" if ours <= theirs else f"{ours / theirs:.1f} times as slow"
    return f"min {theirs:,.0f} µs; this bundle {ours:,.0f} µs, in turns with it: {faster}"


def inspection(found: dict[str, Any]) -> list[Table]:
    """The tables of `edgebuild inspect`."""
    signer = found["signer"] if found["verified"] else f"{found['signer']} (unverified: no --trust given)"
    macs = found["macs"]
    head = rows(
        f"{found['name']} {found['version']} for {found['target']}",
        [
            ("signer", signer),
            ("quality", found["quality"]),
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


def _file_cells(files: list[dict[str, Any]]) -> list[list[str]]:
    return [[file["path"], f"{file['size']:,}", file["sha256"][:16] + "…"] for file in files]


def _op_cells(op: dict[str, Any]) -> list[str]:
    inputs = [item for item in op["inputs"] if item["space"] == "arena"]
    shapes = (" ".join(f"{item['dtype']}{item['shape']}" for item in items) for items in (inputs, op["outputs"]))
    return [op["name"], op["kind"], *shapes, f"{op['macs']:,}", "integer" if op["integer"] else "float32"]


def _tensor(item: dict[str, Any]) -> str:
    return f"{item['name']} {item['dtype']}{item['shape']}"

"""`bench`, `profile`: how fast, and why."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

from pathlib import Path
from typing import Annotated

import typer

from edgebuild.cli.common import (
    EXIT_CODES,
    BundleFile,
    CalibrationSet,
    Json,
    Samples,
    TargetName,
    app,
    console,
    disk_errors_at,
    print_json,
    progress,
    recipes_like,
)
from edgebuild.core.errors import UsageError


@app.command(epilog=EXIT_CODES)
def bench(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Recipes (folder or name), .onnx files, or bundles; a bundle alone is timed without peers.",
            autocompletion=recipes_like,
            show_default=False,
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="PEERS", help="onnxruntime,openvino,… Default: all installed.", show_default=False),
    ] = None,
    threads: Annotated[str, typer.Option(metavar="N,…", help="Numbers of threads, each pinned to a core.")] = "1,2",
    runs: Annotated[int, typer.Option(min=1, help="Runs of each engine, at least; fast models run more often.")] = 50,
    target: TargetName = "host",
    untrained: Annotated[bool, typer.Option("--untrained", help="Build networks without weights for speed.")] = False,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights (.safetensors) of the recipe.", show_default=False)
    ] = None,
    calibration: CalibrationSet = None,
    samples: Samples = None,
    trust: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust file for a bundle.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure models in edgebuild's runtime and in other runtimes, in turns."""
    from edgebuild.bench import document, session
    from edgebuild.bench.case import Asked
    from edgebuild.bench.measure import Settings
    from edgebuild.core import keys

    settings = Settings(_names(against), _counts(threads), runs)
    asked = [Asked(model, target, untrained, weights, calibration, samples, trust) for model in models]
    with progress(plain=False) as listener:
        found = session.bench(asked, settings, keys.signing_key(None), listener)
    whole = {"models": found, "summary": document.summary(found)} if len(found) > 1 else found[0]
    if as_json:
        print_json(whole)
        return
    from edgebuild import views

    for table in views.bench(found, document.summary(found)):
        console().print(table, "")


@app.command(epilog=EXIT_CODES)
def profile(
    bundle: BundleFile,
    threads: Annotated[int, typer.Option(min=1, help="Threads, each pinned to a core.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.svg", help="Draw a bar chart as well.", show_default=False),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Trust file; default: yours.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the time of every operator beside what this machine could do at best."""
    import tempfile

    from edgebuild.bench import chart
    from edgebuild.bench.case import Asked, of_bundle
    from edgebuild.bench.profile import by_kind
    from edgebuild.bench.profile import profile as measure

    with tempfile.TemporaryDirectory(prefix="edgebuild-profile-") as folder:
        found = measure(of_bundle(Asked(str(bundle), trust=trust), Path(folder)), threads)
    if output is not None:
        with disk_errors_at(output):
            output.write_text(chart.svg(found), encoding="utf-8")
    if as_json:
        print_json(found)
        return
    from edgebuild import views

    for table in views.profile(found, by_kind(found)):
        console().print(table, "")


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(count) for count in text.split(","))
    except ValueError as error:
        raise UsageError(f"--threads {text}: no list of numbers", "e.g. --threads 1,2") from error

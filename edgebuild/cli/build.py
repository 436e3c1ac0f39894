"""`init`, `compile`, `demo`: from a recipe to a bundle."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgebuild.cli.common import (
    EXIT_CODES,
    Json,
    MaxDelta,
    Samples,
    SignerCommand,
    TargetName,
    app,
    bytes_of,
    console,
    print_json,
    progress,
    recipes_like,
    signer_of,
)
from edgebuild.core.errors import UsageError

if TYPE_CHECKING:
    from datetime import date

    from edgebuild.core.trust import Trust
    from edgebuild.pipeline import UpdateOf

LOCK_SECONDS = 30.0


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new folder; also the bundle's name.")],
) -> None:
    """Write a recipe folder that compiles as it is."""
    from edgebuild.projects import new_recipe

    folder = new_recipe(Path(name))
    sys.stdout.write(f"{folder} is ready: edgebuild compile {folder} --target host\n")


@app.command(name="compile", epilog=EXIT_CODES)
def compile_(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A recipe's folder, the name of one that comes with edgebuild, or a model: .onnx, .pt2, .keras, .h5, "
            ".tflite, a SavedModel folder. "
            "Without it: the recipe in the current folder, else `digits`.",
            autocompletion=recipes_like,
            show_default=False,
        ),
    ] = None,
    target: TargetName = "host",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where bundle and report are written.")] = Path(),
    as_json: Json = False,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Signing key. Default: $EDGEBUILD_KEY, else a development key.", show_default=False
        ),
    ] = None,
    signer: SignerCommand = None,
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights (.safetensors) instead of the recipe's.", show_default=False),
    ] = None,
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Without weights: the bundle is good for measuring speed only.")
    ] = False,
    float_: Annotated[bool, typer.Option("--float", help="Compile in float32, quantize nothing.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the recipe's training.", show_default=False)] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Calibration set instead of the recipe's: a folder of images, a folder with set.toml, or an .npz file "
            "with one array per model input, first axis = samples.",
            show_default=False,
        ),
    ] = None,
    samples: Samples = None,
    name: Annotated[
        str | None, typer.Option(help="The bundle's name. Default: the recipe's, the file's.", show_default=False)
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="The bundle's version. Default: the recipe's, 1.0.0.", show_default=False)
    ] = None,
    release: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**31 - 1,
            metavar="N",
            help="The release counter, which a device never lets fall. Default: the recipe's, 1.",
            show_default=False,
        ),
    ] = None,
    made: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|now",
            help="The day it is made, in UTC, into the manifest; `now` is $SOURCE_DATE_EPOCH where that is set.",
            show_default=False,
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|+90d", help="The day from which on it is not installed any more.", show_default=False
        ),
    ] = None,
    tune: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="Measure block sizes on this machine for so long; only shapes that recipe.lock does not list. Without "
            "it: recipe.lock, then what comes with edgebuild, then a cost model.",
            show_default=False,
        ),
    ] = None,
    update_lock: Annotated[
        bool,
        typer.Option("--update-lock", help="Measure all shapes again (30 s without --tune), and write recipe.lock."),
    ] = False,
    update_of: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD.ebundle",
            help="Keep the quantization grid and the schedules of this release, so that what did not change stays the "
            "same bytes. OLD.basis.zip must lie beside it.",
            show_default=False,
        ),
    ] = None,
    max_delta: MaxDelta = None,
    keep_runtime: Annotated[
        bool,
        typer.Option(
            "--keep-runtime",
            help="With --update-of: carry the old release's edgebuild-run, so that it takes no part of the delta. It "
            "must reproduce the new golden outputs here. What was mended in the runtime since does not reach devices.",
        ),
    ] = False,
    baseline: Annotated[
        bool, typer.Option("--baseline", help="Measure ONNX Runtime INT8 in turns with the bundle.")
    ] = False,
) -> None:
    """Compile a recipe or a saved model into a signed bundle and a report."""
    from dataclasses import replace

    from edgebuild import pipeline, projects
    from edgebuild.core.disk import prepare_folder
    from edgebuild.core.target_file import load_target

    chosen = projects.resolve(recipe, projects.Overrides(weights, seed, calibration, samples))
    if float_:
        chosen = replace(chosen, model=replace(chosen.model, precision="float32"))
    identity = projects.identity(chosen, name, version)
    seconds = _tuning(tune, update_lock=update_lock)
    made_day, expiry = _days(made, expires)
    job = pipeline.Job(
        chosen,
        load_target(target),
        *identity,
        untrained=untrained,
        tune=seconds,
        update_lock=update_lock,
        release=release or chosen.identity.release,
        made=made_day,
        expires=expiry,
        update=_update_of(update_of, max_delta, release, keep_runtime=keep_runtime),
    )
    chosen_signer, trusted = signer_of(key, signer, None, None)
    if update_of is not None:
        _verify_old(update_of, trusted)
    prepare_folder(out)
    with progress(plain=not as_json) as listener:
        result = pipeline.build(job, chosen_signer, listener)
        if baseline:
            from edgebuild.bench.session import with_baseline
            from edgebuild.core.bundle import read_bundle

            signed_by = read_bundle(result.bundle, trusted).signer
            assert signed_by is not None
            result = with_baseline(result, chosen, signed_by)
        path = pipeline.write_output(result, out)
    if as_json:
        print_json(result.report)
    else:
        from edgebuild import views

        console().print(views.summary(result.report, str(path)))


@app.command()
def demo() -> None:
    """Compile `digits` for this machine, run it on held-out digits, and show what came out."""
    from edgebuild import demo as demonstration
    from edgebuild import views

    with progress() as listener:
        found = demonstration.run(listener)
    console().print(views.rows("demo: handwritten digits on this machine", found))


def _days(made: str | None, expires: str | None) -> "tuple[date | None, date | None]":
    """What the manifest says; an expiry that counts from an unsaid day counts from today."""
    from edgebuild.core import dates

    day = dates.made_day("--made", made) if made else None
    return day, dates.expiry_day("--expires", expires, day or dates.today()) if expires else None


def _tuning(seconds: float | None, *, update_lock: bool) -> float:
    """Seconds of search."""
    if update_lock and seconds == 0:
        raise UsageError("--update-lock needs time to measure", "leave out --tune 0")
    return LOCK_SECONDS if update_lock and seconds is None else seconds or 0.0


def _update_of(bundle: Path | None, size: str | None, release: int | None, *, keep_runtime: bool) -> "UpdateOf | None":
    from edgebuild.pipeline import UpdateOf

    if bundle is None:
        if size is not None or keep_runtime:
            option = "--max-delta" if size is not None else "--keep-runtime"
            raise UsageError(f"{option} needs the release that devices have", "add --update-of OLD.ebundle")
        return None
    return UpdateOf(bundle, release, None if size is None else bytes_of("--max-delta", size), keep_runtime)


def _verify_old(path: Path, trusted: "Trust") -> None:
    """Its program goes into the new bundle, which is signed: so it must be one that we, or whom we trust, signed."""
    from edgebuild.core import keys
    from edgebuild.core.bundle import read_bundle
    from edgebuild.core.errors import BundleError

    if not path.is_file():
        return  # the build says so
    own = keys.user_trust_path()
    known = {**(keys.load_trust(own) if own.is_file() else {}), **trusted}
    try:
        read_bundle(path.read_bytes(), known)
    except BundleError as error:
        raise BundleError(f"--update-of {path}: {error.message}", error.hint) from error

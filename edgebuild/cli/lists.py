"""`targets`, `recipes`, `runtime`: what comes with edgebuild."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edgebuild.cli.common import EXIT_CODES, Json, TargetName, app, console, disk_errors_at, print_json, progress
from edgebuild.core.errors import UsageError


@app.command()
def targets(as_json: Json = False) -> None:
    """List the kinds of devices."""
    from edgebuild.core.target_file import list_targets, load_target, target_aliases

    aliases = target_aliases()
    found = [load_target("host"), *list_targets()]
    if as_json:
        print_json(
            [
                {
                    "name": target.name,
                    "alias": list(aliases.get(target.name, ())),
                    "description": target.description,
                    "triple": target.triple,
                    "cpu": target.cpu,
                    "features": list(target.features),
                    "engines": list(target.engines),
                }
                for target in found
            ]
        )
        return
    from edgebuild import views

    cells = [
        (", ".join([target.name, *aliases.get(target.name, ())]), target.description, " ".join(target.features))
        for target in found
    ]
    console().print(views.columns("targets", ["name", "device", "CPU features used"], cells))


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes that come with edgebuild."""
    from edgebuild.core.recipe import load_recipe
    from edgebuild.projects import bundled_recipes

    found = [load_recipe(folder) for folder in bundled_recipes().values()]
    if as_json:
        print_json(
            [
                {
                    "name": item.name,
                    "version": item.version,
                    "description": item.identity.description,
                    "folder": str(item.folder),
                }
                for item in found
            ]
        )
        return
    from edgebuild import views

    cells = [(item.name, item.version, item.identity.description, str(item.folder)) for item in found]
    console().print(views.columns("recipes", ["name", "version", "what it does", "folder"], cells))


@app.command(epilog=EXIT_CODES)
def runtime(
    target: TargetName = "host",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to put it.", show_default=False)
    ] = None,
    install: Annotated[bool, typer.Option("--install", help="Put it beside this Python's own programs.")] = False,
) -> None:
    """Build edgebuild-run, the native program that runs bundles, and copy it."""
    import shutil
    import sysconfig
    import time

    from edgebuild.core.target_file import load_target
    from edgebuild.stages.runtime import runtime_binary

    if install == (output is not None):
        raise UsageError("name one place for edgebuild-run", "-o FILE, or --install")
    path = output or Path(sysconfig.get_path("scripts")) / "edgebuild-run"
    triple = load_target(target).triple
    with progress(plain=False) as listener:  # the first one of a kind takes a minute
        began = time.perf_counter()
        listener.started("runtime")
        binary = runtime_binary(triple)
        listener.finished("runtime", time.perf_counter() - began, cached=False)
    with disk_errors_at(path):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        shutil.copy(binary, temporary)
        temporary.replace(path)
    sys.stdout.write(f"{path}: {path.stat().st_size} bytes\n")

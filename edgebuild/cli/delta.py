"""`delta`: what turns one release into the next."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

from pathlib import Path
from typing import Annotated

import typer

from edgebuild.cli.common import EXIT_CODES, Json, app, console, naming, print_json, read_file
from edgebuild.core.errors import UsageError


@app.command(epilog=EXIT_CODES)
def delta(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="The bundle that devices have.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The bundle that they get.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.edelta",
            help="Default: beside NEW, NEW-from-VERSION.edelta.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what turns one release into the next: only what changed, coded against what the device has."""
    from edgebuild.core.bundle import read_unverified
    from edgebuild.core.disk import write_together
    from edgebuild.pipeline.delta import make_delta

    before, after = read_file(old), read_file(new)
    if before == after:
        raise UsageError(f"{old} and {new} are the same bundle", "there is nothing to update")
    for path, data in ((old, before), (new, after)):
        with naming(path):
            read_unverified(data)
    made = make_delta(before, after)
    path = output or new.with_name(f"{new.stem}-from-{made.old.version}.edelta")
    write_together(path.parent, {path.name: made.data})
    found = {
        "file": str(path),
        "bytes": len(made.data),
        "bundle_bytes": made.bundle_bytes,
        "share": len(made.data) / made.bundle_bytes,
        "from": {"version": made.old.version, "release": made.old.release},
        "to": {"version": made.new.version, "release": made.new.release},
        "head_bytes": made.head,
        "files": [vars(row) for row in made.rows],
    }
    if as_json:
        print_json(found)
        return
    from edgebuild import views

    console().print(views.delta(found))

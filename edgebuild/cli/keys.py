"""`keys`: make and show signing keys."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import sys
from pathlib import Path
from typing import Annotated

import typer

from edgebuild.cli.common import Json, app, disk_errors_at, print_json
from edgebuild.core.errors import UsageError

keys_app = typer.Typer(help="Make and show signing keys.")
app.add_typer(keys_app, name="keys")


@keys_app.command("new")
def keys_new(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Default: the development key, which this machine then trusts.", show_default=False
        ),
    ] = None,
    password: Annotated[
        bool,
        typer.Option("--password", help="Protect it by a password: typed, or from $EDGEBUILD_KEY_PASSWORD."),
    ] = False,
) -> None:
    """Make a signing key: FILE (secret) and FILE.pub, in minisign's formats."""
    from edgebuild.core import keys, minisign

    path = out or keys.development_key_path()
    if path.exists():
        raise UsageError(f"{path}: exists already", "keep it, or choose another name with --out FILE")
    chosen = keys.new_password() if password else b""
    with disk_errors_at(path):
        if out is None:
            keys.development_key(chosen)
        else:
            keys.write_new(path, minisign.generate(), chosen)
    public = keys.load_public(path.with_name(path.name + ".pub"))
    sys.stdout.write(f"{path}: keep it secret\n{path}.pub: key {public.name}, for trust files\n")


@keys_app.command("show")
def keys_show(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="A secret or public key. Default: the development key.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show a key's id and its public half, as a line for a trust file."""
    from edgebuild.core import keys

    path = file or keys.development_key_path()
    public = keys.load_public(path)
    if as_json:
        print_json({"file": str(path), "key_id": public.name, "public": public.line()})
    else:
        sys.stdout.write(f"# {path}, key {public.name}\n{public.line()}\n")

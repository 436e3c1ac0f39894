"""`keys`: make, show and rotate signing keys."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgebuild.cli.common import EXIT_CODES, Json, app, disk_errors_at, naming, print_json
from edgebuild.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgebuild.core.minisign import PublicKey

keys_app = typer.Typer(help="Make, show and rotate signing keys.")
app.add_typer(keys_app, name="keys")


@keys_app.command("new", epilog=EXIT_CODES)
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


@keys_app.command("show", epilog=EXIT_CODES)
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


@keys_app.command("rotate", epilog=EXIT_CODES)
def keys_rotate(
    out: Annotated[Path, typer.Option(metavar="NEW.key", help="The new key; its public half is beside it.")],
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="OLD",
            help="The key that leaves. Default: $EDGEBUILD_KEY, else the development key.",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The trust file that lists the old key.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="NEXT",
            help="Where the trust file's next version is written. Default: a plain list of keys is replaced.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="The old key stays in the trust file beside the new one.")
    ] = False,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|+1y",
            help="When the next version expires. Default: after as long as the one before.",
            show_default=False,
        ),
    ] = None,
    password: Annotated[
        bool, typer.Option("--password", help="Protect it by a password: typed, or from $EDGEBUILD_KEY_PASSWORD.")
    ] = False,
) -> None:
    """Make a new signing key in the place of an old one, and write the trust file that says so."""
    from edgebuild.core import keys, minisign

    if out.exists():
        raise UsageError(f"{out}: exists already", "keep it, or choose another name with --out FILE")
    if trust is None and (output or keep or expires):
        raise UsageError("-o, --keep and --expires are about a trust file", "name it with --trust FILE")
    if out in (trust, output):
        raise UsageError(f"{out}: both the key and the trust file", "choose another name with --out FILE")
    old, new = keys.load_public(key or keys.signing_key_path()), minisign.generate()
    write = _next_trust(trust, old, new.public, output, keep=keep, expires=expires) if trust else None
    chosen = keys.new_password() if password else b""
    with disk_errors_at(out):
        keys.write_new(out, new, chosen)  # first: a trust file that names a key which nobody has would be worse
    sys.stdout.write(f"{out}: keep it secret\n{out}.pub: key {new.public.name}, in the place of {old.name}\n")
    if write:
        sys.stdout.write(write())


def _next_trust(
    path: Path, old: "PublicKey", new: "PublicKey", output: Path | None, *, keep: bool, expires: str | None
) -> "Callable[[], str]":
    """What writes the next trust file, and says so. All that can be refused is refused before."""
    from edgebuild.cli.trust import days_after, write_next
    from edgebuild.core import keys, rotation
    from edgebuild.core.trust import is_roles

    data = keys.read_trust(path)
    if output is not None and output.exists() and (is_roles(data) or output != path):
        raise UsageError(f"{output}: exists already", "choose another name with -o FILE")
    if not is_roles(data):
        if expires:
            raise UsageError(f"{path}: a plain list of keys does not expire", "leave out --expires")
        with naming(path):
            made = rotation.next_keys(data, new, old, keep=keep)
        said = f"lists key {new.name}" + ("" if keep else f", and {old.name} no more")
        return lambda: _write_keys(output or path, made, said)
    if output is None:
        raise UsageError(f"{path}: has roles: its next version is another file, which root keys sign", "add -o NEXT")
    before = keys.load_roles(path)
    days = days_after(before, expires)
    drop = () if keep else (old.name,)
    with naming(path):
        after = rotation.next_version(before, rotation.Change(add_release=(new,), drop_release=drop), *days)
    return lambda: write_next(output, after, before)


def _write_keys(path: Path, data: bytes, said: str) -> str:
    from edgebuild.core.disk import write_together

    write_together(path.parent, {path.name: data})
    return f"{path}: {said}\n"

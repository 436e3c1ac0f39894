"""`trust`: files that say which release keys may sign bundles, signed by root keys (runtime-min/SPEC.md, section 4)."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebuild.cli.common import EXIT_CODES, Json, app, console, naming, print_json
from edgebuild.core.errors import BundleError, UsageError

if TYPE_CHECKING:
    from datetime import date

    from edgebuild.core.minisign import PublicKey
    from edgebuild.core.signer import Signer
    from edgebuild.core.trust import TrustFile

_HOW_TO_SIGN = (
    "sign it: edgebuild trust sign {file} --key ROOT.key; or where only minisign is: edgebuild trust show {file} "
    "--body > body; minisign -Sm body; edgebuild trust sign {file} --signature body.minisig"
)

trust_app = typer.Typer(help="Make, sign and show trust files with roles: root keys say which release keys count.")
app.add_typer(trust_app, name="trust")

TrustPath = Annotated[Path, typer.Argument(metavar="FILE", help="A trust file, or its body.", show_default=False)]
Old = Annotated[Path, typer.Argument(metavar="OLD", help="The version before, signed.", show_default=False)]
After = Annotated[
    Path | None,
    typer.Option(
        metavar="OLD", help="The version before: does FILE follow it? `show` exits with 8 if not.", show_default=False
    ),
]
Output = Annotated[
    Path,
    typer.Option("--output", "-o", metavar="FILE", help="Where the unsigned body is written.", show_default=False),
]


def _keys(what: str) -> Any:
    return typer.Option(metavar="PUB", help=f"{what} May be given several times.", show_default=False)


@trust_app.command("new", epilog=EXIT_CODES)
def trust_new(
    output: Output,
    root: Annotated[list[Path], _keys("Public key of a root.")],
    release: Annotated[list[Path], _keys("Public key that may sign bundles.")],
    root_threshold: Annotated[
        int | None,
        typer.Option(
            min=1, max=16, metavar="K", help="How many roots must sign. Default: more than half.", show_default=False
        ),
    ] = None,
    expires: Annotated[
        str, typer.Option(metavar="DATE|+1y", help="The day from which on nothing is installed under it.")
    ] = "+1y",
) -> None:
    """Write version 1 of a trust file, which its roots have to sign."""
    from edgebuild.core import dates, rotation
    from edgebuild.core.keys import load_public

    roots, keys = [load_public(path) for path in root], [load_public(path) for path in release]
    made = dates.today()
    file = rotation.first_version(roots, root_threshold, keys, made, dates.expiry_day("--expires", expires, made))
    _write_body(output, file, None)


@trust_app.command("next", epilog=EXIT_CODES)
def trust_next(
    old: Old,
    output: Output,
    add_release: Annotated[list[Path] | None, _keys("Public key that may sign bundles from now on.")] = None,
    drop_release: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Id of a release key that leaves.", show_default=False)
    ] = None,
    add_root: Annotated[list[Path] | None, _keys("Public key of a new root.")] = None,
    drop_root: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Id of a root that leaves; it can still sign this step.", show_default=False),
    ] = None,
    root_threshold: Annotated[
        int | None,
        typer.Option(
            min=1, max=16, metavar="K", help="How many roots must sign. Default: as before.", show_default=False
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|+1y",
            help="When it expires. Default: after as long as the version before.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the next version of a trust file: the roots of both versions have to sign it."""
    from edgebuild.core import keys, rotation

    before = keys.load_roles(old)
    change = rotation.Change(
        add_roots=_publics(add_root),
        drop_roots=tuple(drop_root or ()),
        add_release=_publics(add_release),
        drop_release=tuple(drop_release or ()),
        root_threshold=root_threshold,
    )
    made, expiry = days_after(before, expires)
    with naming(old):
        file = rotation.next_version(before, change, made, expiry)
    _write_body(output, file, before)


@trust_app.command("sign", epilog=EXIT_CODES)
def trust_sign(
    file: TrustPath,
    key: Annotated[
        Path | None, typer.Option(metavar="ROOT.key", help="The root's secret key.", show_default=False)
    ] = None,
    signer: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND",
            help="Command that signs: the body comes on standard input, a minisign signature of a root goes to "
            "standard output.",
            show_default=False,
        ),
    ] = None,
    signature: Annotated[
        Path | None,
        typer.Option(metavar="FILE.minisig", help="A signature made elsewhere: minisign -Sm BODY.", show_default=False),
    ] = None,
    after: After = None,
) -> None:
    """Add the signature of one root to a trust file, in place."""
    from edgebuild.core import keys, trust
    from edgebuild.core.disk import write_together

    before = keys.load_roles(after) if after else None
    with naming(file):
        unsigned = _roles(keys.read_trust(file))
        if before and unsigned.version <= before.version:
            raise BundleError(
                f"version {unsigned.version} does not come after version {before.version}",
                f"`edgebuild trust next {after}` writes the version that does",
            )
    chosen = _signer(unsigned, key, signer, signature)
    with naming(file):
        made = chosen.sign(unsigned.body(), f"edgebuild trust {unsigned.version}")
        signed = trust.with_signature(unsigned, made)
    write_together(file.parent, {file.name: signed.file()})
    sys.stdout.write(f"{file}: {_state(signed, before)}\n")


@trust_app.command("show", epilog=EXIT_CODES)
def trust_show(
    file: TrustPath,
    after: After = None,
    body: Annotated[
        bool, typer.Option("--body", help="Write the body alone, which roots sign: ... > BODY; minisign -Sm BODY.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show a trust file: its keys, who signed it, whether it stands, and whether it follows another one."""
    from edgebuild import report
    from edgebuild.core import dates, keys, trust

    data, before = keys.read_trust(file), None
    with naming(file):
        plain = None if trust.is_roles(data) else trust.parse_keys(data)
        roles = None if plain is not None else trust.parse_roles(data)
    if roles is None:
        assert plain is not None
        if body or after:
            raise UsageError(f"{file}: a plain list of keys: nobody signs it, and it follows none", "show it alone")
        found = report.of_keys(plain)
    elif body:
        sys.stdout.write(roles.body().decode())
        return
    else:
        before = keys.load_roles(after) if after else None
        found = report.of_trust(roles, before, dates.today())
    if as_json:
        print_json(found)
    else:
        from edgebuild import views

        for table in views.trust(found, str(file)):
            console().print(table, "")
    if before is not None:
        with naming(file):
            trust.follows(before, trust.stands(data))


def days_after(before: "TrustFile", expires: str | None) -> "tuple[date, date]":
    """When the version after `before` is made, and when it expires: by default, after as long as that one."""
    from edgebuild.core import dates

    made = max(dates.today(), before.made)
    return made, dates.expiry_day("--expires", expires or f"+{(before.expires - before.made).days}d", made)


def write_next(output: Path, file: "TrustFile", before: "TrustFile | None") -> str:
    """Writes the body of a new version, and says who has to sign it. Never replaces a file."""
    from edgebuild.core.disk import write_together

    if output.exists():
        raise UsageError(f"{output}: exists already", "choose another name with -o FILE")
    write_together(output.parent, {output.name: file.body()})
    return f"{output}: {_state(file, before)}\n{_HOW_TO_SIGN.format(file=output)}\n"


def _write_body(output: Path, file: "TrustFile", before: "TrustFile | None") -> None:
    sys.stdout.write(write_next(output, file, before))


def _state(file: "TrustFile", before: "TrustFile | None") -> str:
    """How far the signing is."""
    roots = sum(key in file.roots for key in file.signers())
    text = f"trust file version {file.version}, signed by {roots} of {len(file.roots)} roots, it takes "
    text += str(file.root_threshold)
    if before is None:
        return text
    old = len(file.signed_by(before.roots))
    return f"{text}; by {old} of {len(before.roots)} of version {before.version}, it takes {before.root_threshold}"


def _roles(data: bytes) -> "TrustFile":
    from edgebuild.core import trust

    if not trust.is_roles(data):
        raise BundleError("not a trust file with roles", "`edgebuild trust new` writes one")
    return trust.parse_roles(data)


def _signer(file: "TrustFile", key: Path | None, command: str | None, signature: Path | None) -> "Signer":
    """The one that was chosen. There is no default: a root key is never taken by accident."""
    from edgebuild.core.keys import load_secret
    from edgebuild.core.signer import TRUST_BODY, CommandSigner, SignatureFile

    if sum(choice is not None for choice in (key, command, signature)) != 1:
        raise UsageError("one signer is needed", "choose one of --key, --signer and --signature")
    listed = {root.key_id: root for root in (*file.roots, *file.retired)}
    if key is not None:
        return load_secret(key)
    if command is not None:
        return CommandSigner(command, listed, TRUST_BODY)
    assert signature is not None
    return SignatureFile(signature, listed, TRUST_BODY)


def _publics(paths: list[Path] | None) -> "tuple[PublicKey, ...]":
    from edgebuild.core.keys import load_public

    return tuple(load_public(path) for path in paths or ())

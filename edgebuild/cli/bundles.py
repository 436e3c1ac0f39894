"""`inspect`, `report`, `verify`, `sign`: what a bundle holds, and whose it is."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgebuild.cli.common import (
    EXIT_CODES,
    BundleFile,
    Json,
    SignerCommand,
    app,
    console,
    expired_parts,
    naming,
    print_json,
    read_file,
    signer_of,
)

if TYPE_CHECKING:
    from edgebuild.core.bundle import Bundle


@app.command(epilog=EXIT_CODES)
def inspect(
    bundle: BundleFile,
    trust: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Trust file; without it nothing is verified.", show_default=False),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a bundle holds: manifest, files, operators, memory, what runs as integers."""
    from edgebuild import report
    from edgebuild.core import bundle as bundles
    from edgebuild.core.keys import load_trust

    data, trusted = read_file(bundle), load_trust(trust) if trust else None
    with naming(bundle):
        read = bundles.read_unverified(data) if trusted is None else bundles.read_bundle(data, trusted)
        found = report.of_bundle(read, bundles.signature_key_name(data))
    if as_json:
        print_json(found)
    else:
        from edgebuild import views

        for table in views.inspection(found):
            console().print(table, "")


@app.command("report")
def report_(
    file: Annotated[
        Path,
        typer.Argument(metavar="BUNDLE|REPORT.json", help="A bundle with its report beside it, or the report."),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE.html", help="Where to write the page.", show_default=False),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="Write the page, and open no browser.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a build measured: accuracy, where it is lost and why, in the browser."""
    from edgebuild.page import files

    found = files.load(file)
    if as_json:
        print_json(found.report)
        return
    place = files.write(found, output)
    from edgebuild import views

    if not no_open and _has_display():
        import webbrowser

        webbrowser.open(place.resolve().as_uri())
    console().print(views.diagnosis(found.report, str(place)))


def _has_display() -> bool:
    """Whether a window can open; a browser for terminals would take this one over."""
    wanted = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in wanted)


@app.command(epilog=EXIT_CODES)
def verify(
    bundle: BundleFile,
    trust: Annotated[
        Path, typer.Option(metavar="FILE", help="Trust file: public keys, or one with roles.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Check a bundle's signature and every SHA-256; of a release's folder, those of all its files."""
    from edgebuild.core.bundle import read_bundle
    from edgebuild.core.keys import load_trust

    if bundle.is_dir():
        from edgebuild.cli.release import verify_release

        verify_release(bundle, load_trust(trust), as_json=as_json)
        return
    data, trusted = read_file(bundle), load_trust(trust)
    with naming(bundle):
        found = read_bundle(data, trusted)
    _print_verified(found, expired_parts("the bundle", found.manifest.expires, trusted), as_json=as_json)


@app.command(epilog=EXIT_CODES)
def sign(
    bundle: BundleFile,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Signing key. Default: $EDGEBUILD_KEY, else the development key.", show_default=False
        ),
    ] = None,
    signer: SignerCommand = None,
    signature: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A signature made elsewhere: tar -xf BUNDLE manifest && minisign -Sm manifest.",
            show_default=False,
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Trust file that must list the key of --signer, --signature; default: yours."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: the bundle itself is replaced.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a bundle again, with another key; nothing else of it changes. The report beside it names the new one."""
    from edgebuild.core.bundle import read_unverified
    from edgebuild.core.disk import write_together
    from edgebuild.page.files import signed_again
    from edgebuild.stages.sign import sign_again

    path = out or bundle
    data = read_file(bundle)
    with naming(bundle):
        read = read_unverified(data)
    chosen, trusted = signer_of(key, signer, signature, trust)
    with naming(bundle):
        signed, found = sign_again(read, chosen, trusted)
    assert found.signer is not None
    reports = signed_again(path, found.manifest, found.signer.name, len(signed))
    write_together(path.parent, {path.name: signed, **reports})
    _print_verified(found, expired_parts("the bundle", found.manifest.expires, trusted), as_json=as_json)


def _print_verified(found: "Bundle", expired: list[str], *, as_json: bool) -> None:
    assert found.signer is not None
    manifest = found.manifest
    if as_json:
        fields = {"name": manifest.name, "version": manifest.version, "target": manifest.target}
        print_json(
            {**fields, "signer": found.signer.name, "files": len(manifest.files), "verified": True, "expired": expired}
        )
    else:
        what = f"{manifest.name} {manifest.version} for {manifest.target}"
        sys.stdout.write(f"{what}: signed by {found.signer.name}, {len(manifest.files)} files unchanged\n")
        for what in expired:
            sys.stdout.write(f"warning: {what}: devices do not install it any more\n")

"""`release`, `push`, `pull`: all bundles of a version at once, and the way to a registry and back."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebuild.cli.common import (
    EXIT_CODES,
    CalibrationSet,
    Json,
    MaxDelta,
    Samples,
    SignerCommand,
    app,
    bytes_of,
    console,
    expired_parts,
    print_json,
    progress,
    recipes_like,
    signer_of,
    target_lists_like,
)
from edgebuild.core.errors import BundleError, UsageError, printable

if TYPE_CHECKING:
    from datetime import date

    from edgebuild.core.signer import Signer
    from edgebuild.core.trust import Trust
    from edgebuild.pipeline import Listener
    from edgebuild.release.folder import Contents
    from edgebuild.release.make import Release

_EXAMPLE = "e.g. --targets raspberry-pi-5,jetson-orin; `edgebuild targets` lists them"

TrustFile = Annotated[
    Path | None,
    typer.Option(
        "--trust",
        metavar="FILE",
        help="Trust file; with it the release must be signed by one of its release keys.",
        show_default=False,
    ),
]


@app.command(epilog=EXIT_CODES)
def release(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="As for compile: a recipe's folder or name, or a model. Without it: the recipe in the current folder.",
            autocompletion=recipes_like,
            show_default=False,
        ),
    ] = None,
    targets: Annotated[
        str,
        typer.Option(
            metavar="A,B,…",
            help="Names or .toml files of targets. All are tried; if one fails, all do.",
            autocompletion=target_lists_like,
        ),
    ] = "",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The release's folder: appears whole or not at all, is never changed.")
    ] = Path("release"),
    previous: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Folder with bundles of an earlier release, for deltas; may be given again."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Signing key. Default: $EDGEBUILD_KEY, else a development key.", show_default=False
        ),
    ] = None,
    signer: SignerCommand = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Trust file that lists the signing key and those of --previous; one with roles goes along, and "
            "devices take it first. Default: yours, which does not.",
            show_default=False,
        ),
    ] = None,
    counter: Annotated[
        int | None,
        typer.Option(
            "--release",
            min=1,
            max=2**31 - 1,
            help="Release counter. Default: one more than the largest in --previous, at least the recipe's.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Default: the recipe's, the file's.", show_default=False)] = None,
    version: Annotated[str | None, typer.Option(help="Default: the recipe's, 1.0.0.", show_default=False)] = None,
    made: Annotated[
        str | None,
        typer.Option(
            metavar="DATE|now", help="Day that it is made. Default: that of $SOURCE_DATE_EPOCH.", show_default=False
        ),
    ] = None,
    expires: Annotated[
        str | None,
        typer.Option(metavar="DATE|+90d", help="Day from which on it is not installed.", show_default=False),
    ] = None,
    update: Annotated[
        bool,
        typer.Option(
            "--update",
            help="Keep the grid and schedules of the newest release in --previous, as compile --update-of: what did "
            "not change stays the same bytes. Its .basis.zip must lie beside it.",
        ),
    ] = False,
    max_delta: MaxDelta = None,
    commit: Annotated[
        str | None,
        typer.Option(
            metavar="SHA",
            help="Git commit of the recipe, for the provenance; refused if the recipe's checkout differs from it.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights instead of the recipe's.", show_default=False)
    ] = None,
    calibration: CalibrationSet = None,
    samples: Samples = None,
    as_json: Json = False,
) -> None:
    """Build a release: bundles for all targets, deltas from earlier releases, sums, index, SBOM, provenance; signed.

    Everything that SHA256SUMS lists is reproducible byte for byte; reports, with measured times, lie beside it.

    The exit code is that of the first target that failed.
    """
    from dataclasses import replace

    from edgebuild import projects
    from edgebuild.release import make
    from edgebuild.release.make import Order

    chosen = projects.resolve(projects.named_or_here(recipe), projects.Overrides(weights, None, calibration, samples))
    own_name, own_version = projects.identity(chosen, name, version)
    made_on, expires_on = _days(made, expires)
    chosen_signer, trusted, along = _trusted(key, signer, trust)
    _check_trust_days(made_on, trusted)
    order = Order(
        recipe=chosen,
        name=own_name,
        version=own_version,
        targets=_targets(targets),
        out=out,
        previous=tuple(previous or ()),
        release=counter,
        made=made_on,
        expires=expires_on,
        trust_file=along,
        commit=commit,
        update=update,
        max_delta=_max_delta(max_delta, update=update),
    )
    found = make.make(order, chosen_signer, trusted, _Progress(plain=not as_json))
    past = [f"{what}: devices do not install it" for what in expired_parts("the release", expires_on, trusted)]
    found = replace(found, warnings=(*found.warnings, *past))
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found)


def _max_delta(size: str | None, *, update: bool) -> int | None:
    if size is not None and not update:
        raise UsageError("--max-delta: a part of an update needs a release that it updates", "add --update")
    return None if size is None else bytes_of("--max-delta", size)


def _targets(text: str) -> Any:
    from edgebuild.core.target_file import load_target

    wanted = [name.strip() for name in text.split(",") if name.strip()]
    if not wanted:
        raise UsageError("--targets: names no target", _EXAMPLE)
    return tuple(load_target(name) for name in wanted)


def _days(made: str | None, expires: str | None) -> "tuple[date | None, date | None]":
    """The days of --made and --expires; an expiry that counts from `made` needs one."""
    from datetime import date

    from edgebuild.core import dates

    if made is None and os.environ.get(dates.EPOCH_VARIABLE):
        made = "now"
    made_on = dates.made_day("--made", made) if made else None
    if expires is None:
        return made_on, None
    if made_on is None and expires.startswith("+"):
        raise UsageError(f"--expires {expires}: counts from the day that it is made", "say --made now, or --made DATE")
    return made_on, dates.expiry_day("--expires", expires, made_on or date.min)


def _check_trust_days(made: "date | None", trust: "Trust") -> None:
    """A release under a trust file that has expired by then is one that nobody can install."""
    roles = trust.roles
    if roles is not None and made is not None and roles.expired(made):
        raise BundleError(
            f"the trust file, version {roles.version}, expired on {roles.expires}, and the release is made on {made}",
            "give the next trust file: `edgebuild trust next OLD --expires +1y -o FILE`",
        )


def _trusted(
    key: Path | None, command: str | None, trust: Path | None
) -> "tuple[Signer, Trust, tuple[bytes, int] | None]":
    """Who signs; the keys that may have signed this and earlier releases; a trust file with roles that goes along."""
    from edgebuild.core import keys
    from edgebuild.core.minisign import SecretKey
    from edgebuild.core.trust import Trust

    signer, own = signer_of(key, command, None, trust)
    if trust is None:
        yours = keys.user_trust_path()
        known = keys.load_trust(yours) if yours.exists() else {}
        return signer, Trust({**known, **own}.values()), None
    listed = keys.load_trust(trust)
    if isinstance(signer, SecretKey) and listed.get(signer.key_id) != signer.public:
        raise BundleError(
            f"{trust}: does not list the signing key {signer.public.name}", "no device would take the release"
        )
    return signer, listed, (trust.read_bytes(), listed.roles.version) if listed.roles else None


class _Progress:
    """A heading and the stages of each target, on standard error."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain

    @contextmanager
    def __call__(self, target: str, number: int, count: int) -> "Iterator[Listener]":
        with progress(plain=self._plain) as listener:
            if self._plain or sys.stderr.isatty():
                sys.stderr.write(f"{target} ({number} of {count})\n")
            yield listener


def _accuracies(row: Any) -> dict[str, Any] | None:
    """The metric of the bundle and, where its report lies beside it, of the newest one of before."""
    new, old = row.report["accuracy"], (row.old_report or {}).get("accuracy")
    if not new or new.get("int8") is None:
        return None
    before = old.get("int8") if isinstance(old, dict) and old.get("metric") == new["metric"] else None
    if type(before) not in (int, float):  # anybody may have written the old report
        before = None
    return {"metric": new["metric"], "unit": new["unit"], "old": before, "new": new["int8"]}


def _as_json(found: "Release") -> dict[str, Any]:
    index = found.index
    return {
        "name": index.name,
        "version": index.version,
        "release": index.release,
        "made": str(index.made) if index.made else None,
        "expires": str(index.expires) if index.expires else None,
        "signer": found.signer,
        "out": str(found.out),
        "existed": found.existed,
        "bundles": [
            {
                "target": row.bundle.target,
                "id": row.bundle.id,
                "file": row.bundle.item.file,
                "bytes": row.bundle.item.size,
                "accuracy": _accuracies(row),
                "deltas": [
                    {
                        "from": delta.base,
                        "version": old.version,
                        "release": old.release,
                        "file": delta.item.file,
                        "bytes": delta.item.size,
                    }
                    for delta, old in zip(row.bundle.deltas, row.bases, strict=True)
                ],
            }
            for row in found.rows
        ],
        "skipped": [{"file": one.file, "reason": one.reason} for one in found.skipped],
        "warnings": list(found.warnings),
    }


def _show(found: "Release") -> None:
    from rich.markup import escape

    from edgebuild import views

    index = found.index
    title = f"{index.name} {index.version}, release {index.release}, signed by {found.signer}"
    heads = ["target", "bundle", "delta", "from", "accuracy"]
    console().print(views.columns(title, heads, [line for row in found.rows for line in _lines(row)]), "")
    if found.skipped:
        cells = [(escape(printable(one.file)), escape(one.reason)) for one in found.skipped]
        console().print(views.columns("not used", ["file", "why"], cells), "")
    for warning in found.warnings:
        sys.stderr.write(f"warning: {printable(warning)}\n")
    sys.stdout.write(f"{found.out}: {'the same release lay there already' if found.existed else 'ready'}\n")


def _lines(row: Any) -> Iterator[tuple[str, ...]]:
    """A line a delta, at least one."""
    from edgebuild import views

    accuracy = _accuracies(row)
    said = ""
    if accuracy:
        old = f"{accuracy['old']:.4g} → " if accuracy["old"] is not None else ""
        said = f"{accuracy['metric']} {old}{accuracy['new']:.4g} {accuracy['unit']}".rstrip()
    first = (row.bundle.target, views.size(row.bundle.item.size))
    if not row.bundle.deltas:
        yield (*first, "-", "-", said)
    for number, (delta, old) in enumerate(zip(row.bundle.deltas, row.bases, strict=True)):
        base = f"{old.version} (release {old.release})"
        yield (*(first if number == 0 else ("", "")), views.size(delta.item.size), base, "" if number else said)


@app.command(epilog=EXIT_CODES)
def push(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of `edgebuild release`.", show_default=False)],
    layout: Annotated[
        str,
        typer.Argument(
            metavar="LAYOUT",
            help="oci:FOLDER[:TAG], or the folder's path. Without TAG the version names it; a TAG that is named moves.",
            show_default=False,
        ),
    ],
    trust: TrustFile = None,
    as_json: Json = False,
) -> None:
    """Add a release to an OCI image layout, from which any tool carries it to a registry."""
    from edgebuild.release import oci

    found = oci.push(folder, oci.Place.of(layout), _keys(trust))
    if as_json:
        fields = {"layout": str(found.layout), "tags": list(found.tags), "digest": found.digest}
        print_json({**fields, "files": found.files})
    else:
        tags = ", ".join(found.tags)
        sys.stdout.write(f"{found.layout}: {found.files} files, {found.digest}; tags: {tags}\n")


@app.command(epilog=EXIT_CODES)
def pull(
    layout: Annotated[
        str, typer.Argument(metavar="LAYOUT", help="oci:FOLDER[:TAG], or the folder's path.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where the release appears, whole or not.", show_default=False)
    ],
    trust: TrustFile = None,
    as_json: Json = False,
) -> None:
    """Take a release out of an OCI image layout: every digest is checked, and with --trust every signature."""
    from edgebuild.release import oci

    keys = _keys(trust)
    contents, fresh = oci.pull(oci.Place.of(layout), folder, keys)
    _say(contents, folder, {"existed": not fresh}, keys, as_json=as_json)


def _keys(trust: Path | None) -> "Trust | None":
    from edgebuild.core import keys

    return keys.load_trust(trust) if trust else None


def verify_release(folder: Path, trust: "Trust", *, as_json: bool) -> None:
    """What `edgebuild verify` says of a release's folder."""
    from edgebuild.release import folder as folders

    _say(folders.read(folder, trust), folder, {"verified": True}, trust, as_json=as_json)


def _say(contents: "Contents", folder: Path, more: dict[str, Any], trust: "Trust | None", *, as_json: bool) -> None:
    index = contents.index
    expired = expired_parts("the release", index.expires, trust)
    if as_json:
        fields = {"name": index.name, "version": index.version, "release": index.release, "signer": contents.signer}
        lists = {"files": list(contents.files), "strange": list(contents.strange)}
        print_json({**fields, "folder": str(folder), **more, "expired": expired, **lists})
        return
    whose = f"signed by {contents.signer}" if contents.signer else "signature not verified: no --trust"
    where = f"{folder}: {index.name} {index.version}, release {index.release}, {len(contents.files)} files"
    sys.stdout.write(f"{where}, {whose}\n")
    for what in expired:
        sys.stdout.write(f"warning: {what}: devices do not install it any more\n")
    for name in contents.strange:
        sys.stdout.write(f"warning: {printable(name)} is no part of the release\n")

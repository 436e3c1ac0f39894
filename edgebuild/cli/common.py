"""What the commands share: options, ways to print, and the application that they register with."""

# ruff: noqa: PLC0415 - a command imports what it needs, so that `--help` answers at once

import errno
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebuild.core.errors import BundleError, EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from datetime import date

    from rich.console import Console

    from edgebuild.core.signer import Signer
    from edgebuild.core.trust import Trust

EXIT_CODES = (
    "Exit codes: 0 done, 2 wrong command line, 3 recipe or target, 4 model, 5 calibration data, 6 compilation, "
    "7 check or accuracy, 8 bundle, key or trust file, 9 this machine (tool, disk, permission), 70 internal error, "
    "130 interrupted. With --json, errors are JSON on standard error."
)

app = typer.Typer(
    help="Compile a trained model and its handler into a small signed bundle for a device.",
    epilog=EXIT_CODES,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def targets_like(incomplete: str) -> list[str]:
    from edgebuild.core.target_file import HOST, list_targets, target_aliases

    names = [HOST, *(target.name for target in list_targets())]
    names += [alias for aliases in target_aliases().values() for alias in aliases]
    return [name for name in names if name.startswith(incomplete)]


def target_lists_like(incomplete: str) -> list[str]:
    """`a,b,c`: the last one is completed."""
    before, comma, last = incomplete.rpartition(",")
    return [before + comma + name for name in targets_like(last)]


def recipes_like(incomplete: str) -> list[str]:
    from edgebuild.projects import bundled_recipes

    return [name for name in bundled_recipes() if name.startswith(incomplete)]


Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

SignerCommand = Annotated[
    str | None,
    typer.Option(
        "--signer",
        metavar="COMMAND",
        help="Command that signs: the manifest comes on standard input, a minisign signature of a trusted key goes to "
        "standard output.",
        show_default=False,
    ),
]

Samples = Annotated[int | None, typer.Option(min=1, help="Number of calibration samples at most.", show_default=False)]
CalibrationSet = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Calibration set, as for compile.", show_default=False)
]
BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="An .ebundle file.", show_default=False)]

TargetName = Annotated[
    str,
    typer.Option("--target", "-t", metavar="NAME", help="A target's name or .toml file.", autocompletion=targets_like),
]


MaxDelta = Annotated[
    str | None,
    typer.Option(
        "--max-delta",
        metavar="SIZE",
        help="Ship the part of the update that comes nearest to the new network in a delta of at most so many bytes "
        "(100KB, 1MiB).",
        show_default=False,
    ),
]


def signer_of(
    key: Path | None, command: str | None, signature: Path | None, trust: Path | None
) -> "tuple[Signer, Trust]":
    """The one that was chosen, and the keys that its signature may be of."""
    from edgebuild.core import keys
    from edgebuild.core.signer import CommandSigner, SignatureFile
    from edgebuild.core.trust import Trust

    if sum(choice is not None for choice in (key, command, signature)) > 1:
        raise UsageError("more than one signer", "choose one of --key, --signer and --signature")
    if command is None and signature is None:
        secret = keys.signing_key(key)
        return secret, Trust([secret.public])
    trusted = keys.load_trust(trust or keys.user_trust_path())
    if command is not None:
        return CommandSigner(command, trusted), trusted
    assert signature is not None
    return SignatureFile(signature, trusted), trusted


def progress(*, plain: bool = True) -> Any:
    from rich.console import Console

    from edgebuild.views import StageProgress

    return StageProgress(Console(stderr=True), plain=plain)


def console() -> "Console":
    from rich.console import Console

    return Console()


def disk_errors_at(where: Path) -> Any:
    from edgebuild.core.disk import disk_errors

    return disk_errors(where)


def expired_parts(what: str, expires: "date | None", trusted: "Trust | None") -> list[str]:
    """What keeps a device from installing it from today on; it still verifies, and still runs (SPEC 4)."""
    from edgebuild.core.dates import today

    day, roles = today(), trusted.roles if trusted is not None else None
    past = []
    if expires is not None and day >= expires:
        past.append(f"{what} expired on {expires}")
    if roles is not None and roles.expired(day):
        past.append(f"the trust file expired on {roles.expires}")
    return past


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file in front of what is wrong with its bytes."""
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error


def print_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def bytes_of(option: str, size: str) -> int:
    """`100KB`, `1.5MiB`, `4096`."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([A-Za-z]*)", size)
    if found is None or found[2] not in _UNITS or not float(found[1]):
        units = ", ".join(filter(None, _UNITS))
        raise UsageError(f"{option} {size}: is not a size", f"write a number and one of {units}: 100KB")
    return int(float(found[1]) * _UNITS[found[2]])


def read_file(path: Path) -> bytes:
    """The bytes of what should be a bundle."""
    from edgebuild.core import delta, trust

    try:
        data = path.read_bytes()
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO)
        raise EnvironmentProblem(f"{path}: {reason}", "name an .ebundle file that `edgebuild compile` wrote") from error
    if data.startswith(delta.MAGIC):
        raise BundleError(
            f"{path}: is a delta, no bundle",
            "a device checks it against the release that it has; name the bundle",
        )
    if trust.is_roles(data):
        raise BundleError(f"{path}: is a trust file, no bundle", "`edgebuild trust show FILE` says what is in it")
    return data

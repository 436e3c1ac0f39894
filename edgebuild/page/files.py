"""From what the command line names, a bundle or a report's JSON, to the report and its page."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild import page
from edgebuild.core import disk
from edgebuild.core.errors import EnvironmentProblem, UsageError
from edgebuild.core.manifest import Manifest

BUNDLE, REPORT, PAGE = ".ebundle", ".report.json", ".report.html"
_KEYS = ("name", "version", "target")
_HINT = "`edgebuild compile` writes NAME.report.json beside NAME.ebundle: copy both, or build again"


@dataclass(frozen=True)
class Found:
    """A report, its page, and where the page belongs."""

    report: dict[str, Any]
    html: str
    place: Path


def load(path: Path) -> Found:
    """The report of a bundle, or the one that `path` is. Raises UsageError, EnvironmentProblem."""
    file = _beside(path)
    try:
        report = json.loads(file.read_bytes())
    except OSError as error:
        raise EnvironmentProblem(f"{file}: {os.strerror(error.errno or 0)}", _HINT) from error
    except ValueError as error:
        raise UsageError(f"{file}: is no report: {error}", _HINT) from error
    missing = [key for key in _KEYS if not isinstance(report, dict) or not isinstance(report.get(key), str)]
    if missing:
        raise UsageError(f"{file}: is no report of edgebuild: it has no key '{missing[0]}'", _HINT)
    try:
        html = page.render(report)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(
            f"{file}: holds a report that cannot be shown ({error!r})", "build the bundle again"
        ) from error
    return Found(report, html, file.with_name(file.name.removesuffix(".json").removesuffix(".report") + PAGE))


def write(found: Found, output: Path | None) -> Path:
    """Writes the page where it is asked for, else beside the report, unless it lies there already. Returns its path."""
    place = output or found.place
    data = found.html.encode()
    with disk.disk_errors(place):
        if not (place.is_file() and place.read_bytes() == data):
            disk.write_together(place.parent, {place.name: data})
    return place


def signed_again(bundle: Path, manifest: Manifest, signer: str, size: int) -> dict[str, bytes]:
    """The report beside a bundle, and its page, by name, once the bundle has another signature and `size` bytes.

    What lies there and is no report of this bundle stays as it is.
    """
    stem = bundle.name.removesuffix(BUNDLE)
    file, page_file = bundle.with_name(stem + REPORT), bundle.with_name(stem + PAGE)
    try:
        report = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    mine = {key: getattr(manifest, key) for key in _KEYS}
    if not isinstance(report, dict) or {key: report.get(key) for key in _KEYS} != mine:
        return {}
    report |= {"signer": signer, "bundle_bytes": size}
    files = {file.name: json.dumps(report, indent=2).encode() + b"\n"}
    if page_file.exists():
        with suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):  # a report of another edgebuild
            files[page_file.name] = page.render(report).encode()
    return files


def _beside(path: Path) -> Path:
    if path.name.endswith(BUNDLE):
        file = path.with_name(path.name.removesuffix(BUNDLE) + REPORT)
        if not path.exists() and not file.exists():
            raise UsageError(f"{path}: no such file", "name an .ebundle file or a .report.json")
        if not file.exists():
            raise UsageError(f"{path}: there is no report beside it: {file.name}", _HINT)
        return file
    if path.name.endswith(PAGE):
        return path.with_name(path.name.removesuffix(PAGE) + REPORT)
    if path.suffix != ".json":
        raise UsageError(f"{path}: is neither a bundle nor a report", "name an .ebundle file or a .report.json")
    return path

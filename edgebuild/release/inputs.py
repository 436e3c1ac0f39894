"""What a release is made from, as SBOM and provenance name it: files by digest, packages by version, never a path."""

import dataclasses
import importlib.metadata
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.core import digest
from edgebuild.core.calibration import find_set, has_test, load_set
from edgebuild.core.errors import UsageError
from edgebuild.core.recipe import LOCK_FILE, Recipe

_ALWAYS = ("apache-tvm", "numpy", "onnx", "onnxruntime", "ziglang", "zstandard")
_SAMPLES = ("pillow", "scikit-learn")  # what calibration sets are read with
_TENSORFLOW = ("tensorflow", "keras", "tf2onnx")
_BRINGS = {"torch": ("onnxscript",), "tensorflow": _TENSORFLOW, "keras": _TENSORFLOW}
_KINDS = {"pt2": ("torch", "onnxscript"), "keras": _TENSORFLOW, "saved_model": _TENSORFLOW, "tflite": _TENSORFLOW}
_OWN = ("core", "kernels", "pipeline", "reference", "stages")  # edgebuild's own sources that shape a bundle's bytes
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Data:
    """A part of a calibration set; `digest` covers its data and the code that reads it."""

    part: str
    name: str
    licence: str
    digest: str


@dataclass(frozen=True)
class Inputs:
    """`sources`: SHA-256 by name; `packages`: version by distribution; `own`: digest of edgebuild's sources."""

    recipe: str
    sources: dict[str, str]
    weights: str | None
    data: tuple[Data, ...]
    packages: dict[str, str]
    edgebuild: str
    own: str


def of(recipe: Recipe) -> Inputs:
    """Reads every file of the recipe; raises what is wrong with it or with its calibration set."""
    sources = {name: digest.of_file(path) for name, path in recipe.sources().items()}
    lock = recipe.folder / LOCK_FILE
    if lock.is_file() and not recipe.bare:
        sources[LOCK_FILE] = digest.of_file(lock)
    saved = recipe.saved if recipe.saved and recipe.saved.is_file() else None
    weights = recipe.weights if recipe.weights and recipe.weights.is_file() else saved
    return Inputs(
        recipe=recipe.digest(),
        sources=dict(sorted(sources.items())),
        weights=digest.of_file(weights) if weights else None,
        data=_data(recipe),
        packages=_packages(recipe),
        edgebuild=digest.package_version("edgebuild"),
        own=digest.of_modules(_OWN),
    )


def _data(recipe: Recipe) -> tuple[Data, ...]:
    if recipe.calibration.set is None:
        return ()
    place = find_set(recipe.calibration.set, recipe.folder)
    parts = [("calibration", load_set(place)), *([("test", load_set(place, "test"))] if has_test(place) else [])]
    return tuple(Data(part, found.name, found.licence, found.digest()) for part, found in parts)


def _packages(recipe: Recipe) -> dict[str, str]:
    """What ran: the compiler's packages, what the recipe imports, and what reads its model and data."""
    installed = importlib.metadata.packages_distributions()
    imported = recipe.imports() - {"edgebuild"}
    wanted = {*_ALWAYS, *_SAMPLES, *(one for name in imported for one in installed.get(name, ()))}
    wanted |= {one for name in imported for one in _BRINGS.get(name, ())}
    wanted |= set(_KINDS.get(recipe.model.saved[0], ())) if recipe.model.saved else set()
    wanted |= {"safetensors"} if recipe.weights else set()
    versions = {name.lower().replace("_", "-"): digest.package_version(name) for name in wanted}
    return {name: version for name, version in sorted(versions.items()) if version != "absent"}


def package_url(name: str, version: str) -> str:
    """https://github.com/package-url/purl-spec: a local version's plus sign is encoded."""
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def stated(value: Any) -> dict[str, Any]:
    """A frozen dataclass as JSON."""
    return {key: list(found) if isinstance(found, tuple) else found for key, found in dataclasses.asdict(value).items()}


def check_commit(commit: str | None, folder: Path) -> None:
    """The provenance must not claim a commit that the recipe does not come from. Raises UsageError."""
    if commit is None:
        return
    if not _COMMIT.fullmatch(commit):
        raise UsageError(f"--commit {commit}: is no commit", "give its 40 (or 64) hex digits: git rev-parse HEAD")
    head = _git(folder, "rev-parse", "HEAD")
    if head is None:
        return  # a copy without history: the claim is the caller's
    if head.strip() != commit:
        raise UsageError(f"--commit {commit}: {folder} lies in a checkout of {head.strip()}", "check out the commit")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", ".")
    if changed:
        raise UsageError(
            f"--commit {commit}: {folder} has changes that are not committed: {changed.split()[1]}",
            "commit them, or leave out --commit",
        )


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of git, None where there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=False, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

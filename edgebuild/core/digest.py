"""Digests of everything a stage's result depends on. Nothing here imports what it digests."""

import hashlib
import importlib.metadata
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
_CHUNK = 1 << 20
_IGNORED = {"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def sha256(data: bytes | memoryview) -> str:
    """Lower-case hex SHA-256."""
    return hashlib.sha256(data).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_parts(*parts: str) -> str:
    """One digest of several texts; each is preceded by its length, so that no two lists collide."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode()
        state.update(f"{len(data)}:".encode())
        state.update(data)
    return state.hexdigest()


def files_below(folder: Path) -> list[Path]:
    """All files below `folder`, sorted, without what tools leave behind and without hidden files."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not _IGNORED.intersection(path.relative_to(folder).parts)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.suffix != ".pyc"
    )


def of_folder(folder: Path) -> str:
    """Digest of relative paths and contents below `folder`; where the folder lies does not matter."""
    return of_parts(*(part for path in files_below(folder) for part in (str(path.relative_to(folder)), of_file(path))))


def of_modules(names: Iterable[str]) -> str:
    """Digest of edgebuild's own sources: `stages/compile` (a folder) or `core/plan` (a module)."""
    parts = []
    for name in sorted(names):
        folder, module = PACKAGE / name, PACKAGE / f"{name}.py"
        parts += [name, of_folder(folder) if folder.is_dir() else of_file(module)]
    return of_parts(*parts)


def of_packages(names: Iterable[str]) -> str:
    """Digest of the installed versions of distributions; one that is not installed counts as absent."""
    return of_parts(*(part for name in sorted(names) for part in (name, package_version(name))))


def package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"

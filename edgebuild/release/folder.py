"""The folder of a release: it appears whole or not at all, and is read and verified as a whole."""

import fcntl
import glob
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from edgebuild.core import bundle as bundles
from edgebuild.core import digest
from edgebuild.core.disk import disk_errors, write_together
from edgebuild.core.errors import BundleError, EnvironmentProblem, UsageError
from edgebuild.core.manifest import serialize
from edgebuild.core.trust import Trust, verify
from edgebuild.release import index as index_format
from edgebuild.release import names, provenance, sums
from edgebuild.release.index import Bundle, Index

_DAMAGED = "get the release again from its source"
_ANOTHER = "name another folder: what was released is never overwritten"
_LEFT = re.compile(r"\.[a-z0-9_]{8}\.part")
"""What `tempfile.mkdtemp` puts behind a name."""


@dataclass(frozen=True)
class Contents:
    """A release whose files are those that SHA256SUMS lists; `signer` is None where no signature was verified.

    `files`: what is given on, signatures and reports included, in the order of their names. `strange`: what does not
    belong to it.
    """

    folder: Path
    index: Index
    files: tuple[str, ...]
    strange: tuple[str, ...]
    signer: str | None


def check_free(out: Path) -> None:
    """Refuses a folder that can never become this release, before anything is built. Raises UsageError."""
    if out.is_symlink() and not out.exists():
        raise UsageError(f"{out}: is a link to nothing", "name another folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is no folder", "name another one")
    if out.is_dir() and any(out.iterdir()) and not (out / names.SUMS).is_file():
        raise UsageError(f"{out}: holds other files, and no release", _ANOTHER)


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what is to appear there; it is gone when the block ends, unless it was published.

    One that a killed process left is removed first. A lock on it, which ends with its process, tells the two apart.
    """
    name, parent = out.resolve().name, out.resolve().parent
    with disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with _held(parent):  # between its making and its lock, a folder looks like one that was left
            _remove_left(parent, name)
            place = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=parent))
            lock = os.open(place, os.O_RDONLY)
            _lock(lock)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> bool:
    """False where another holds it, or where the file system has no locks: then nothing is removed."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_left(parent: Path, name: str) -> None:
    for path in parent.glob(f".{glob.escape(name)}.*.part"):
        if not _LEFT.fullmatch(path.name.removeprefix(f".{name}")):
            continue
        with suppress(OSError):  # another user's, or gone meanwhile
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if _lock(handle):
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(handle)


def write(folder: Path, name: str, data: bytes) -> None:
    assert names.is_file_name(name), name
    write_together(folder, {name: data})


def publish(stage: Path, out: Path) -> bool:
    """Gives the staged folder its name. False where `out` holds this release already: then nothing changes.

    Raises UsageError where it holds another one.
    """
    place = out.resolve()
    with disk_errors(out):
        if place.is_dir() and any(place.iterdir()):
            if _same(stage, place):
                return False
            raise UsageError(f"{out}: holds another release already", _ANOTHER)
        stage.chmod(0o777 & ~_umask())
        stage.rename(place)
        _sync(place)
        _sync(place.parent)
    return True


def _same(stage: Path, place: Path) -> bool:
    """Whether both have the same sums, and what lies at `place` is what they say."""
    try:
        if (stage / names.SUMS).read_bytes() != (place / names.SUMS).read_bytes():
            return False
        read(place, None)
    except (OSError, BundleError):
        return False
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(folder: Path, trust: Trust | None) -> Contents:
    """A release: every file that SHA256SUMS lists is there and unchanged, and the index names no others.

    With `trust`, the signatures of SHA256SUMS, release.json, every bundle and the provenance must hold, and they are
    verified before anything of these files is parsed. Raises BundleError, EnvironmentProblem, and UsageError for what
    is no release.
    """
    if not (folder / names.SUMS).is_file():
        raise UsageError(f"{folder}: is no release: it holds no {names.SUMS}", "name a folder of `edgebuild release`")
    signer = None if trust is None else _signed(folder, names.SUMS, trust)
    listed = sums.parse(_bytes(folder / names.SUMS))
    if names.INDEX not in listed:
        raise BundleError(f"{folder / names.SUMS}: does not list {names.INDEX}", _DAMAGED)
    for name, expected in listed.items():
        _check_file(folder / name, expected)
    if trust is not None:
        _signed(folder, names.INDEX, trust)
    index = index_format.parse(_bytes(folder / names.INDEX))
    _check_index(folder, index, listed)
    for row in index.bundles:
        _check_bundle(folder, index, row, trust)
    if trust is not None:
        _check_provenance(folder, index, listed, trust)
    present = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    own = {*listed, names.SUMS, names.SUMS + names.SIGNATURE, *_beside(index, names.REPORTS)}
    strange = present - own - _beside(index, (names.BASIS,))
    return Contents(folder, index, tuple(sorted(own & present)), tuple(sorted(strange)), signer)


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        raise BundleError(f"{path}: is missing", _DAMAGED)
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be read: {os.strerror(error.errno or 0)}", _DAMAGED) from error


def _signed(folder: Path, name: str, trust: Trust) -> str:
    """The key that signed a file, by the signature beside it."""
    data, signature = _bytes(folder / name), _bytes(folder / (name + names.SIGNATURE))
    try:
        return verify(data, signature, trust)[0].name
    except BundleError as error:
        raise BundleError(f"{folder / name}: {error.message}", error.hint) from error


def _check_file(path: Path, expected: str) -> None:
    if path.is_symlink() or not path.is_file():
        raise BundleError(f"{path}: is missing", _DAMAGED)
    if digest.of_file(path) != expected:
        raise BundleError(f"{path}: is not the file that was released: its SHA-256 differs", _DAMAGED)


def _check_index(folder: Path, index: Index, listed: dict[str, str]) -> None:
    for item in index.items().values():
        if listed.get(item.file) != item.sha256 or (folder / item.file).stat().st_size != item.size:
            where = folder / names.INDEX
            raise BundleError(f"{where}: `{item.file}` is not the file that {names.SUMS} lists", _DAMAGED)


def _check_bundle(folder: Path, index: Index, row: Bundle, trust: Trust | None) -> None:
    """A bundle is what the index says of it, and with `trust` signed."""
    path = folder / row.item.file
    data = _bytes(path)
    try:
        manifest = (bundles.read_unverified(data) if trust is None else bundles.read_bundle(data, trust)).manifest
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error
    of_index = (row.id, row.target, index.name, index.version, index.release, index.made, index.expires)
    own = (manifest.target, manifest.name, manifest.version, manifest.release, manifest.made, manifest.expires)
    if of_index != (digest.sha256(serialize(manifest)), *own):
        raise BundleError(f"{path}: is not the bundle that {names.INDEX} describes", _DAMAGED)


def _check_provenance(folder: Path, index: Index, listed: dict[str, str], trust: Trust) -> None:
    path = folder / names.provenance(index.name, index.version)
    beside = path.with_name(path.name + names.SIGNATURE)
    try:
        if beside.exists():
            _signed(folder, path.name, trust)
            subjects = provenance.subjects(_bytes(path), None)
        else:
            subjects = provenance.subjects(_bytes(path), trust)
    except BundleError as error:
        raise BundleError(f"{path}: {error.message}", error.hint) from error
    for name, expected in subjects.items():
        if listed.get(name) != expected:
            raise BundleError(f"{path}: speaks of another `{name}` than {names.SUMS}", _DAMAGED)


def _beside(index: Index, suffixes: tuple[str, ...]) -> set[str]:
    """What builds put beside the bundles, and nobody signs."""
    stems = [names.stem(index.name, index.version, bundle.target) for bundle in index.bundles]
    return {stem + suffix for stem in stems for suffix in suffixes}

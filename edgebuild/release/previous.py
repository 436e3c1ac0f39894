"""Releases of before: what deltas start from, and the largest release counter.

A delta needs only bytes, so that a bundle under an unknown key may be its base (the key was rotated, say); the counter
is believed only where the signature holds, or a stray file could use up all numbers that devices will ever accept.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgebuild.core import bundle as bundles
from edgebuild.core.digest import sha256
from edgebuild.core.errors import BundleError, EdgebuildError, UsageError
from edgebuild.core.lines import MAX_NUMBER
from edgebuild.core.manifest import serialize
from edgebuild.core.trust import Trust
from edgebuild.release import names

_SUFFIX = ".ebundle"


@dataclass(frozen=True)
class Old:
    """A bundle of before; `id` is the SHA-256 of its manifest, `trusted` whether its signature holds."""

    path: Path
    target: str
    version: str
    release: int
    id: str
    sha256: str
    key: str
    trusted: bool

    def read(self) -> bytes:
        """Its bytes, which must still be those that were looked at."""
        data = self.path.read_bytes()
        if sha256(data) != self.sha256:
            raise BundleError(f"{self.path}: has changed meanwhile", "run it again")
        return data

    @property
    def basis(self) -> Path:
        """What a later training is quantized with on the same grid; it may not be there."""
        return self.path.with_name(self.path.name.removesuffix(_SUFFIX) + names.BASIS)

    def report(self) -> dict[str, Any] | None:
        """The report beside it, where there is one that can be read."""
        path = self.path.with_name(self.path.name.removesuffix(_SUFFIX) + names.REPORTS[0])
        try:
            found = json.loads(path.read_bytes()) if path.is_file() else None
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Skipped:
    """A file that no delta starts from, or a delta that is not in the release, and why."""

    file: str
    reason: str


@dataclass
class Previous:
    """All that was found; `bases` has the bundles of this name, each once."""

    bases: list[Old] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)

    def of(self, target: str) -> Iterator[Old]:
        """What a delta for `target` may start from, the newest first."""
        own = (old for old in self.bases if old.target == target)
        yield from sorted(own, key=lambda old: (-old.release, old.id))

    @property
    def unknown(self) -> list[Old]:
        return [old for old in self.bases if not old.trusted]


def scan(folders: Iterable[Path], name: str, trust: Trust) -> Previous:
    """Looks at every bundle that lies in `folders`. Raises UsageError for a folder that is none; what is wrong with a
    file is said in `skipped`.
    """
    found = Previous()
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--previous {folder}: no such folder", "name the folder of an earlier release")
        for path in sorted(folder.glob(f"*{_SUFFIX}")):
            _take(path, name, trust, found)
    return found


def _take(path: Path, name: str, trust: Trust, found: Previous) -> None:
    if not path.is_file():  # reading a pipe would wait for ever
        found.skipped.append(Skipped(path.name, "is no file"))
        return
    try:
        data = path.read_bytes()
        old = _read(path, data, trust)
    except OSError as error:
        found.skipped.append(Skipped(path.name, os.strerror(error.errno or 0)))
    except EdgebuildError as error:
        found.skipped.append(Skipped(path.name, error.message))
    else:
        whose = bundles.read_unverified(data).manifest.name
        if whose != name:
            found.skipped.append(Skipped(path.name, f"is of '{whose}'"))
        elif all(old.id != other.id for other in found.bases):
            found.bases.append(old)


def _read(path: Path, data: bytes, trust: Trust) -> Old:
    """Raises BundleError for what is no bundle, and for a signature that does not hold by a key that is known."""
    read = bundles.read_unverified(data)
    key = bundles.signature_key_name(data)
    known = any(public.name == key for public in trust.values())
    if known:
        bundles.read_bundle(data, trust)
    manifest = read.manifest
    return Old(
        path=path,
        target=manifest.target,
        version=manifest.version,
        release=manifest.release,
        id=sha256(serialize(manifest)),
        sha256=sha256(data),
        key=key,
        trusted=known,
    )


def next_release(previous: Previous, asked: int | None, stated: int = 1) -> int:
    """The release counter: `asked`, else one more than the largest of before, at least `stated`.

    Raises UsageError for one that devices would refuse, BundleError where nobody knows what came before.
    """
    last = max((old.release for old in previous.bases if old.trusted), default=0)
    if asked is not None:
        if asked <= last:
            raise UsageError(
                f"--release {asked}: release {last} came before, and devices install nothing that is older",
                f"leave it out, or take {last + 1} or more",
            )
        return asked
    for old in previous.unknown:
        if old.release > last:
            raise BundleError(
                f"{old.path}: signed by key {old.key}, which is not trusted here, so its release counter "
                f"{old.release} counts nothing",
                "if it is yours, and its key was replaced since, say a larger counter with --release, this once; else "
                "name the trust file that lists its key with --trust, or take it away",
            )
    if last >= MAX_NUMBER:
        raise UsageError(f"the last release has the largest counter that there is, {last}", "give it another name")
    return max(last + 1, stated)

"""Delta: two bundles to what turns one into the other, in as few bytes as the codecs of SPEC section 12 give."""

from collections.abc import Iterator
from dataclasses import dataclass

from edgebuild.core import bundle, manifest, minisign, tar
from edgebuild.core.bundle import Bundle
from edgebuild.core.coded import Codecs, Old
from edgebuild.core.delta import (
    CODECS,
    PATCH,
    PLANS_MAX,
    PREFIX_MAX,
    RAW,
    SAME,
    WEIGHTS,
    ZSTD,
    ZSTD_OLD,
    Delta,
    Part,
    compress,
    decompress,
    parse,
    serialize,
)
from edgebuild.core.digest import sha256
from edgebuild.core.errors import BundleError
from edgebuild.core.plan import Plan, read_plan
from edgebuild.stages.delta.matches import steps

_PATCH_MAX = 16 << 20
"""Larger files are not searched for matches: the suffix array takes 17 times as much memory."""
_SLOW_MAX = 16 << 20
"""And are compressed at a lower level."""


@dataclass(frozen=True)
class Row:
    """What became of one file; `cost` in bytes of the delta."""

    path: str
    size: int
    codec: str
    cost: int


@dataclass(frozen=True)
class Made:
    """A delta; `head` is what manifest and signature take of it."""

    data: bytes
    rows: tuple[Row, ...]
    head: int
    old: manifest.Manifest
    new: manifest.Manifest
    bundle_bytes: int

    @property
    def spent(self) -> dict[str, int]:
        """Bytes of the delta by file, of those that it brings."""
        return {row.path: row.cost for row in self.rows if row.codec != "same"}


@dataclass(frozen=True)
class _Release:
    """A bundle, read without trust: a delta is verified where it is applied."""

    head: tuple[bytes, bytes]
    read: Bundle

    @classmethod
    def of(cls, data: bytes) -> "_Release":
        return cls(bundle.head(data), bundle.read_unverified(data))

    @property
    def base(self) -> bytes:
        return bytes.fromhex(sha256(self.head[0]))

    def file(self, path: str) -> bytes | None:
        found = self.read.files.get(path)
        return None if found is None else bytes(found)


def make_delta(old: bytes, new: bytes, codecs: Codecs) -> Made:
    """The delta from bundle to bundle, applied and compared before it is given out.

    Raises BundleError where the two are not releases of one function for one target.
    """
    before, after = _Release.of(old), _Release.of(new)
    _check_pair(before.read.manifest, after.read.manifest)
    parts = [_smallest(before, after, file, codecs) for file in after.read.manifest.files]
    head = compress(b"".join(after.head), b"".join(before.head))
    sizes = len(after.head[0]), len(after.head[1])
    data = serialize(Delta(before.base, *sizes, head, tuple(parts)))
    if apply_delta(old, data, codecs) != new:
        raise BundleError("the delta does not make the new bundle", "this is a bug in edgebuild: use the whole bundle")
    rows = tuple(
        Row(file.path, file.size, CODECS[part.codec], part.cost)
        for file, part in zip(after.read.manifest.files, parts, strict=True)
    )
    return Made(
        data, rows, len(data) - sum(row.cost for row in rows), before.read.manifest, after.read.manifest, len(new)
    )


def apply_delta(old: bytes, delta: bytes, codecs: Codecs) -> bytes:
    """The new bundle. Raises BundleError for a delta of another base, and for one that does not make what it says.

    Signatures are not verified here; the digests that the new manifest names are.
    """
    before, found = _Release.of(old), parse(delta)
    if found.base != before.base:
        raise BundleError("the delta is for another base than this bundle", "it starts from one release only")
    head = decompress(found.head, found.manifest_size + found.signature_size, b"".join(before.head))
    text, signature = head[: found.manifest_size], head[found.manifest_size :]
    minisign.parse_signature(signature)
    wanted = manifest.parse(text)
    if len(found.parts) != len(wanted.files):
        raise BundleError("the delta does not have as many files as its manifest", "make it again")
    files: dict[str, bytes] = {}
    for file, part in zip(wanted.files, found.parts, strict=True):
        files[file.path] = _decoded(before, files, file, part, codecs)
        if sha256(files[file.path]) != file.sha256:
            raise BundleError(f"the delta does not make `{file.path}`: its SHA-256 differs", tar.DAMAGED)
    return b"".join(bundle.pieces(wanted, signature, files))


def _check_pair(old: manifest.Manifest, new: manifest.Manifest) -> None:
    for what in ("name", "target"):
        before, after = getattr(old, what), getattr(new, what)
        if before != after:
            raise BundleError(f"the bundles have different {what}s: {before} and {after}", "name two releases of one")


def _smallest(before: _Release, after: _Release, file: manifest.File, codecs: Codecs) -> Part:
    if any(file.sha256 == other.sha256 for other in before.read.manifest.files):
        return Part(SAME, b"")
    new = after.file(file.path)
    assert new is not None
    best = Part(RAW, new)
    for part in _candidates(before, after, file.path, new, codecs):
        if part.cost < best.cost:
            best = part
    return best


def _candidates(before: _Release, after: _Release, path: str, new: bytes, codecs: Codecs) -> Iterator[Part]:
    old = before.file(path)
    yield Part(ZSTD, compress(new, level=19 if len(new) <= _SLOW_MAX else 9))
    if old is None:
        return
    if len(old) <= PREFIX_MAX:
        yield Part(ZSTD_OLD, compress(new, old))
    most = len(new)
    if path == "weights.bin" and _same_layout(before, after):
        plan = after.file("plan.bin")
        assert plan is not None
        coded = codecs.weights(plan, old, new, most)
        yield from [Part(WEIGHTS, coded)] if coded is not None else []
        found = [(0, 0, 0), (len(new), 0, 0)]  # each byte by the old one: what pruning sets to 0 follows from it
    else:
        found = steps(old, new) if max(len(old), len(new)) <= _PATCH_MAX else []
    if found and 0 < len(new) <= _PATCH_MAX:
        coded = codecs.patch(old, new, found, most)
        yield from [Part(PATCH, coded)] if coded is not None else []


def _same_layout(before: _Release, after: _Release) -> bool:
    """Whether weights.bin holds the same tensors at the same places, and a device has room for what says so."""
    plans = {before.file("plan.bin") or b"", after.file("plan.bin") or b""}
    return sum(map(len, plans)) <= PLANS_MAX and _layout(before) == _layout(after)


def _layout(release: _Release) -> tuple[object, ...]:
    plan: Plan = read_plan(release.file("plan.bin") or b"")
    tensors = [(t.dtype, t.offset, t.nbytes) if t.space == "weights" else None for t in plan.tensors]
    return plan.weights_bytes, tensors


def _decoded(before: _Release, files: dict[str, bytes], file: manifest.File, part: Part, codecs: Codecs) -> bytes:
    if part.codec == SAME:
        found = next((other.path for other in before.read.manifest.files if other.sha256 == file.sha256), None)
        if found is None:
            raise BundleError(f"the delta takes `{file.path}` from the base, which has no such file", "make it again")
        return before.file(found) or b""
    old = before.file(file.path)
    known = None if old is None else Old(old, before.file("plan.bin") or b"")
    return codecs.decoded(part.codec, file.path, part.data, file.size, files.get("plan.bin", b""), known)

"""A release as an OCI image layout, and back (https://github.com/opencontainers/image-spec, version 1.1).

    oci-layout, index.json, blobs/sha256/DIGEST

The tag (the version, if none is named) is an artifact of which every file of the release is a layer with a title.
`TAG-TARGET` is one of the bundle of one kind of device and its deltas, with a platform. They share the blobs, so
that `oras cp --from-oci-layout LAYOUT:TAG REGISTRY/NAME:TAG` carries either to a registry.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.core.digest import sha256
from edgebuild.core.disk import disk_errors
from edgebuild.core.errors import BundleError, EnvironmentProblem, UsageError
from edgebuild.core.trust import Trust
from edgebuild.release import folder as release_folder
from edgebuild.release import names
from edgebuild.release.folder import Contents
from edgebuild.release.index import Bundle, load_object

RELEASE_TYPE = "application/vnd.edgebuild.release.v1"
BUNDLE_TYPE = "application/vnd.edgebuild.bundle.v1"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_EMPTY_TYPE, _EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
_IMAGE = "org.opencontainers.image."
_TITLE, _REF_NAME = _IMAGE + "title", _IMAGE + "ref.name"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "riscv64": "riscv64"}
_MEDIA_TYPES = (
    (".ebundle", BUNDLE_TYPE + "+tar"),
    (".edelta", "application/vnd.edgebuild.delta.v1"),
    (".cdx.json", "application/vnd.cyclonedx+json"),
    (".intoto.jsonl", "application/vnd.in-toto.bundle"),
    (names.SIGNATURE, "text/plain"),
    (names.SUMS, "text/plain"),
    (names.INDEX, "application/vnd.edgebuild.index.v1+json"),
    (".json", "application/json"),
    (".html", "text/html"),
)
_LAYOUT_FILE, _INDEX_FILE = "oci-layout", "index.json"
_LAYOUT_VERSION = "1.0.0"
_TEMPORARY = re.compile(r"\.(?:[0-9a-f]{64}|oci-layout|index\.json)\.[0-9]+")
_TAG = re.compile(r"[A-Za-z0-9]+(?:[-._][A-Za-z0-9]+)*")
_MAX_TAG = 128
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_JSON = 4 << 20
_MAX_LAYERS = 4096
_CHUNK = 1 << 20
_DAMAGED = "get the layout again from its source"
_NO_LAYOUT = "`edgebuild push DIR LAYOUT` makes one"


@dataclass(frozen=True)
class Place:
    """A layout's folder and a tag in it; without one, push takes the release's version, pull the only release."""

    layout: Path
    tag: str | None = None

    @classmethod
    def of(cls, text: str) -> "Place":
        """`oci:LAYOUT[:TAG]`, or the folder's path as it is. Raises UsageError."""
        if "://" in text:
            raise UsageError(
                f"{text}: is a registry's address; edgebuild writes and reads folders",
                "between the two: oras cp --from-oci-layout LAYOUT:TAG REGISTRY/NAME:TAG, or skopeo",
            )
        if not text.startswith("oci:"):
            return cls(Path(text))
        path, colon, tag = text.removeprefix("oci:").rpartition(":")
        if not colon or "/" in tag:
            path, tag = text.removeprefix("oci:"), ""
        if not path:
            raise UsageError(f"{text}: names no folder", "write oci:LAYOUT or oci:LAYOUT:TAG")
        if colon and path and tag and not (_TAG.fullmatch(tag) and len(tag) <= _MAX_TAG):
            raise UsageError(f"{text}: '{tag}' is no tag", "letters and digits, separated by single . _ -")
        return cls(Path(path), tag or None)


@dataclass(frozen=True)
class Pushed:
    """`tags`: what now names an artifact: the release's, then one a target."""

    layout: Path
    tags: tuple[str, ...]
    digest: str
    files: int


def tag_of(version: str) -> str:
    """A version as a tag, which has no `+` and no `~`."""
    return re.sub(r"[-._+~]*[+~][-._+~]*|[-._]{2,}", "-", version).strip("-._")


def push(folder: Path, place: Place, trust: Trust | None) -> Pushed:
    """Adds a release to a layout, which is made where there is none; other tags stay.

    A version that is there already with other content is refused, unless the tag was named: that one moves. Raises
    what `folder.read` does for what is no release, UsageError, EnvironmentProblem.
    """
    contents = release_folder.read(folder, trust)
    with disk_errors(place.layout), _locked(place.layout):
        old = _manifests(place.layout)
        descriptors = {name: _add_file(place.layout, folder / name) for name in contents.files}
        _add_blob(place.layout, _EMPTY)
        tag = place.tag or tag_of(contents.index.version)
        new = list(_described(place.layout, contents, tag, descriptors))
        kept = _kept(old, new, moves=place.tag is not None, where=place.layout)
        _write(place.layout / _INDEX_FILE, _json({"schemaVersion": 2, "mediaType": _INDEX, "manifests": [*kept, *new]}))
    tags = tuple(one["annotations"][_REF_NAME] for one in new)
    return Pushed(place.layout, tags, new[0]["digest"], len(descriptors))


def _kept(
    old: Iterable[dict[str, Any]], new: Iterable[dict[str, Any]], *, moves: bool, where: Path
) -> Iterator[dict[str, Any]]:
    """The entries of before whose tags are not given anew."""
    given = {_ref(one): one["digest"] for one in new}
    for one in old:
        ref = _ref(one)
        if ref is None or ref not in given:
            yield one
        elif one.get("digest") != given[ref] and not moves:
            raise UsageError(
                f"{where}: the tag '{ref}' names another release", f"name a tag, which then moves: oci:{where}:TAG"
            )


def _described(
    layout: Path, contents: Contents, tag: str, descriptors: Mapping[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Manifests of the release and of each bundle, as blobs; gives index.json's entries."""
    index = contents.index
    shared = {_IMAGE + "version": index.version, "edgebuild.release": str(index.release)}
    if index.made:
        shared[_IMAGE + "created"] = f"{index.made}T00:00:00Z"
    title = {_TITLE: index.name}
    yield _manifest(layout, RELEASE_TYPE, list(descriptors.values()), {**title, **shared}, tag)
    for bundle in index.bundles:
        own = [descriptors[item.file] for item in (bundle.item, *(delta.item for delta in bundle.deltas))]
        about = {**title, **shared, "edgebuild.target": bundle.target}
        found = _manifest(layout, BUNDLE_TYPE, own, about, f"{tag}-{bundle.target}")
        yield {**found, "platform": _platform(contents.folder, bundle)}


def _platform(folder: Path, bundle: Bundle) -> dict[str, str]:
    from edgebuild.core.bundle import read_unverified  # noqa: PLC0415 - pull does without it

    manifest = read_unverified((folder / bundle.item.file).read_bytes()).manifest
    return {"architecture": _ARCHITECTURES[manifest.arch], "os": "linux"}


def _manifest(
    layout: Path, kind: str, layers: list[dict[str, Any]], annotations: Mapping[str, str], tag: str
) -> dict[str, Any]:
    config = _descriptor(_EMPTY_TYPE, _EMPTY) | {"data": "e30="}
    data = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "artifactType": kind,
            "config": config,
            "layers": layers,
            "annotations": dict(annotations),
        }
    )
    _add_blob(layout, data)
    return {**_descriptor(_MANIFEST, data), "artifactType": kind, "annotations": {_REF_NAME: tag}}


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}


def _media_type(name: str) -> str:
    return next((kind for suffix, kind in _MEDIA_TYPES if name.endswith(suffix)), "application/octet-stream")


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _ref(entry: Mapping[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    found = annotations.get(_REF_NAME) if isinstance(annotations, dict) else None
    return found if isinstance(found, str) else None


@contextmanager
def _locked(layout: Path) -> Iterator[None]:
    """The layout, made if need be; a second push waits."""
    layout.mkdir(parents=True, exist_ok=True)
    handle = os.open(layout, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if any(layout.iterdir()) and not (layout / _LAYOUT_FILE).is_file():
            raise UsageError(f"{layout}: holds other files, and no OCI layout", "name another folder")
        if not (layout / _LAYOUT_FILE).exists():
            _write(layout / _LAYOUT_FILE, json.dumps({"imageLayoutVersion": _LAYOUT_VERSION}).encode())
        (layout / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        for folder in (layout, layout / "blobs" / "sha256"):
            for left in folder.glob(".*"):  # of a push that was killed: only who holds the lock writes
                if _TEMPORARY.fullmatch(left.name):
                    left.unlink()
        yield
    finally:
        os.close(handle)


def _write(path: Path, data: bytes) -> None:
    """Appears whole, with the mode that the umask gives."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / "sha256" / digest


def _add_blob(layout: Path, data: bytes) -> None:
    path = _blob(layout, sha256(data))
    if not (path.is_file() and path.read_bytes() == data):
        _write(path, data)


def _add_file(layout: Path, path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    _add_blob(layout, data)
    return {**_descriptor(_media_type(path.name), data), "annotations": {_TITLE: path.name}}


def pull(place: Place, out: Path, trust: Trust | None) -> tuple[Contents, bool]:
    """Writes the release that a tag names to `out`, or nothing; False beside it where `out` held it already.

    Every digest and size holds, and the release is one as `folder.read` says, with `trust` a signed one. Raises
    BundleError, UsageError, EnvironmentProblem.
    """
    release_folder.check_free(out)
    layers = _layers(place)
    with release_folder.staged(out) as stage:
        for name, layer in layers.items():
            _copy(place.layout, layer, stage / name)
        contents = release_folder.read(stage, trust)
        if contents.strange:
            raise BundleError(f"{place.layout}: `{contents.strange[0]}` is no part of the release", _DAMAGED)
        return contents, release_folder.publish(stage, out)


def _layers(place: Place) -> dict[str, dict[str, Any]]:
    """The layers of the release that is asked for, by title."""
    entry = _chosen(place)
    data = _read_json_blob(place.layout, entry)
    manifest = load_object(data, f"{place.layout}: the manifest")
    if manifest.get("artifactType") == BUNDLE_TYPE:
        raise UsageError(
            f"{place.layout}: the tag '{_ref(entry)}' names one bundle and its deltas, no whole release",
            f"name the release's tag: {_tags(_releases(_manifests(place.layout)))}",
        )
    if manifest.get("artifactType") != RELEASE_TYPE:
        raise BundleError(f"{place.layout}: is no release of edgebuild: {manifest.get('artifactType')}", _NO_LAYOUT)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not 0 < len(layers) <= _MAX_LAYERS:
        raise BundleError(f"{place.layout}: the manifest has no layers, or over {_MAX_LAYERS}", _DAMAGED)
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        annotations = layer.get("annotations") if isinstance(layer, dict) else None
        title = annotations.get(_TITLE) if isinstance(annotations, dict) else None
        if not isinstance(title, str) or not names.is_file_name(title):
            raise BundleError(f"{place.layout}: a layer's title {title!r} is no plain file name", _DAMAGED)
        if title in found:
            raise BundleError(f"{place.layout}: two layers have the title `{title}`", _DAMAGED)
        found[title] = layer
    return found


def _chosen(place: Place) -> dict[str, Any]:
    """index.json's entry for the tag, or the only release."""
    layout = place.layout
    if not (layout / _LAYOUT_FILE).is_file():
        raise UsageError(f"{layout}: is no OCI layout: it holds no {_LAYOUT_FILE}", _NO_LAYOUT)
    entries = _manifests(layout)
    releases = _releases(entries)
    tags = _tags(releases)
    if place.tag is None and len({str(one.get("digest")) for one in releases}) != 1:
        raise UsageError(f"{layout}: holds {len(releases)} releases", f"name one: oci:{layout}:TAG; tags: {tags}")
    named = releases if place.tag is None else [one for one in entries if _ref(one) == place.tag]
    if not named:
        raise UsageError(f"{layout}: has no tag '{place.tag}'", f"tags: {tags}")
    if len({str(one.get("digest")) for one in named}) > 1:
        raise BundleError(f"{layout}: the tag '{place.tag}' occurs twice", _DAMAGED)
    return named[0]


def _releases(entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Other tools write no artifactType into index.json; the manifest behind it has it."""
    return [one for one in entries if one.get("artifactType", RELEASE_TYPE) == RELEASE_TYPE]


def _tags(entries: Iterable[dict[str, Any]]) -> str:
    return ", ".join(ref for one in entries if (ref := _ref(one))) or "none"


def _manifests(layout: Path) -> list[dict[str, Any]]:
    """index.json's entries; none where there is no index yet. Raises BundleError for what is no layout of ours."""
    where = layout / _LAYOUT_FILE
    if load_object(_small(where), str(where)).get("imageLayoutVersion") != _LAYOUT_VERSION:
        raise BundleError(f"{where}: its imageLayoutVersion is not {_LAYOUT_VERSION}", _NO_LAYOUT)
    path = layout / _INDEX_FILE
    if not path.exists():
        return []
    found = load_object(_small(path), str(path))
    entries = found.get("manifests")
    if found.get("schemaVersion") != 2 or not isinstance(entries, list):
        raise BundleError(f"{path}: is no OCI image index", _NO_LAYOUT)
    if not all(isinstance(one, dict) for one in entries):
        raise BundleError(f"{path}: an entry is no descriptor", _DAMAGED)
    return entries


def _small(path: Path) -> bytes:
    if not path.is_file():
        raise BundleError(f"{path}: is missing", _DAMAGED)
    try:
        if path.stat().st_size > _MAX_JSON:
            raise BundleError(f"{path}: {path.stat().st_size} bytes; the limit is {_MAX_JSON}", _DAMAGED)
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot be read: {os.strerror(error.errno or 0)}", _DAMAGED) from error


def _found(layout: Path, descriptor: Mapping[str, Any]) -> tuple[Path, str]:
    """A descriptor's blob, which has its size, and its SHA-256."""
    digest, size = descriptor.get("digest"), descriptor.get("size")
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None or type(size) is not int or size < 0:
        raise BundleError(f"{layout}: a descriptor has no SHA-256 or size: {digest!r}, {size!r}", _DAMAGED)
    path = _blob(layout, match[1])
    if path.is_symlink():
        raise BundleError(f"{path}: is a link", "a layout holds its blobs itself: copy it with its links followed")
    if not path.is_file():
        raise BundleError(f"{path}: is missing", _DAMAGED)
    if path.stat().st_size != size:
        raise BundleError(f"{path}: has {path.stat().st_size} bytes, not {size}", _DAMAGED)
    return path, match[1]


def _read_json_blob(layout: Path, descriptor: Mapping[str, Any]) -> bytes:
    path, expected = _found(layout, descriptor)
    data = _small(path)
    if sha256(data) != expected:
        raise BundleError(f"{path}: its SHA-256 differs", _DAMAGED)
    return data


def _copy(layout: Path, descriptor: Mapping[str, Any], to: Path) -> None:
    source, expected = _found(layout, descriptor)
    state = hashlib.sha256()
    with disk_errors(to), source.open("rb") as file, to.open("xb") as copy:
        while piece := file.read(_CHUNK):
            state.update(piece)
            copy.write(piece)
        copy.flush()
        os.fsync(copy.fileno())
    if state.hexdigest() != expected:
        raise BundleError(f"{source}: its SHA-256 differs", _DAMAGED)

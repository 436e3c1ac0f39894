"""SPEC section 13: `release.json`, to objects and back. No file is opened here."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from edgebuild.core.dates import parse_day
from edgebuild.core.errors import BundleError
from edgebuild.core.lines import MAX_NUMBER
from edgebuild.core.manifest import is_name, is_version
from edgebuild.release import names

FORMAT = "edgebuild-release 1"
MAX_BYTES = 256 * 1024
MAX_BUNDLES, MAX_DELTAS = 256, 64
MAX_SIZE = 1 << 36
_HINT = "get the release again from its source"
_FEWER = "name fewer releases with --previous"
_NEWER = "it was made for a newer edgebuild: upgrade this one"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_KEYS = ("format", "name", "version", "release", "made", "expires", "trust", "bundles")


@dataclass(frozen=True)
class Item:
    """A file of the release."""

    file: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TrustItem:
    """A trust file with roles, which a device takes first."""

    item: Item
    version: int


@dataclass(frozen=True)
class Delta:
    """`base`: SHA-256 of the manifest of the bundle that it starts from."""

    base: str
    item: Item


@dataclass(frozen=True)
class Bundle:
    """`id`: SHA-256 of the bundle's manifest."""

    target: str
    id: str
    item: Item
    deltas: tuple[Delta, ...]


@dataclass(frozen=True)
class Index:
    """The index, field by field."""

    name: str
    version: str
    release: int
    made: date | None
    expires: date | None
    trust: TrustItem | None
    bundles: tuple[Bundle, ...]

    def items(self) -> dict[str, Item]:
        """Every file that it names."""
        found = [self.trust.item] if self.trust else []
        for bundle in self.bundles:
            found += [bundle.item, *(delta.item for delta in bundle.deltas)]
        return {item.file: item for item in found}


def serialize(index: Index) -> bytes:
    """Raises BundleError for a release that is too large for an index."""
    trust = index.trust
    value = {
        "format": FORMAT,
        "name": index.name,
        "version": index.version,
        "release": index.release,
        "made": _day(index.made),
        "expires": _day(index.expires),
        "trust": None if trust is None else {**_item(trust.item), "version": trust.version},
        "bundles": [_bundle(bundle) for bundle in index.bundles],
    }
    data = (json.dumps(value, indent=1) + "\n").encode()
    if len(data) > MAX_BYTES:
        raise BundleError(f"{names.INDEX}: {len(data)} bytes; the limit is {MAX_BYTES}", _FEWER)
    _check_counts(index)
    return data


def _day(day: date | None) -> str | None:
    return None if day is None else day.isoformat()


def _item(item: Item) -> dict[str, Any]:
    return {"file": item.file, "size": item.size, "sha256": item.sha256}


def _bundle(bundle: Bundle) -> dict[str, Any]:
    ordered = sorted(bundle.deltas, key=lambda delta: (delta.item.size, delta.item.file))
    deltas = [{"from": delta.base, **_item(delta.item)} for delta in ordered]
    return {"target": bundle.target, "id": bundle.id, **_item(bundle.item), "deltas": deltas}


def parse(data: bytes) -> Index:
    """The index of bytes whose signature holds. Raises BundleError."""
    if len(data) > MAX_BYTES:
        raise BundleError(f"{names.INDEX}: {len(data)} bytes; the limit is {MAX_BYTES}", _HINT)
    if b"\\" in data:  # one spelling of every string
        raise BundleError(f"{names.INDEX}: a string holds an escape", _HINT)
    fields = _Fields(load_object(data, names.INDEX), "")
    if fields.value.get("format") != FORMAT:
        raise BundleError(f"{names.INDEX}: its format is not '{FORMAT}'", _NEWER)
    fields.exactly(*_KEYS)
    trust = fields.value["trust"]
    index = Index(
        name=fields.text("name", is_name),
        version=fields.text("version", is_version),
        release=fields.number("release", 1),
        made=fields.day("made"),
        expires=fields.day("expires"),
        trust=None if trust is None else _parse_trust(_Fields(trust, "trust.")),
        bundles=tuple(_parse_bundle(part) for part in fields.list("bundles")),
    )
    _check(index)
    return index


def load_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object in which no key occurs twice. Raises BundleError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where}: is not JSON: {error}", _HINT) from error
    if not isinstance(value, dict):
        raise BundleError(f"{where}: is no JSON object", _HINT)
    return value


class _Fields:
    """The fields of one object; `where` is the path to it, for messages."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise BundleError(f"{names.INDEX}: {where.rstrip('.')}: is no object", _HINT)
        self.value: Mapping[str, Any] = value
        self._where = where

    def exactly(self, *keys: str) -> None:
        if tuple(self.value) != keys:
            raise BundleError(f"{names.INDEX}: {self._where or 'it'} has not the keys {', '.join(keys)}", _HINT)

    def _wrong(self, key: str) -> BundleError:
        return BundleError(f"{names.INDEX}: {self._where}{key}: {self.value[key]!r} is not a valid value", _HINT)

    def text(self, key: str, valid: Callable[[str], object]) -> str:
        value = self.value[key]
        if not isinstance(value, str) or not valid(value):
            raise self._wrong(key)
        return value

    def day(self, key: str) -> date | None:
        value = self.value[key]
        try:
            return None if value is None else parse_day(value)
        except (TypeError, ValueError) as error:
            raise self._wrong(key) from error

    def number(self, key: str, least: int) -> int:
        value = self.value[key]
        if type(value) is not int or not least <= value <= MAX_NUMBER:
            raise self._wrong(key)
        return value

    def list(self, key: str) -> list["_Fields"]:
        value = self.value[key]
        if not isinstance(value, list):
            raise self._wrong(key)
        return [_Fields(part, f"{self._where}{key}[{at}].") for at, part in enumerate(value)]

    def item(self) -> Item:
        size = self.value["size"]
        if type(size) is not int or not 1 <= size <= MAX_SIZE:
            raise self._wrong("size")
        return Item(self.text("file", names.is_file_name), size, self.text("sha256", _SHA256.fullmatch))


def _parse_trust(fields: _Fields) -> TrustItem:
    fields.exactly("file", "size", "sha256", "version")
    fields.text("file", names.TRUST.__eq__)
    return TrustItem(fields.item(), fields.number("version", 1))


def _parse_bundle(fields: _Fields) -> Bundle:
    fields.exactly("target", "id", "file", "size", "sha256", "deltas")
    deltas = []
    for part in fields.list("deltas"):
        part.exactly("from", "file", "size", "sha256")
        deltas.append(Delta(part.text("from", _SHA256.fullmatch), part.item()))
    return Bundle(fields.text("target", is_name), fields.text("id", _SHA256.fullmatch), fields.item(), tuple(deltas))


def _check_counts(index: Index) -> None:
    """What a device has room for."""
    if len(index.bundles) > MAX_BUNDLES or any(len(bundle.deltas) > MAX_DELTAS for bundle in index.bundles):
        raise BundleError(f"{names.INDEX}: over {MAX_BUNDLES} bundles, or over {MAX_DELTAS} deltas for one", _FEWER)


def _check(index: Index) -> None:
    targets = [bundle.target for bundle in index.bundles]
    files = [item.file for bundle in index.bundles for item in (bundle.item, *(one.item for one in bundle.deltas))]
    files += [index.trust.item.file] if index.trust else []
    if not targets or len(set(targets)) != len(targets) or len(set(files)) != len(files):
        raise BundleError(f"{names.INDEX}: a target or a file occurs twice, or there is none", _HINT)
    _check_counts(index)
    for bundle in index.bundles:
        bases, sizes = [one.base for one in bundle.deltas], [one.item.size for one in bundle.deltas]
        if len(set(bases)) != len(bases) or sizes != sorted(sizes):
            raise BundleError(
                f"{names.INDEX}: the deltas for {bundle.target} are not one a base, in the order of their sizes", _HINT
            )
        if any(size >= bundle.item.size for size in sizes):
            raise BundleError(f"{names.INDEX}: a delta for {bundle.target} is not smaller than the bundle", _HINT)

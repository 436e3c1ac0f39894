"""`release.json` and SHA256SUMS: one form is read, every other is refused with what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from releases import KEY, OTHER, Home, resigned

from edgebuild.core.dates import parse_day
from edgebuild.core.errors import BundleError, EdgebuildError, UsageError
from edgebuild.core.trust import Trust
from edgebuild.release import folder as release_folder
from edgebuild.release import index, names, sums
from edgebuild.release.index import Bundle, Delta, Index, Item, TrustItem

HEX = "0123456789abcdef" * 4
TRUST = Trust([KEY.public])
INDEX = Index(
    name="gate",
    version="1.2.0",
    release=7,
    made=parse_day("2026-01-31"),
    expires=None,
    trust=TrustItem(Item("trust", 500, HEX), 3),
    bundles=(
        Bundle("jetson", HEX, Item("gate-1.2.0-jetson.ebundle", 9000, HEX), (
            Delta("a" * 64, Item("a.edelta", 10, HEX)),
            Delta("b" * 64, Item("b.edelta", 20, HEX)),
        )),
        Bundle("host", HEX, Item("gate-1.2.0-host.ebundle", 9001, HEX), ()),
    ),
)  # fmt: skip


def test_it_comes_back_as_it_was() -> None:
    data = index.serialize(INDEX)
    assert index.parse(data) == INDEX
    assert index.parse(json.dumps(json.loads(data)).encode()) == INDEX  # white space is free
    assert b"\\" not in data


def test_deltas_come_in_the_order_of_their_sizes() -> None:
    deltas = INDEX.bundles[0].deltas[::-1]
    turned = Bundle("jetson", HEX, INDEX.bundles[0].item, deltas)
    found = index.parse(index.serialize(Index(*list(INDEX.__dict__.values())[:-1], (turned, INDEX.bundles[1]))))
    assert found == INDEX


def test_an_index_has_a_limit() -> None:
    many = tuple(Bundle(f"t{at}", HEX, Item(f"{at}.ebundle", 1, HEX), ()) for at in range(1500))
    with pytest.raises(BundleError, match="the limit is 262144"):
        index.serialize(Index("gate", "1", 1, None, None, None, many))
    with pytest.raises(BundleError, match="over 256 bundles"):
        index.serialize(Index("gate", "1", 1, None, None, None, many[:257]))


def put(path: str, value: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
        for step in way:
            found = found[step]
        found[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", "edgebuild-release 2"), "its format is not 'edgebuild-release 1'"),
        (put("more", 1), "it has not the keys format, name"),
        (put("name", "Gate"), "name: 'Gate' is not a valid value"),
        (put("name", 5), "name: 5 is not a valid value"),
        (put("version", "../1"), "version: '../1' is not"),
        (put("release", 0), "release: 0 is not"),
        (put("release", True), "release: True is not"),
        (put("release", 1.0), "release: 1.0 is not"),
        (put("release", 2**31), "release: 2147483648 is not"),
        (put("made", "2026-02-30"), "made: '2026-02-30' is not"),
        (put("made", 20260131), "made: 20260131 is not"),
        (put("trust", []), "trust: is no object"),
        (put("trust.file", "trust2"), "trust.file: 'trust2' is not"),
        (put("trust.version", 0), "trust.version: 0 is not"),
        (put("bundles", {}), "bundles: {} is not"),
        (put("bundles", []), "a target or a file occurs twice, or there is none"),
        (put("bundles.0", 1), "bundles.0.: is no object"),
        (put("bundles.0.file", "../x"), "bundles.0..file: '../x' is not"),
        (put("bundles.0.file", ".x"), "bundles.0..file: '.x' is not"),
        (put("bundles.0.file", "x" * 201), "bundles.0..file: "),
        (put("bundles.0.size", -1), "bundles.0..size: -1 is not"),
        (put("bundles.0.size", 0), "bundles.0..size: 0 is not"),
        (put("bundles.0.size", 2**36 + 1), "bundles.0..size: 68719476737 is not"),
        (put("bundles.0.deltas.1.size", 9000), "a delta for jetson is not smaller than the bundle"),
        (put("bundles.0.sha256", "A" * 64), "bundles.0..sha256: "),
        (put("bundles.0.id", HEX[1:]), "bundles.0..id: "),
        (put("bundles.1.target", "jetson"), "a target or a file occurs twice"),
        (put("bundles.1.file", "a.edelta"), "a target or a file occurs twice"),
        (put("bundles.0.deltas.0.from", "b" * 64), "deltas for jetson are not one a base"),
        (put("bundles.0.deltas.0.size", 21), "in the order of their sizes"),
        (put("bundles.0.deltas.0.more", 1), "bundles.0..deltas.0.. has not the keys from"),
    ],
)
def test_a_wrong_index(change: Callable[[Any], None], message: str) -> None:
    found = json.loads(index.serialize(INDEX))
    change(found)
    with pytest.raises(BundleError, match=message) as caught:
        index.parse(json.dumps(found).encode())
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "is no JSON object"),
        (b'{"format": 1, "format": 2}', "a key occurs twice"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"format": "edgebuild-release\\u0020001"}', "a string holds an escape"),
        (b" " * 300_000, "the limit is 262144"),
    ],
)
def test_what_is_no_index(data: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        index.parse(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a list of files"),
        (f"{HEX} *a\n".encode(), "line 1: is no SHA-256 and file name"),
        (f"{HEX}  a\n{HEX}  ../b\n".encode(), "line 2: is no SHA-256"),
        (f"{HEX}  b\n{HEX}  a\n".encode(), "in the order of their names"),
        (f"{HEX}  a\n{HEX}  a\n".encode(), "each once"),
        (f"{HEX}  a".encode(), "is not a list of files"),
        (f"{HEX}  a\r\n".encode(), "is not a list of files"),
        (b"x" * (1 << 21), "the limit is 1048576"),
    ],
)
def test_wrong_sums(data: bytes, message: str) -> None:
    assert sums.parse(f"{HEX}  a\n".encode()) == {"a": HEX}
    with pytest.raises(BundleError, match=message):
        sums.parse(data)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def by_another(name: str) -> Callable[[Path], None]:
    return lambda folder: resigned(folder, name, OTHER)


def swap_index(folder: Path) -> None:
    """Another size in the index, by somebody with the key: it must fit the files all the same."""
    found = index.parse((folder / names.INDEX).read_bytes())
    bundle = found.bundles[0]
    wrong = Bundle(bundle.target, bundle.id, Item(bundle.item.file, bundle.item.size + 1, bundle.item.sha256), ())
    fields = {**found.__dict__, "bundles": (wrong, *found.bundles[1:])}
    (folder / names.INDEX).write_bytes(index.serialize(Index(**fields)))
    resigned(folder, names.INDEX)


def unlisted_index(folder: Path) -> None:
    listed = sums.parse((folder / names.SUMS).read_bytes())
    del listed[names.INDEX]
    (folder / names.SUMS).write_bytes(sums.serialize(listed))
    resigned(folder, names.SUMS)


def other_counter(folder: Path) -> None:
    found = index.parse((folder / names.INDEX).read_bytes())
    (folder / names.INDEX).write_bytes(index.serialize(Index(**{**found.__dict__, "release": 9})))
    resigned(folder, names.INDEX)


def link(folder: Path) -> None:
    path = folder / "dense-1.1.0-host.ebundle"
    path.rename(folder.parent / "real")
    path.symlink_to(folder.parent / "real")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (remove(names.SUMS), UsageError, "is no release: it holds no SHA256SUMS"),
        (remove("SHA256SUMS.minisig"), BundleError, "SHA256SUMS.minisig: is missing"),
        (remove("dense-1.1.0-host.ebundle"), BundleError, "dense-1.1.0-host.ebundle: is missing"),
        (remove(names.INDEX), BundleError, "release.json: is missing"),
        (flip(names.SUMS), BundleError, "SHA256SUMS: the signature of key"),
        (flip("dense-1.1.0-host.ebundle"), BundleError, "is not the file that was released: its SHA-256 differs"),
        (flip("dense-1.1.0.cdx.json"), BundleError, "is not the file that was released"),
        (flip(names.INDEX), BundleError, "is not the file that was released"),
        (by_another(names.SUMS), BundleError, "which the trust file does not list"),
        (swap_index, BundleError, "is not the file that SHA256SUMS lists"),
        (unlisted_index, BundleError, "SHA256SUMS: does not list release.json"),
        (other_counter, BundleError, "is not the bundle that release.json describes"),
        (link, BundleError, "dense-1.1.0-host.ebundle: is missing"),
    ],
)
def test_a_damaged_folder(copy: Path, change: Callable[[Path], None], kind: type[EdgebuildError], message: str) -> None:
    release_folder.read(copy, TRUST)
    change(copy)
    with pytest.raises(kind, match=message) as caught:
        release_folder.read(copy, TRUST)
    assert caught.value.hint


def test_any_byte_of_what_is_signed_matters(home: Home, copy: Path) -> None:
    """One bit in each of 400 places of all files that are released."""
    files = sorted(path for path in copy.iterdir() if not path.name.endswith((*names.REPORTS, names.BASIS)))
    places = [(path, at * path.stat().st_size // 40) for path in files for at in range(40)]
    assert len(places) == 400
    for path, at in places:
        data = path.read_bytes()
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(EdgebuildError):
            release_folder.read(copy, TRUST)
        path.write_bytes(data)
    assert release_folder.read(copy, TRUST).signer == KEY.public.name


def test_what_does_not_belong_is_told(copy: Path) -> None:
    (copy / "notes.txt").write_text("x")
    (copy / ".hidden").write_text("x")
    assert release_folder.read(copy, TRUST).strange == ("notes.txt",)

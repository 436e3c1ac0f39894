"""Release indices that the trusted key signed and SPEC 13 refuses."""

import json
from collections.abc import Iterator
from random import Random
from typing import Any

import published
from tamper.bytewise import Change
from tamper.rules import DAYS
from tamper.subjects import Subjects


def changed_value(value: dict[str, Any], path: tuple[Any, ...], instead: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(value))
    at = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = instead
    return copy


Wrong = tuple[tuple[Any, ...], Any]
"""Where in the index, and what stands there instead."""

ONE = ("bundles", 1)
DELTAS = (*ONE, "deltas")
NAMES = ("", "../x", "/x", "a/b", ".x", "-x", "a" * 201, "a b", "a\x00b", "ä", "a\\b", None, 1, [], "a\nb", "..")
NO_NUMBERS = (0, -1, 2**36 + 1, 2**64, 2**64 + 1, 1.0, 1.5, "1", None, True, [], 10**30)
NO_DIGESTS = ("", "A" * 64, "0" * 63, "0" * 65, "g" * 64, None, 0)


def values() -> Iterator[Wrong]:
    for path in ((*ONE, "file"), (*DELTAS, 0, "file")):
        yield from ((path, name) for name in NAMES)
    for path in ((*ONE, "sha256"), (*ONE, "id"), (*DELTAS, 0, "sha256"), (*DELTAS, 0, "from")):
        yield from ((path, digest) for digest in NO_DIGESTS)
    for path in (("release",), (*ONE, "size"), (*DELTAS, 0, "size")):
        yield from ((path, number) for number in NO_NUMBERS)
    for key in ("made", "expires"):
        yield from (((key,), day) for day in (*DAYS, 0, [], False))
    yield from ((("format",), text) for text in ("", "edgebuild-release 2", "edgebuild-release 1 ", 1, None))
    yield from ((("name",), name) for name in ("", "A", "../x", "a" * 65, None))
    yield from ((("version",), name) for name in ("", "-1", "1/2", "1" * 33, None))
    yield from (((*ONE, "target"), name) for name in ("", "A", "../x", "a" * 65, None, "other"))


def parts(value: dict[str, Any]) -> Iterator[Wrong]:
    """Other trust files, bundles and deltas."""
    trust = {**published.item("trust", b"x"), "version": 3}
    yield from ((("trust",), item) for item in ({}, [], "x", published.item("t", b"x"), {"version": 1}))
    for key, bad in (("version", 0), ("version", 2**31), ("size", 0), ("file", "../t"), ("file", "t")):
        yield ("trust",), {**trust, key: bad}
    yield ("trust",), dict(reversed(trust.items()))
    bundle = value["bundles"][1]
    yield from ((("bundles",), item) for item in ([], {}, None, [bundle, bundle], [{}], [1]))
    delta = bundle["deltas"][0]
    other = {"from": "1" * 64, **published.item("z.edelta", b"zzz")}
    yield from (
        (DELTAS, item) for item in ({}, None, [delta, delta], [delta, other], [other, {**delta, "from": "1" * 64}])
    )
    for one in (
        {**delta, "size": bundle["size"]},
        {**other, "file": "tiny.ebundle"},
        {**delta, "file": "x.ebundle"},
        dict(reversed(delta.items())),
        {**delta, "x": 1},
    ):
        yield DELTAS, [one]
    yield DELTAS, [{**other, "from": f"{i:064x}", "file": f"{i}.edelta"} for i in range(65)]
    yield ("bundles",), [{**bundle, "deltas": [], "target": f"t{i}", "file": f"{i}.ebundle"} for i in range(257)]


def keys(text: bytes, value: dict[str, Any]) -> Iterator[bytes]:
    """Left out, moved, one too many, doubled."""
    for key, part in value.items():
        others = {name: other for name, other in value.items() if name != key}
        yield json.dumps(others).encode()
        yield json.dumps({**others, "x": 1, key: part}).encode()
        if key != "bundles":
            yield json.dumps({**others, key: part}).encode()
        yield text.replace(f'"{key}":'.encode(), f'"{key}": {json.dumps(part)}, "{key}":'.encode(), 1)


def spellings(text: bytes) -> Iterator[bytes]:
    yield from (b"", b"[]", b"null", text + b"x", text + text, b"\xef\xbb\xbf" + text, text[:-1] + b",}", text[:-1])
    yield from (text.replace(b'"tiny"', b'"\\u0074iny"'), text.replace(b":", b"=", 1), text.replace(b'"', b"'"))
    yield from (b"[" * 100000, b" " * 262144 + text, b"/**/" + text, text.replace(b" ", b"\x0b", 1))


def malformed(subjects: Subjects, count: int, seed: int) -> Iterator[Change]:
    source, text = Random(seed), subjects.index
    value = json.loads(text)
    for path, instead in (*values(), *parts(value)):
        yield "signed index: values", json.dumps(changed_value(value, path, instead), indent=1).encode()
    yield from (("signed index: keys", data) for data in keys(text, value))
    places = [i for i, byte in enumerate(text) if byte not in b" \n"]
    for _ in range(count):
        at = source.choice(places)
        bad = source.choice((b"\0", b"\x7f", b"\x80", b"\xff", b"\x1b", b"\x0b", b"\\", b"{", b"]"))
        if text[at : at + 1] != bad:
            yield "signed index: bytes", text[:at] + bad + text[at + 1 :]
    yield from (("signed index: bytes", data) for data in spellings(text))

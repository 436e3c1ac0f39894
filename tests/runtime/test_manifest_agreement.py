"""The two readers of manifests, Python and C, accept and refuse the same signed bundles (SPEC 2).

Each mutation of a good manifest is signed again, so that only the manifest's own rules can refuse it.
"""

import hashlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from machine import HOST, Machine

from edgebuild.core.bundle import read_bundle
from edgebuild.core.errors import BundleError
from edgebuild.core.manifest import NEWER
from edgebuild.core.trust import parse_trust

TRUST = parse_trust(tiny.KEY.trust)
RANDOM_CHANGES = 400
# What edgebuild-run says of a bundle that is right, but for another machine: Python has no such question.
OTHER_MACHINE = ("the bundle is for ", "which this machine lacks")

NUMBERS = ["0", "1", "01", "-1", "+1", "1.5", "0x10", "", "x", "2147483647", "2147483648", "2147483649", "4294967296"]
NUMBERS += ["9" * 10, "9" * 25, "١"]
NAMES = ["a", "0", "_", "-a", "A", "a" * 64, "a" * 65, "a.b", "a/b", "a b", "ä", "a\t", ""]
DAYS = ["2026-02-28", "2026-02-29", "2028-02-29", "2100-02-29", "2000-02-29", "2026-04-31", "2026-00-10", "2026-13-01"]
DAYS += ["2026-01-00", "2026-01-32", "1999-12-31", "2000-01-01", "9999-12-31", "0000-01-01", "10000-01-01", "2026-1-1"]
DAYS += ["20260101", "2026-W01-1", "2026/01/01", "+026-01-01", "2026-01-1 ", "2026-01-١", "today", ""]
PATHS = ["manifest", "manifest.minisig", "manifest.sig", "a", "a/", "/a", "a//b", "a/../b", "a..b", "a/./b", "A", "_a"]
PATHS += ["a" * 99, "a" * 100, "plan.bin", "golden/in-0.npy", "golden/in-1.npy", "golden/in-00.npy"]


def listed(text: bytes, files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """The members that a manifest asks for; files that the bundle does not have are empty."""
    for line in text.decode(errors="replace").split("\n"):
        fields = line.split(" ")
        if len(fields) == 4 and fields[0] == "file" and fields[3].isascii() and len(fields[3]) < 100:
            yield fields[3], files.get(fields[3], b"")


def resigned(bundle: tiny.Bundle, text: bytes) -> bytes:
    """The bundle under a manifest of this text."""
    signature = bundle.key.sign(text, bundle.comment)
    members = [("manifest", text), ("manifest.minisig", signature), *listed(text, dict(bundle.files()))]
    return b"".join(tiny.member(name, data) for name, data in members) + bytes(1024)


def changed_lines(text: str) -> Iterator[str]:
    """Every line left out, doubled, moved behind the next, behind an unknown one; every field replaced."""
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        yield "".join(lines[:i] + lines[i + 1 :])
        yield "".join([*lines[:i], line, *lines[i:]])
        yield "".join([*lines[:i], *lines[i + 1 : i + 2], line, *lines[i + 2 :]])
        yield "".join([*lines[:i], "later 1\n", *lines[i:]])
        for place in range(1, len(line.split())):
            for value in ("", "1", *NUMBERS[:3]):
                fields = line.split()
                fields[place] = value
                yield "".join([*lines[:i], " ".join(fields) + "\n", *lines[i + 1 :]])
        yield "".join([*lines[:i], line.replace("\n", " 1\n"), *lines[i + 1 :]])


def changed_values(text: str) -> Iterator[str]:
    """Values at the ends of what SPEC 2 allows."""
    for key, values in (
        ("edgebuild-manifest 1", NUMBERS),
        ("release 1", NUMBERS),
        ("release 1", [f"1\nmade {day}" for day in DAYS]),
        ("release 1", [f"1\nexpires {day}" for day in DAYS]),
        ("release 1", ["1\nmade 2026-01-01\nexpires 2025-01-01", "1\nexpires 2026-01-01\nmade 2026-01-01"]),
        ("abi 1", NUMBERS),
        ("camera 15", NUMBERS),
        ("timeout-ms 500", NUMBERS),
        ("name tiny", NAMES),
        ("version 1.0.0", [*NAMES, "1+2~3-4", "1" * 32, "1" * 33]),
        ("target test", NAMES),
        ("function look", NAMES),
        ("output total", [*NAMES, "pixels", "frame", "mean"]),
        ("output mean float32", [*NAMES[:3], "uint8", "int8", "int16", "float16", "float64", "bool", "string"]),
        ("uint8 6 8 3", NUMBERS),
        ("quality trained", ["speed-only", "good", "Trained"]),
        ("quality trained", [f"trained\nchecked {value}" for value in ("no", "yes", "", "no no", "No")]),
        ("camera 15", ["1 1", ""]),
    ):
        field = key.rsplit(" ", 1)[0]
        for value in values:
            yield text.replace(key, f"{field} {value}", 1)
    for shape in ("1 1 1 1 1 1", "1 1 1 1 1 1 1", "65536 32768", "65536 32769", "2147483647 2147483647 2147483647"):
        yield text.replace("uint8 6 8 3", f"uint8 {shape}", 1)
        yield text.replace("uint8 6 8 3", f"int64 {shape}", 1)
    for trigger in ("none", "none 1", "timer 5", "timer", "camera", "http 80", ""):
        yield text.replace("camera 15", trigger, 1)
    for feature in ("amx9", "avx2", "neon", "avx2 fma", "fma avx2", "avx2 avx2", "avx2 amx9", "AVX2", "", "x" * 64):
        yield text.replace("abi 1", f"needs {feature}\nabi 1", 1)
    for arch in ("mips", "riscv32", "riscv64", "riscv64\nneeds zba v", "riscv64\nneeds v zba"):
        yield text.replace(f"arch {HOST}", f"arch {arch}")
    yield text.replace(f"arch {HOST}", "arch " + ("aarch64" if HOST == "x86_64" else "x86_64"))


def changed_files(text: str) -> Iterator[str]:
    """More files, under all kinds of paths."""
    digest = hashlib.sha256(b"").hexdigest()
    for path in PATHS:
        yield text + f"file 0 {digest} {path}\n"
    for size in (*NUMBERS, str(2**31)):
        yield text + f"file {size} {digest} more\n"
    for wrong in (digest[1:], digest + "0", digest.upper(), "g" * 64):
        yield text + f"file 0 {wrong} more\n"
    for count in (248, 249, 300):
        yield text + "".join(f"file 0 {digest} f/{i}\n" for i in range(count))


def changed_ends(text: str) -> Iterator[str]:
    yield text.replace("\n", "\r\n")
    yield text.removesuffix("\n")
    yield text + "\n"
    yield "\n" + text
    yield ""
    yield "\n"


def random_changes(text: bytes, count: int) -> Iterator[bytes]:
    """One to three bytes changed, cut out, or put in twice."""
    source = random.Random(7)
    for _ in range(count):
        data = bytearray(text)
        for _ in range(source.randint(1, 3)):
            at = source.randrange(len(data))
            match source.randrange(4):
                case 0:
                    data[at] ^= source.randint(1, 255)
                case 1:
                    data[at] = source.choice(b" \n0129azAZ./-_")
                case 2:
                    del data[at : at + source.randint(1, 40)]
                case _:
                    data[at:at] = data[at : at + source.randint(1, 40)]
        yield bytes(data)


def by_python(data: bytes) -> BundleError | None:
    try:
        read_bundle(data, TRUST)
    except BundleError as error:
        return error
    return None


def by_runtime(sanitized: Path, machine: Machine, bundles: list[bytes]) -> list[str]:
    """Status and message of each bundle, from one process under the sanitizers."""
    command = [sanitized / "drive", "verify", machine.write("trust", tiny.KEY.trust)]
    data = b"".join(len(bundle).to_bytes(4, "little") + bundle for bundle in bundles)
    done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(bundles)
    return ["ok" if any(text in line for text in OTHER_MACHINE) else line.strip() for line in lines]


def test_both_readers_agree(sanitized: Path, checked: Machine, bundle: tiny.Bundle) -> None:
    text = bundle.manifest()
    made = (changed_lines, changed_values, changed_files, changed_ends)
    chosen = [change.encode() for make in made for change in make(text.decode())]
    changes = [change for change in [*chosen, *random_changes(text, RANDOM_CHANGES)] if change]
    bundles = [resigned(bundle, change) for change in [text, *changes]]
    native = by_runtime(sanitized, checked, bundles)
    python = [by_python(data) for data in bundles]
    assert (native[0], python[0]) == ("ok", None)
    disagree = [
        (change, theirs, ours.message if ours else "ok")
        for change, theirs, ours in zip(changes, native[1:], python[1:], strict=True)
        if (theirs == "ok") != (ours is None)
    ]
    assert disagree == []
    accepted = sum(line == "ok" for line in native)
    assert 50 < accepted < len(changes) - 400


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ("edgebuild-manifest 1", "edgebuild-manifest 2"),
        ("abi 1", "abi 2"),
        ("abi 1", "needs amx9\nabi 1"),
    ],
)
def test_both_readers_know_what_is_newer(
    sanitized: Path, checked: Machine, bundle: tiny.Bundle, found: str, instead: str
) -> None:
    text = bundle.manifest()
    assert text.count(found.encode()) == 1
    data = resigned(bundle, text.replace(found.encode(), instead.encode()))
    ours = by_python(data)
    assert ours is not None
    assert ours.hint == NEWER
    (theirs,) = by_runtime(sanitized, checked, [data])
    assert theirs.startswith("unsupported ")

"""Malformed manifests that the trusted key signed, and bundles under them: only the format can refuse them (SPEC 2)."""

import hashlib
from collections.abc import Iterator, Sequence
from random import Random

import tiny
from tamper.bytewise import Change
from tamper.rules import DAYS, KEYS, NUMBERS, PATHS, SIZES, bad_bytes, line_of, with_line
from tamper.subjects import Subjects


def resigned(bundle: tiny.Bundle, text: bytes, signature: bytes | None = None) -> bytes:
    """The bundle under another manifest, with a member for each file that it lists."""
    files = dict(bundle.files())
    members = [("manifest", text), ("manifest.minisig", signature or bundle.key.sign(text, bundle.comment))]
    for line in text.split(b"\n"):
        fields = line.split(b" ")
        if fields[0] == b"file" and len(fields) == 4 and len(fields[3]) < 100:
            path = fields[3].decode("latin-1")
            members.append((path, files.get(path, b"")))
    return b"".join(latin_member(name, data) for name, data in members) + bytes(1024)


def latin_member(name: str, data: bytes) -> bytes:
    """As tiny.member, for names that are no ASCII too."""
    if name.isascii():
        return tiny.member(name, data)
    plain = tiny.member("x" * len(name), data)
    header = name.encode("latin-1") + plain[len(name) : 512]
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:] + plain[512:]


def bad_numbers(lines: Sequence[str]) -> Iterator[str]:
    for key, place in (("release", 1), ("abi", 1), ("trigger", 2), ("timeout-ms", 1), ("input", 3), ("input", 5)):
        at = line_of(lines, key)
        for number in NUMBERS:
            fields = lines[at].split(" ")
            fields[place] = number
            if key != "input" or number != "":
                yield with_line(lines, at, " ".join(fields))
    for at, line in enumerate(lines):
        if line.startswith("file "):
            for size in SIZES:
                yield with_line(lines, at, " ".join(["file", size, *line.split(" ")[2:]]))


def bad_days(lines: Sequence[str]) -> Iterator[str]:
    at = line_of(lines, "release")
    for key in ("made", "expires"):
        for day in DAYS:
            yield with_line(lines, at, f"{lines[at]}\n{key} {day}")
    for wrong in ("expires 2030-01-01\nmade 2026-01-01", "made 2026-01-01\nmade 2026-01-01", "made", "expires"):
        yield with_line(lines, at, f"{lines[at]}\n{wrong}")


def bad_order(lines: Sequence[str]) -> Iterator[str]:
    """Keys doubled, left out, exchanged, unknown, with a value too many or too few."""
    for key in KEYS:
        at = line_of(lines, key)
        yield with_line(lines, at, f"{lines[at]}\n{lines[at]}")
        if key != "timeout-ms":
            yield "".join(f"{line}\n" for line in [*lines[:at], *lines[at + 1 :]])
        others = [*lines[:at], *lines[at + 1 :]]
        for place in range(len(others) + 1):
            if place != at:
                yield "".join(f"{line}\n" for line in [*others[:place], lines[at], *others[place:]])
    for at in range(len(lines) + 1):
        for unknown in ("later 1", "x", "file", "name tiny", "edgebuild-manifest 1", "# comment", "checked yes", ""):
            yield "".join(f"{line}\n" for line in [*lines[:at], unknown, *lines[at:]])
    for at, line in enumerate(lines):
        words = line.split(" ")
        if words[0] not in {"input", "output"}:
            yield with_line(lines, at, f"{line} 1")
        yield with_line(lines, at, words[0])
        yield with_line(lines, at, line.upper())
        yield with_line(lines, at, f" {line}")
        yield with_line(lines, at, f"{line} ")


def bad_files(lines: Sequence[str]) -> Iterator[str]:
    text, empty = "".join(f"{line}\n" for line in lines), hashlib.sha256(b"").hexdigest()
    for at, line in enumerate(lines):
        words = line.split(" ")
        if words[0] != "file":
            continue
        yield text + f"{line}\n"
        digest = words[2]
        for wrong in (
            digest.upper(),
            digest[:-1],
            digest + "0",
            digest[:-1] + "g",
            digest[:-1] + digest[-1].upper() + "0",
        ):
            if wrong != digest:
                yield with_line(lines, at, f"file {words[1]} {wrong} {words[3]}")
        for path in PATHS:
            if path != words[3]:
                yield with_line(lines, at, f"file {words[1]} {digest} {path}")
        yield with_line(lines, at, f"file {digest} {words[1]} {words[3]}")
        yield with_line(lines, at, f"file {words[1]}  {digest} {words[3]}")
    for path in PATHS:
        yield text + f"file 0 {empty} {path}\n"
    have = sum(line.startswith("file ") for line in lines)
    for count in (257, 258, 300):
        yield text + "".join(f"file 0 {empty} f/{i}\n" for i in range(count - have))
    for name in ("edgebuild-run", "program.so", "plan.bin", "weights.bin", "golden/in-0.npy", "golden/out-3.npy"):
        yield "".join(f"{line}\n" for line in lines if not line.endswith(f" {name}"))


def bad_words(lines: Sequence[str]) -> Iterator[str]:
    for key, words in {
        "name": ("", "A", "-a", "_a", "a" * 65, "a.b", "a/b", "../a", "a b"),
        "target": ("", "A", "-a", "a" * 65, "a/b", ".."),
        "version": ("", "-1", ".1", "1" * 33, "1/2", "1 2", "1:2"),
        "function": ("", "1a", "a-b", "a" * 65, "a.b"),
        "arch": ("", "mips", "X86_64", "x86", "aarch64 x86_64"),
        "quality": ("", "good", "Trained", "trained speed-only"),
        "trigger": ("", "http 80", "none 1", "camera", "camera 1 1", "timer", "Camera 1", "camera -1"),
        "edgebuild-manifest": NUMBERS,
    }.items():
        for word in words:
            yield with_line(lines, line_of(lines, key), f"{key} {word}")
    at = line_of(lines, "input")
    for port in (
        "frame uint8 1 1 1 1 1 1 1",
        "frame uint9 1",
        "frame",
        "1x uint8",
        "frame int64 65536 65536",
        "pixels Uint8 1",
    ):
        yield with_line(lines, at, f"input {port}")
    at = line_of(lines, "output")
    yield with_line(lines, at, f"{lines[at]}\n{lines[at]}")


def texts(subjects: Subjects, count: int, seed: int) -> Iterator[Change]:
    text, source = subjects.heads[1][0], Random(seed)
    lines = text.decode().splitlines()
    made = {
        "numbers": bad_numbers,
        "days": bad_days,
        "keys": bad_order,
        "files and paths": bad_files,
        "words": bad_words,
    }
    for group, maker in made.items():
        for changed in maker(lines):
            if changed.encode() != text:
                yield group, changed.encode()
    for data in bad_bytes(text, source, count):
        if len(data) <= 80000:
            yield "bytes", data

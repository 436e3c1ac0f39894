"""Values that SPEC 2, 4 and 13 refuse, and bytes that no canonical text has, for files that the trusted key signs.

Every mutant made of them breaks a rule by the way it is made; each is one rule broken in an otherwise good file.
"""

from collections.abc import Iterator, Sequence
from random import Random

NUMBERS = (
    "", "0", "00", "01", "007", "-1", "-0", "+1", "1.0", "1e3", "0x10", "1_000", "1,", " 1", "2147483648", "4294967296",
    "4294967297", "18446744073709551616", "18446744073709551617", "9" * 19, "9" * 30, "٣", "1\t", "1\x00", "one", "1\r",
)  # fmt: skip
SIZES = (*(n for n in NUMBERS if n not in {"0", "2147483648"}), "2147483649", "2147483660")
"""0 and 2^31 are sizes of files."""
DAYS = (
    "", "0", "2026-02-29", "2100-02-29", "2026-04-31", "2026-00-10", "2026-13-01", "2026-01-00", "2026-01-32",
    "1999-12-31", "10000-01-01", "2026-1-1", "20260101", "2026/01/01", "+026-01-01", "2026-01-1x", "02026-01-01",
    "2026-01-01T00:00",
)  # fmt: skip
PATHS = (
    "../evil", "../../etc/passwd", "/etc/passwd", "golden/../evil", "..", "a/..", "a/../b", "a//b", "a/", "/", "//a",
    "./a", ".a", "-a", "_a", "A", "a b", "a\\b", "a\x00b", "a\tb", "ä", "a*", "a:", "a~", "a" * 100, "a" * 4000,
    "manifest", "manifest.minisig", "a..b", "", "weights.bin", "edgebuild-run", "golden/in-0.npy", "a\nb", "a\r",
)  # fmt: skip
BYTES = (b"\0", b"\r", b"\t", b"\x7f", b"\x80", b"\xff", b"\xc3\xa4", b"\x1b", b"\x0b")
KEYS = ("name", "version", "target", "release", "arch", "abi", "quality", "function", "trigger", "timeout-ms")
"""Of a manifest, once each, in this order."""


def line_of(lines: Sequence[str], key: str) -> int:
    return next(i for i, line in enumerate(lines) if line.split(" ")[0] == key)


def with_line(lines: Sequence[str], at: int, line: str) -> str:
    return "".join(f"{text}\n" for text in [*lines[:at], line, *lines[at + 1 :]])


def bad_bytes(text: bytes, source: Random, count: int) -> Iterator[bytes]:
    """A byte that no manifest and no trust file may have, anywhere; two separators side by side."""
    separators = [i for i, byte in enumerate(text) if byte in b" \n"]
    for _ in range(count):
        at = source.randrange(len(text) + 1)
        yield text[:at] + source.choice(BYTES) + text[at:]
        at = source.randrange(len(text))
        yield text[:at] + source.choice(BYTES) + text[at + 1 :]
        at = source.choice(separators)
        yield text[:at] + source.choice((b" ", b"\n", b"\r")) + text[at:]
    yield from (text.replace(b"\n", b"\r\n"), text[:-1], text + b"\n", b"\n" + text, b" " + text, b"\n", b" \n")
    yield from (
        text + bytes(1),
        b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"),
        text * 2,
        text.replace(b"\n", b"\r"),
    )
    yield text[:-1] + b"x" * 70000 + b"\n"

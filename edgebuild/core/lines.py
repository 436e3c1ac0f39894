"""The text that manifests and trust files are written in (SPEC section 2): lines of a key and values, in one order."""

import re
from collections.abc import Callable
from datetime import date
from typing import TypeVar

from edgebuild.core.dates import parse_day
from edgebuild.core.errors import BundleError

MAX_NUMBER = 2**31 - 1
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")

T = TypeVar("T")


class Lines:
    """One pass over the lines; `self._at` is the line that is read next. `what` and `remedy` are for messages."""

    def __init__(self, data: bytes, limit: int, what: str, remedy: str) -> None:
        self._what, self._remedy = what, remedy
        if len(data) > limit:
            raise self._refused(f"{len(data)} bytes; the limit is {limit}")
        if any(byte != 0x0A and not 0x20 <= byte <= 0x7E for byte in data):
            raise self._refused("a byte outside printable ASCII")
        if not data.endswith(b"\n"):
            raise self._refused("the last line has no end")
        self._lines = [line.split(" ") for line in data.decode("ascii")[:-1].split("\n")]
        self._at = 0

    def _format(self, key: str, known: str, named: str, newer: str) -> None:
        """The first line: another version of the format is not malformed, and nothing behind it is looked at."""
        version = self._number(self._single(key), 0, MAX_NUMBER)
        if version != int(known):
            raise BundleError(f"{named} has version {version}; this edgebuild reads {known}", newer)
        self._at = 1

    def _end(self) -> None:
        if self._at != len(self._lines):
            raise self._wrong("a line that does not belong here")

    def _refused(self, what: str) -> BundleError:
        return BundleError(f"{self._what}: {what}", self._remedy)

    def _wrong(self, what: str) -> BundleError:
        return BundleError(f"{self._what}, line {self._at + 1}: {what}", self._remedy)

    def _next(self) -> str | None:
        return self._lines[self._at][0] if self._at < len(self._lines) else None

    def _fields(self, key: str) -> list[str]:
        if self._next() != key:
            raise self._wrong(f"expected `{key}`")
        return self._lines[self._at][1:]

    def _single(self, key: str) -> str:
        fields = self._fields(key)
        if len(fields) != 1:
            raise self._wrong(f"`{key}` takes one value")
        return fields[0]

    def _one(self, key: str, pattern: re.Pattern[str]) -> str:
        value = self._single(key)
        if not pattern.fullmatch(value):
            raise self._wrong(f"`{value}` is not a valid {key}; allowed: {pattern.pattern}")
        self._at += 1
        return value

    def _choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self._single(key)
        if value not in allowed:
            raise self._wrong(f"{key} must be one of {', '.join(allowed)}")
        self._at += 1
        return value

    def _numbered(self, key: str) -> int:
        value = self._number(self._single(key), 1, MAX_NUMBER)
        self._at += 1
        return value

    def _number(self, text: str, low: int, high: int) -> int:
        if not _NUMBER.fullmatch(text) or not low <= int(text) <= high:
            raise self._wrong(f"`{text}` is not a number from {low} to {high}")
        return int(text)

    def _day(self, key: str) -> date:
        text = self._single(key)
        try:
            day = parse_day(text)
        except ValueError as error:
            raise self._wrong(f"`{text}` is no day as YYYY-MM-DD of the years 2000 to 9999") from error
        self._at += 1
        return day

    def _many(self, key: str, read: Callable[[list[str]], T]) -> tuple[T, ...]:
        found = []
        while self._next() == key:
            found.append(read(self._fields(key)))
            self._at += 1
        return tuple(found)

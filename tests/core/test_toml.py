"""The strict reader: every wrong key, type and value is named."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from edgebuild.core.errors import CalibrationError, EdgebuildError, RecipeError
from edgebuild.core.toml import read


@dataclass(frozen=True)
class Inner:
    count: int
    ratio: float = 0.5
    mode: Literal["fast", "exact"] = "fast"

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count: {self.count} is negative")


@dataclass(frozen=True)
class Schema:
    name: str
    inner: Inner
    flag: bool = False
    names: tuple[str, ...] = ()
    inners: tuple[Inner, ...] = ()
    free: dict[str, Any] = field(default_factory=dict)
    either: int | str = 0
    path: str | None = None


GOOD = """
name = "x"
flag = true
names = ["a", "b"]
free = { a = 1, b = [2] }
either = "text"
inners = [{ count = 1 }, { count = 2 }]

[inner]
count = 3
ratio = 1
mode = "exact"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "file.toml"
    path.write_text(text)
    return path


def test_reads(tmp_path: Path) -> None:
    assert read(write(tmp_path, GOOD), Schema) == Schema(
        "x", Inner(3, 1.0, "exact"), True, ("a", "b"), (Inner(1), Inner(2)), {"a": 1, "b": [2]}, "text", None
    )


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ("flag = true", "flg = true", "unknown key 'flg'", "did you mean 'flag'?"),
        ("ratio = 1", "ratoi = 1", "unknown key 'inner.ratoi'", "did you mean 'ratio'?"),
        ("flag = true", "qqqqq = 1", "unknown key 'qqqqq'", "known: name, inner, flag"),
        ("flag = true", "flag = 1", "flag: expected true or false, found an integer 1", ""),
        ("count = 3", "count = 3.5", "inner.count: expected an integer, found a number 3.5", ""),
        ("count = 3", "count = true", "inner.count: expected an integer, found true or false True", ""),
        ("count = 3", "count = -3", "inner.count: -3 is negative", ""),
        ("count = 3", "", "missing key 'inner.count'", "an integer"),
        ("ratio = 1", "ratio = '1'", "inner.ratio: expected a number, found a string '1'", ""),
        ("ratio = 1", "ratio = 1979-05-27", "inner.ratio: expected a number, found a date or time", ""),
        ('"exact"', '"exat"', "inner.mode: expected one of 'fast', 'exact', found 'exat'", "did you mean 'exact'?"),
        ('"exact"', "7", "inner.mode: expected one of 'fast', 'exact', found an integer 7", ""),
        ('["a", "b"]', '"a"', r"names: expected an array \(a string each\), found a string 'a'", ""),
        ('["a", "b"]', '["a", 2]', r"names\[1\]: expected a string, found an integer 2", ""),
        ("count = 2", "cuont = 2", r"unknown key 'inners\[1\].cuont'", "did you mean 'count'?"),
        ('either = "text"', "either = 1.5", "either: expected an integer or a string, found a number 1.5", ""),
        ("free = { a = 1, b = [2] }", "free = 1", "free: expected a table, found an integer 1", ""),
        ('name = "x"', "name = x", "is not valid TOML", ""),
    ],
)
def test_refuses(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(RecipeError, match=message) as caught:
        read(path, Schema)
    assert caught.value.message.startswith(f"{path}: ")
    assert hint in caught.value.hint


def test_a_table_that_is_a_value(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="inner: expected a table, found an integer 1"):
        read(write(tmp_path, 'name = "x"\ninner = 1'), Schema)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    with pytest.raises(RecipeError, match="cannot be read: No such file"):
        read(path, Schema)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="is not UTF-8 text"):
        read(path, Schema)
    with pytest.raises(RecipeError, match="cannot be read"):
        read(tmp_path, Schema)


@pytest.mark.parametrize("error", [RecipeError, CalibrationError])
def test_the_caller_chooses_the_error(tmp_path: Path, error: type[EdgebuildError]) -> None:
    with pytest.raises(error):
        read(tmp_path / "none.toml", Schema, error)

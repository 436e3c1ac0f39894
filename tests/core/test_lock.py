"""recipe.lock: written in one form, read back as it was, and refused by name where it is wrong."""

from pathlib import Path

import pytest

from edgebuild.core.errors import EnvironmentProblem, RecipeError
from edgebuild.core.lock import Lock, read_lock, write_lock
from edgebuild.core.recipe import LOCK_FILE

SHAPE = "conv 1x8x8x16 to 8x8x32 k1x1 s1x1 p0x0 d1x1 g1"
GOOD = f"""version = 1

[schedules.avx2]
"{SHAPE}" = "6x2x1"
"""
MEASURED = """version = 1

[fallback.avx2]
"model.conv" = "int16"
"head" = "float32"

[precision]
sse2 = "float32"
neon = "int8"
"""


def test_what_was_written_is_read(tmp_path: Path) -> None:
    lock = Lock(schedules={"neon": {"b": "1x1x1", "a": "2"}, "avx2": {SHAPE: "6x2x1", 'odd "key" \\ é': "3"}})
    path = write_lock(tmp_path, lock)
    assert path.name == LOCK_FILE
    assert read_lock(tmp_path) == lock
    assert [p.name for p in tmp_path.iterdir()] == [LOCK_FILE]


def test_the_order_of_measuring_does_not_show(tmp_path: Path) -> None:
    one = Lock().with_schedules("a", {"x": "1", "y": "2"}).with_schedules("b", {})
    two = Lock().with_schedules("b", {}).with_schedules("a", {"y": "2", "x": "1"})
    assert one.to_toml() == two.to_toml()
    assert one.to_toml().splitlines()[1:] == ["version = 1", "", '[schedules."a"]', '"x" = "1"', '"y" = "2"', "",
                                              '[schedules."b"]']  # fmt: skip


def test_other_instruction_sets_keep_their_schedules() -> None:
    lock = Lock(schedules={"avx2": {"x": "1"}, "neon": {"x": "2"}})
    assert lock.with_schedules("avx2", {"y": "3"}).schedules == {"avx2": {"y": "3"}, "neon": {"x": "2"}}
    assert lock.schedules["avx2"] == {"x": "1"}


def test_without_a_lock(tmp_path: Path) -> None:
    assert read_lock(tmp_path) == Lock()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "version: expected one of 1, found 2"),
        ("version = 1", 'version = "1"', "version: expected one of 1, found a string '1'"),
        ("version = 1", "versoin = 1", "unknown key 'versoin'"),
        ("schedules.avx2", "schedule.avx2", "unknown key 'schedule'"),
        ('"6x2x1"', "6", f"schedules.avx2.{SHAPE}: expected a string, found an integer 6"),
        ('"6x2x1"', '"6x2x1', "is not valid TOML"),
        (f'[schedules.avx2]\n"{SHAPE}" = "6x2x1"', "schedules = []", "schedules: expected a table, found an array"),
        (f'"{SHAPE}" = "6x2x1"', f'"{SHAPE}" = "6x2x1"\n"{SHAPE}" = "4x2x1"', "is not valid TOML"),
    ],
)
def test_a_broken_lock_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text(GOOD)
    assert read_lock(tmp_path) == Lock(schedules={"avx2": {SHAPE: "6x2x1"}})
    assert old in GOOD
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        read_lock(tmp_path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert caught.value.hint


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        write_lock(tmp_path / LOCK_FILE / "none", Lock())


def test_layers_that_fall_back_are_written_and_read(tmp_path: Path) -> None:
    lock = Lock().with_fallback("avx2", {"b": "int16", 'odd "layer" \\ é': "float32"}).with_precision("sse2", "float32")
    write_lock(tmp_path, lock)
    assert read_lock(tmp_path) == lock
    (tmp_path / LOCK_FILE).write_text(MEASURED)
    assert read_lock(tmp_path) == Lock(
        fallback={"avx2": {"model.conv": "int16", "head": "float32"}}, precision={"sse2": "float32", "neon": "int8"}
    )


def test_their_order_does_not_show() -> None:
    one = Lock().with_fallback("b", {"x": "int16", "y": "float32"}).with_fallback("a", {"x": "int16"})
    two = Lock().with_fallback("a", {"x": "int16"}).with_fallback("b", {"y": "float32", "x": "int16"})
    assert one.with_precision("b", "int8").with_precision("a", "float32").to_toml().splitlines()[1:] == [
        "version = 1", "", '[fallback."a"]', '"x" = "int16"', "", '[fallback."b"]', '"x" = "int16"', '"y" = "float32"',
        "", "[precision]", '"a" = "float32"', '"b" = "int8"',
    ]  # fmt: skip
    assert one.to_toml() == two.to_toml()


def test_other_instruction_sets_keep_what_fell_back() -> None:
    lock = Lock(fallback={"avx2": {"x": "int16"}, "neon": {"x": "float32"}}, precision={"neon": "float32"})
    assert lock.with_fallback("avx2", {"y": "int16"}).fallback == {"avx2": {"y": "int16"}, "neon": {"x": "float32"}}
    assert lock.with_fallback("avx2", {}).fallback == {"neon": {"x": "float32"}}
    assert lock.with_precision("avx2", "int8").precision == {"avx2": "int8", "neon": "float32"}
    assert lock.with_precision("avx2", None).precision == {"neon": "float32"}
    assert lock.with_precision("neon", None).precision == {}
    assert lock.fallback["avx2"] == {"x": "int16"}


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('"int16"', '"int4"', "fallback.avx2.model.conv: 'int4' is neither 'int16' nor 'float32'", "--update-lock"),
        ('"head" = "float32"', '"head" = "int8"', "fallback.avx2.head: 'int8' is neither", "--update-lock"),
        ('"int16"', "16", "fallback.avx2.model.conv: expected a string, found an integer 16", "write a string"),
        ('sse2 = "float32"', 'sse2 = "int16"', "precision.sse2: 'int16' is neither 'int8' nor 'float32'", "--update"),
        ("[precision]", "[precision.avx2]", "precision.avx2: expected a string, found a table", "write a string"),
        ("[fallback.avx2]", "[fallbak.avx2]", "unknown key 'fallbak'", "did you mean 'fallback'?"),
    ],
)
def test_a_precision_that_is_none_is_refused(tmp_path: Path, old: str, new: str, message: str, hint: str) -> None:
    path = tmp_path / LOCK_FILE
    path.write_text(MEASURED)
    assert read_lock(tmp_path).fallback["avx2"]["head"] == "float32"
    assert old in MEASURED
    path.write_text(MEASURED.replace(old, new))
    with pytest.raises(RecipeError) as caught:
        read_lock(tmp_path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert hint in caught.value.hint

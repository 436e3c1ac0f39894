"""`edgebuild delta` as a user meets it."""

from pathlib import Path

import pytest
from cli.conftest import Edgebuild
from delta.releases import files, release, weights


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "digits-1.1.0-x.ebundle", tmp_path / "digits-1.2.0-x.ebundle"
    old.write_bytes(release(files(weights())))
    changed = weights()
    changed["w"][::5] += 1
    new.write_bytes(release(files(changed), 2))
    return old, new


def test_it_says_what_each_file_costs(edgebuild: Edgebuild, pair: tuple[Path, Path]) -> None:
    ran = edgebuild("delta", *pair)
    assert ran.code == 0
    made = pair[1].with_name("digits-1.2.0-x-from-1.1.0.edelta")
    assert made.is_file()
    assert f"1.1.0 → 1.2.0: {made.stat().st_size} bytes" in ran.out
    assert "weights.bin" in ran.out
    assert str(made) in ran.out.replace("\n", "")


def test_json(edgebuild: Edgebuild, pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = edgebuild("delta", *pair, "-o", tmp_path / "a.edelta", "--json").json
    assert found["bytes"] == (tmp_path / "a.edelta").stat().st_size
    assert found["bytes"] == found["head_bytes"] + sum(row["cost"] for row in found["files"])
    assert (found["from"]["release"], found["to"]["release"]) == (1, 2)


def test_what_devices_will_refuse_is_said(edgebuild: Edgebuild, pair: tuple[Path, Path]) -> None:
    assert "the release counter falls from 2 to 1" in edgebuild("delta", *pair[::-1]).out


def test_wrong_inputs(edgebuild: Edgebuild, pair: tuple[Path, Path], tmp_path: Path) -> None:
    old, new = pair
    same = edgebuild("delta", old, old)
    assert (same.code, "are the same bundle" in same.err) == (2, True)
    gone = edgebuild("delta", old, tmp_path / "no.ebundle")
    assert (gone.code, "No such file" in gone.err) == (9, True)
    (tmp_path / "text").write_text("no bundle")
    for wrong in ((old, tmp_path / "text"), (tmp_path / "text", new)):
        ran = edgebuild("delta", *wrong)
        assert (ran.code, "text: not a bundle" in ran.err) == (8, True), ran

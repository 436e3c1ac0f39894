from pathlib import Path

import pytest

from edgebuild.core import digest
from edgebuild.core.cache import Cache, cache_dir


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_dir() == tmp_path / "a"
    monkeypatch.delenv("EDGEBUILD_CACHE")
    assert cache_dir() == tmp_path / "b" / "edgebuild"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir() == tmp_path / ".cache" / "edgebuild"


def test_an_entry_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    assert cache.get("ab12") is None
    written: list[str] = []

    def full(self: Path, data: bytes) -> int:
        written.append(self.name)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        cache.put("ab12", {"model.onnx": b"x"})
    assert written == ["model.onnx"]
    assert cache.get("ab12") is None
    assert list((tmp_path / "ab").iterdir()) == []


def test_the_first_of_two_writers_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    first = cache.put("ab12", {"f": b"x"})
    second = cache.put("ab12", {"f": b"x"})
    assert first == second == cache.get("ab12")
    assert [path.name for path in (tmp_path / "ab").iterdir()] == ["ab12"]


def test_a_folders_digest_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "f.py").write_text("1")
    assert digest.of_folder(one) == digest.of_folder(two)
    (two / "__pycache__").mkdir()
    (two / "__pycache__" / "f.pyc").write_bytes(b"")
    (two / ".hidden").write_bytes(b"")
    assert digest.of_folder(one) == digest.of_folder(two)
    (two / "sub" / "f.py").rename(two / "sub" / "g.py")
    assert digest.of_folder(one) != digest.of_folder(two)


def test_parts_do_not_run_together() -> None:
    assert digest.of_parts("ab", "c") != digest.of_parts("a", "bc")


def test_versions_of_packages_count() -> None:
    assert digest.of_packages(["pytest"]) != digest.of_packages(["no-such-package"])
    assert digest.package_version("no-such-package") == "absent"

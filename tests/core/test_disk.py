import errno
from pathlib import Path

import pytest

from edgebuild.core import disk
from edgebuild.core.errors import EnvironmentProblem


def test_files_appear_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    disk.write_together(tmp_path, {"a": b"new", "b": b"2"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"new", "b": b"2"}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_room_for_the_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    (tmp_path / "a").write_bytes(b"old")
    write = disk._write_durably

    def full(path: Path, data: bytes) -> None:
        write(path, data[:1])
        if data == b"second":
            raise OSError(code, "full", str(path))

    monkeypatch.setattr(disk, "_write_durably", full)
    with pytest.raises(EnvironmentProblem, match=f"{tmp_path}: no room left on the disk"):
        disk.write_together(tmp_path, {"a": b"first", "b": b"second"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


def test_an_interrupt_between_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: Path, data: bytes) -> None:
        path.write_bytes(data)
        raise KeyboardInterrupt

    monkeypatch.setattr(disk, "_write_durably", interrupted)
    with pytest.raises(KeyboardInterrupt):
        disk.write_together(tmp_path, {"a": b"1"})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_made_and_tried(tmp_path: Path) -> None:
    disk.prepare_folder(tmp_path / "x" / "y")
    assert list((tmp_path / "x" / "y").iterdir()) == []
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EnvironmentProblem, match="file: cannot be written: File exists") as caught:
        disk.prepare_folder(tmp_path / "file")
    assert caught.value.hint == "choose another folder"


def test_other_errors_pass() -> None:
    with pytest.raises(OSError, match="gone"), disk.disk_errors():
        raise OSError(errno.ENOENT, "gone")

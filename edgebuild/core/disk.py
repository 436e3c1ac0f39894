"""Writing to a disk that may be full or not ours: whole files or none, and errors that say what to do."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from edgebuild.core.errors import EnvironmentProblem

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR)


@contextmanager
def disk_errors(where: Path | None = None, hint: str = "choose another folder") -> Iterator[None]:
    """Turns the operating system's errors inside into an EnvironmentProblem that names the file.

    With `where`, the one place that is written to inside, that is every error; without, those that mean a full disk or
    a lack of permission.
    """
    try:
        yield
    except OSError as error:
        path = where or error.filename or "the disk"
        if error.errno in _NO_ROOM:
            raise EnvironmentProblem(f"{path}: no room left on the disk", "free some space and run it again") from error
        if where is not None or error.errno in _NOT_OURS:
            reason = os.strerror(error.errno or errno.EIO)
            raise EnvironmentProblem(f"{path}: cannot be written: {reason}", hint) from error
        raise


def prepare_folder(folder: Path, hint: str = "choose another folder") -> None:
    """Makes `folder` and writes a byte into it: a long build must not end with an error that could come first."""
    with disk_errors(folder, hint):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")


def write_together(folder: Path, files: dict[str, bytes]) -> None:
    """Writes `files` into `folder`: each appears whole, under its name, once all of them are on the disk."""
    temporary = {name: folder / f".{name}.{os.getpid()}.part" for name in files}
    try:
        with disk_errors(folder):
            for name, data in files.items():
                _write_durably(temporary[name], data)
            for name, path in temporary.items():
                path.replace(folder / name)
    finally:
        for path in temporary.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

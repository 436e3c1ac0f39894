"""Arrays as the model takes them: .npz with one array per input, or .npy for a model with one; first axis = samples."""

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from edgebuild.core.calibration.sources import Array, Items, Sample, taken
from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor

LABELS_ARRAY = "labels"


@dataclasses.dataclass(frozen=True)
class Npz:
    """One array per input, and `labels` if there are any; read one sample at a time."""

    path: Path

    def files(self) -> list[Path]:
        return [self.path]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Items:  # noqa: ARG002
        with _readable(self.path, "numpy.savez"), zipfile.ZipFile(self.path) as archive:
            arrays = {
                name.removesuffix(".npy"): _Rows(archive.open(name), f"{self.path}: array '{name}'")
                for name in archive.namelist()
            }
            for row in _rows(arrays, self.path, limit):
                yield row, _class(row.pop(LABELS_ARRAY, None), self.path)


@dataclasses.dataclass(frozen=True)
class Npy:
    """The array of the only input; `labels` is an .npy of class indices."""

    path: Path
    labels: Path | None

    def files(self) -> list[Path]:
        return [self.path, *([self.labels] if self.labels else [])]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Items:
        if len(inputs) != 1:
            raise CalibrationError(
                f"{self.path}: an .npy file holds one array; the model takes {taken(inputs)}",
                "give an .npz file with one array per input",
            )
        name = inputs[0].name
        files = {name: self.path} | ({LABELS_ARRAY: self.labels} if self.labels else {})
        with _readable(self.path, "numpy.save"):
            arrays = {key: _Rows(path.open("rb"), str(path)) for key, path in files.items()}
            for row in _rows(arrays, self.path, limit):
                yield {name: row[name]}, _class(row.get(LABELS_ARRAY) if self.labels else None, self.labels)


@contextmanager
def _readable(path: Path, writer: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error) as reason:
        raise CalibrationError(
            f"{path}: is no readable {path.suffix} file: {reason}", f"write it with {writer}"
        ) from reason


def _rows(arrays: "dict[str, _Rows]", path: Path, limit: int | None) -> Iterator[Sample]:
    if not arrays:
        return
    counts = {name: rows.count for name, rows in arrays.items()}
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CalibrationError(
            f"{path}: the arrays hold different numbers of samples: {shown}",
            "the first axis of every array counts the same samples",
        )
    total = next(iter(counts.values()))
    for _ in range(total if limit is None else min(limit, total)):
        yield {name: rows.next() for name, rows in arrays.items()}


def _class(label: Array | None, path: Path | None) -> int | None:
    if label is None:
        return None
    if label.size != 1 or label.dtype.kind not in "iu":
        raise CalibrationError(
            f"{path}: array '{LABELS_ARRAY}' is {label.dtype.name} with shape {list(label.shape)} per sample",
            "give one integer, the class index, per sample",
        )
    return int(label.reshape(()))


class _Rows:
    """The rows of one .npy file, streamed."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        version = np.lib.format.read_magic(file)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, self._dtype = header(file)
        if self._dtype.hasobject:
            raise CalibrationError(f"{where} holds Python objects", "save numeric arrays")
        if not shape:
            raise CalibrationError(f"{where} is a scalar", "the first axis counts samples")
        if fortran and len(shape) > 1:
            raise CalibrationError(f"{where} is in Fortran order", "save numpy.ascontiguousarray(array)")
        self.count, self._shape, self._file = shape[0], shape[1:], file

    def next(self) -> Array:
        size = math.prod(self._shape) * self._dtype.itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("it is cut off")
        return np.frombuffer(data, self._dtype).reshape(self._shape)

"""Calibration sets: real samples of a function's inputs, and a held-out part with labels.

`calibration-data/NAME/set.toml`:

    [set]
    name = "digits"
    description = "…"
    licence = "CC BY 4.0"
    kind = "python"              # or "images", "npz"

    [calibration]                # the samples that quantization sees
    path = "loader.py"           # python: the module; images: a folder; npz: a file. Relative to the set
    digest = "…"                 # optional: SHA-256 over the data; other data is refused
    function = "calibration"     # python: function(inputs) that yields (sample, label or None)
    labels = "labels.csv"        # images, optional: columns file, label; npz: the array `labels`
    resize = "center-crop"       # images: scale and cut (center-crop), or scale both sides (stretch)

    [test]                       # optional, the same keys: held-out samples with labels, for accuracy

A sample is a dict of one array per input, of exactly the input's shape and dtype. Samples stream: one is in memory at a
time.
"""

import csv
import dataclasses
import importlib.util
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import numpy as np

from edgebuild.core import digest
from edgebuild.core.errors import CalibrationError, EdgebuildError, EnvironmentProblem
from edgebuild.core.manifest import Tensor
from edgebuild.core.resources import resource
from edgebuild.core.toml import did_you_mean, read

Sample = dict[str, np.ndarray[Any, Any]]

SET_FILE = "set.toml"
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
LABELS_ARRAY = "labels"
NEVER_RANDOM = "give real samples: --calibration FOLDER_OF_IMAGES or FILE.npz, or [calibration] set in recipe.toml"

Split = Literal["calibration", "test"]


@dataclasses.dataclass(frozen=True)
class _Identity:
    name: str
    licence: str
    kind: Literal["images", "npz", "python"]
    description: str = ""


@dataclasses.dataclass(frozen=True)
class _Part:
    path: str
    digest: str | None = None
    function: str | None = None
    labels: str | None = None
    resize: Literal["center-crop", "stretch"] = "center-crop"


@dataclasses.dataclass(frozen=True)
class _File:
    set: _Identity
    calibration: _Part
    test: _Part | None = None


class _Source(Protocol):
    """One adapter a kind."""

    def files(self) -> list[Path]:
        """The files that the data is made of."""

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Iterator[tuple[Sample, int | None]]:
        """Samples with their labels, at most `limit`, in a fixed order."""


@dataclasses.dataclass(frozen=True)
class CalibrationSet:
    """One part (calibration or test) of a set."""

    name: str
    licence: str
    origin: Path
    _source: _Source

    def digest(self) -> str:
        """Digest of the data and of the code that makes samples of it. Loads no framework."""
        files = [*self._source.files(), self.origin]
        return digest.of_parts(*(digest.of_file(path) for path in files if path.is_file()))

    def samples(self, inputs: Sequence[Tensor], limit: int | None = None) -> Iterator[Sample]:
        """Samples that fit `inputs` exactly. Raises CalibrationError for one that does not, or when there is none."""
        for sample, _ in self.labelled(inputs, limit):
            yield sample

    def labelled(self, inputs: Sequence[Tensor], limit: int | None = None) -> Iterator[tuple[Sample, int | None]]:
        """As `samples`, with the label (class index) or None beside each."""
        count = 0
        for count, (sample, label) in enumerate(self._source.items(inputs, limit), start=1):
            yield fit(sample, inputs, f"{self.origin}: sample {count - 1}"), label
            if count == limit:
                return
        if count == 0:
            raise CalibrationError(f"{self.origin}: holds no samples", NEVER_RANDOM)


def find_set(name: str, recipe_folder: Path | None = None) -> Path:
    """The place of the set `name`: a path relative to the recipe's folder, a folder of a `calibration-data` in or
    beside the recipe's folder, else a set of edgebuild's.
    """
    own = []
    if recipe_folder is not None:
        here = recipe_folder.resolve()
        own = [
            recipe_folder / name,
            *(up / "calibration-data" / name for up in (here, here.parent, here.parent.parent)),
        ]
    for place in [*own, resource("calibration-data") / name]:
        if place.exists():
            return place
    known = sorted(path.parent.name for path in resource("calibration-data").glob(f"*/{SET_FILE}"))
    looked = f"; looked for {', '.join(str(place) for place in own)}" if own else ""
    raise CalibrationError(f"calibration set '{name}': no such folder, file or set{looked}", did_you_mean(name, known))


def load_set(place: Path, split: Split = "calibration") -> CalibrationSet:
    """The set at `place`: a folder with set.toml, a plain folder of images, or an .npz file.

    Only a folder with set.toml can have a `test` part. Raises CalibrationError.
    """
    if (place / SET_FILE).is_file():
        return _described(place, split)
    if not place.exists():
        raise CalibrationError(f"{place}: no such file or folder", NEVER_RANDOM)
    if split == "test":
        raise CalibrationError(f"{place}: has no held-out part", f"describe it in {SET_FILE} with a table [test]")
    if place.is_dir():
        return CalibrationSet(place.name, "", place, _Images(place, None, "center-crop"))
    if place.suffix == ".npz":
        return CalibrationSet(place.stem, "", place, _Npz(place))
    raise CalibrationError(f"{place}: is neither a folder of images nor an .npz file", NEVER_RANDOM)


def has_test(place: Path) -> bool:
    """Whether the set at `place` has a held-out part."""
    file = place / SET_FILE
    return file.is_file() and read(file, _File, CalibrationError).test is not None


def fit(sample: Sample, inputs: Sequence[Tensor], where: str) -> Sample:
    """`sample` in the order and with the shapes of `inputs`. A missing first axis of length 1 is added.

    Raises CalibrationError for a wrong name, dtype or shape, and for NaN or infinity; `where` starts the message.
    """
    names = [spec.name for spec in inputs]
    for name in sample:
        if name not in names:
            raise CalibrationError(f"{where}: array '{name}' is no input of the model", did_you_mean(name, names))
    fitted = {}
    for spec in inputs:
        if spec.name not in sample:
            raise CalibrationError(
                f"{where}: there is no array for input '{spec.name}'", f"add an array named '{spec.name}'"
            )
        array = np.asarray(sample[spec.name])
        if array.dtype.name != spec.dtype:
            raise CalibrationError(
                f"{where}: input '{spec.name}' is {array.dtype.name}, the model takes {spec.dtype}",
                f"convert it: array.astype('{spec.dtype}')",
            )
        if spec.shape not in {array.shape, (1, *array.shape)}:
            raise CalibrationError(
                f"{where}: input '{spec.name}' has shape {list(array.shape)}, the model takes {list(spec.shape)}",
                "the first axis of an array in an .npz counts samples; the others are the input's",
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CalibrationError(f"{where}: input '{spec.name}' holds NaN or infinity", "remove such samples")
        # The dtype's name says nothing of the byte order, which files may choose.
        fitted[spec.name] = array.astype(spec.dtype, copy=False).reshape(spec.shape)
    return fitted


def _described(place: Path, split: Split) -> CalibrationSet:
    path = place / SET_FILE
    content = read(path, _File, CalibrationError)
    part = content.calibration if split == "calibration" else content.test
    if part is None:
        raise CalibrationError(f"{path}: has no table [test]", "accuracy needs held-out samples with labels")
    source = _source(content.set.kind, place, part, f"{path}: [{split}]")
    if part.digest is not None and (actual := data_digest(source.files())) != part.digest:
        raise CalibrationError(
            f"{path}: {split}.digest: the data has changed: expected {part.digest}, found {actual}",
            "restore the data, or write the new digest if the change is meant",
        )
    return CalibrationSet(content.set.name, content.set.licence, path, source)


def data_digest(files: Iterable[Path]) -> str:
    """What `digest` in set.toml states: SHA-256 over the files' contents, in the order of their names."""
    ordered = sorted((path for path in files if path.suffix != ".py"), key=lambda path: path.name)
    return digest.of_parts(*(digest.of_file(path) for path in ordered))


def _source(kind: str, place: Path, part: _Part, where: str) -> _Source:
    path = place / part.path
    if not path.exists():
        raise CalibrationError(f"{where} path: no such file or folder: {path}", f"paths are relative to {place}")
    if kind == "images":
        return _Images(path, place / part.labels if part.labels else None, part.resize)
    if kind == "npz":
        return _Npz(path)
    if part.function is None:
        raise CalibrationError(f"{where}: missing key 'function'", "name the loader's function: function(inputs)")
    return _Loader(path, part.function)


@dataclasses.dataclass(frozen=True)
class _Images:
    """Pictures as the uint8 RGB frame [H, W, 3] of a handler."""

    folder: Path
    labels: Path | None
    resize: str

    def files(self) -> list[Path]:
        pictures = sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        return [*pictures, *([self.labels] if self.labels else [])]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Iterator[tuple[Sample, int | None]]:
        frame = self._frame(inputs)
        labels = self._labels()
        pictures = [path for path in self.files() if path != self.labels and (not labels or path.name in labels)]
        for path in _spread(pictures, limit):
            yield {frame.name: self._picture(path, frame)}, labels.get(path.name)

    def _frame(self, inputs: Sequence[Tensor]) -> Tensor:
        if len(inputs) == 1 and inputs[0].dtype == "uint8" and len(inputs[0].shape) == 3 and inputs[0].shape[2] == 3:
            return inputs[0]
        taken = ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in inputs)
        raise CalibrationError(
            f"{self.folder}: images fit one uint8 input [height, width, 3]; the model takes {taken}",
            "give an .npz file with one array per model input, first axis = samples, preprocessed as in training",
        )

    def _labels(self) -> dict[str, int]:
        """File name to class index: the csv's column `file`, and the first one whose name holds `label` or `class`."""
        if self.labels is None:
            return {}
        try:
            with self.labels.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            column = next(name for name in rows[0] if "label" in name or "class" in name)
            return {Path(row["file"]).name: int(row[column]) for row in rows}
        except (OSError, ValueError, KeyError, IndexError, StopIteration, TypeError) as reason:
            raise CalibrationError(
                f"{self.labels}: is no list of labels ({reason!r})",
                "a csv with a header: file,label and a class index per row",
            ) from reason

    def _picture(self, path: Path, frame: Tensor) -> np.ndarray[Any, Any]:
        try:
            from PIL import Image, ImageOps  # noqa: PLC0415  (an extra)
        except ImportError as reason:
            raise EnvironmentProblem("reading images needs Pillow", "pip install 'edgebuild[recipes]'") from reason
        height, width, _ = frame.shape
        try:
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened).convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as reason:
            raise CalibrationError(f"{path}: is no readable image: {reason}", "remove or repair the file") from reason
        if self.resize == "center-crop":
            picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))


@dataclasses.dataclass(frozen=True)
class _Npz:
    """One array per input, first axis = samples; read one sample at a time."""

    path: Path

    def files(self) -> list[Path]:
        return [self.path]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Iterator[tuple[Sample, int | None]]:  # noqa: ARG002
        try:
            with zipfile.ZipFile(self.path) as archive:
                yield from self._rows(archive, limit)
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, zlib.error) as reason:
            raise CalibrationError(
                f"{self.path}: is no readable .npz file: {reason}", "write it with numpy.savez"
            ) from reason

    def _rows(self, archive: zipfile.ZipFile, limit: int | None) -> Iterator[tuple[Sample, int | None]]:
        arrays = {
            name.removesuffix(".npy"): _Rows(archive.open(name), f"{self.path}: array '{name}'")
            for name in archive.namelist()
        }
        if not arrays:
            return
        counts = {name: rows.count for name, rows in arrays.items()}
        if len(set(counts.values())) > 1:
            shown = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise CalibrationError(
                f"{self.path}: the arrays hold different numbers of samples: {shown}",
                "the first axis of every array counts the same samples",
            )
        total = next(iter(counts.values()))
        for _ in range(total if limit is None else min(limit, total)):
            row = {name: rows.next() for name, rows in arrays.items()}
            yield row, self._label(row.pop(LABELS_ARRAY, None))

    def _label(self, label: np.ndarray[Any, Any] | None) -> int | None:
        if label is None:
            return None
        if label.size != 1 or label.dtype.kind not in "iu":
            raise CalibrationError(
                f"{self.path}: array '{LABELS_ARRAY}' is {label.dtype.name} with shape {list(label.shape)} per sample",
                "give one integer, the class index, per sample",
            )
        return int(label.reshape(()))


class _Rows:
    """The rows of one .npy member, streamed."""

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

    def next(self) -> np.ndarray[Any, Any]:
        size = math.prod(self._shape) * self._dtype.itemsize
        data = self._file.read(size)
        if len(data) != size:
            raise ValueError("it is cut off")
        return np.frombuffer(data, self._dtype).reshape(self._shape)


@dataclasses.dataclass(frozen=True)
class _Loader:
    """A Python module of the set: `files()` names the data, `function(inputs)` yields (sample, label or None)."""

    path: Path
    function: str

    def files(self) -> list[Path]:
        with self._blame("files"):
            return [self.path, *self._load("files")()]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Iterator[tuple[Sample, int | None]]:  # noqa: ARG002
        with self._blame(self.function):
            yield from self._load(self.function)(inputs)

    def _load(self, name: str) -> Any:
        unique = f"_edgebuild_loader_{self.path.parent.name}"
        spec = importlib.util.spec_from_file_location(unique, self.path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found = getattr(module, name, None)
        if found is None:
            raise CalibrationError(f"{self.path}: has no function '{name}'", did_you_mean(name, _public(module)))
        return found

    @contextmanager
    def _blame(self, name: str) -> Iterator[None]:
        try:
            yield
        except EdgebuildError:
            raise
        except Exception as reason:
            raise CalibrationError(
                f"{self.path}: {name}: {type(reason).__name__}: {reason}", "this is the set's own code; correct it"
            ) from reason


def _public(module: Any) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_")]


def _spread(items: list[Path], limit: int | None) -> list[Path]:
    """At most `limit` of `items`, evenly spaced: sorted folders group classes."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]

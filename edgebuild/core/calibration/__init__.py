"""Calibration sets: real samples of a function's inputs, and a held-out part with labels.

`calibration-data/NAME/set.toml`:

    [set]
    name = "digits"
    description = "…"
    licence = "CC BY 4.0"
    kind = "python"              # or "images", "arrays", "audio"

    [calibration]                # the samples that quantization sees
    path = "loader.py"           # relative to the set. python: the module; images: a folder, or an .npz with `images`;
                                 # arrays: an .npz with one array per input, or an .npy; audio: a folder of .wav
    digest = "…"                 # optional: SHA-256 over the data; other data is refused
    function = "calibration"     # python: function(inputs) that yields (sample, label or None)
    labels = "labels.csv"        # images, audio: columns file, label; images with boxes: the columns left, top, right,
                                 # bottom as well, or a folder of YOLO text files. An .npz: its array `labels`; an .npy:
                                 # another one
    resize = "center-crop"       # images: scale and cut (center-crop), scale both sides (stretch), or scale to fit,
                                 # top left, the rest grey (letterbox)
    sample_rate = 16000          # audio: values a second; files of another rate are refused
    windows = "first"            # audio: the beginning of each file, or all windows, one after the other

    [test]                       # optional, the same keys: held-out samples with labels, for accuracy

A sample is a dict of one array per input, of exactly the input's shape and dtype. Samples stream: one is in memory at a
time.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from edgebuild.core import digest
from edgebuild.core.calibration import audio, images
from edgebuild.core.calibration.arrays import Npy, Npz
from edgebuild.core.calibration.audio import Audio
from edgebuild.core.calibration.images import ImageArray, Images
from edgebuild.core.calibration.loader import Loader
from edgebuild.core.calibration.sources import NEVER_RANDOM, Label, Sample, Source
from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor
from edgebuild.core.resources import resource
from edgebuild.core.toml import did_you_mean, read

__all__ = [
    "NEVER_RANDOM",
    "CalibrationSet",
    "Label",
    "Sample",
    "data_digest",
    "find_set",
    "fit",
    "has_test",
    "load_set",
]

SET_FILE = "set.toml"

Kind = Literal["images", "arrays", "npz", "audio", "python"]
Split = Literal["calibration", "test"]


@dataclasses.dataclass(frozen=True)
class _Identity:
    name: str
    licence: str
    kind: Kind
    description: str = ""


@dataclasses.dataclass(frozen=True)
class _Part:
    path: str
    digest: str | None = None
    function: str | None = None
    labels: str | None = None
    resize: Literal["center-crop", "stretch", "letterbox"] = "center-crop"
    sample_rate: int | None = None
    windows: Literal["first", "all"] = "first"


@dataclasses.dataclass(frozen=True)
class _File:
    set: _Identity
    calibration: _Part
    test: _Part | None = None


@dataclasses.dataclass(frozen=True)
class CalibrationSet:
    """One part (calibration or test) of a set."""

    name: str
    licence: str
    origin: Path
    _source: Source

    def digest(self) -> str:
        """Digest of the data and of the code that makes samples of it. Loads no framework."""
        files = [*self._source.files(), self.origin]
        return digest.of_parts(*(digest.of_file(path) for path in files if path.is_file()))

    def samples(self, inputs: Sequence[Tensor], limit: int | None = None) -> Iterator[Sample]:
        """Samples that fit `inputs` exactly. Raises CalibrationError for one that does not, or when there is none."""
        for sample, _ in self.labelled(inputs, limit):
            yield sample

    def labelled(self, inputs: Sequence[Tensor], limit: int | None = None) -> Iterator[tuple[Sample, Label]]:
        """As `samples`, with the label beside each."""
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
    """The set at `place`: a folder with set.toml, a plain folder of images, or an .npz or .npy file.

    Only a folder with set.toml can have a `test` part. Raises CalibrationError.
    """
    if (place / SET_FILE).is_file():
        return _described(place, split)
    if not place.exists():
        raise CalibrationError(f"{place}: no such file or folder", NEVER_RANDOM)
    if split == "test":
        raise CalibrationError(f"{place}: has no held-out part", f"describe it in {SET_FILE} with a table [test]")
    if place.is_dir():
        _check_pictures(place)
        return CalibrationSet(place.name, "", place, Images(place, None, "center-crop"))
    if place.suffix == ".npz":
        return CalibrationSet(place.stem, "", place, Npz(place))
    if place.suffix == ".npy":
        return CalibrationSet(place.stem, "", place, Npy(place, None))
    raise CalibrationError(f"{place}: is neither a folder of images nor an .npz or .npy file", NEVER_RANDOM)


def _check_pictures(folder: Path) -> None:
    kinds = {path.suffix.lower() for path in folder.rglob("*")}
    if audio.SUFFIX in kinds and not kinds.intersection(images.SUFFIXES):
        raise CalibrationError(
            f"{folder}: holds sounds, and no {SET_FILE} that describes them", 'kind = "audio", sample_rate = …'
        )


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


def _source(kind: Kind, place: Path, part: _Part, where: str) -> Source:
    path = _existing(place, part.path, f"{where} path")
    labels = _existing(place, part.labels, f"{where} labels") if part.labels else None
    if kind == "images":
        return _images(path, labels, part, where)
    if kind == "audio":
        if part.sample_rate is None:
            raise CalibrationError(f"{where}: missing key 'sample_rate'", "say what the model takes, e.g. 16000")
        return Audio(path, labels, part.sample_rate, part.windows)
    if kind in ("arrays", "npz"):
        return Npy(path, labels) if path.suffix == ".npy" else Npz(path)
    if part.function is None:
        raise CalibrationError(f"{where}: missing key 'function'", "name the loader's function: function(inputs)")
    return Loader(path, part.function)


def _images(path: Path, labels: Path | None, part: _Part, where: str) -> Source:
    if path.is_dir():
        return Images(path, labels, part.resize)
    if path.suffix == ".npz":
        return ImageArray(path, part.resize)
    raise CalibrationError(
        f"{where} path: {path} is neither a folder nor an .npz file",
        f"pictures are {', '.join(images.SUFFIXES)} files, or the array '{images.IMAGES_ARRAY}' of an .npz",
    )


def _existing(place: Path, name: str, where: str) -> Path:
    if (place / name).exists():
        return place / name
    raise CalibrationError(f"{where}: no such file or folder: {place / name}", f"paths are relative to {place}")

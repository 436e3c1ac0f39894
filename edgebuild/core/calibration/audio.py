"""Sounds: a folder of .wav files, cut into windows of the model's input, one channel."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgebuild.core.calibration.labels import Labels, read_labels
from edgebuild.core.calibration.sources import Array, Items, spread, taken
from edgebuild.core.calibration.wav import read_wav
from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor

SUFFIX = ".wav"
_CONVERT = "convert it: ffmpeg -i IN.wav -ac 1 -ar {rate} -c:a pcm_s16le OUT.wav"
_SIXTEEN_BITS = 2


@dataclasses.dataclass(frozen=True)
class Audio:
    """PCM of `sample_rate`, mono. The input is float32 in -1..1 or int16, its number of values the window's length.

    `windows`: `first` takes the beginning of each file, `all` one window after the other. A file that is shorter than
    a window is filled up with silence; a rest behind others is left out.
    """

    folder: Path
    labels: Path | None
    sample_rate: int
    windows: str

    def files(self) -> list[Path]:
        return [*self._sounds(), *([self.labels] if self.labels else [])]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Items:
        spec = self._input(inputs)
        sounds = self._sounds()
        labels = read_labels(self.labels, sounds, self.folder) if self.labels else Labels({}, {})
        names = {path: path.relative_to(self.folder).as_posix() for path in sounds}
        wanted = [path for path in sounds if not self.labels or names[path] in labels.names]
        for path in spread(wanted, limit if self.windows == "first" else None):
            for window in self._cut(_read(path, self.sample_rate, spec.dtype), max(spec.shape)):
                yield {spec.name: window.reshape(spec.shape)}, labels.classes.get(names[path])

    def _sounds(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.suffix.lower() == SUFFIX)

    def _input(self, inputs: Sequence[Tensor]) -> Tensor:
        fits = len(inputs) == 1 and inputs[0].dtype in ("float32", "int16")
        if fits and sum(side > 1 for side in inputs[0].shape) == 1:
            return inputs[0]
        raise CalibrationError(
            f"{self.folder}: sounds fit one float32 or int16 input [values]; the model takes {taken(inputs)}",
            "let the handler make the spectrum, or give it in an .npz file",
        )

    def _cut(self, sound: Array, length: int) -> Iterator[Array]:
        whole = len(sound) // length if self.windows == "all" else 1
        for start in range(max(1, whole)):
            window = sound[start * length : (start + 1) * length]
            yield np.pad(window, (0, length - len(window)))


def _read(path: Path, rate: int, dtype: str) -> Array:
    """The values of a file: float32 in -1..1, or int16 as it lies there."""
    hint = _CONVERT.format(rate=rate)
    try:
        found = read_wav(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CalibrationError(f"{path}: is no readable .wav file: {reason}", hint) from error
    count, width = found.values.shape
    if found.channels != 1:
        raise CalibrationError(f"{path}: has {found.channels} channels; a sample is mono", hint)
    if found.rate != rate:
        raise CalibrationError(f"{path}: has {found.rate} values a second; sample_rate says {rate}", hint)
    if not count:
        raise CalibrationError(f"{path}: is no readable .wav file: it is empty", hint)
    if dtype == "int16":
        if width != _SIXTEEN_BITS:
            raise CalibrationError(f"{path}: has {8 * width} bits a value; the model takes int16", hint)
        return found.values.view("<i2")[:, 0].astype(np.int16)
    return _floats(found.values)


def _floats(values: Array) -> Array:
    """PCM of 8 bits is unsigned, wider ones are signed and little-endian."""
    count, width = values.shape
    if width == 1:
        return (values[:, 0].astype(np.float32) - 128) / np.float32(128)
    shifted = np.zeros((count, 4), np.uint8)
    shifted[:, 4 - width :] = values
    # 24 bits become 32 by zeros below; 2**31 is full scale.
    return (shifted.view("<i4")[:, 0] / 2**31).astype(np.float32)

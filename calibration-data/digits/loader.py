"""scikit-learn's handwritten digits as uint8 RGB frames, white ink on black, smoothly scaled to the frame's size."""

import gzip
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgebuild.core.errors import CalibrationError, EnvironmentProblem
from edgebuild.core.manifest import Tensor

SIDE = 8
INK = 16.0
HELD_OUT = 4
"""Every fourth digit is held out, starting with index 3."""


def files() -> list[Path]:
    """The data file, found without importing scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise EnvironmentProblem("the digits need scikit-learn", "pip install 'edgebuild[recipes]'")
    return [Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"]


def calibration(inputs: Sequence[Tensor]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The training part."""
    yield from _frames(inputs, held_out=False)


def test(inputs: Sequence[Tensor]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The held-out part."""
    yield from _frames(inputs, held_out=True)


def digits(*, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Ink in 0..16, float64 [N, 8, 8], and labels, int64 [N], of one part."""
    with gzip.open(files()[0], "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    part = (np.arange(len(table)) % HELD_OUT == HELD_OUT - 1) == held_out
    return table[part, :-1].reshape(-1, SIDE, SIDE), table[part, -1].astype(np.int64)


def render(ink: np.ndarray, height: int, width: int) -> np.ndarray:
    """A digit [8, 8] as a frame, uint8 [height, width, 3]."""
    grey = np.rint(_taps(height) @ ink @ _taps(width).T * (255 / INK)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def _taps(length: int) -> np.ndarray:
    """Weights [length, 8] of a linear interpolation at half-pixel centres."""
    centre = np.clip((np.arange(length) + 0.5) * SIDE / length - 0.5, 0, SIDE - 1)
    return np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(SIDE)))


def _frames(inputs: Sequence[Tensor], *, held_out: bool) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    if len(inputs) != 1 or inputs[0].dtype != "uint8" or len(inputs[0].shape) != 3:
        raise CalibrationError("the digits are frames: they fit one uint8 input [height, width, 3]")
    frame = inputs[0]
    height, width, _ = frame.shape
    for ink, label in zip(*digits(held_out=held_out), strict=True):
        yield {frame.name: render(ink, height, width)}, int(label)

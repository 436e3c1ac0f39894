"""Crops of scikit-learn's two sample photographs as uint8 RGB frames, of the size that the model takes."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgebuild.core.errors import CalibrationError, EnvironmentProblem
from edgebuild.core.manifest import Tensor

CROPS = 64
SMALLEST = 0.45
"""Shortest side of a crop, as a share of the photograph's."""

GOLDEN = (0.7548776662466927, 0.5698402909980532, 0.6180339887498949)
"""Steps of an additive recurrence that spreads points evenly (M. Roberts, The Unreasonable Effectiveness of Quasirandom
Sequences, 2018)."""


def files() -> list[Path]:
    """The photographs, found without importing scikit-learn."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise EnvironmentProblem("the photos need scikit-learn", "pip install 'edgebuild[recipes]'")
    folder = Path(spec.origin).parent / "datasets" / "images"
    return [folder / "china.jpg", folder / "flower.jpg"]


def calibration(inputs: Sequence[Tensor]) -> Iterator[tuple[dict[str, np.ndarray], None]]:
    """CROPS crops, the photographs in turn, every second pair mirrored."""
    from PIL import Image, ImageOps  # noqa: PLC0415  (an extra)

    if len(inputs) != 1 or inputs[0].dtype != "uint8" or len(inputs[0].shape) != 3:
        raise CalibrationError("the photos are frames: they fit one uint8 input [height, width, 3]")
    frame = inputs[0]
    height, width, _ = frame.shape
    photographs = [Image.open(path).convert("RGB") for path in files()]
    for index in range(CROPS):
        photograph = photographs[index % 2]
        crop = photograph.resize(
            (width, height), Image.Resampling.BILINEAR, _box(photograph.size, width / height, index)
        )
        yield {frame.name: np.array(ImageOps.mirror(crop) if index % 4 > 1 else crop)}, None


def _box(size: tuple[int, int], aspect: float, index: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of crop `index` in a photograph of `size`."""
    across, down, scale = ((0.5 + step * index) % 1 for step in GOLDEN)
    height = min(size[1], size[0] / aspect) * (SMALLEST + (1 - SMALLEST) * scale)
    left, top = across * (size[0] - height * aspect), down * (size[1] - height)
    return left, top, left + height * aspect, top + height

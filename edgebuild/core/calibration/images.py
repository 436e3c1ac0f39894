"""Pictures as the uint8 frame [H, W, 3] (RGB) or [H, W, 1] (grey) of a handler."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebuild.core.calibration.arrays import Npz
from edgebuild.core.calibration.labels import Boxes, Labels, read_labels
from edgebuild.core.calibration.sources import Array, Items, Label, spread, taken
from edgebuild.core.errors import CalibrationError, EnvironmentProblem
from edgebuild.core.manifest import Tensor

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp")
IMAGES_ARRAY = "images"
FILL = 114
"""The grey beside a picture that is scaled to fit, as detectors are trained with."""

Affine = tuple[float, float, float, float]
"""Pixels of the picture to pixels of the frame: x * [0] + [2], y * [1] + [3]."""


@dataclasses.dataclass(frozen=True)
class Images:
    """A folder of picture files.

    `resize`: `center-crop` scales and cuts, `stretch` scales both sides, `letterbox` scales to fit, puts the picture
    at the top left and fills the rest with grey. Boxes follow.
    """

    folder: Path
    labels: Path | None
    resize: str

    def files(self) -> list[Path]:
        return [*self._pictures(), *self._label_files()]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Items:
        frame = _frame(inputs, self.folder)
        pictures = self._pictures()
        labels = read_labels(self.labels, pictures, self.folder) if self.labels else Labels({}, {})
        wanted = [path for path in pictures if not self.labels or self._name(path) in labels.names]
        for path in spread(wanted, limit):
            name = self._name(path)
            array, affine, size = self._picture(path, frame)
            boxes = labels.boxes.get(name)
            label: Label = _placed(boxes, affine, size, frame) if boxes else labels.classes.get(name)
            yield {frame.name: array}, label

    def _pictures(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.suffix.lower() in SUFFIXES)

    def _label_files(self) -> list[Path]:
        if self.labels is None:
            return []
        return sorted(self.labels.glob("*.txt")) if self.labels.is_dir() else [self.labels]

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _picture(self, path: Path, frame: Tensor) -> tuple[Array, Affine, tuple[int, int]]:
        image, operations = _pillow()
        try:
            with image.open(path) as opened:
                picture = operations.exif_transpose(opened).convert(_mode(frame))
        except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as reason:
            raise CalibrationError(f"{path}: is no readable image: {reason}", "remove or repair the file") from reason
        array, affine = resized(picture, frame, self.resize)
        return array, affine, picture.size


@dataclasses.dataclass(frozen=True)
class ImageArray:
    """An .npz with `images`, uint8 [N, H, W, 3] or [N, H, W], of any size, and `labels` if there are any."""

    path: Path
    resize: str

    def files(self) -> list[Path]:
        return [self.path]

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Items:
        frame = _frame(inputs, self.path)
        image, _ = _pillow()
        for sample, label in Npz(self.path).items(inputs, limit):
            if sample.keys() != {IMAGES_ARRAY}:
                raise CalibrationError(
                    f"{self.path}: holds the arrays {', '.join(sample) or 'none'}",
                    f"pictures are one array '{IMAGES_ARRAY}', beside 'labels'; for other inputs: kind = \"arrays\"",
                )
            array = _squeezed(sample[IMAGES_ARRAY], self.path)
            picture = image.fromarray(array).convert(_mode(frame))
            yield {frame.name: resized(picture, frame, self.resize)[0]}, label


def resized(picture: "Image.Image", frame: Tensor, how: str) -> tuple[Array, Affine]:
    """The picture in the frame's size, and where its pixels went."""
    image, _ = _pillow()
    height, width, channels = frame.shape
    box, (w, h) = _cut(picture.size, (width, height)) if how == "center-crop" else ((0.0, 0.0), picture.size)
    inside = (width, height)
    if how == "letterbox":
        scale = min(width / w, height / h)
        inside = (max(1, round(w * scale)), max(1, round(h * scale)))
    # Pillow's own ImageOps.fit cuts the same box.
    scaled = picture.resize(inside, image.Resampling.BILINEAR, (box[0], box[1], box[0] + w, box[1] + h))
    array: Array = np.asarray(scaled).reshape(inside[1], inside[0], channels)
    if inside != (width, height):
        whole = np.full(frame.shape, FILL, np.uint8)
        whole[: inside[1], : inside[0]] = array
        array = whole
    x, y = inside[0] / w, inside[1] / h
    return array, (x, y, -box[0] * x, -box[1] * y)


def _cut(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Left top corner and sides of the largest box in the middle that has the frame's proportions."""
    width, height = size
    ratio = wanted[0] / wanted[1]
    sides = (float(width), width / ratio) if width / height < ratio else (height * ratio, float(height))
    return ((width - sides[0]) / 2, (height - sides[1]) / 2), sides


def _placed(boxes: Boxes, affine: Affine, size: tuple[int, int], frame: Tensor) -> Array:
    """Boxes in pixels of the frame; those that were cut away entirely are gone."""
    found = boxes(*size)
    height, width, _ = frame.shape
    scale, shift = np.array(affine[:2] * 2, np.float32), np.array(affine[2:] * 2, np.float32)
    corners = np.clip(found[:, 1:] * scale + shift, 0, np.array([width, height] * 2, np.float32))
    seen = (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])
    placed: Array = np.concatenate([found[:, :1], corners], axis=1)[seen]
    return placed


def _frame(inputs: Sequence[Tensor], place: Path) -> Tensor:
    if len(inputs) == 1 and inputs[0].dtype == "uint8" and len(inputs[0].shape) == 3 and inputs[0].shape[2] in (1, 3):
        return inputs[0]
    raise CalibrationError(
        f"{place}: images fit one uint8 input [height, width, 3]; the model takes {taken(inputs)}",
        "give an .npz file with one array per model input, first axis = samples, preprocessed as in training",
    )


def _mode(frame: Tensor) -> str:
    return "L" if frame.shape[2] == 1 else "RGB"


def _squeezed(array: Array, path: Path) -> Array:
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise CalibrationError(
            f"{path}: array '{IMAGES_ARRAY}' is {array.dtype.name} with shape {list(array.shape)} per sample",
            "pictures are uint8 [height, width, 3] or [height, width]",
        )
    return array


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415  (an extra)
    except ImportError as reason:
        raise EnvironmentProblem("reading images needs Pillow", "pip install 'edgebuild[recipes]'") from reason
    return Image, ImageOps

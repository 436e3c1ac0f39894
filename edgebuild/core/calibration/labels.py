"""Labels of files: a csv of class indices, a csv of boxes, or a folder of YOLO text files.

    file,label                           one class index a file
    file,label,left,top,right,bottom     a row a box, in pixels of the picture as it lies on the disk
    labels/NAME.txt                      YOLO: `class x y width height` a line, centre and sides over the picture's

A file is named by its path relative to the set's folder, or by its name alone where that is unique.
"""

import csv
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgebuild.core.calibration.sources import Array
from edgebuild.core.errors import CalibrationError

CORNERS = ("left", "top", "right", "bottom")
_YOLO_FIELDS = 5

Boxes = Callable[[int, int], Array]
"""Boxes [N, 5] (class, left, top, right, bottom) in pixels, from the picture's width and height on the disk."""


@dataclass(frozen=True)
class Labels:
    """Labels of the files of one folder: `classes` or `boxes` by the file's name."""

    classes: dict[str, int]
    boxes: dict[str, Boxes]

    @property
    def names(self) -> set[str]:
        return self.classes.keys() | self.boxes.keys()


def read_labels(place: Path, samples: list[Path], root: Path) -> Labels:
    """The labels at `place` of the files `samples` below `root`, by their paths relative to it.

    Raises CalibrationError.
    """
    if place.is_dir():
        return Labels({}, {_relative(path, root): _yolo(place / f"{path.stem}.txt") for path in samples})
    try:
        with place.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin it with a mark
            reader = csv.DictReader(file)
            rows = list(reader)
        return _of_rows(rows, list(reader.fieldnames or ()), _Names(samples, root), place)
    except (OSError, ValueError, KeyError, IndexError, StopIteration, TypeError, csv.Error) as reason:
        raise CalibrationError(
            f"{place}: is no list of labels ({reason!r})",
            "a csv with a header: file,label and a class index per row",
        ) from reason


def _of_rows(rows: list[dict[str, str]], columns: list[str], names: "_Names", place: Path) -> Labels:
    """The class is in the first column whose name holds `label` or `class`."""
    column = next(name for name in columns if "label" in name or "class" in name)
    if not set(CORNERS).issubset(columns):
        classes: dict[str, int] = {}
        for row in rows:
            classes |= dict.fromkeys(names.of(row["file"], place), int(row[column]))
        return Labels(classes, {})
    found: dict[str, list[list[float]]] = defaultdict(list)
    for row in rows:
        for name in names.of(row["file"], place):
            found[name].append([float(int(row[column])), *(float(row[corner]) for corner in CORNERS)])
    return Labels({}, {name: _fixed(np.array(boxes, np.float32)) for name, boxes in found.items()})


class _Names:
    """What a csv may call a file."""

    def __init__(self, samples: list[Path], root: Path) -> None:
        self._relative = {_relative(path, root) for path in samples}
        self._short: dict[str, list[str]] = defaultdict(list)
        for name in sorted(self._relative):
            self._short[name.rpartition("/")[2]].append(name)

    def of(self, written: str, place: Path) -> list[str]:
        """The file that `written` names; none when there is no such file."""
        if written in self._relative:
            return [written]
        found = self._short.get(Path(written).name, [])
        if len(found) > 1:
            raise CalibrationError(
                f"{place}: '{written}' may be {' or '.join(found[:2])}", "write the path relative to the set's folder"
            )
        return found


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _fixed(boxes: Array) -> Boxes:
    return lambda _width, _height: boxes


def _yolo(path: Path) -> Boxes:
    """A picture without a text file shows nothing."""

    def boxes(width: int, height: int) -> Array:
        try:
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            rows = [[float(field) for field in line.split()] for line in lines if line.strip()]
        except (OSError, ValueError) as reason:
            raise _no_yolo(path, str(reason)) from reason
        for number, row in enumerate(rows, start=1):
            if len(row) != _YOLO_FIELDS or row[0] != int(row[0]) or row[0] < 0 or max(row[1:]) > 1 or min(row[1:]) < 0:
                raise _no_yolo(path, f"line {number} is no class index and four numbers from 0 to 1")
        found = np.array(rows, np.float32).reshape(-1, _YOLO_FIELDS)
        kinds, centres, halves = found[:, :1], found[:, 1:3], found[:, 3:] / 2
        sides = np.array([width, height], np.float32)
        return np.concatenate([kinds, (centres - halves) * sides, (centres + halves) * sides], axis=1)

    return boxes


def _no_yolo(path: Path, reason: str) -> CalibrationError:
    return CalibrationError(
        f"{path}: is no YOLO label file: {reason}", "a line per box: class x y width height, relative to the picture"
    )

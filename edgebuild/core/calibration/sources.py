"""What every kind of calibration set has in common."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgebuild.core.manifest import Tensor

Array = np.ndarray[Any, Any]
Sample = dict[str, Array]

Label = int | Array | None
"""A class index; boxes, float32 [N, 5]: class, left, top, right, bottom in pixels of the frame; or None."""

Items = Iterator[tuple[Sample, Label]]

NEVER_RANDOM = "give real samples: --calibration FOLDER_OF_IMAGES or FILE.npz, or [calibration] set in recipe.toml"


class Source(Protocol):
    """One adapter a kind."""

    def files(self) -> list[Path]:
        """The files that the data is made of."""

    def items(self, inputs: Sequence[Tensor], limit: int | None) -> Items:
        """Samples with their labels, at most `limit`, in a fixed order."""


def spread(items: list[Path], limit: int | None) -> list[Path]:
    """At most `limit` of `items`, evenly spaced: sorted folders group classes."""
    if limit is None or limit >= len(items):
        return items
    return [items[i * len(items) // limit] for i in range(limit)]


def taken(inputs: Sequence[Tensor]) -> str:
    """The model's inputs, for messages."""
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in inputs)

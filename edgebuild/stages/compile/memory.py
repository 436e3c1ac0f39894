"""Static memory: every tensor of the arena gets an offset; tensors whose lives do not overlap share bytes."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgebuild.core.plan import ALIGNMENT


@dataclass(frozen=True)
class Life:
    """A storage of `size` bytes that is alive from step `first` to step `last`, both included."""

    storage: int
    size: int
    first: int
    last: int


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(lives: Sequence[Life]) -> tuple[dict[int, int], int]:
    """(offset of each storage, bytes of the arena). Largest first, each into the lowest gap that fits."""
    offsets: dict[int, int] = {}
    placed: list[tuple[Life, int]] = []
    for life in sorted(lives, key=lambda t: (-t.size, t.first, t.storage)):
        size = aligned(life.size)
        neighbours = sorted(
            (o, o + aligned(p.size)) for p, o in placed if p.first <= life.last and life.first <= p.last
        )
        offset = 0
        for start, end in neighbours:
            if start - offset >= size:
                break
            offset = max(offset, end)
        offsets[life.storage] = offset
        placed.append((life, offset))
    return offsets, max((o + aligned(p.size) for p, o in placed), default=0)

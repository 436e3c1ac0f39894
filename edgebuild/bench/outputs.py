"""What engines computed: whether it varies with the input, and how far two of them agree."""

from typing import TYPE_CHECKING, Any

from edgebuild.core.errors import CheckError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    Array = np.ndarray[Any, Any]
    Arrays = Sequence[Array]


def check_vary(model: str, ours: "Arrays") -> None:
    """Raises CheckError unless some output differs between most of the samples (the first axis of each array)."""
    count = len(ours[0])
    if count > 1 and not any(_distinct(output) * 2 > count for output in ours):
        raise CheckError(
            f"{model}: {count} inputs give (almost) the same outputs; a collapsed network proves nothing",
            "give trained weights, or calibrate the untrained network on real samples of its inputs",
        )


def _distinct(output: "Array") -> int:
    return len({row.tobytes() for row in output})


def agreement(ours: "Arrays", theirs: "Arrays") -> dict[str, float | None]:
    """`same_top1`: share of the samples with the same largest element of the largest output, or the same integer where
    every output is one number; `max_difference`: of all floating-point outputs, relative to the largest value of ours.
    None where shapes do not allow the comparison.
    """
    pairs = list(zip(ours, theirs, strict=False))
    if len(ours) != len(theirs) or any(mine.size != other.size for mine, other in pairs):
        return {"same_top1": None, "max_difference": None}
    return {"same_top1": _same_top1(pairs), "max_difference": _difference(pairs)}


def _same_top1(pairs: "Sequence[tuple[Array, Array]]") -> float | None:
    mine, other = max(pairs, key=lambda pair: int(pair[0].size))
    if mine[0].size < 2:
        return _same_labels(pairs)
    same = mine.reshape(len(mine), -1).argmax(axis=1) == other.reshape(len(mine), -1).argmax(axis=1)
    return round(float(same.mean()), 4)


def _same_labels(pairs: "Sequence[tuple[Array, Array]]") -> float | None:
    """Of outputs that are one number each, the integers name a class."""
    same = [mine.ravel() == other.ravel() for mine, other in pairs if mine.dtype.kind in "iu"]
    return round(float(same[0].mean()), 4) if same else None


def _difference(pairs: "Sequence[tuple[Array, Array]]") -> float | None:
    floats = [(mine.astype("float64"), other.reshape(mine.shape)) for mine, other in pairs if mine.dtype.kind == "f"]
    shares = [float(abs(mine - other).max() / (abs(mine).max() or 1.0)) for mine, other in floats]
    return round(max(shares), 6) if shares else None

"""Scales, zero points and the room for a bias (SPEC section 7)."""

from dataclasses import dataclass

import numpy as np

from edgebuild.core.errors import CalibrationError
from edgebuild.stages.quantize.observers import Range

# Products and quotients of scales stay normal float32 numbers above this.
SMALLEST_SCALE = 2.0**-50
LARGEST_SCALE = 2.0**50


@dataclass(frozen=True)
class Affine:
    """x = scale · (q − zero_point), q an unsigned integer of `bits` bits."""

    scale: np.float32
    zero_point: int
    bits: int = 8


def activation(low: float, high: float, bits: int = 8) -> Affine:
    """The parameters of [low, high], widened so that 0 is a value; scale = (high - low) / (2^bits - 1)."""
    low, high, levels = min(low, 0.0), max(high, 0.0), float((1 << bits) - 1)
    scale = np.float32(min(max((high - low) / levels, SMALLEST_SCALE), LARGEST_SCALE))
    return Affine(scale, int(min(max(np.rint(-low / float(scale)), 0.0), levels)), bits)


def checked_range(name: str, found: Range | None) -> Range:
    """The range, or a CalibrationError that names the tensor when it is not finite."""
    if found is None or not np.isfinite(found).all():
        raise CalibrationError(
            f"tensor {name!r} has values that are not finite (range {found}) on the calibration samples",
            "check the weights and the samples for NaN and overflow",
        )
    return found


def largest_bias(terms: int) -> int:
    """How large a bias may be: 2 * K * 255 * 128 + max|bias| < 2^31 for sums of K = `terms` products."""
    return min(1 << 30, (1 << 31) - 1 - 2 * terms * 255 * 128)

"""Scales, zero points and quantized weights (SPEC section 7)."""

import numpy as np

from edgebuild.core.errors import CalibrationError, ModelError
from edgebuild.stages.quantize.correction import Shift
from edgebuild.stages.quantize.graph import Array
from edgebuild.stages.quantize.observers import Range

# Products and quotients of scales stay normal float32 numbers above this.
_SMALLEST_SCALE = 2.0**-50
_LARGEST_SCALE = 2.0**50


def activation(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and zero point of uint8 over [low, high], widened so that 0 is a value; s = (high - low) / 255."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32(min(max((high - low) / 255.0, _SMALLEST_SCALE), _LARGEST_SCALE))
    return scale, int(min(max(np.rint(-low / float(scale)), 0.0), 255.0))


def checked_range(name: str, found: Range | None) -> Range:
    """The range, or a CalibrationError that names the tensor when it is not finite."""
    if found is None or not np.isfinite(found).all():
        raise CalibrationError(
            f"tensor {name!r} has values that are not finite (range {found}) on the calibration samples",
            "check the weights and the samples for NaN and overflow",
        )
    return found


class Weights:
    """An int8 weight with its bias.

    `q` has the float weight's shape and lies in [-127, 127], `scale` float32 [channels], `bias` int32 [channels],
    `bias_scale` float32 [channels] = f32(s_x * s_w[c]). `shift` corrects the bias for the weights' rounding.
    """

    def __init__(
        self,
        name: str,
        weight: Array,
        axis: int,
        bias: Array | None,
        input_scale: np.float32,
        shift: Shift | None = None,
    ) -> None:
        if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
            raise ModelError(
                f"weights {name!r} hold NaN or infinite values", "train again or export another checkpoint"
            )
        rows = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)
        offsets = np.zeros(len(rows)) if bias is None else bias.astype(np.float64)
        s_x = float(input_scale)
        self.scale = _weight_scale(rows, offsets, s_x)
        shape = [1] * weight.ndim
        shape[axis] = -1
        steps = np.rint(weight.astype(np.float64) / self.scale.astype(np.float64).reshape(shape))
        self.q = np.clip(steps, -127, 127).astype(np.int8)
        units = s_x * self.scale.astype(np.float64)
        self.bias_scale = units.astype(np.float32)
        if shift is not None:
            error = self.q * self.scale.astype(np.float64).reshape(shape) - weight
            offsets = offsets - shift.of(error)
        limit = largest_bias(rows.shape[1])
        self.bias = np.clip(np.rint(offsets / units), -limit, limit).astype(np.int32)


def largest_bias(terms: int) -> int:
    """How large a bias may be: 2 * K * 255 * 128 + max|bias| < 2^31 for sums of K = `terms` products."""
    return min(1 << 30, (1 << 31) - 1 - 2 * terms * 255 * 128)


def _weight_scale(rows: Array, bias: Array, s_x: float) -> Array:
    """max|w| / 127 per channel; larger where the bias needs it, the widest channel's where all weights are 0."""
    widest = np.max(np.abs(rows), axis=1)
    scale = widest / 127.0
    common = float(scale.max()) or 1.0
    scale = np.where(widest == 0, common, scale)
    room = largest_bias(rows.shape[1]) * (1 - 2.0**-20)  # the scale is still rounded to float32
    scale = np.maximum(scale, np.abs(bias) / (s_x * room))
    return np.asarray(np.clip(scale, _SMALLEST_SCALE, _LARGEST_SCALE).astype(np.float32))

"""Quantized weights with their biases (SPEC section 7)."""

from dataclasses import dataclass

import numpy as np

from edgebuild.core.errors import ModelError
from edgebuild.stages.quantize.graph import Array
from edgebuild.stages.quantize.parameters import LARGEST_SCALE, SMALLEST_SCALE, largest_bias
from edgebuild.stages.quantize.rounding import Moments
from edgebuild.stages.quantize.rounding import rounded as rounded_rows


class Rounded:
    """Integers that were computed before: they depend on a layer's weights, its scales and its input's moments."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes], Array] = {}

    def of(self, name: str, steps: Array, scale: Array, moments: Moments | None) -> Array:
        """The integers of `steps` [O, K], in units of `scale` [O]."""
        key = (name, scale.tobytes())
        if key not in self._known:
            self._known[key] = np.clip(_whole(steps, moments), -127, 127).astype(np.int8)
        return self._known[key]


@dataclass(frozen=True)
class Layer:
    """An int8 weight with its bias, as they were chosen for an update; fields as in `Weights`."""

    q: Array
    scale: Array
    bias: Array | None
    bias_scale: Array


class Weights:
    """An int8 weight with its bias.

    `q` has the float weight's shape and lies in [-127, 127], `scale` float32 [channels], `bias` int32 [channels],
    `bias_scale` float32 [channels] = f32(s_x * s_w[c]). With `moments` of the layer's input the weights are rounded so
    that the output stays near the float one, and the bias takes back what is left of the mean error.
    """

    def __init__(
        self,
        name: str,
        weight: Array,
        axis: int,
        bias: Array | None,
        input_scale: np.float32,
        moments: Moments | None = None,
        rounded: Rounded | None = None,
    ) -> None:
        if not np.isfinite(weight).all() or (bias is not None and not np.isfinite(bias).all()):
            raise ModelError(
                f"weights {name!r} hold NaN or infinite values", "train again or export another checkpoint"
            )
        rows = np.moveaxis(weight.astype(np.float64), axis, 0).reshape(weight.shape[axis], -1)
        offsets = np.zeros(len(rows)) if bias is None else bias.astype(np.float64)
        s_x = float(input_scale)
        self.scale = _weight_scale(rows, offsets, s_x)
        steps = rows / self.scale.astype(np.float64)[:, None]
        whole = (rounded or Rounded()).of(name, steps, self.scale, moments).astype(np.float64)
        moved = np.moveaxis(weight, axis, 0).shape
        self.q = np.ascontiguousarray(np.moveaxis(whole.reshape(moved), 0, axis)).astype(np.int8)
        units = s_x * self.scale.astype(np.float64)
        self.bias_scale = units.astype(np.float32)
        if moments is not None:
            error = whole * self.scale.astype(np.float64)[:, None] - rows
            offsets = offsets - by_group(error, moments.mean())
        limit = largest_bias(rows.shape[1])
        self.bias = np.clip(np.rint(offsets / units), -limit, limit).astype(np.int32)


def _whole(steps: Array, moments: Moments | None) -> Array:
    """The integers of `steps` [O, K]."""
    covariance = None if moments is None else moments.covariance()
    if covariance is None:
        return np.asarray(np.rint(steps))
    grouped = steps.reshape(len(covariance), -1, steps.shape[1])
    return rounded_rows(grouped, covariance).reshape(steps.shape)


def by_group(rows: Array, mean: Array) -> Array:
    """The products of `rows` [O, K] with the mean [groups, K] of each row's group, [O]."""
    return np.asarray((rows.reshape(len(mean), -1, mean.shape[1]) * mean[:, None]).sum(axis=2).reshape(-1))


def _weight_scale(rows: Array, bias: Array, s_x: float) -> Array:
    """max|w| / 127 per channel; larger where the bias needs it, the widest channel's where all weights are 0."""
    widest = np.max(np.abs(rows), axis=1)
    scale = widest / 127.0
    common = float(scale.max()) or 1.0
    scale = np.where(widest == 0, common, scale)
    room = largest_bias(rows.shape[1]) * (1 - 2.0**-20)  # the scale is still rounded to float32
    scale = np.maximum(scale, np.abs(bias) / (s_x * room))
    return np.asarray(np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32))

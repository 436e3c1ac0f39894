"""What a tensor of a QDQ graph is while the interpreter walks over it.

Section 9 decides by context whether an operator runs on integers: only when a QuantizeLinear follows. So an operator
whose inputs are dequantized yields a value that is not computed yet; QuantizeLinear finishes it with integers
(section 7), any other reader takes `array()`, which runs the float32 operator of section 8.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8 | np.uint16 | np.int16]
Function = Callable[[Array], Array]
Bound = float | Array
"""An end of an activation clip: one number, or in float64 one for each channel, in a shape that broadcasts."""


ACTIVATIONS = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int16))
"""What an activation may be quantized to."""


@dataclass(frozen=True)
class Params:
    """Scale (float32 > 0) and zero point of a quantized tensor: x = s·(q - z)."""

    scale: np.float32
    zero_point: int
    dtype: np.dtype[Any] = ACTIVATIONS[0]

    @property
    def s(self) -> float:
        """The scale as formulas use it: float64, converted exactly."""
        return float(self.scale)

    @property
    def wide(self) -> bool:
        """Whether the tensor has 16 bits."""
        return self.dtype.itemsize > 1

    @property
    def least(self) -> int:
        """The smallest q."""
        return int(np.iinfo(self.dtype).min)

    @property
    def most(self) -> int:
        """The largest q."""
        return int(np.iinfo(self.dtype).max)

    @property
    def span(self) -> int:
        """The largest |q - z|."""
        return self.most - self.least


class Value(ABC):
    @abstractmethod
    def array(self) -> Array:
        """The tensor in its ONNX type; float32 operators of section 8 run here."""


class Deferred(Value):
    """A value that a QuantizeLinear may still take as integers; `fallback` computes it in float32, once."""

    fallback: Callable[[], Array]

    def array(self) -> Array:
        return self._float

    @cached_property
    def _float(self) -> Array:
        return self.fallback()


@dataclass(frozen=True, eq=False)
class Dense(Value):
    """A plain array; `constant` where no input of the model changes it."""

    data: Array
    constant: bool = False

    def array(self) -> Array:
        return self.data


@dataclass(frozen=True, eq=False)
class View(Value):
    """The result of DequantizeLinear on an activation: its integers and what they mean."""

    q: Bytes
    params: Params

    def array(self) -> Array:
        return self._dequantized

    @cached_property
    def _dequantized(self) -> Array:
        return (self.q.astype(np.int32) - self.params.zero_point).astype(np.float32) * self.params.scale


@dataclass(frozen=True, eq=False)
class Moved(Deferred):
    """A view behind operators that only move data: QuantizeLinear and further moves take its bytes, others floats."""

    view: View
    fallback: Callable[[], Array]


@dataclass(frozen=True, eq=False)
class Weight(Value):
    """The result of DequantizeLinear on an int8 or int32 constant; one scale, or one per index of `axis`."""

    q: Array
    scale: npt.NDArray[np.float32]
    axis: int

    def array(self) -> Array:
        scale = self.scale
        if scale.size > 1:
            shape = [1] * self.q.ndim
            shape[self.axis] = scale.size
            scale = scale.reshape(shape)
        return self.q.astype(np.float32) * scale


@dataclass(frozen=True, eq=False)
class Pending(Deferred):
    """An integer operator that waits for the output's parameters; `low` and `high` are the activation clip so far.
    `finish` gives None for parameters with which it runs in float32.

    `biased`: the same with a bias that an Add behind it brings, or None where the operator takes none.
    """

    finish: Callable[[Params, Bound, Bound], Bytes | None]
    fallback: Callable[[], Array]
    low: Bound = -np.inf
    high: Bound = np.inf
    biased: "Callable[[Value], Callable[[Params, Bound, Bound], Bytes | None] | None] | None" = None

    @property
    def clipped(self) -> bool:
        return bool(np.any(self.low != -np.inf) or np.any(self.high != np.inf))


@dataclass(frozen=True, eq=False)
class Chain(Deferred):
    """A unary function (in float64) of one dequantized tensor; forks that join again stay unary."""

    source: View
    function: Function
    fallback: Callable[[], Array]

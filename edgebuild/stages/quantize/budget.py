"""The update that comes nearest to the new network in so many bytes.

Every weight, multiplier and bias is worth what it does to its layer's output, in relation to that output's energy; one
price of a bit, the same in all layers, says what is shipped of each. The price at which the update fits is searched.
Whole layers or channels are the special case in which it is all or nothing; a bit goes further where it may go to
single weights, and to the coarse part of their change.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import onnx

from edgebuild.core.errors import CheckError
from edgebuild.stages.quantize.layers import Aim
from edgebuild.stages.quantize.update import Choices, Update

Coded = Callable[[onnx.ModelProto], int]
"""How many bytes of the delta the values of a model take."""

_FIRST, _DEAREST, _CHEAPEST = 1e-5, 1e-1, 1e-9
_FILLED = 0.97
"""A search ends when so much of the room is used, …"""
_TRIES = 10
"""… or after so many prices."""
_SLOPE = -0.6
"""Of the logarithm of the size over that of the price, before it is known."""


@dataclass(frozen=True)
class Fit:
    """What is shipped: `size` bytes at the price `relative` (0: everything); `full` is the whole update, of `whole`
    bytes.
    """

    choices: Choices
    model: onnx.ModelProto
    relative: float
    size: int
    full: onnx.ModelProto
    whole: int


def fitting(update: Update, room: int, coded: Coded) -> Fit:
    """The update of at most `room` bytes. Raises CheckError where none helps."""
    choices = update.choices(Aim())
    full = update.model(choices)
    whole = coded(full)
    if whole <= room:
        return Fit(choices, full, 0.0, whole, full, whole)
    found = _Search(update, room, coded, full, whole).run()
    before, after = (update.found.judge.error(model) for model in (update.basis.model, found.model))
    if after >= before:
        raise CheckError(
            f"--max-delta: what fits into {room} bytes of values comes no nearer to the new network than the old "
            f"release is (error {after:.3g}, the old one's {before:.3g}); the whole update takes {whole} bytes",
            "allow more bytes",
        )
    return found


class _Search:
    """Secants on logarithms of price and size."""

    def __init__(self, update: Update, room: int, coded: Coded, full: onnx.ModelProto, whole: int) -> None:
        self._update, self._room, self._coded = update, room, coded
        self._full, self._whole = full, whole
        self._best: Fit | None = None
        self._above: tuple[float, float] | None = None
        self._below: tuple[float, float] | None = None
        self._least = whole

    def run(self) -> Fit:
        price = _FIRST
        for _ in range(_TRIES):
            size = self._tried(price)
            if _FILLED * self._room <= size <= self._room or (size > self._room and price >= _DEAREST):
                break
            price = self._next(price, size)
        if self._best is None:
            raise CheckError(
                f"--max-delta: nothing fits: the smallest update has {self._least} bytes of values, and there is room "
                f"for {self._room}; the whole update takes {self._whole}",
                f"allow {self._least - self._room} bytes more at least",
            )
        return self._best

    def _tried(self, price: float) -> int:
        choices = self._update.choices(Aim(relative=price))
        model = self._update.model(choices)
        size = self._coded(model)
        self._least = min(self._least, size)
        if size <= self._room and (self._best is None or size > self._best.size):
            self._best = Fit(choices, model, price, size, self._full, self._whole)
        return size

    def _next(self, price: float, size: int) -> float:
        """Where the line through what is known meets the room, a little below it."""
        point = (math.log(price), math.log(size))
        if size > self._room:
            self._above = point
        else:
            self._below = point
        wanted = math.log(self._room * (1 + _FILLED) / 2)
        if self._above and self._below:
            (x1, y1), (x2, y2) = self._above, self._below
            share = (wanted - y1) / (y2 - y1) if y1 != y2 else 0.5
            found = x1 + (x2 - x1) * min(max(share, 0.05), 0.95)
        else:
            found = point[0] + (wanted - point[1]) / _SLOPE
        return min(max(math.exp(found), _CHEAPEST), _DEAREST)

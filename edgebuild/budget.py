"""The accuracy budget of a recipe: which layers leave 8 bits when plain INT8 misses it.

Gain and cost of each layer are measured: the error that is gone from the outputs on held-out samples when this layer
alone gets 16-bit inputs, or float32; and the time that it takes longer on this machine. Layers fall back in the order
of gain per time, as few of them as the metric needs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["int16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("int16", "float32")
_LEAST_COST = 0.1
"""Microseconds below which a difference of times is noise."""


@dataclass(frozen=True)
class Step:
    """A layer (`key`, as the quantizer knows it; `name` and `operator`, as people do) that falls back.

    `gain`: how much of INT8's error at the outputs is gone, 1 for all of it. `cost_us`: microseconds.
    """

    key: str
    name: str
    operator: str
    precision: Precision
    gain: float
    cost_us: float

    def to_json(self) -> dict[str, Any]:
        """A row of the report."""
        shown = {"gain": round(self.gain, 4), "cost_us": round(self.cost_us, 2)}
        return {"layer": self.name, "key": self.key, "operator": self.operator, "precision": self.precision, **shown}


@dataclass(frozen=True)
class Outcome:
    """What became of the layers that fell back, and the metric's drop with them; `met` where that is within the
    budget.
    """

    steps: tuple[Step, ...]
    drop: float
    met: bool

    @property
    def fallback(self) -> dict[str, Precision]:
        """What the quantizer is told."""
        return fallback_of(self.steps)


def fallback_of(steps: Sequence[Step]) -> dict[str, Precision]:
    """The precision of each layer; the later step of a layer counts."""
    return {step.key: step.precision for step in steps}


def ordered(steps: Sequence[Step]) -> list[Step]:
    """Steps that gain something, the most for its time first; a layer's later step gains more than its earlier one."""
    useful = [step for step in steps if step.gain > 0 and math.isfinite(step.cost_us)]
    ranked = sorted(useful, key=lambda s: s.gain / max(s.cost_us, _LEAST_COST), reverse=True)
    best: dict[str, float] = {}
    found = []
    for step in ranked:
        if step.gain > best.get(step.key, 0.0):
            best[step.key] = step.gain
            found.append(step)
    return found


def last_resort(steps: Sequence[Step], taken: Sequence[Step]) -> list[Step]:
    """What follows when all of `taken` is too little: float32 for the other layers too, the most for its time first.

    Alone, such a layer may gain nothing, where errors outweigh each other or lie in the layers around it; together
    they leave nothing rounded.
    """
    floating = {step.key for step in taken if step.precision == "float32"}
    rest = [s for s in steps if s.precision == "float32" and s.key not in floating]
    known = [s for s in rest if math.isfinite(s.gain) and math.isfinite(s.cost_us)]
    return sorted(known, key=lambda s: s.gain / max(s.cost_us, _LEAST_COST), reverse=True)


def fewest(steps: Sequence[Step], drop: Callable[[Mapping[str, Precision]], float], most: float) -> Outcome:
    """As few steps, from the first on, as bring `drop` down to `most`: doubled until they do, then bisected."""
    measured: dict[int, float] = {}

    def of(count: int) -> float:
        if count not in measured:
            found = drop(fallback_of(steps[:count]))
            measured[count] = math.inf if math.isnan(found) else found
        return measured[count]

    high = 1
    while high < len(steps) and of(high) > most:
        high = min(2 * high, len(steps))
    if not steps or of(high) > most:
        count = min(measured, key=lambda n: (measured[n], n), default=0)
        return Outcome(_latest(steps[:count]), measured.get(count, math.inf), met=False)
    low = max((n for n in measured if n < high and measured[n] > most), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if of(middle) <= most else (middle, high)
    return Outcome(_latest(steps[:high]), of(high), met=True)


def _latest(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The last step of each layer; those before it came to nothing."""
    return tuple({step.key: step for step in steps}.values())


def times(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Microseconds of each layer, from what `edgebuild-run --profile` says of operators."""
    found: dict[str, float] = {}
    for line in lines:
        found[str(line["op"])] = found.get(str(line["op"]), 0.0) + float(line["latency_us"])
    return found

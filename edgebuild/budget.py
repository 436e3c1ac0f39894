"""The accuracy budget of a recipe: which layers leave 8 bits when plain INT8 misses it.

Gain and cost of each step are measured: the error at the outputs, on held-out samples, that this rounding alone makes;
and the time that it takes longer on this machine to do without. Layers fall back in the order of gain per time, as few
of them as the metric needs.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Precision = Literal["int16", "float32"]
PRECISIONS: tuple[Precision, ...] = ("int16", "float32")
_LEAST_COST = 0.1
"""Microseconds below which a difference of times is noise."""


@dataclass(frozen=True)
class Step:
    """Layers (`keys`, as the quantizer knows them) whose common inputs get 16 bits, or one that becomes float32.

    `name` and `operator` as people know them. `gain`: the part of INT8's error at the outputs that this rounding makes
    alone. `cost_us`: microseconds.
    """

    keys: tuple[str, ...]
    name: str
    operator: str
    precision: Precision
    gain: float
    cost_us: float

    def to_json(self) -> dict[str, Any]:
        """A row of the report."""
        shown = {"gain": round(self.gain, 4), "cost_us": round(self.cost_us, 2)}
        return {
            "layer": self.name,
            "keys": list(self.keys),
            "operator": self.operator,
            "precision": self.precision,
            **shown,
        }

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Step":
        """The inverse of dataclasses.asdict through JSON."""
        return cls(**{**row, "keys": tuple(row["keys"])})


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
    """The precision of each layer: the highest that a step gives it."""
    found: dict[str, Precision] = {}
    for step in sorted(steps, key=lambda s: PRECISIONS.index(s.precision)):
        found |= dict.fromkeys(step.keys, step.precision)
    return found


def ordered(steps: Sequence[Step]) -> list[Step]:
    """The most gain for its time first, as long as there is any; then, where all of that is too little, float32 for
    what is left.
    """
    known = [step for step in steps if math.isfinite(step.gain) and math.isfinite(step.cost_us)]
    useful = sorted((step for step in known if step.gain > 0), key=_worth, reverse=True)
    rest = sorted((s for s in known if s.gain <= 0 and s.precision == "float32"), key=_worth, reverse=True)
    found: list[Step] = []
    for step in (*useful, *rest):
        reached = fallback_of(found)
        if any(reached.get(key) not in (step.precision, "float32") for key in step.keys):
            found.append(step)
    return found


def _worth(step: Step) -> float:
    """Gain for its time; a loss does not become better by taking long."""
    return step.gain / max(step.cost_us, _LEAST_COST) if step.gain > 0 else step.gain


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
        return Outcome(_needed(steps[:count]), measured.get(count, math.inf), met=False)
    low = max((n for n in measured if n < high and measured[n] > most), default=0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if of(middle) <= most else (middle, high)
    return Outcome(_needed(steps[:high]), of(high), met=True)


def _needed(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Without those that a later step made pointless."""
    reached = fallback_of(steps)
    return tuple(s for s in steps if any(reached[key] == s.precision for key in s.keys))


class Profile:
    """Microseconds of each operator, in the order in which they run, from what `edgebuild-run --profile` says."""

    def __init__(self, lines: Iterable[Mapping[str, Any]]) -> None:
        self.times: dict[str, float] = {}
        for line in lines:
            self.times[str(line["op"])] = self.times.get(str(line["op"]), 0.0) + float(line["latency_us"])

    def longer(self, plain: "Profile", operators: Iterable[str]) -> float:
        """How much longer these operators take than in `plain`; infinite where neither has any of them."""
        known = [name for name in operators if name in self.times or name in plain.times]
        return sum(self.times.get(n, 0.0) - plain.times.get(n, 0.0) for n in known) if known else math.inf

    def up_to(self, layers: Sequence[str]) -> dict[str, float]:
        """For each layer what it takes with all that runs behind it, before the next one; before the first: ""."""
        found, last = {"": 0.0}, ""
        for name, time in self.times.items():
            last = name if name in layers else last
            found[last] = found.get(last, 0.0) + time
        return found


def turns(plain: Profile, layers: Sequence[str]) -> tuple[list[str], list[str]]:
    """The layers in the order in which they run, every other one of them, and the rest."""
    run = [name for name in plain.times if name in layers]
    return run[::2], run[1::2]


def alone(plain: Profile, mixed: Profile, layers: Sequence[str], changed: Sequence[str]) -> dict[str, float]:
    """How much longer each layer of `changed` takes in a program in which the layers around it are as in `plain`: with
    the conversions on both sides, which lie between it and its neighbours, and what the one before it writes.
    """
    before, after = plain.up_to(layers), mixed.up_to(layers)
    run = ["", *(name for name in plain.times if name in layers)]
    found = {}
    for previous, name in itertools.pairwise(run):
        if name in changed:
            near = (previous, name)
            found[name] = sum(after.get(n, 0.0) - before.get(n, 0.0) for n in near) if name in after else math.inf
    return found

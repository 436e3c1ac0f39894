"""`recipe.lock`, beside recipe.toml: what was measured for a recipe, so that a build with it is a pure function.

    version = 1

    [schedules.avx2]             # for each instruction set: shape = block sizes, as `kernels.schedules` spells them
    "conv 1x56x56x24 to 56x56x144 k1x1 s1x1 p0x0 d1x1 g1" = "6x2x1"

    [fallback.avx2]              # layers that leave 8 bits to meet [accept]: "int16" inputs, or "float32"
    "model.features.3.conv" = "int16"

    [precision]                  # instruction sets for which the network is faster in "float32", or in "int8"
    "sse2" = "float32"           # where there are schedules and no precision, there was nothing to choose

`edgebuild compile --update-lock` writes it; it belongs under version control.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgebuild.core import toml
from edgebuild.core.disk import write_together
from edgebuild.core.recipe import LOCK_FILE

_TITLE = "# What `edgebuild compile --update-lock` measured for this recipe; keep it under version control"
_REMEDY = "write one of them, or measure again: edgebuild compile --update-lock"


@dataclass(frozen=True)
class Lock:
    """`schedules`: instruction set → shape → block sizes; `fallback`: instruction set → layer → precision; `precision`:
    instruction set → what the whole network is compiled in.
    """

    version: Literal[1] = 1
    schedules: dict[str, dict[str, str]] = field(default_factory=dict)
    fallback: dict[str, dict[str, str]] = field(default_factory=dict)
    precision: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for isa, layers in self.fallback.items():
            for layer, precision in layers.items():
                if precision not in ("int16", "float32"):
                    raise ValueError(
                        f"fallback.{isa}.{layer}: {precision!r} is neither 'int16' nor 'float32'; {_REMEDY}"
                    )
        for isa, precision in self.precision.items():
            if precision not in ("int8", "float32"):
                raise ValueError(f"precision.{isa}: {precision!r} is neither 'int8' nor 'float32'; {_REMEDY}")

    def covers(self, isa: str) -> bool:
        """Whether all that is measured for an instruction set has been; without a precision nothing was to choose."""
        return isa in self.schedules or isa in self.precision

    def with_schedules(self, isa: str, schedules: Mapping[str, str]) -> "Lock":
        """The same lock with other schedules for one instruction set."""
        return replace(self, schedules={**self.schedules, isa: dict(schedules)})

    def with_fallback(self, isa: str, fallback: Mapping[str, str]) -> "Lock":
        """The same lock with other fallbacks for one instruction set; none where nothing falls back."""
        kept = {name: layers for name, layers in self.fallback.items() if name != isa}
        return replace(self, fallback={**kept, isa: dict(fallback)} if fallback else kept)

    def with_precision(self, isa: str, precision: str | None) -> "Lock":
        """The same lock with another precision for one instruction set; none where nothing was to choose."""
        kept = {name: chosen for name, chosen in self.precision.items() if name != isa}
        return replace(self, precision={**kept, isa: precision} if precision else kept)

    def to_toml(self) -> str:
        """In one canonical form: tables and keys in order."""
        lines = [_TITLE, f"version = {self.version}"]
        for isa, schedules in sorted(self.schedules.items()):
            lines += ["", f"[schedules.{json.dumps(isa)}]", *table_lines(schedules)]
        for isa, fallback in sorted(self.fallback.items()):
            lines += ["", f"[fallback.{json.dumps(isa)}]", *table_lines(fallback)]
        if self.precision:
            lines += ["", "[precision]", *table_lines(self.precision)]
        return "\n".join(lines) + "\n"


def table_lines(values: Mapping[str, str]) -> list[str]:
    """The lines of a TOML table of strings, in order of its keys; JSON's escapes are TOML's."""
    return [f"{json.dumps(key)} = {json.dumps(value)}" for key, value in sorted(values.items())]


def read_lock(folder: Path) -> Lock:
    """The lock of a recipe's folder, empty where there is none. Raises RecipeError."""
    path = folder / LOCK_FILE
    return toml.read(path, Lock) if path.exists() else Lock()


def write_lock(folder: Path, lock: Lock) -> Path:
    """Replaces the lock of a recipe's folder. Raises EnvironmentProblem."""
    write_together(folder, {LOCK_FILE: lock.to_toml().encode()})
    return folder / LOCK_FILE

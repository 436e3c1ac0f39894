"""What a build is asked for, what comes out, and who hears of it."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

from edgebuild.core.recipe import Recipe
from edgebuild.core.target import Target

STAGES = (
    "ingest",
    "quantize",
    "compile",
    "runtime",
    "package",
    "check",
    "evaluate",
    "fallback",
    "precision",
    "diagnose",
    "sign",
)


class Listener(Protocol):
    """Hears how far a build is; `seconds` is wall time."""

    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


@dataclass(frozen=True)
class UpdateOf:
    """The old bundle's file; which release counter was asked for (None: the next one); how many bytes the delta to the
    new bundle may have (None: any number); and whether the new bundle carries the old one's runtime.
    """

    bundle: Path
    release: int | None = None
    max_delta: int | None = None
    keep_runtime: bool = False


@dataclass(frozen=True)
class Job:
    """What is built, under which name. `recipe` may stand for a bare model file.

    `tune`: seconds for measuring block sizes on this machine; `update_lock`: measure again, and write recipe.lock.
    `release`, `made`, `expires` are the manifest's. `update`: keep the grid and the schedules of an earlier release.
    """

    recipe: Recipe
    target: Target
    name: str
    version: str
    untrained: bool = False
    tune: float = 0.0
    update_lock: bool = False
    release: int = 1
    made: date | None = None
    expires: date | None = None
    update: UpdateOf | None = None

    @property
    def of_file(self) -> bool:
        """Whether it is a bare model file, which has no recipe.toml and no recipe.lock."""
        return self.recipe.bare


@dataclass(frozen=True)
class Result:
    """`stem` is NAME-VERSION-TARGET; `report` is the report file's content; the models are ONNX files in the cache.
    `basis`: what a later release builds on (core/basis.py); None where nothing was rounded here.
    """

    stem: str
    bundle: bytes
    report: dict[str, Any]
    float_model: Path
    qdq_model: Path
    basis: bytes | None = None

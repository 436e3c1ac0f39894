"""Several models, one after another, each in a scratch folder of its own."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from edgebuild import pipeline
from edgebuild.bench import measure
from edgebuild.bench.case import Asked, of_asked, of_result
from edgebuild.core.minisign import PublicKey, SecretKey
from edgebuild.core.recipe import Recipe


class Listener(pipeline.Listener, measure.Listener, Protocol):
    """Hears builds and measurements."""


def bench(
    asked: Sequence[Asked], settings: measure.Settings, key: SecretKey, listener: Listener
) -> list[dict[str, Any]]:
    """The documents of the models, in their order; wrong settings are refused before anything is built."""
    settings.check()
    return [_one(item, settings, key, listener) for item in asked]


def _one(asked: Asked, settings: measure.Settings, key: SecretKey, listener: Listener) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="edgebuild-bench-") as folder:
        return measure.bench(of_asked(asked, Path(folder), key, listener), settings, listener)


def with_baseline(result: pipeline.Result, recipe: Recipe, key: PublicKey) -> pipeline.Result:
    """`result`, with `baseline` in its report: one thread of ours and of ONNX Runtime on the same graph, in turns."""
    with tempfile.TemporaryDirectory(prefix="edgebuild-bench-") as folder:
        found = measure.baseline(of_result(result, recipe, Path(folder), key))
    return dataclasses.replace(result, report=result.report | {"baseline": found})

"""Measures the block sizes that come with edgebuild, and writes `edgebuild/kernels/tuned/ISA.toml`.

    python tests/benchmarks/ship_schedules.py [RECIPE | QDQ.onnx ...] [--seconds N] [--isa NAME ...] [--missing]

Without names: every recipe of the repository, untrained (block sizes depend on shapes only). Nothing else should run
meanwhile. `--missing` goes on where the time was too short: it measures only shapes that have no line yet. Shapes that
the given models do not have keep their line, and instruction sets that this machine does not have keep their file.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnx

from edgebuild import pipeline, projects
from edgebuild.core import keys
from edgebuild.core.errors import EdgebuildError
from edgebuild.core.target import Target
from edgebuild.core.target_file import list_targets, load_target, runs_here
from edgebuild.kernels import schedules
from edgebuild.kernels.isa import ISAS
from edgebuild.stages.compile import tune

SECONDS = 120.0
"""For one instruction set and all models; a shape takes about 0.4 s."""


class Quiet:
    """A build's listener that has nothing to say."""

    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def quantized(name: str) -> Path:
    """The QDQ model of a recipe, built for this machine; a file is taken as it is."""
    if name.endswith(".onnx"):
        return Path(name)
    recipe = projects.resolve(name, projects.Overrides())
    untrained = recipe.weights is None or not recipe.weights.is_file()
    job = pipeline.Job(recipe, load_target("host"), recipe.name, recipe.version, untrained=untrained)
    return pipeline.build(job, keys.signing_key(None), Quiet()).qdq_model


def models(names: list[str]) -> Iterator[onnx.ModelProto]:
    for name in names:
        say(name)
        try:
            yield onnx.load(quantized(name))
        except EdgebuildError as error:
            say(f"left out: {error.message}")


def shapes(found: list[onnx.ModelProto], target: Target) -> list[tune.Layer]:
    """Every shape of all models once."""
    layers = (layer for model in found for layer in tune.layers_of(tune.lowered_steps(model, target)))
    return list({layer.key: layer for layer in layers}.values())


def ship(found: list[onnx.ModelProto], target: Target, seconds: float, *, missing: bool) -> None:
    isa = ISAS[target.isa]
    before = schedules.read_shipped(isa)
    layers = [layer for layer in shapes(found, target) if not (missing and layer.key in before)]
    began = time.monotonic()
    measured = tune.measure(layers, target, began + seconds, lambda done, total: say(f"  {done} of {total}"))
    changed = sum(measured[layer.key] != layer.candidates[0] for layer in layers if layer.key in measured)
    say(f"{target.isa}: {len(measured)} shapes in {time.monotonic() - began:.0f} s, {changed} not the cost model's")
    schedules.SHIPPED.mkdir(exist_ok=True)
    path = schedules.SHIPPED / f"{isa.name}.toml"
    path.write_text(schedules.shipped_text(before | measured, "Measured by tests/benchmarks/ship_schedules.py"))
    assert schedules.read_shipped(isa) == before | measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--isa", nargs="*", default=[])
    parser.add_argument("--missing", action="store_true")
    given = parser.parse_args()
    found = list(models(given.models or list(projects.bundled_recipes())))
    done = set()
    for target in list_targets():
        wanted = not given.isa or target.isa in given.isa
        if wanted and runs_here(target) and target.isa not in done:
            done.add(target.isa)
            ship(found, target, given.seconds, missing=given.missing)


if __name__ == "__main__":
    main()

"""Real samples of a recipe's calibration set, for what ingest has to see run."""

from collections.abc import Sequence
from itertools import islice

from edgebuild.core.calibration import NEVER_RANDOM, Sample, find_set, load_set
from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor
from edgebuild.core.recipe import Recipe

STATISTICS_SAMPLES = 32
"""Samples that give an untrained network's BatchNorm layers their statistics."""


def real_samples(recipe: Recipe, inputs: Sequence[Tensor], count: int = STATISTICS_SAMPLES) -> list[Sample]:
    """The first `count` samples. Raises CalibrationError where there are none."""
    if recipe.calibration.set is None:
        raise CalibrationError(f"{recipe.folder}: the recipe names no calibration set", NEVER_RANDOM)
    chosen = load_set(find_set(recipe.calibration.set, recipe.folder))
    return list(islice(chosen.samples(inputs, count), count))

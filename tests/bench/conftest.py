"""A network small enough for every peer, built once for this machine."""

from pathlib import Path

import numpy as np
import pytest

from edgebuild.bench.case import Asked, Case, of_asked
from edgebuild.core import minisign

RECIPE = """[recipe]
name = "tiny"
version = "1.0.0"

[model]
file = "model.py"
factory = "build"

[function]
file = "function.py"
name = "classify"

[calibration]
set = "samples.npz"
samples = 16
"""
MODEL = """from torch import nn


def build() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
"""
FUNCTION = """import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=15, size=(24, 24)))
def classify(frame, model):
    logits = model((frame.float() / 255).permute(2, 0, 1)[None])[0]
    return {"logits": logits, "label": logits.argmax()}
"""


class Silent:
    def says(self, what: str) -> None: ...

    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder; its frames have strong shapes, so that outputs differ from each other."""
    folder = tmp_path_factory.mktemp("recipes") / "tiny"
    folder.mkdir()
    for name, text in (("recipe.toml", RECIPE), ("model.py", MODEL), ("function.py", FUNCTION)):
        (folder / name).write_text(text)
    rng = np.random.default_rng(3)
    coarse = rng.integers(0, 256, (24, 3, 3, 3), dtype=np.uint8)
    np.savez(folder / "samples.npz", frame=coarse.repeat(8, axis=1).repeat(8, axis=2))
    return folder


@pytest.fixture(scope="session")
def key() -> minisign.SecretKey:
    return minisign.generate()


@pytest.fixture(scope="session")
def case(recipe: Path, key: minisign.SecretKey, tmp_path_factory: pytest.TempPathFactory) -> Case:
    asked = Asked(str(recipe), untrained=True)
    return of_asked(asked, tmp_path_factory.mktemp("case"), key, Silent())

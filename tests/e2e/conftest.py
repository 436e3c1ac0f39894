"""Real builds. The default cache is shared, so that a second run of the tests finds its work done."""

import sys
from pathlib import Path

import numpy as np
import pytest
from builds import Built, Machine

from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.manifest import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for shared_data


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="session")
def digits(machine: Machine) -> Built:
    """The default recipe for this machine."""
    return machine.compile("digits", "--target", "host", "--out", "out")


@pytest.fixture(scope="session")
def held_out() -> tuple[np.ndarray, list[int]]:
    """Frames uint8 [N, H, W, 3] and labels that no training and no calibration has seen."""
    frame = Tensor("frame", "uint8", (64, 64, 3))
    pairs = list(load_set(find_set("digits"), "test").labelled([frame]))
    return np.stack([sample["frame"] for sample, _ in pairs]), [int(label) for _, label in pairs if label is not None]

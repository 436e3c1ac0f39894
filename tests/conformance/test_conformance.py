"""Every operator, compiled for every target, gives the interpreter's bytes; edgebuild-run runs them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance.graphs import CASES, merged, samples
from programs import Arrays, differences, outputs_of, trial_of

from edgebuild.core.target_file import load_target
from edgebuild.reference.interpreter import Interpreter
from edgebuild.stages import check

TARGETS = ("x86_64-avx2", "x86_64-avx512vnni", "aarch64-generic", "raspberry-pi-5")
SAMPLES = 2


@pytest.fixture(scope="module")
def expected() -> tuple[onnx.ModelProto, list[tuple[Arrays, Arrays]]]:
    model = merged(list(CASES))
    interpreter = Interpreter(model)
    return model, [(sample, interpreter.run(sample)) for sample in samples(model, SAMPLES)]


@pytest.mark.parametrize("name", TARGETS)
def test_programs_reproduce_the_interpreter(name: str, expected, tmp_path: Path) -> None:
    model, pairs = expected
    trial = trial_of(model, load_target(name), pairs, tmp_path)
    got = outputs_of(trial, [given for given, _ in pairs], pairs[0][1], tmp_path)
    assert not differences(got, [wanted for _, wanted in pairs])
    check.check(trial)


def test_outputs_vary(expected) -> None:
    """An operator that gives a constant would agree with anything."""
    _, pairs = expected
    constant = [name for name, array in pairs[0][1].items() if array.size > 1 and np.ptp(array) == 0]
    assert not constant

"""Every operator, compiled for every target, gives the interpreter's bytes; edgebuild-run runs them."""

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance.graphs import CASES, merged, samples
from programs import Arrays, misses, trial_of

from edgebuild.core.target_file import load_target
from edgebuild.kernels.isa import ISAS
from edgebuild.reference.interpreter import Interpreter
from edgebuild.stages import check

# A target, and the row of kernels/isa.py when it is not the target's own: what plain code, and 256-bit registers with
# VNNI, compute can be seen on CPUs that do more.
TARGETS = (
    ("x86_64-generic", ""),
    ("x86_64-generic", "plain"),
    ("x86_64-avx2", ""),
    ("x86_64-avxvnni", ""),
    ("x86_64-avx512vnni", "avxvnni"),
    ("x86_64-avx512vnni", ""),
    ("x86_64-avx512vbmi", ""),
    ("aarch64-generic", ""),
    ("raspberry-pi-5", ""),
    ("aarch64-i8mm", ""),
    ("riscv64-generic", ""),
    ("riscv64-v", ""),
)
SAMPLES = 2


@pytest.fixture(scope="module")
def expected() -> tuple[onnx.ModelProto, list[tuple[Arrays, Arrays]]]:
    model = merged(CASES)
    interpreter = Interpreter(model)
    return model, [(sample, interpreter.run(sample)) for sample in samples(model, SAMPLES)]


@pytest.mark.parametrize(("name", "isa"), TARGETS)
def test_programs_reproduce_the_interpreter(name: str, isa: str, expected, tmp_path: Path) -> None:
    model, pairs = expected
    target = load_target(name)
    trial = trial_of(model, dataclasses.replace(target, isa=isa or target.isa), pairs, tmp_path)
    assert not misses(trial, pairs, tmp_path)
    check.check(trial)


def test_every_instruction_set_is_held() -> None:
    assert {isa or load_target(name).isa for name, isa in TARGETS} == set(ISAS)


def test_outputs_vary(expected) -> None:
    """An operator that gives a constant would agree with anything."""
    _, pairs = expected
    constant = [name for name, array in pairs[0][1].items() if array.size > 1 and np.ptp(array) == 0]
    assert not constant

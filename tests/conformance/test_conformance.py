"""Every operator, compiled for every target, gives the interpreter's bytes; edgebuild-run runs them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance.graphs import CASES, merged, samples

from edgebuild.core import minisign
from edgebuild.core.manifest import Tensor, Trigger
from edgebuild.core.runner import Trial, prefix_for
from edgebuild.core.target_file import load_target
from edgebuild.reference.interpreter import Interpreter
from edgebuild.stages import check, package, sign
from edgebuild.stages.compile import compile_model
from edgebuild.stages.runtime import runtime_binary

TARGETS = ("x86_64-avx2", "x86_64-avx512vnni", "aarch64-generic", "raspberry-pi-5")
SAMPLES = 2

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def expected() -> tuple[onnx.ModelProto, list[tuple[Arrays, Arrays]]]:
    model = merged(list(CASES))
    interpreter = Interpreter(model)
    return model, [(sample, interpreter.run(sample)) for sample in samples(model, SAMPLES)]


@pytest.mark.parametrize("name", TARGETS)
def test_programs_reproduce_the_interpreter(name: str, expected, tmp_path: Path) -> None:
    target = load_target(name)
    prefix, reason = prefix_for(target)
    if prefix is None and "CPU lacks" in reason:
        pytest.skip(reason)
    assert prefix is not None, reason  # a missing qemu is a failure
    model, pairs = expected
    program = compile_model(model, target)
    runtime = runtime_binary(target.triple)
    inputs = tuple(_tensor(name, array) for name, array in pairs[0][0].items())
    outputs = tuple(_tensor(name, array) for name, array in pairs[0][1].items())
    contents = package.Contents(
        name="cases", version="1", quality="trained", function="cases", trigger=Trigger("none"), timeout_ms=None,
        inputs=inputs, outputs=outputs, runtime=runtime.read_bytes(), program_so=program.program_so,
        plan=program.plan, weights=program.weights,
        golden=check.golden_files([t.name for t in inputs], [t.name for t in outputs], pairs), sources={},
    )  # fmt: skip
    trial = _trial(tmp_path, prefix, runtime, package.package(contents, target))
    lines = trial.frames({t.name: np.stack([given[t.name] for given, _ in pairs]) for t in inputs}, tmp_path)
    different = [
        f"{output.name}, sample {i}"
        for i, (line, (_, wanted)) in enumerate(zip(lines, pairs, strict=True))
        for output in outputs
        if _bytes(line["outputs"][output.name], wanted[output.name]) != wanted[output.name].tobytes()
    ]
    assert not different
    check.check(trial)


def _tensor(name: str, array: np.ndarray) -> Tensor:
    return Tensor(name, str(array.dtype), array.shape)


def _trial(folder: Path, prefix: tuple[str, ...], runtime: Path, packed: package.Package) -> Trial:
    key = minisign.generate()
    bundle, trust = folder / "cases.ebundle", folder / "trust"
    bundle.write_bytes(sign.sign(packed.manifest, packed.files, key))
    trust.write_bytes(key.public.file())
    return Trial(prefix, runtime, bundle, trust)


def _bytes(value: object, like: np.ndarray) -> bytes:
    return np.array(value, like.dtype).tobytes()


def test_outputs_vary(expected) -> None:
    """An operator that gives a constant would agree with anything."""
    _, pairs = expected
    constant = [name for name, array in pairs[0][1].items() if array.size > 1 and np.ptp(array) == 0]
    assert not constant

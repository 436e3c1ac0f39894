"""Compiled programs under the real edgebuild-run, without the command line around them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgebuild.core import minisign
from edgebuild.core.manifest import Tensor, Trigger
from edgebuild.core.runner import Trial, prefix_for
from edgebuild.core.target import Target
from edgebuild.stages import check, package, sign
from edgebuild.stages.compile import compile_model
from edgebuild.stages.runtime import runtime_binary

Arrays = dict[str, np.ndarray]


def trial_of(model: onnx.ModelProto, target: Target, pairs: Sequence[tuple[Arrays, Arrays]], folder: Path) -> Trial:
    """A bundle of a QDQ model whose golden samples are `pairs` of (inputs, outputs).

    Skips where the target is of this machine's kind but newer; a missing qemu is a failure.
    """
    prefix, reason = prefix_for(target)
    if prefix is None and "CPU lacks" in reason:
        pytest.skip(reason)
    assert prefix is not None, reason
    program, runtime = compile_model(model, target), runtime_binary(target.triple)
    inputs, outputs = ([Tensor(n, str(a.dtype), a.shape) for n, a in part.items()] for part in pairs[0])
    contents = package.Contents(
        name="trial",
        version="1",
        quality="trained",
        function="run",
        trigger=Trigger("none"),
        timeout_ms=None,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        runtime=runtime.read_bytes(),
        program_so=program.program_so,
        plan=program.plan,
        weights=program.weights,
        golden=check.golden_files([t.name for t in inputs], [t.name for t in outputs], pairs),
        sources={},
    )
    packed = package.package(contents, target)
    key = minisign.generate()
    bundle, trust = folder / f"{target.name}.ebundle", folder / "trust"
    bundle.write_bytes(sign.sign(packed.manifest, packed.files, key))
    trust.write_bytes(key.public.file())
    return Trial(prefix, runtime, bundle, trust)


def outputs_of(trial: Trial, samples: Sequence[Arrays], like: Arrays, folder: Path) -> list[Arrays]:
    """What edgebuild-run gives for each sample, in the dtypes and shapes of `like`."""
    stacked = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
    return [
        {name: np.array(line["outputs"][name], array.dtype).reshape(array.shape) for name, array in like.items()}
        for line in trial.frames(stacked, folder)
    ]


def differences(got: Sequence[Arrays], wanted: Sequence[Arrays]) -> list[str]:
    """Names of outputs whose bytes differ, with the sample's number."""
    return [
        f"{name}, sample {i}"
        for i, (a, b) in enumerate(zip(got, wanted, strict=True))
        for name in b
        if a[name].tobytes() != b[name].tobytes()
    ]


def misses(trial: Trial, pairs: Sequence[tuple[Arrays, Arrays]], folder: Path) -> list[str]:
    """`differences` of what edgebuild-run gives from `pairs` of (inputs, outputs)."""
    got = outputs_of(trial, [given for given, _ in pairs], pairs[0][1], folder)
    return differences(got, [wanted for _, wanted in pairs])

"""Check: the signed bundle, run by the real `edgebuild-run`, reproduces the golden outputs, before anyone gets it."""

import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.core.errors import CheckError
from edgebuild.core.plan import DTYPES, ITEM_SIZES
from edgebuild.core.runner import REPORT, Trial, said

if TYPE_CHECKING:
    import numpy as np

    from edgebuild.core.manifest import Tensor

    Array = np.ndarray[Any, Any]

GOLDEN_SAMPLES = 4
GOLDEN_BYTES = 256 << 10
"""Of outputs, from which on there are fewer samples: an update brings all of them anew, and they hardly compress."""
RUNS = 100
WARM_UP = 10


def golden_count(outputs: "Sequence[Tensor]") -> int:
    """How many samples a bundle with these outputs carries."""
    size = sum(ITEM_SIZES[DTYPES.index(output.dtype)] * math.prod(output.shape) for output in outputs)
    return max(1, min(GOLDEN_SAMPLES, GOLDEN_BYTES // max(size, 1)))


def golden_files(
    inputs: Sequence[str], outputs: Sequence[str], pairs: "Iterable[tuple[dict[str, Array], dict[str, Array]]]"
) -> dict[str, bytes]:
    """`in-I.npy` and `out-J.npy`, samples along a first axis, from (inputs, outputs) of the interpreter."""
    given, made = zip(*pairs, strict=True)
    return {f"in-{i}.npy": _npy([sample[name] for sample in given]) for i, name in enumerate(inputs)} | {
        f"out-{j}.npy": _npy([result[name] for result in made]) for j, name in enumerate(outputs)
    }


def _npy(arrays: "list[Array]") -> bytes:
    import numpy as np  # noqa: PLC0415 - an unchanged build does without it

    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(np.stack(arrays)), allow_pickle=False)
    return buffer.getvalue()


def check(trial: Trial) -> None:
    """Raises CheckError unless every golden output comes out byte for byte."""
    done = trial.run("--check")
    if done.returncode != 0:
        raise CheckError(
            f"the compiled program does not reproduce its golden outputs: {said(done)}",
            "this is a bug in edgebuild's kernels or its interpreter; no bundle was written",
        )


def latency(trial: Trial, samples: "dict[str, Array]", folder: Path, runs: int = RUNS) -> list[float]:
    """Microseconds of `runs` runs on one thread. `samples`: golden inputs, samples along the first axis."""
    import numpy as np  # noqa: PLC0415

    count = runs + WARM_UP
    stacked = {name: np.resize(array, (count, *array.shape[1:])) for name, array in samples.items()}
    return [line["latency_us"] for line in trial.frames(stacked, folder)][WARM_UP:]


def profile(trial: Trial, samples: "dict[str, Array]", folder: Path, runs: int = RUNS) -> list[dict[str, Any]]:
    """The least time of each operator on one thread: lines with `op` and `latency_us`."""
    import numpy as np  # noqa: PLC0415

    arguments = []
    for name, array in samples.items():
        np.save(folder / f"{name}.npy", array[:1], allow_pickle=False)
        arguments += ["--input", f"{name}={folder / name}.npy"]
    done = trial.run("--threads", "1", "--no-pace", "--profile", "--json", "--repeat", str(runs), *arguments)
    if done.returncode != 0:
        raise CheckError(f"edgebuild-run fails on the compiled program: {said(done)}", REPORT)
    return [line for line in map(json.loads, done.stderr.splitlines()) if "op" in line]

"""Baseline: the same QDQ model in ONNX Runtime, one thread, measured in turns with the compiled bundle."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgebuild.core.runner import summary
from edgebuild.core.target_file import host_features

if TYPE_CHECKING:
    import numpy as np
    import onnx

ROUNDS = 8
RUNS = 25
WARM_UP = 5


def compare(
    ours: Callable[[int], list[float]], model: "onnx.ModelProto", sample: "dict[str, np.ndarray[Any, Any]]"
) -> dict[str, dict[str, float]]:
    """Latency in microseconds of both: `edgebuild` and `onnxruntime`, each with min, median, p99.

    `ours(n)` runs the bundle n times on `sample` and returns n latencies in microseconds. Rounds alternate, so that a
    slower phase of the machine meets both.
    """
    theirs = _session(model, sample)
    theirs(WARM_UP)
    times: dict[str, list[float]] = {"edgebuild": [], "onnxruntime": []}
    for _ in range(ROUNDS):
        times["edgebuild"] += ours(RUNS)
        times["onnxruntime"] += theirs(RUNS)
    return {name: summary(found) for name, found in times.items()}


def _session(model: "onnx.ModelProto", sample: "dict[str, np.ndarray[Any, Any]]") -> Callable[[int], list[float]]:
    import onnxruntime  # noqa: PLC0415 - imports numpy and a large library

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not {"avx512vnni", "avxvnni"} & set(host_features()[1]):
        # Without VNNI its u8 x s8 products saturate: other results, not comparable. With VNNI this would slow it down.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(count: int) -> list[float]:
        found = []
        for _ in range(count):
            start = time.perf_counter()
            session.run(None, sample)
            found.append((time.perf_counter() - start) * 1e6)
        return found

    return run

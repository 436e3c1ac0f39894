import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from edgebuild.bench import measure
from edgebuild.bench.case import Case
from edgebuild.bench.engines import EngineFailure, Native
from edgebuild.core.errors import CheckError


def test_ours_runs_samples_in_turn_and_repeats_itself(case: Case) -> None:
    with contextlib.closing(Native(case, 1)) as engine:
        times = engine.run(30)
        assert len(times) == 30
        assert min(times) > 0
        first, second = engine.outputs(), engine.outputs()
        assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
        assert len(np.unique(first[0], axis=0)) > 1
        assert engine.start.first_result_ms > 0
        assert engine.start.peak_kb > (case.plan.weights_bytes + case.plan.arena_bytes) / 1024


def test_a_bundle_that_is_refused_says_so(case: Case, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.ebundle"
    data = bytearray(case.bundle.read_bytes())
    data[-2000] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(EngineFailure, match="ended with exit code 2"):
        Native(dataclasses.replace(case, bundle=damaged), 1)
    with pytest.raises(CheckError, match="tiny: edgebuild-run fails"):
        measure._start(dataclasses.replace(case, bundle=damaged), None, 1)

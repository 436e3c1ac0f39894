"""Calls kernels of a program.so from Python, as edgebuild-run does, for shapes that no graph of ours has."""

from collections.abc import Sequence

import numpy as np
import pytest

from edgebuild.core.runner import prefix_for
from edgebuild.core.target import Target
from edgebuild.core.target_file import load_target
from edgebuild.kernels.builder import Kernel
from edgebuild.stages.compile.native import Program, aligned


def runnable(name: str) -> Target:
    """A target whose code this CPU runs; the test skips on another."""
    target = load_target(name)
    if prefix_for(target)[0] != ():
        pytest.skip(f"this CPU cannot run {name}")
    return target


class Native:
    def __init__(self, kernels: Sequence[Kernel], target: Target) -> None:
        self._program = Program(kernels, target)

    def __call__(self, index: int, args: Sequence[np.ndarray], output: np.ndarray) -> np.ndarray:
        """Run kernel `index` over its whole range, in pieces of one, two, three … units."""
        buffers = [aligned(a) for a in (*args, output)]
        work, pieces, step = self._program.kernels[index].work, [(0, 0)], 1
        while (begin := pieces[-1][1]) < work:
            pieces.append((begin, min(begin + step, work)))
            step += 1
        self._program.run(index, buffers, pieces[1:])
        return buffers[-1]

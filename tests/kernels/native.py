"""Calls kernels of a program.so from Python, as edgebuild-run does, for shapes that no graph of ours has."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from edgebuild.core.runner import prefix_for
from edgebuild.core.target import Target
from edgebuild.core.target_file import load_target
from edgebuild.kernels.builder import Kernel
from edgebuild.stages.compile.codegen import build_program

_TABLE_OFFSET = 24
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)


def runnable(name: str) -> Target:
    """A target whose code this CPU runs; the test skips on another."""
    target = load_target(name)
    if prefix_for(target)[0] != ():
        pytest.skip(f"this CPU cannot run {name}")
    return target


class Native:
    def __init__(self, kernels: Sequence[Kernel], target: Target, folder: Path) -> None:
        path = folder / f"{target.name}.so"
        path.write_bytes(build_program(kernels, target))
        self._library = ctypes.CDLL(str(path))
        table = ctypes.addressof(ctypes.c_char.in_dll(self._library, "eb_program")) + _TABLE_OFFSET
        pointers = (ctypes.c_void_p * len(kernels)).from_address(table)
        self._entries = [_ENTRY(pointer) for pointer in pointers]
        self._kernels = list(kernels)

    def __call__(self, index: int, args: Sequence[np.ndarray], output: np.ndarray) -> np.ndarray:
        """Run kernel `index` over its whole range, in pieces of one, two, three … units."""
        kernel = self._kernels[index]
        buffers = [_aligned(a) for a in (*args, output)]
        scratch = _aligned(np.zeros(kernel.scratch + 64, np.uint8))
        pointers = (ctypes.c_void_p * len(buffers))(*[b.ctypes.data for b in buffers])
        begin, step = 0, 1
        while begin < kernel.work:
            end = min(begin + step, kernel.work)
            self._entries[index](ctypes.addressof(pointers), scratch.ctypes.data, begin, end)
            begin, step = end, step + 1
        return buffers[-1]


def _aligned(array: np.ndarray) -> np.ndarray:
    """A copy on a 64-byte boundary."""
    raw = np.empty(array.nbytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

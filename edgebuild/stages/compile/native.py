"""Calls the kernels of a program.so in this process, on NumPy arrays."""

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgebuild.core.plan import ALIGNMENT
from edgebuild.core.target import Target
from edgebuild.kernels.builder import Kernel
from edgebuild.stages.compile.codegen import build_program

Array = np.ndarray[Any, Any]

TABLE_OFFSET = 24  # bytes in front of the first entry of a kernel table, SPEC section 6
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)


class Program:
    """Kernels, compiled for a target whose code this machine runs."""

    def __init__(self, kernels: Sequence[Kernel], target: Target) -> None:
        self.kernels = tuple(kernels)
        with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
            path = Path(folder) / "program.so"
            path.write_bytes(build_program(kernels, target))
            self._library = ctypes.CDLL(str(path))
        table = ctypes.addressof(ctypes.c_char.in_dll(self._library, "eb_program")) + TABLE_OFFSET
        pointers = (ctypes.c_void_p * len(kernels)).from_address(table)
        self._entries = [_ENTRY(pointer or 0) for pointer in pointers]

    def run(self, index: int, buffers: Sequence[Array], ranges: Sequence[tuple[int, int]]) -> None:
        """Kernel `index` on buffers that `aligned` made, over ranges of its work."""
        scratch = aligned(np.zeros(self.kernels[index].scratch + ALIGNMENT, np.uint8))
        pointers = (ctypes.c_void_p * len(buffers))(*[buffer.ctypes.data for buffer in buffers])
        for begin, end in ranges:
            self._entries[index](ctypes.addressof(pointers), scratch.ctypes.data, begin, end)


def aligned(array: Array) -> Array:
    """A copy on a 64-byte boundary, in memory of one element at least."""
    raw = np.zeros(array.nbytes + 2 * ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy

"""Times the kernels of a program.so in turns: a program of its own, because what it runs may crash.

    python -I stopwatch.py < request.json > times.json

Request: `library`; `offset` of the kernel table's first entry; `core` to be pinned to; `layers`, each with its
`buffers` (bytes and dtype, in calling order), its `scratch` bytes, and its `kernels`: [entry, units of work]. Answer:
for each layer and kernel, the least time in nanoseconds of the even rounds and of the odd ones.

Nothing of edgebuild is imported. Before each run the weights are driven out of the second-level cache, and the input is
written: that is how a layer of a network finds them.
"""

import ctypes
import json
import os
import random
import sys
import time
from typing import Any

ALIGNMENT = 64
EVICTED = 1 << 21  # two of these are read: larger than the second-level cache of today's cores
LEAST_ROUNDS, MOST_ROUNDS = 16, 200
SECONDS = 0.2  # for one layer, unless the least rounds take longer
FLOAT = b"\x00\x00\x80\x3a"  # 2^-10: random bits would be NaN or denormal, which some CPUs multiply slowly

_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)


class Buffer:
    """Aligned memory that never moves."""

    def __init__(self, content: bytes) -> None:
        self.size = len(content)
        self._memory = ctypes.create_string_buffer(self.size + ALIGNMENT)
        self.address = -(-ctypes.addressof(self._memory) // ALIGNMENT) * ALIGNMENT
        ctypes.memmove(self.address, content, self.size)


def content(size: int, dtype: str) -> bytes:
    """Random bytes; int32 (biases, parameters) zero, float32 (multipliers) small."""
    if dtype == "float32":
        return FLOAT * (size // 4)
    return bytes(size) if dtype == "int32" else random.Random(size).randbytes(size)  # noqa: S311 - only not all equal


class Bench:
    """Everything that stays the same for all layers."""

    def __init__(self, library: str, offset: int) -> None:
        self._library = ctypes.CDLL(library)
        self._table = ctypes.addressof(ctypes.c_char.in_dll(self._library, "eb_program")) + offset
        self._evicted = [Buffer(bytes(EVICTED)) for _ in range(2)]
        self._compare = ctypes.CDLL(None).memcmp
        self._compare.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]

    def layer(self, buffers: list[tuple[int, str]], scratch_bytes: int, kernels: list[tuple[int, int]]) -> Any:
        """The two least times of each kernel."""
        held = [Buffer(content(size, dtype)) for size, dtype in buffers]
        scratch, source = Buffer(bytes(scratch_bytes)), Buffer(content(*buffers[0]))
        pointers = (ctypes.c_void_p * len(held))(*[b.address for b in held])
        arguments, size = ctypes.addressof(pointers), ctypes.sizeof(ctypes.c_void_p)
        entries = [_ENTRY(ctypes.c_void_p.from_address(self._table + size * i).value or 0) for i, _ in kernels]
        least = [[sys.maxsize, sys.maxsize] for _ in kernels]
        end = time.perf_counter() + SECONDS
        for number in range(MOST_ROUNDS):
            if number >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for times, entry, (_, work) in zip(least, entries, kernels, strict=True):
                self._prepare(held[0], source, scratch)
                start = time.perf_counter_ns()
                entry(arguments, scratch.address, 0, work)
                times[number % 2] = min(times[number % 2], time.perf_counter_ns() - start)
        return least

    def _prepare(self, data: Buffer, source: Buffer, scratch: Buffer) -> None:
        self._compare(self._evicted[0].address, self._evicted[1].address, EVICTED)
        ctypes.memset(scratch.address, 0, scratch.size)
        ctypes.memmove(data.address, source.address, data.size)


def main() -> None:
    request = json.load(sys.stdin)
    os.sched_setaffinity(0, {request["core"]})
    bench = Bench(request["library"], request["offset"])
    json.dump([bench.layer(**layer) for layer in request["layers"]], sys.stdout)


if __name__ == "__main__":
    main()

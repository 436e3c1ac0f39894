"""Two releases of one function, made by hand: a plan with weights of every kind, and what an update changes in them."""

import dataclasses

import numpy as np
from core.bundles import make_bundle, make_manifest

from edgebuild.core.minisign import SecretKey
from edgebuild.core.plan import ALIGNMENT, Plan, PlanTensor, write_plan

KEY = SecretKey(b"12345678", bytes(range(32)))
SHAPES = {"w": ("int8", 3000), "m": ("float32", 40), "b": ("int32", 40), "t": ("uint8", 256), "z": ("int64", 3)}


def tensors() -> list[PlanTensor]:
    found, offset = [], 0
    for name, (dtype, count) in SHAPES.items():
        tensor = PlanTensor(name, dtype, (count,), "weights", offset)
        found.append(tensor)
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return found


def plan() -> bytes:
    last = tensors()[-1]
    total = last.offset + -(-last.nbytes // ALIGNMENT) * ALIGNMENT
    arena = PlanTensor("x", "int8", (4,), "arena", 0)
    return write_plan(Plan(64, 0, total, 0, 0, (*tensors(), arena), (), (len(SHAPES),), (len(SHAPES),)))


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "w": rng.integers(-60, 60, 3000).astype(np.int8),
        "m": (rng.random(40) + 0.5).astype(np.float32),
        "b": rng.integers(-9000, 9000, 40).astype(np.int32),
        "t": rng.integers(0, 255, 256).astype(np.uint8),
        "z": rng.integers(-5, 5, 3).astype(np.int64),
    }


def weights_bin(values: dict[str, np.ndarray]) -> bytes:
    data = bytearray(len(tensors()) and tensors()[-1].offset + ALIGNMENT)
    for tensor in tensors():
        data[tensor.offset : tensor.offset + tensor.nbytes] = values[tensor.name].tobytes()
    return bytes(data)


def files(values: dict[str, np.ndarray], **others: bytes) -> dict[str, bytes]:
    rng = np.random.default_rng(7)
    return {
        "edgebuild-run": rng.bytes(3000),
        "program.so": rng.bytes(5000),
        "plan.bin": plan(),
        "weights.bin": weights_bin(values),
        "golden/in-0.npy": b"in" * 50,
        "golden/out-0.npy": b"out 0",
        "golden/out-1.npy": b"",
        "function/function.py": b"def f(): ...\n",
        **others,
    }


def release(found: dict[str, bytes], counter: int = 1, **changes: object) -> bytes:
    manifest = dataclasses.replace(make_manifest(found), version=f"1.{counter}.0", release=counter, **changes)
    return make_bundle(manifest, found, KEY)

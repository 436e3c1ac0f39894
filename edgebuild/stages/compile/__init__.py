"""Stage compile: a QDQ ONNX model for a target → `program.so`, `plan.bin`, `weights.bin` (SPEC sections 5 and 6)."""

import math
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from edgebuild.core.errors import CompileError, ModelError
from edgebuild.core.plan import DTYPES, ITEM_SIZES, MAX_RANK, Plan, PlanOp, PlanTensor, write_plan
from edgebuild.core.target import Target
from edgebuild.stages.compile.codegen import build_program
from edgebuild.stages.compile.fuse import fuse
from edgebuild.stages.compile.lower import Lowered, lower
from edgebuild.stages.compile.memory import Life, aligned, place
from edgebuild.stages.compile.values import Storage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import onnx

    from edgebuild.kernels.builder import Kernel

_MAX_BYTES = 2**31
_NOTHING: "Mapping[str, str]" = MappingProxyType({})


@dataclass(frozen=True)
class Program:
    """The three files of a compiled program."""

    program_so: bytes
    plan: bytes
    weights: bytes


def compile_model(model: "onnx.ModelProto", target: Target, locked: "Mapping[str, str]" = _NOTHING) -> Program:
    """Compile a QDQ model; `locked` are schedules by shape, which go before those that come with edgebuild.

    Raises ModelError for what cannot be lowered, CompileError where code generation fails, RecipeError for a schedule
    that does not fit.
    """
    lowered = _scheduled(model, target, locked)
    kernels, of_step = lowered.emitter.kernels()
    plan, weights = assemble(lowered, kernels, of_step)
    return Program(build_program(kernels, target), write_plan(plan), weights)


@dataclass(frozen=True)
class Values:
    """`weights.bin`, and `form`: models of one form have one `program.so` and one `plan.bin`."""

    weights: bytes
    form: str


def values_of(model: "onnx.ModelProto", target: Target, locked: "Mapping[str, str]" = _NOTHING) -> Values:
    """The values that `compile_model` would give: no code is generated. Raises as that does."""
    lowered = _scheduled(model, target, locked)
    return Values(b"".join(_padded(data) for _, data in _constants(lowered)), _form(lowered))


def _form(lowered: Lowered) -> str:
    """The steps with all that makes their kernels, and the tensors but for their values."""
    emitter = lowered.emitter
    steps = [
        (s.name, s.kind, s.make.__module__, s.make.__qualname__, s.spec, s.options, s.inputs, s.written)
        for s in emitter.steps
    ]
    found = [(n, emitter.storages[n]) for n in _used(lowered)]
    tensors = [(n, item.name, item.dtype, item.shape, item.data is None) for n, item in found]
    return repr((steps, tensors, lowered.inputs, lowered.outputs))


def _scheduled(model: "onnx.ModelProto", target: Target, locked: "Mapping[str, str]") -> Lowered:
    from edgebuild.kernels.isa import ISAS  # noqa: PLC0415
    from edgebuild.stages.compile.schedule import schedule  # noqa: PLC0415

    if target.isa not in ISAS:
        raise CompileError(
            f"target {target.name}: no kernels for the instruction set {target.isa}", f"one of {', '.join(ISAS)}"
        )
    lowered = lower(model, ISAS[target.isa])
    fuse(lowered.emitter, lowered.kept)
    schedule(lowered.emitter, locked)
    return lowered


def _used(lowered: Lowered) -> list[int]:
    """The storages that some step reads or writes, in the order of plan.bin."""
    emitter = lowered.emitter
    return sorted({s for step in emitter.steps for s in (*step.inputs, *step.written)} | lowered.kept)


def _constants(lowered: Lowered) -> "Iterator[tuple[int, bytes]]":
    for number in _used(lowered):
        data = lowered.emitter.storages[number].data
        if data is not None:
            yield number, data.tobytes()


def _padded(data: bytes) -> bytes:
    return data + bytes(aligned(len(data)) - len(data))


def assemble(lowered: Lowered, kernels: "Sequence[Kernel]", of_step: "Sequence[int]") -> tuple[Plan, bytes]:
    """Place every tensor and write the weights in the order of the tensor table."""
    emitter = lowered.emitter
    order = _used(lowered)
    index = {storage: i for i, storage in enumerate(order)}
    offsets, arena_bytes = place(_lives(lowered))
    weight_bytes = sum(aligned(_nbytes(lowered, s)) for s in order if emitter.storages[s].data is not None)
    for what, size in (("activations", arena_bytes), ("weights", weight_bytes)):
        if size > _MAX_BYTES:
            raise ModelError(
                f"the model needs {size >> 20} MiB for its {what}; the most is {_MAX_BYTES >> 20} MiB",
                "use a smaller one",
            )
    weights = bytearray()
    tensors = []
    for number in order:
        storage = emitter.storages[number]
        shape = _shape(storage, kept=number in lowered.kept)
        if storage.data is None:
            tensors.append(PlanTensor(storage.name, storage.dtype, shape, "arena", offsets[number]))
            continue
        tensors.append(PlanTensor(storage.name, storage.dtype, shape, "weights", len(weights)))
        weights += _padded(storage.data.tobytes())
    ops = tuple(
        PlanOp(
            step.name,
            step.kind,
            kernel,
            (*((index[s], False) for s in step.inputs), *((index[s], True) for s in step.written)),
            kernels[kernel].work,
            min(kernels[kernel].grain, kernels[kernel].work),
            step.integer,
            step.macs,
        )
        for step, kernel in zip(emitter.steps, of_step, strict=True)
    )
    scratch = max((aligned(k.scratch) for k in kernels), default=0)
    plan = Plan(
        arena_bytes,
        scratch,
        len(weights),
        sum(op.macs for op in ops),
        sum(op.macs for op in ops if op.integer),
        tuple(tensors),
        ops,
        tuple(index[v.storage] for _, v in lowered.inputs),
        tuple(index[v.storage] for _, v in lowered.outputs),
    )
    return plan, bytes(weights)


def _shape(storage: Storage, *, kept: bool) -> tuple[int, ...]:
    """The shape as plan.bin holds it: outer axes beyond its limit become one, except of inputs and outputs."""
    more = len(storage.shape) - MAX_RANK
    if more > 0 and kept:
        raise ModelError(
            f"tensor {storage.name} has {len(storage.shape)} axes; inputs and outputs have at most {MAX_RANK}",
            "reshape it in the handler",
        )
    return (math.prod(storage.shape[: more + 1]), *storage.shape[more + 1 :]) if more > 0 else storage.shape


def _lives(lowered: Lowered) -> list[Life]:
    """Inputs and outputs live for the whole run; every other tensor from its first writer to its last reader."""
    emitter = lowered.emitter
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for i, step in enumerate(emitter.steps):
        for storage in (*step.inputs, *step.written):
            first.setdefault(storage, i)
            last[storage] = i
    for _, value in (*lowered.inputs, *lowered.outputs):
        first[value.storage], last[value.storage] = 0, len(emitter.steps)
    return [Life(s, _nbytes(lowered, s), first[s], last[s]) for s in first if emitter.storages[s].data is None]


def _nbytes(lowered: Lowered, storage: int) -> int:
    item = lowered.emitter.storages[storage]
    return int(np.prod(item.shape, dtype=np.int64)) * ITEM_SIZES[DTYPES.index(item.dtype)]

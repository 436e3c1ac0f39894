"""`plan.bin`, SPEC section 5: what runs in which order on which memory. Written by the compiler, read by `inspect`."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgebuild.core.errors import BundleError

ALIGNMENT = 64
DTYPES = ("uint8", "int8", "int32", "int64", "float32", "bool", "int16")
ITEM_SIZES = (1, 1, 4, 8, 4, 1, 2)
SPACES = ("arena", "weights")
_HEADER = struct.Struct("<4s9I3Q")
_TENSOR = struct.Struct("<I4B6I2Q")
_OP = struct.Struct("<8IQ")
_WRITTEN = 1 << 31
MAX_RANK = 6
MAX_ARGS = 16


@dataclass(frozen=True)
class PlanTensor:
    """A tensor in the arena or in weights.bin; `shape` in memory order, `offset` and `nbytes` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    space: str
    offset: int

    @property
    def nbytes(self) -> int:
        size = ITEM_SIZES[DTYPES.index(self.dtype)]
        for dim in self.shape:
            size *= dim
        return size


@dataclass(frozen=True)
class PlanOp:
    """A kernel call; `args` are (tensor index, written) in calling order."""

    name: str
    kind: str
    kernel: int
    args: tuple[tuple[int, bool], ...]
    work: int
    grain: int
    integer: bool
    macs: int

    @property
    def inputs(self) -> list[int]:
        return [i for i, written in self.args if not written]

    @property
    def outputs(self) -> list[int]:
        return [i for i, written in self.args if written]


@dataclass(frozen=True)
class Plan:
    arena_bytes: int
    scratch_bytes: int
    weights_bytes: int
    macs_total: int
    macs_integer: int
    tensors: tuple[PlanTensor, ...]
    ops: tuple[PlanOp, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass
class _Strings:
    data: bytearray = field(default_factory=bytearray)
    places: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        if text not in self.places:
            self.places[text] = len(self.data)
            self.data += text.encode() + b"\0"
        return self.places[text]


def write_plan(plan: Plan) -> bytes:
    strings = _Strings()
    tensors = b"".join(_tensor_bytes(t, strings) for t in plan.tensors)
    args: list[int] = []
    ops = []
    for op in plan.ops:
        flags = 1 if op.integer else 0
        place = (strings.place(op.name), strings.place(op.kind), op.kernel, len(args), len(op.args))
        ops.append(_OP.pack(*place, op.work, op.grain, flags, op.macs))
        args += [index | (_WRITTEN if written else 0) for index, written in op.args]
    numbers = struct.pack(f"<{len(args) + len(plan.inputs) + len(plan.outputs)}I", *args, *plan.inputs, *plan.outputs)
    text = bytes(strings.data) or b"\0"
    counts = (len(plan.tensors), len(plan.ops), len(args), len(plan.inputs), len(plan.outputs), len(text))
    sizes = (plan.weights_bytes, plan.macs_total, plan.macs_integer)
    header = _HEADER.pack(b"EBPL", 1, plan.arena_bytes, plan.scratch_bytes, *counts, *sizes)
    return header + tensors + b"".join(ops) + numbers + text


def _tensor_bytes(tensor: PlanTensor, strings: _Strings) -> bytes:
    dims = (*tensor.shape, *[0] * (MAX_RANK - len(tensor.shape)))
    codes = (DTYPES.index(tensor.dtype), len(tensor.shape), SPACES.index(tensor.space), 0)
    return _TENSOR.pack(strings.place(tensor.name), *codes, *dims, tensor.offset, tensor.nbytes)


def read_plan(data: bytes) -> Plan:
    """Parse and check plan.bin; raises BundleError where SPEC section 5 does not hold."""
    try:
        return _read(data)
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise BundleError(f"plan.bin is not valid: {error}", "compile the bundle again") from error


def _read(data: bytes) -> Plan:
    magic, version, arena, scratch, *counts, weights, macs, integer = _HEADER.unpack_from(data)
    if magic != b"EBPL" or version != 1:
        raise ValueError("unknown magic or version")
    tensors, ops, args, inputs, outputs, text = counts
    sizes = (_TENSOR.size * tensors, _OP.size * ops, 4 * args, 4 * inputs, 4 * outputs, text)
    if _HEADER.size + sum(sizes) != len(data):
        raise ValueError("its length does not fit its header")
    parts = list(_split(data[_HEADER.size :], sizes))
    numbers = [struct.unpack(f"<{n}I", part) for n, part in zip((args, inputs, outputs), parts[2:5], strict=True)]
    names = parts[5]
    plan = Plan(
        arena,
        scratch,
        weights,
        macs,
        integer,
        tuple(_read_tensor(t, names) for t in _TENSOR.iter_unpack(parts[0])),
        tuple(_read_op(o, numbers[0], names) for o in _OP.iter_unpack(parts[1])),
        numbers[1],
        numbers[2],
    )
    _check(plan)
    return plan


def _split(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    start = 0
    for size in sizes:
        yield data[start : start + size]
        start += size


def _text(names: bytes, place: int) -> str:
    return names[place : names.index(0, place)].decode()


def _read_tensor(fields: tuple[int, ...], names: bytes) -> PlanTensor:
    name, dtype, rank, space, _, *dims, offset, nbytes = fields
    if rank > MAX_RANK:
        raise ValueError("a tensor has more than six dimensions")
    tensor = PlanTensor(_text(names, name), DTYPES[dtype], tuple(dims[:rank]), SPACES[space], offset)
    if tensor.nbytes != nbytes or offset % ALIGNMENT:
        raise ValueError(f"tensor {tensor.name} has a wrong size or alignment")
    return tensor


def _read_op(fields: tuple[int, ...], numbers: Sequence[int], names: bytes) -> PlanOp:
    name, kind, kernel, first, count, work, grain, flags, macs = fields
    if not 1 <= count <= MAX_ARGS or first + count > len(numbers):
        raise ValueError("an operator has a wrong argument range")
    args = tuple((n & (_WRITTEN - 1), bool(n & _WRITTEN)) for n in numbers[first : first + count])
    return PlanOp(_text(names, name), _text(names, kind), kernel, args, work, grain, bool(flags & 1), macs)


def _check(plan: Plan) -> None:
    limits = {"arena": plan.arena_bytes, "weights": plan.weights_bytes}
    for tensor in plan.tensors:
        if tensor.offset + tensor.nbytes > limits[tensor.space]:
            raise ValueError(f"tensor {tensor.name} lies outside its memory")
    used = [i for op in plan.ops for i, _ in op.args] + [*plan.inputs, *plan.outputs]
    if any(i >= len(plan.tensors) for i in used):
        raise ValueError("an index points behind the last tensor")

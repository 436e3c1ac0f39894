"""A thin layer over TVM's TIR builder: flat buffers, vector loads and stores, local vectors.

A kernel is `void name(buffer..., uint8_t *scratch, int32_t begin, int32_t end)`: raw pointers, no packed calling
convention, so `program.so` needs nothing from TVM (SPEC section 6). Every buffer is flat; templates compute their own
indices, which keeps the generated loops close to what the template says.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as _ir

T = _ir

Expr = Any  # a TIR expression, or a Python number where TIR takes one

ROUND_MAGIC = (
    12582912.0  # 1.5 * 2^23: adding it rounds |x| < 2^22 to an integer, ties to even, in the low mantissa bits
)
ROUND_BITS = 0x4B400000  # the bits of ROUND_MAGIC as float32


@dataclass(frozen=True)
class Kernel:
    """One entry of a program's kernel table.

    `args` are dtypes in calling order; the work range [0, work) is split in pieces of at least `grain`; `scratch`
    bytes per thread; `functions`: it may call what functions.c holds.
    """

    func: Any
    args: tuple[str, ...]
    work: int
    grain: int = 1
    scratch: int = 0
    functions: bool = False


@dataclass(frozen=True)
class Flat:
    """A flat buffer of a kernel."""

    buffer: Any
    dtype: str

    def load(self, index: Expr, lanes: int = 1) -> Expr:
        return self.buffer[index if lanes == 1 else T.ramp(index, 1, lanes)]

    def store(self, index: Expr, value: Expr, lanes: int = 1) -> None:
        T.buffer_store(self.buffer, value, [index if lanes == 1 else T.ramp(index, 1, lanes)])


@dataclass(frozen=True)
class Cell:
    """A local vector (or scalar), a register once LLVM has promoted it."""

    flat: Flat
    lanes: int

    def get(self) -> Expr:
        return self.flat.load(0, self.lanes)

    def set(self, value: Expr) -> None:
        self.flat.store(0, value, self.lanes)


@dataclass(frozen=True)
class Body:
    """What a template's body sees: its buffers in argument order, the scratch, and its range of work."""

    buffers: tuple[Flat, ...]
    scratch: Flat
    begin: Expr
    end: Expr

    def rolled(self, count: int) -> Expr:
        """`count`, in a way that LLVM cannot see: a loop up to it stays a loop.

        Loops with small constant bounds are unrolled, then vectorized across statements, which takes LLVM seconds and
        gains nothing where a loop moves single elements.
        """
        return count + (self.begin >> 31)


def kernel(
    args: Sequence[tuple[str, str, int]], body: Callable[[Body], None], *, scratch: tuple[str, int] = ("uint8", 1)
) -> Any:
    """Build a PrimFunc. `args`: (name, dtype, elements); `scratch`: (dtype, elements)."""
    with IRBuilder() as ib, T.prim_func(private=True, s_tir=True):
        T.func_attr({"tirx.noalias": True})
        handles = [T.arg(name, T.handle(dtype)) for name, dtype, _ in args]
        scratch_handle = T.arg("scratch", T.handle(scratch[0]))
        begin = T.arg("begin", tirx.Var("begin", "int32"))
        end = T.arg("end", tirx.Var("end", "int32"))
        flats = tuple(
            Flat(T.decl_buffer((max(count, 1),), dtype, data=handle, align=1), dtype)
            for handle, (_, dtype, count) in zip(handles, args, strict=True)
        )
        scratch_buffer = T.decl_buffer((max(scratch[1], 1),), scratch[0], data=scratch_handle, align=64)
        body(Body(flats, Flat(scratch_buffer, scratch[0]), begin, end))
    return ib.get()


def cell(dtype: str, lanes: int = 1) -> Cell:
    return Cell(Flat(T.alloc_buffer((lanes,), dtype, scope="local"), dtype), lanes)


def opaque(value: Expr) -> Expr:
    """An int32 whose origin TVM's analyzer cannot see: for quotients and remainders of one number, put together again
    with large factors, its canonical form overflows. LLVM sees through it.
    """
    hidden = cell("int32")
    hidden.set(value)
    return T.bind(hidden.get())


def cells(count: int, dtype: str, lanes: int = 1) -> list[Cell]:
    return [cell(dtype, lanes) for _ in range(count)]


@contextmanager
def loop(begin: Expr, end: Expr) -> Iterator[Expr]:
    with T.serial(begin, end) as i:
        yield i


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    with T.If(condition), T.Then():
        yield


def either(condition: Expr, yes: Callable[[], None], no: Callable[[], None]) -> None:
    with T.If(condition):
        with T.Then():
            yes()
        with T.Else():
            no()


def floor_power(count: int) -> int:
    """The largest power of two that is not larger than `count`."""
    return 1 << (count.bit_length() - 1)


def offset_of(index: Expr, sizes: Sequence[int], strides: Sequence[int]) -> Expr:
    """Offset of a flat index over `sizes`."""
    offset: Expr = 0
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if stride and size > 1:
            offset = offset + index % size * stride
        index = index // size
    return offset


def vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def cast(dtype: str, value: Expr, lanes: int = 1) -> Expr:
    return tirx.Cast(vector(dtype, lanes), value)


def splat(value: Expr, lanes: int) -> Expr:
    return value if lanes == 1 else T.broadcast(value, lanes)


def bits(dtype: str, value: Expr, lanes: int = 1) -> Expr:
    return T.reinterpret(value, dtype=vector(dtype, lanes))


def shuffle(vectors: Sequence[Expr], indices: Iterable[int]) -> Expr:
    """Elements of the vectors, counted through, in a new order."""
    return tirx.Shuffle(list(vectors), list(indices))


def intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def fence(value: Expr, lanes: int = 1) -> Expr:
    """Keep LLVM from contracting the product `value` with a following addition: SPEC section 8 wants two roundings."""
    return intrinsic("llvm.arithmetic.fence", vector("float32", lanes), value)

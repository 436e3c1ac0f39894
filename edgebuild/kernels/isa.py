"""What a CPU can do, as the templates need it: one row per instruction set, one dot product each.

`dot(acc, activations, weights)`: acc int32 [lanes]; activations: the packed group of one pixel as one scalar (4 uint8,
4 int8, or 2 int16 in an int32, or one int16), broadcast; weights int8 [lanes · group], the group's elements of one
output channel side by side.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edgebuild.kernels.builder import Expr, bits, cast, intrinsic, splat

Dot = Callable[[Expr, Expr, Expr], Expr]
Product = Callable[[Expr, Expr, int], Expr]


@dataclass(frozen=True)
class Cost:
    """What a step of the GEMM costs, in cycles and micro-operations: the multiply ports are busy for `dot_cycles`, one
    accumulator is busy for `chain` cycles, a dot issues `dot_uops` and a vector of weights `weight_uops`.
    """

    dot_cycles: float
    chain: float
    dot_uops: int
    weight_uops: int

    def step(self, rows: int, vectors: int) -> float:
        """Cycles of one step of a block of rows × vectors accumulators, on a core that issues five operations."""
        dots = rows * vectors
        uops = dots * self.dot_uops + vectors * self.weight_uops + rows
        return max(dots * self.dot_cycles, uops / 5, self.chain)


@dataclass(frozen=True)
class Isa:
    """`lanes`: int32 lanes of the vector that templates use. `group`: elements of K that one dot step takes. `packed`:
    dtype of packed activations. `bias`: what packing subtracts from a uint8 activation. `registers`: vector registers
    of `lanes` int32. `direct`: the dot instruction takes unpacked uint8 activations. `product(x, w, lanes)`: uint8 ×
    int8 lanes → int32 lanes.
    """

    name: str
    lanes: int
    group: int
    packed: str
    bias: int
    registers: int
    dot: Dot
    product: Product
    cost: Cost
    direct: bool = False

    @property
    def wide(self) -> int:
        """int32 lanes for loops over single channels: at least eight, so that a load of bytes fills half a register."""
        return max(self.lanes, 8)


def _vnni512(acc: Expr, activations: Expr, weights: Expr) -> Expr:
    spread = bits("int8", splat(activations, 16), 64)
    return intrinsic("llvm.x86.avx512.vpdpbusd.512", "int32x16", acc, spread, weights)


def _avx2(acc: Expr, activations: Expr, weights: Expr) -> Expr:
    spread = bits("int16", splat(activations, 8), 16)
    return acc + intrinsic("llvm.x86.avx2.pmadd.wd", "int32x8", spread, cast("int16", weights, 16))


def _dotprod(acc: Expr, activations: Expr, weights: Expr) -> Expr:
    spread = bits("int8", splat(activations, 4), 16)
    return intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", acc, weights, spread)


def _neon(acc: Expr, activations: Expr, weights: Expr) -> Expr:
    return acc + intrinsic("llvm.aarch64.neon.smull.v4i32", "int32x4", cast("int16", weights, 4), splat(activations, 4))


def _madd_product(x: Expr, w: Expr, lanes: int) -> Expr:
    """Vpmaddwd on int32 lanes whose upper halves add 0·(sign of w): one multiply where vpmulld takes two."""
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}.get(lanes)
    if name is None:
        return cast("int32", x, lanes) * cast("int32", w, lanes)
    halves = [bits("int16", cast("int32", v, lanes), 2 * lanes) for v in (x, w)]
    return intrinsic(name, f"int32x{lanes}", *halves)


def _narrow_product(x: Expr, w: Expr, lanes: int) -> Expr:
    """A product of uint8 and int8 fits int16, which NEON multiplies at twice the rate of int32."""
    return cast("int32", cast("int16", x, lanes) * cast("int16", w, lanes), lanes)


ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512vnni", 16, 4, "uint8", 0, 32, _vnni512, _madd_product, Cost(1, 5, 1, 1), direct=True),
        # 8-bit weights are exact: vpmaddubsw would saturate, so both sides are widened to int16 for vpmaddwd
        Isa("avx2", 8, 2, "int16", 0, 16, _avx2, _madd_product, Cost(0.5, 1, 2, 2)),
        Isa("dotprod", 4, 4, "int8", 128, 32, _dotprod, _narrow_product, Cost(0.5, 4, 1, 1)),
        Isa("neon", 4, 1, "int16", 0, 32, _neon, _narrow_product, Cost(0.5, 4, 1, 2)),
    )
}


def group_scalar(isa: Isa) -> str:
    """The dtype in which one packed group of activations is loaded."""
    return "int16" if isa.group == 1 else "int32"

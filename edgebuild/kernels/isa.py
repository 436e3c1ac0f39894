"""What a CPU can do, as the templates need it: one row per instruction set.

Templates think in blocks of PACK vectors of `lanes` int32, which become one vector of 4 · lanes bytes when they are
stored. Where a block has fewer channels, `Isa.at` gives the same instruction set with shorter vectors.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgebuild.kernels import lookup as tables
from edgebuild.kernels.builder import (
    ROUND_BITS,
    ROUND_MAGIC,
    Expr,
    T,
    bits,
    cast,
    floor_power,
    intrinsic,
    shuffle,
    splat,
)

PACK = 4  # vectors of int32 that become one vector of uint8

Dot = Callable[[Expr, Expr, Expr, int], Expr]
Round = Callable[[Expr, int], Expr]
Pack = Callable[[Expr, Expr, int], Expr]


@dataclass(frozen=True)
class Cost:
    """What a step of the GEMM costs, in cycles and micro-operations: the multiply ports are busy for `dot_cycles`, one
    accumulator is busy for `chain` cycles, a dot issues `dot_uops` and a vector of weights `weight_uops`; a block of
    more than `tile` accumulators delays the next one. Measured where this machine has the instructions (NOTES.md).
    """

    dot_cycles: float
    chain: float
    dot_uops: int
    weight_uops: int
    tile: int = 16

    def step(self, rows: int, vectors: int) -> float:
        """Cycles of one step of a block of rows × vectors accumulators, on a core that issues five operations and loads
        as many vectors as it multiplies.
        """
        dots = rows * vectors
        uops = dots * self.dot_uops + vectors * self.weight_uops + rows
        return max(dots * self.dot_cycles, uops / 5, self.chain, (rows + vectors) * self.dot_cycles)


@dataclass(frozen=True)
class Isa:
    """One instruction set at one vector length.

    `lanes`: int32 lanes of a vector. `registers`: vectors that the CPU holds. `group`: elements of K that a dot takes.
    `packed`: dtype of the activations that it multiplies; `bias`: what packing subtracts from a uint8 activation.
    `dot(acc, x, w, lanes)`: int32 [lanes] + Σ over each group of x · w, both [lanes · group], w int8 or `packed`.
    `direct`: it takes unpacked uint8 activations. `round(x, lanes)`: float32 below `reach` to the nearest int32, ties
    to even; what is far below −2^15 becomes any int32 below −2^15. `pack16(a, b, lanes)`: two int32 vectors saturated
    to one of int16, and `pack8(a, b, lanes)`: two of those saturated to uint8; the order is `narrow_order`.
    `lookup`: byte tables read by vectors, or None where that is no faster than byte by byte. `matrix`: what
    convolutions use instead; `halves`: what they use for activations of 16 bits, None where `packed` is int16 already;
    `split`: what those that are no depthwise ones use, where it is faster. `planes`: 2 where activations of 16 bits are
    packed as two rows of bytes, the low ones less 128 and the high ones, each with accumulators of its own.
    """

    name: str
    lanes: int
    registers: int
    group: int
    packed: str
    bias: int
    dot: Dot
    round: Round
    pack16: Pack
    pack8: Pack
    cost: Cost
    direct: bool = False
    interleaved: bool = False
    lookup: tables.Lookup | None = None
    lookups: bool = False
    reach: float = 2.0**31
    pixels: int = 1
    matrix: "Isa | None" = None
    halves: "Isa | None" = None
    split: "Isa | None" = None
    planes: int = 1

    @property
    def wide(self) -> int:
        """Lanes for loops over single float32 elements: at least eight, so that a load of bytes fills half a
        register.
        """
        return max(self.lanes, 8)

    @property
    def block(self) -> int:
        """Bytes of one block: PACK vectors."""
        return PACK * self.lanes

    @property
    def gemm(self) -> "Isa":
        """The instructions for convolutions and matrices of weights."""
        return self.matrix or self

    @property
    def products(self) -> int:
        """Products of a 16-bit activation, or a part of it that is packed, and a weight whose sum 32 bits hold."""
        return 2**31 // (2**15 if self.planes == 1 else 2**7) // 2**7 - 1

    @property
    def gemm_words(self) -> "Isa":
        """The instructions for convolutions and matrices of 16-bit activations."""
        return self.split or self.words

    @property
    def words(self) -> "Isa":
        """The instructions for depthwise convolutions of 16-bit activations, which they take unpacked."""
        return replace(
            self.halves or self,
            name=self.name,
            lookup=self.lookup,
            lookups=self.lookups,
            direct=True,
            matrix=None,
            halves=None,
            split=None,
        )

    def at(self, lanes: int) -> "Isa":
        """The same instructions on shorter vectors."""
        return self if lanes == self.lanes else replace(self, lanes=lanes)

    def wide_for(self, size: int) -> int:
        """Lanes of loops over runs of `size` elements: a power of two, not longer than a run."""
        return min(self.wide, floor_power(size))

    def blocks(self, rows: int, vectors: int, widest: int = 4) -> list[tuple[int, int]]:
        """Rows × vectors of accumulators that fit the registers together with their weights and two temporaries."""
        return [
            (r, v)
            for v in range(1, min(vectors, widest) + 1)
            for r in range(1, min(rows, 16) + 1)
            if r * v * self.planes + v + 2 <= self.registers
        ]

    def narrow_order(self) -> np.ndarray:
        """Element (vector · lanes + lane) at each place of what `pack8` gives for four vectors, [4 · lanes]."""
        places = np.arange(self.block)
        if not self.interleaved:
            return places
        chunks = self.lanes // 4  # 128-bit parts, which x86's packing instructions treat apart
        chunk, vector, lane = places // 16, places // 4 % 4, places % 4
        assert chunks >= 1
        return np.asarray(vector * self.lanes + chunk * 4 + lane)

    def pack16_order(self, order: np.ndarray) -> np.ndarray:
        """Element at each place of what `pack16` gives for pairs of PACK vectors, of elements `order` [PACK, lanes]."""
        if not self.interleaved:
            return order
        pairs = order.reshape(PACK // 2, 2, self.lanes // 4, 4)  # x86 treats 128-bit parts apart
        return pairs.transpose(0, 2, 1, 3)


def interleave(isa: Isa, rows: Sequence[Sequence[Expr]]) -> list[Expr]:
    """PACK dot operands from `group` rows of activations, each row [block] elements as `parts(isa)` vectors.

    Lane l of operand k holds the elements of channel `interleave_order(isa)[k, l]` of all rows, side by side.
    """
    if isa.group == 1:
        return list(rows[0])
    _, count = parts(isa)
    size = 16 // np.dtype(isa.packed).itemsize
    if isa.group == 2:
        return [_zip(a, b, count, size, half) for a, b in zip(*rows, strict=True) for half in (0, 1)]
    (a,), (b,), (c,), (d,) = rows
    pairs = [(_zip(a, b, count, size, half), _zip(c, d, count, size, half)) for half in (0, 1)]
    return [_zip(x, y, count, size, half, run=2) for x, y in pairs for half in (0, 1)]


def parts(isa: Isa) -> tuple[int, int]:
    """(vectors, elements of each) in which one row of a block is loaded for `interleave`."""
    count = {1: 4, 2: 2, 4: 1}[isa.group]
    return count, isa.block // count


def interleave_order(isa: Isa) -> np.ndarray:
    """Channel of each lane of `interleave`'s operands, [PACK, lanes]."""
    operand, lane = np.divmod(np.arange(isa.block), isa.lanes)
    chunk, place = lane // 4, lane % 4
    if isa.group == 1:
        order = operand * isa.lanes + lane
    elif isa.group == 2:
        order = operand // 2 * 2 * isa.lanes + chunk * 8 + operand % 2 * 4 + place
    else:
        order = chunk * 16 + operand * 4 + place
    return np.asarray(order.reshape(PACK, isa.lanes))


def _zip(a: Expr, b: Expr, count: int, size: int, half: int, run: int = 1) -> Expr:
    """The low or high halves of each 128 bits (`size` elements) of a and b [count], interleaved by `run` elements:
    x86's unpack, ARM's zip.
    """
    order: list[int] = []
    for chunk in range(0, count, size):
        for i in range(chunk + half * size // 2, chunk + (half + 1) * size // 2, run):
            order += [*range(i, i + run), *range(count + i, count + i + run)]
    return T.bind(shuffle([a, b], order))


def _x86_dot(names: dict[int, str]) -> Dot:
    def dot(acc: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
        operands = (bits("int8", v, 4 * lanes) for v in (x, w))
        return intrinsic(names[lanes], f"int32x{lanes}", acc, *operands)

    return dot


def _madd(acc: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
    name = {4: "llvm.x86.sse2.pmadd.wd", 8: "llvm.x86.avx2.pmadd.wd"}[lanes]
    return acc + intrinsic(name, f"int32x{lanes}", x, cast("int16", w, 2 * lanes))


def _x86_words(names: dict[int, str]) -> Dot:
    """Int16 × int16 in pairs; the weights are bytes."""

    def dot(acc: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
        return intrinsic(names[lanes], f"int32x{lanes}", acc, x, cast("int16", w, 2 * lanes))

    return dot


def _sdot(acc: Expr, x: Expr, w: Expr, _: int) -> Expr:
    return intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", acc, w, x)


def _usdot(acc: Expr, x: Expr, w: Expr, _: int) -> Expr:
    return intrinsic("llvm.aarch64.neon.usdot.v4i32.v16i8", "int32x4", acc, bits("int8", x, 16), w)


def _usmmla(acc: Expr, x: Expr, w: Expr, _: int) -> Expr:
    """[2 pixels, 8] × [2 channels, 8]ᵀ: all pairs of rows."""
    return intrinsic("llvm.aarch64.neon.usmmla.v4i32.v16i8", "int32x4", acc, bits("int8", x, 16), w)


def _smull(acc: Expr, x: Expr, w: Expr, _: int) -> Expr:
    return acc + intrinsic("llvm.aarch64.neon.smull.v4i32", "int32x4", cast("int16", w, 4), x)


def _widening(acc: Expr, x: Expr, w: Expr, lanes: int) -> Expr:
    """Int16 × int16 → int32 in plain TIR: LLVM makes vwmacc of it on RISC-V's vectors, mul and add elsewhere."""
    return acc + cast("int32", x, lanes) * cast("int32", cast("int16", w, lanes), lanes)


def magic_round(x: Expr, lanes: int) -> Expr:
    """Adding 1.5 · 2^23 rounds |x| < 2^22 in every IEEE machine's adder."""
    value = T.max(x, splat(T.float32(-(2.0**20)), lanes)) + splat(T.float32(ROUND_MAGIC), lanes)
    return bits("int32", value, lanes) - splat(T.int32(ROUND_BITS), lanes)


def _x86_round(x: Expr, lanes: int) -> Expr:
    """Cvtps2dq rounds by MXCSR, which the runtime sets to nearest even; what is out of range becomes −2^31."""
    if lanes == 16:
        same = splat(T.int32(0), lanes)
        return intrinsic("llvm.x86.avx512.mask.cvtps2dq.512", "int32x16", x, same, T.int16(-1), T.int32(4))
    name = {8: "llvm.x86.avx.cvt.ps2dq.256", 4: "llvm.x86.sse2.cvtps2dq"}[lanes]
    return intrinsic(name, f"int32x{lanes}", x)


def _arm_round(x: Expr, lanes: int) -> Expr:
    return intrinsic("llvm.aarch64.neon.fcvtns.v4i32.v4f32", f"int32x{lanes}", x)


_X86_PACKS = {
    16: ("llvm.x86.avx512.packssdw.512", "llvm.x86.avx512.packuswb.512"),
    8: ("llvm.x86.avx2.packssdw", "llvm.x86.avx2.packuswb"),
    4: ("llvm.x86.sse2.packssdw.128", "llvm.x86.sse2.packuswb.128"),
}


def _x86_pack16(a: Expr, b: Expr, lanes: int) -> Expr:
    return intrinsic(_X86_PACKS[lanes][0], f"int16x{2 * lanes}", a, b)


def _x86_pack8(a: Expr, b: Expr, lanes: int) -> Expr:
    return bits("uint8", intrinsic(_X86_PACKS[lanes][1], f"int8x{4 * lanes}", a, b), 4 * lanes)


def _arm_pack16(a: Expr, b: Expr, _: int) -> Expr:
    halves = [T.bind(intrinsic("llvm.aarch64.neon.sqxtn.v4i16", "int16x4", v)) for v in (a, b)]
    return shuffle(halves, range(8))


def _arm_pack8(a: Expr, b: Expr, _: int) -> Expr:
    halves = [T.bind(bits("uint8", intrinsic("llvm.aarch64.neon.sqxtun.v8i8", "int8x8", v), 8)) for v in (a, b)]
    return shuffle(halves, range(16))


def _rvv_round(x: Expr, lanes: int) -> Expr:
    """Vfcvt rounds by frm, which the runtime sets to nearest even, and saturates."""
    return intrinsic("llvm.lrint", f"int32x{lanes}", x)


def _plain_pack(narrow: str, wide: str, low: int, high: int, parts: int) -> Pack:
    """A clamp and a cast, `parts` · lanes elements each of a and b; RISC-V's vnclip is what LLVM makes of it."""

    def pack(a: Expr, b: Expr, lanes: int) -> Expr:
        count = parts * lanes
        least, most = (splat(cast(wide, value), count) for value in (low, high))
        halves = [T.bind(cast(narrow, T.min(T.max(v, least), most), count)) for v in (a, b)]
        return shuffle(halves, range(2 * count))

    return pack


_VNNI = _x86_dot({n: f"llvm.x86.avx512.vpdpbusd.{32 * n}" for n in (4, 8, 16)})
_VNNI_WORDS = _x86_words({n: f"llvm.x86.avx512.vpdpwssd.{32 * n}" for n in (4, 8, 16)})
_X86: dict[str, Any] = {"round": _x86_round, "pack16": _x86_pack16, "pack8": _x86_pack8, "interleaved": True}
_PERMUTE: dict[str, Any] = {**_X86, "lookup": tables.permute, "lookups": True}
_BLEND: dict[str, Any] = {**_X86, "lookup": tables.blend}
_PLAIN: dict[str, Any] = {
    "pack16": _plain_pack("int16", "int32", -(2**15), 2**15 - 1, 1),
    "pack8": _plain_pack("uint8", "int16", 0, 255, 2),
}
_ARM: dict[str, Any] = {
    "round": _arm_round,
    "reach": math.inf,
    "pack16": _arm_pack16,
    "pack8": _arm_pack8,
    "lookup": tables.quarters,
    "lookups": True,
}

# 8-bit weights are exact: vpmaddubsw would saturate, so both sides are widened to int16 for vpmaddwd
_AVX2 = Isa("avx2", 8, 16, 2, "int16", 0, _madd, cost=Cost(0.5, 1, 2, 2), **_BLEND)
_NEON = Isa("neon", 4, 32, 1, "int16", 0, _smull, cost=Cost(0.5, 4, 1, 2), **_ARM)
_WORDS_512 = Isa("avx512vnni", 16, 32, 2, "int16", 0, _VNNI_WORDS, cost=Cost(1, 5, 1, 3), **_BLEND)
_WORDS_256 = Isa("avxvnni", 8, 16, 2, "int16", 0, _VNNI_WORDS, cost=Cost(0.5, 5, 1, 2), **_BLEND)
_512: dict[str, Any] = {"cost": Cost(1, 5, 1, 1), "direct": True, "halves": _WORDS_512}
_SPLIT = Isa("dotprod", 4, 32, 4, "int8", 128, _sdot, cost=Cost(0.5, 4, 1, 1), planes=2, **_ARM)
_DOTS: dict[str, Any] = {"cost": Cost(0.5, 4, 1, 1), "halves": _NEON, "split": _SPLIT, **_ARM}
_I8MM = Isa("i8mm", 4, 32, 8, "uint8", 0, _usmmla, cost=Cost(0.5, 4, 1, 2), direct=True, pixels=2, **_ARM)
ISAS = {
    isa.name: isa
    for isa in (
        Isa("avx512vbmi", 16, 32, 4, "uint8", 0, _VNNI, **_512, **_PERMUTE),
        Isa("avx512vnni", 16, 32, 4, "uint8", 0, _VNNI, **_512, **_BLEND),
        Isa("avxvnni", 8, 16, 4, "uint8", 0, _VNNI, cost=Cost(0.5, 5, 1, 1), direct=True, halves=_WORDS_256, **_BLEND),
        _AVX2,
        Isa("sse2", 4, 16, 2, "int16", 0, _madd, cost=Cost(0.5, 1, 2, 3), **_X86),
        Isa("i8mm", 4, 32, 4, "uint8", 0, _usdot, direct=True, matrix=_I8MM, **_DOTS),
        Isa("dotprod", 4, 32, 4, "int8", 128, _sdot, **_DOTS),
        _NEON,
        # Two registers of 128 bits are one vector: half the instructions for an in-order core
        Isa("rvv", 8, 16, 1, "int16", 0, _widening, cost=Cost(2, 4, 1, 2), round=_rvv_round, reach=math.inf, **_PLAIN),
        # Any target of LLVM's. 31 integer registers, which scalar code has, hold six "vectors" of four lanes
        Isa("plain", 4, 6, 1, "int16", 0, _widening, cost=Cost(4, 4, 8, 4), round=magic_round, reach=2.0**22, **_PLAIN),
    )
}


def group_scalar(isa: Isa) -> str:
    """The dtype in which one packed group of activations is loaded."""
    return "int16" if isa.group == 1 else "int32"


def spread(isa: Isa, activation: Expr) -> Expr:
    """One packed group of activations, as `group_scalar`, in every lane of a dot operand."""
    value = splat(activation, isa.lanes)
    return value if isa.group == 1 else bits(isa.packed, value, isa.lanes * isa.group)


def converted(isa: Isa, value: Expr, lanes: int) -> Expr:
    """A uint8 activation as the dot instruction wants it, `packed`."""
    if isa.packed == "uint8":
        return value
    if isa.packed == "int8":
        return bits("int8", value ^ splat(T.uint8(128), lanes), lanes)
    return cast(isa.packed, value, lanes)

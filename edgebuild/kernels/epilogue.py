"""From accumulators to what is stored: SPEC section 7's Requantize to uint8, a block of four vectors at a time, or to
int16 (which 16-bit activations are in memory), a vector at a time; or one product, where the result is float32.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgebuild.kernels.builder import Expr, Flat, T, bits, cast, floor_power, intrinsic, shuffle, splat
from edgebuild.kernels.isa import PACK, Isa, magic_round

ROUNDED = 2.0**31  # steps below this magnitude are rounded by every conversion to int32
QUANT_PARAMS = 5  # hi − z_y as float32 bits, z_y, lo, hi, z_x; of int16 all less 2^15


@dataclass(frozen=True)
class Bounds:
    """Which clamps of Requantize can matter: a graph without an activation behind its operator needs none.

    `low`: lo may be above 0; `high`: hi may be below 255; `large`: a step may be as large as ROUNDED.
    """

    low: bool = True
    high: bool = True
    large: bool = True


ANY = Bounds()

Limits = tuple[Expr, Expr] | None


@dataclass(frozen=True)
class Piece:
    """One vector of accumulators with its multipliers, and where its first element goes.

    `count` elements are stored; `follows`: they lie directly behind the piece before. `limits`: lo − z_y and hi − z_y
    of each lane, where they differ.
    """

    acc: Expr
    multiplier: Expr
    place: Expr
    count: int
    follows: bool = False
    limits: Limits = None


@dataclass(frozen=True)
class Types:
    """What a kernel reads and gives: activations in `source` (uint8 or int16), `result` in those or in float32;
    `wide`: sums are float32 already, of integers that 32 bits do not hold.
    """

    source: str = "uint8"
    result: str = "uint8"
    wide: bool = False

    @property
    def sums(self) -> str:
        """The dtype of a bias: wide ones are float64, which plan.bin calls int64."""
        return "int64" if self.wide else "int32"

    def gemm(self, isa: Isa) -> Isa:
        """The instructions for convolutions and matrices of weights."""
        return isa.gemm if self.source == "uint8" else isa.gemm_words

    def depthwise(self, isa: Isa) -> Isa:
        """The instructions for depthwise convolutions."""
        return isa if self.source == "uint8" else isa.words


BYTES = Types()


class Epilogue:
    """The parameters of one operator's output, `quant` int32 [QUANT_PARAMS], loaded once; bytes then go through
    `table`, where there is one.
    """

    def __init__(
        self, isa: Isa, quant: Flat, bounds: Bounds = ANY, table: Flat | None = None, types: Types = BYTES
    ) -> None:
        self.isa, self.table, self.bounds, self.types = isa, table, bounds, types
        self.top = T.bind(bits("float32", quant.load(0)))
        self.zero = T.bind(quant.load(1))
        self.low, self.high = (T.bind(cast(types.result, quant.load(i))) for i in (2, 3))
        self.padding = T.bind(cast(types.source, quant.load(4)))

    def steps(self, acc: Expr, multiplier: Expr, lanes: int) -> Expr:
        """f32(acc) · m: float32 [lanes]."""
        return (acc if self.types.wide else cast("float32", acc, lanes)) * multiplier

    def word(self, acc: Expr, multiplier: Expr, limits: Limits = None) -> Expr:
        """The level plus z, clamped to [lo, hi]: int32 [lanes] that int16 holds."""
        lanes = self.isa.lanes
        bottom = cast("float32", cast("int32", self.low) - self.zero)
        low, high = limits or (splat(bottom, lanes), splat(self.top, lanes))
        value = T.max(T.min(self.steps(acc, multiplier, lanes), high), low)
        return T.bind(self.isa.round(value, lanes) + splat(self.zero, lanes))

    def vector(self, acc: Expr, multiplier: Expr, limits: Limits = None) -> Expr:
        """One vector of a result that is not uint8."""
        if self.types.result == "int16":
            return T.bind(cast("int16", self.word(acc, multiplier, limits), self.isa.lanes))
        return T.bind(self.steps(acc, multiplier, self.isa.lanes))

    def level(self, acc: Expr, multiplier: Expr, limits: Limits = None) -> Expr:
        """rne(f32(acc) · m): int32 [lanes], not above hi − z where the conversion to int32 could overflow.

        Rounding and clamping to integers commute, so the other bounds are left to `half` and `block`.
        """
        lanes = self.isa.lanes
        value = self.steps(acc, multiplier, lanes)
        if limits is not None:
            value = T.max(T.min(value, limits[1]), limits[0])
        elif self.isa.reach < (math.inf if self.bounds.large else ROUNDED):
            value = T.min(value, splat(self.top, lanes))
        return T.bind(self.isa.round(value, lanes))

    def half(self, first: Expr, second: Expr) -> Expr:
        """Two vectors of levels plus z: int16 [2 · lanes]."""
        lanes = self.isa.lanes
        shift = splat(cast("int16", self.zero), 2 * lanes)
        packed = self.isa.pack16(first, second, lanes)
        return T.bind(intrinsic("llvm.sadd.sat", f"int16x{2 * lanes}", packed, shift))

    def block(self, first: Expr, second: Expr, order: np.ndarray | None = None) -> Expr:
        """Two halves, clamped to [lo, hi]: uint8 [4 · lanes].

        Lane l of vector k of levels is element `order[k, l]` of the result; by default they follow each other.
        """
        size = self.isa.block
        packed = self.isa.pack8(first, second, self.isa.lanes)
        if self.bounds.high:
            packed = T.min(packed, splat(self.high, size))
        if self.bounds.low:
            packed = T.max(packed, splat(self.low, size))
        if self.table is not None:
            assert self.isa.lookup is not None
            packed = self.isa.lookup(self.table, 0, T.bind(packed), size)
        found = self.isa.narrow_order()
        if order is not None:
            found = order.reshape(-1)[found]
        return T.bind(packed if np.array_equal(found, np.arange(size)) else _permuted(packed, np.argsort(found)))

    def single(self, acc: Expr, multiplier: Expr, lanes: int) -> Expr:
        """The same for one vector of any length: uint8 or int16 [lanes]."""
        return self.rounded(self.steps(acc, multiplier, lanes), lanes)

    def rounded(self, value: Expr, lanes: int) -> Expr:
        """The same for steps that are float32 already."""
        value = T.min(value, splat(self.top, lanes))
        level = T.min(magic_round(value, lanes) + splat(self.zero, lanes), splat(cast("int32", self.high), lanes))
        level = T.max(level, splat(cast("int32", self.low), lanes))
        if self.table is not None:
            return self.table.load(level)
        return cast(self.types.result, level, lanes)

    def store(self, target: Flat, pieces: Sequence[Piece]) -> None:
        """Stores every piece."""
        if self.types.result != "uint8":
            for piece in pieces:
                value = self.vector(piece.acc, piece.multiplier, piece.limits)
                store_lanes(target, piece.place, value, self.isa.lanes, 0, piece.count)
            return
        for start in range(0, len(pieces), PACK):
            self._store_block(target, pieces[start : start + PACK])

    def _store_block(self, target: Flat, pieces: Sequence[Piece]) -> None:
        lanes = self.isa.lanes
        filled = [pieces[min(i, len(pieces) - 1)] for i in range(PACK)]
        levels = [self.level(piece.acc, piece.multiplier, piece.limits) for piece in filled]
        packed = self.block(self.half(*levels[:2]), self.half(*levels[2:]))
        start = 0
        for i, piece in enumerate(pieces):
            if i + 1 < len(pieces) and pieces[i + 1].follows:
                continue
            store_part(
                target, pieces[start].place, packed, PACK * lanes, start * lanes, (i - start) * lanes + piece.count
            )
            start = i + 1


def _permuted(value: Expr, order: np.ndarray) -> Expr:
    """The bytes in a new order, four at a time where they stay together."""
    size = len(order)
    quads = order.reshape(-1, 4)
    if (quads == quads[:, :1] + np.arange(4)).all() and (quads[:, 0] % 4 == 0).all():
        words = T.bind(bits("int32", value, size // 4))
        return bits("uint8", shuffle([words], (quads[:, 0] // 4).tolist()), size)
    return shuffle([T.bind(value)], order.tolist())


def store_part(target: Flat, place: Expr, value: Expr, total: int, start: int, count: int) -> None:
    """Stores elements [start, start + count) of a vector of `total`, in steps of powers of two.

    They are taken out by words of four bytes: LLVM does not come to an end with some shuffles of 64 single bytes.
    """
    if count == total:
        target.store(place, value, total)
        return
    words = T.bind(bits("int32", value, total // 4))
    while count:
        size = floor_power(count)
        target.store(place, _taken(words, start, size), size)
        place, start, count = place + size, start + size, count - size


def store_lanes(target: Flat, place: Expr, value: Expr, total: int, start: int, count: int) -> None:
    """As `store_part`, of wider elements."""
    if count == total:
        target.store(place, value, total)
        return
    while count:
        size = floor_power(count)
        target.store(place, shuffle([value], range(start, start + size)), size)
        place, start, count = place + size, start + size, count - size


def _taken(words: Expr, start: int, size: int) -> Expr:
    """Bytes [start, start + size) of a vector of words; they cross no word that they do not fill."""
    part = shuffle([words], range(start // 4, start // 4 + max(1, size // 4)))
    if size >= 4:
        return bits("uint8", part, size)
    shifted = bits("uint32", part) >> T.uint32(8 * (start % 4))
    return cast("uint8", shifted) if size == 1 else bits("uint8", cast("uint16", shifted), 2)

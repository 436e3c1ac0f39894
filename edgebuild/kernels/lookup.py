"""Tables of 256 bytes read by whole vectors: `lookup(table, start, index, count)` = table[start + index].

`index` and the result are uint8 [count].

LLVM keeps the parts that fit in registers across loops.
"""

from collections.abc import Callable

from edgebuild.kernels.builder import Expr, Flat, T, bits, intrinsic, shuffle, splat

Lookup = Callable[[Flat, int, Expr, int], Expr]

_SHUFFLES = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}


def permute(table: Flat, start: int, index: Expr, count: int) -> Expr:
    """AVX-512 VBMI: vpermi2b picks from 128 bytes in two registers; bit 7 chooses between two of them."""
    wide = index if count == 64 else T.bind(shuffle([T.bind(index)] * (64 // count), range(64)))
    quarters = [T.bind(table.load(start + i * 64, 64)) for i in range(4)]
    low, high = (
        T.bind(intrinsic("llvm.x86.avx512.vpermi2var.qi.512", "int8x64", *(bits("int8", v, 64) for v in picks)))
        for picks in ((quarters[0], wide, quarters[1]), (quarters[2], wide, quarters[3]))
    )
    found = bits("uint8", T.Select(bits("int8", wide, 64) < splat(T.int8(0), 64), high, low), 64)
    return found if count == 64 else shuffle([T.bind(found)], range(count))


def blend(table: Flat, start: int, index: Expr, count: int) -> Expr:
    """SSSE3 and later: 16 shuffles by the low nibble, then the high nibble chooses, bit by bit from the lowest."""
    index = T.bind(index)
    low = T.bind(bits("int8", index & splat(T.uint8(15), count), count))
    found = []
    for row in range(16):
        entries = T.bind(shuffle([T.bind(table.load(start + row * 16, 16))] * (count // 16), range(count)))
        found.append(T.bind(intrinsic(_SHUFFLES[count], f"int8x{count}", bits("int8", entries, count), low)))
    for bit in range(4):
        # a byte's sign decides, so its bit 4 + `bit` moves to the top; bits that cross into the next byte do not matter
        words = T.bind(bits("uint16", index, count // 2) << splat(T.uint16(3 - bit), count // 2))
        chosen = T.bind(bits("int8", words, count))
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [T.bind(T.Select(chosen < splat(T.int8(0), count), b, a)) for a, b in pairs]
    return bits("uint8", found[0], count)


def quarters(table: Flat, start: int, index: Expr, count: int) -> Expr:
    """NEON: tbl reads 64 bytes and gives 0 outside, tbx keeps what was there."""
    assert count == 16
    index = T.bind(index)
    found = splat(T.int8(0), count)
    for quarter in range(4):
        rows = [bits("int8", table.load(start + quarter * 64 + i * 16, 16), 16) for i in range(4)]
        place = bits("int8", index - splat(T.uint8(quarter * 64), count), count)
        found = T.bind(intrinsic("llvm.aarch64.neon.tbx4.v16i8", "int8x16", found, *rows, place))
    return bits("uint8", found, count)

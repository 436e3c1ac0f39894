"""Changes of bytes that know nothing of what the bytes mean, except where to aim."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random

Change = tuple[str, bytes]
"""The class, and the mutant. It always differs from the original."""

SPECIAL = (0, 0x09, 0x0A, 0x0D, 0x20, 0x2E, 0x2F, 0x30, 0x3D, 0x7F, 0x80, 0xFF)
BLOCK = 512


def flipped(data: bytes, places: Sequence[int], source: Random, bits: int) -> bytes:
    changed = bytearray(data)
    for _ in range(bits):
        changed[source.choice(places)] ^= 1 << source.randrange(8)
    return bytes(changed)


def replaced(data: bytes, places: Sequence[int], source: Random) -> bytes:
    changed = bytearray(data)
    changed[source.choice(places)] = source.choice(SPECIAL)
    return bytes(changed)


def truncated(data: bytes, count: int, source: Random) -> Iterator[bytes]:
    """At and next to every edge of a block, and anywhere."""
    edges = {edge + by for edge in range(0, len(data) + 1, BLOCK) for by in (-1, 0, 1)}
    anywhere = {source.randrange(len(data)) for _ in range(count)}
    for at in sorted(edges | anywhere):
        if 0 <= at < len(data):
            yield data[:at]


def appended(data: bytes) -> Iterator[bytes]:
    tails = (
        b"\0",
        b"\n",
        b"x",
        b"\n\n",
        b"#",
        b"\r\n",
        bytes(511),
        bytes(512),
        bytes(1024),
        data[:512],
        data[-512:],
        data,
    )
    yield from (data + tail for tail in tails)
    yield from (tail + data for tail in tails)


def shifted(data: bytes, source: Random) -> bytes:
    """A few bytes cut out, or put in."""
    at, size = source.randrange(len(data)), source.randint(1, 40)
    if source.random() < 0.5:
        return data[:at] + data[at + size :]
    return data[:at] + data[at : at + size] + data[at:]


def moved(data: bytes, unit: int, source: Random) -> bytes:
    """Blocks left out, doubled, exchanged, or copied over others."""
    blocks = [data[i : i + unit] for i in range(0, len(data), unit)]
    a, b = source.randrange(len(blocks)), source.randrange(len(blocks))
    count = source.randint(1, 4)
    match source.randrange(4):
        case 0:
            del blocks[a : a + count]
        case 1:
            blocks[a:a] = blocks[b : b + count]
        case 2:
            blocks[a], blocks[b] = blocks[b], blocks[a]
        case _:
            blocks[a : a + count] = blocks[b : b + count]
    return b"".join(blocks)


def spliced(data: bytes, other: bytes, source: Random) -> bytes:
    """One up to a place, the other from there on; a window of the other; at edges of blocks or anywhere."""
    unit = source.choice((1, BLOCK))
    low, high = sorted(source.randrange(0, len(data) + 1, unit) for _ in range(2))
    match source.randrange(3):
        case 0:
            return data[:low] + other[low:]
        case 1:
            return other[:low] + data[low:]
        case _:
            return data[:low] + other[low:high] + data[high:]


def changes(data: bytes, other: bytes, aims: Mapping[str, Sequence[int]], count: int, seed: int) -> Iterator[Change]:
    """About 10 times `count` mutants, and `count` for each aim. `other` is what is spliced in."""
    source, whole = Random(seed), range(len(data))
    for _ in range(3 * count):
        yield "one bit flipped", flipped(data, whole, source, 1)
    for _ in range(count):
        yield "2 to 16 bits flipped", flipped(data, whole, source, source.randint(2, 16))
        yield "a byte replaced", replaced(data, whole, source)
        yield "bytes cut out or put in", shifted(data, source)
        yield "blocks moved", moved(data, source.choice((BLOCK, BLOCK, 76, 4)), source)
        yield "spliced with another release", spliced(data, other, source)
        for name, places in aims.items():
            yield f"flipped in {name}", flipped(data, places, source, source.choice((1, 1, 1, 2)))
    for cut in truncated(data, count, source):
        yield "truncated", cut
    for longer in appended(data):
        yield "appended to", longer


def real(original: Sequence[bytes], found: Iterator[Change]) -> Iterator[Change]:
    """Without those that came out as one of the originals: two flips of one bit, a splice at an end."""
    for group, data in found:
        if data not in original:
            yield group, data

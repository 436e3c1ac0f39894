"""Deltas that say something else: other bases, heads, sizes, codecs and parts."""

import itertools
import struct
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import zstandard
from tamper.bytewise import Change
from tamper.subjects import Subjects, noise

from edgebuild.core import delta
from edgebuild.core.delta import Delta, Part, serialize


def layout(found: Delta) -> dict[str, list[int]]:
    """Where a delta may be hit."""
    data, at = serialize(found), 44 + len(found.head)
    heads = []
    bodies = []
    for part in found.parts:
        size = 1 if part.codec == delta.SAME else 5
        heads += [*range(at, at + size)]
        bodies += [*range(at + size, at + size + len(part.data))]
        at += size + len(part.data)
    assert at == len(data)
    return {
        "the delta's base": [*range(4, 36)],
        "the delta's sizes": [*range(36, 44)],
        "the delta's head": [*range(44, 44 + len(found.head))],
        "codecs and sizes of parts": heads,
        "parts": bodies,
    }


def with_part(found: Delta, at: int, part: Part) -> bytes:
    return serialize(replace(found, parts=(*found.parts[:at], part, *found.parts[at + 1 :])))


def parts(found: Delta, source: Random, count: int) -> Iterator[Change]:
    for at, part in enumerate(found.parts):
        for codec in (*range(10), 127, 128, 255):
            yield "delta: codec", with_part(found, at, Part(codec, part.data))
        for other in found.parts:
            yield "delta: parts of other files", with_part(found, at, other)
        for size in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, len(part.data) + 1, max(len(part.data), 1) - 1):
            whole = serialize(found)
            begin = 44 + len(found.head) + sum(before.cost for before in found.parts[:at])
            yield "delta: sizes of parts", whole[: begin + 1] + struct.pack("<I", size) + whole[begin + 5 :]
        for data in (b"", b"\0", part.data + b"\0", part.data[:-1], part.data * 2, noise("x", 100), bytes(1000)):
            yield "delta: data of parts", with_part(found, at, replace(part, data=data))
        yield "delta: parts left out", serialize(replace(found, parts=(*found.parts[:at], *found.parts[at + 1 :])))
        yield "delta: parts doubled", serialize(replace(found, parts=(*found.parts[:at], part, *found.parts[at:])))
    for _ in range(count):
        order = list(found.parts)
        source.shuffle(order)
        yield "delta: parts in another order", serialize(replace(found, parts=tuple(order)))
        codecs = tuple(replace(part, codec=source.randrange(6)) for part in found.parts)
        yield "delta: codec", serialize(replace(found, parts=codecs))


def frames(found: Delta, subjects: Subjects) -> Iterator[Change]:
    """Frames of zstd that are well-formed, but not what SPEC 12 allows."""
    for at, part in enumerate(found.parts):
        if part.codec not in {delta.ZSTD, delta.ZSTD_OLD}:
            continue
        data = list(dict(subjects.parts[1].files()).values())[at]
        skippable = struct.pack("<II", 0x184D2A50, 4) + b"skip"
        for extra in (skippable, delta.compress(b""), delta.compress(data), b"\0"):
            yield "delta: zstd frames", with_part(found, at, replace(part, data=part.data + extra))
            yield "delta: zstd frames", with_part(found, at, replace(part, data=extra + part.data))
        for log in (22, 23, 27, 30):
            settings = zstandard.ZstdCompressionParameters(window_log=log, write_content_size=0, write_checksum=0)
            frame = zstandard.ZstdCompressor(compression_params=settings).compressobj()
            yield "delta: zstd frames", with_part(found, at, Part(delta.ZSTD, frame.compress(data) + frame.flush()))
        bomb = zstandard.compress(bytes(1 << 26))
        for codec in (delta.ZSTD, delta.ZSTD_OLD):
            yield "delta: zstd frames", with_part(found, at, Part(codec, bomb))
        for wrong in (data + b"\0", data[:-1], b"", data[::-1]):
            yield "delta: zstd frames", with_part(found, at, Part(delta.ZSTD, delta.compress(wrong)))
        yield (
            "delta: zstd frames",
            with_part(found, at, Part(delta.ZSTD, zstandard.ZstdCompressor(write_checksum=True).compress(data))),
        )


def releases(found: Delta, subjects: Subjects) -> Iterator[Change]:
    """Other bases; heads of other releases, whose signatures hold; manifest of one and signature of another."""
    for base in (bytes(32), b"\xff" * 32, subjects.base(1), subjects.base(2), found.base[::-1], noise("base", 32)):
        yield "delta: another base", serialize(replace(found, base=base))
    for number in (0, 2):
        sizes = [len(part) for part in subjects.heads[number]]
        changed = replace(found, manifest_size=sizes[0], signature_size=sizes[1], head=subjects.delta_head(number))
        yield "delta: the head of another release", serialize(changed)
    for number, other in itertools.permutations(range(3), 2):
        manifest, signature = subjects.heads[number][0], subjects.heads[other][1]
        head = delta.compress(manifest + signature, b"".join(subjects.heads[0]))
        changed = replace(found, manifest_size=len(manifest), signature_size=len(signature), head=head)
        yield "delta: manifest and signature of two", serialize(changed)


def heads(found: Delta, subjects: Subjects) -> Iterator[Change]:
    """Sizes that are not the head's, and frames that are none of it."""
    whole, old = serialize(found), b"".join(subjects.heads[0])
    for manifest_size in (0, 1, found.manifest_size - 1, found.manifest_size + 1, 65535):
        for signature_size in (0, 1, found.signature_size - 1, found.signature_size + 1, 1024, 1025, 65535):
            changed = replace(found, manifest_size=manifest_size, signature_size=signature_size)
            yield "delta: sizes of the head", serialize(changed)
    for size in (0, 1, len(found.head) - 1, len(found.head) + 1, 80 << 10, (80 << 10) + 1, 2**31, 2**32 - 1):
        yield "delta: sizes of the head", whole[:40] + struct.pack("<I", size) + whole[44:]
    together = b"".join(subjects.heads[1])
    other = (delta.compress(together), delta.compress(together[:-1]), delta.compress(together + b"\n", old))
    for head in (*other, together, found.head * 2, b"", found.head[:-1], zstandard.compress(bytes(1 << 26))):
        yield "delta: the head", serialize(replace(found, head=head))
    for magic in (b"EBD0", b"EBD2", b"ebd1", bytes(4)):
        yield "delta: magic", magic + whole[4:]


def with_manifest(subjects: Subjects, text: bytes) -> bytes:
    """The delta under another manifest, signed by the trusted key."""
    bundle = subjects.parts[1]
    signature = bundle.key.sign(text, bundle.comment)
    head = delta.compress(text + signature, b"".join(subjects.heads[0]), level=3)
    return serialize(replace(subjects.delta, manifest_size=len(text), signature_size=len(signature), head=head))


def changes(subjects: Subjects, count: int, seed: int) -> Iterator[Change]:
    found, source = subjects.delta, Random(seed)
    yield from parts(found, source, count)
    yield from frames(found, subjects)
    yield from releases(found, subjects)
    yield from heads(found, subjects)

"""Bundles that were put together again: other members, other headers, files of two releases, with right checksums."""

import itertools
from collections.abc import Iterator
from random import Random

import tiny
from tamper.bytewise import Change
from tamper.subjects import Member, Subjects

END = bytes(1024)
NAMES = (
    "../weights.bin", "/weights.bin", "./weights.bin", "../../etc/passwd", "/etc/passwd", "golden/../weights.bin", "",
    "weights.bin/", "weights.bin\0x", "Weights.bin", "weights.bin ", "..", ".", "a" * 100, "manifest",
    "manifest.minisig", "edgebuild-run", "trust", "weights.bin\n",
)  # fmt: skip
FIELDS = {
    "name": (0, 100), "mode": (100, 108), "uid": (108, 116), "gid": (116, 124), "size": (124, 136), "mtime": (136, 148),
    "type": (156, 157), "link": (157, 257), "magic": (257, 263), "version": (263, 265), "uname": (265, 297),
    "gname": (297, 329), "devices": (329, 345), "prefix": (345, 500), "rest": (500, 512),
}  # fmt: skip
VALUES = {
    "mode": (b"0000777\0", b"0004755\0", b"000644 \0", b"0000755\0", b"0000644\0", b"100644 \0", b"      \0\0"),
    "uid": (b"0000001\0", b"0001750\0", b"0000000 ", b"000000\0\0", b"      0\0"),
    "gid": (b"0000001\0", b"0000000 ", b"\x80\0\0\0\0\0\0\0"),
    "mtime": (b"14371573542\0", b"00000000001\0", b"00000000000 ", bytes(12), b"          0\0"),
    "type": tuple(bytes([value]) for value in b"\0\x01 /12345678:ABCDEGIKLMNSTVXacgx\x7f\x80\xff"),
    "link": (b"/etc/passwd", b"../..", b"weights.bin"),
    "magic": (b"ustar ", b"USTAR\0", bytes(6), b"ustar0"),
    "version": (b" \0", b"01", bytes(2)),
    "uname": (b"root", b"x"),
    "gname": (b"root", b"x"),
    "devices": (b"0000001\0000000001\0", b"0000000\0000000000\0"),
    "prefix": (b"..", b"/etc", b"golden", b"0"),
    "rest": (b"x", b"\0\0\0\0\0\0\0\0\0\0\0x"),
}


def sealed(header: bytes) -> bytes:
    """The header with the checksum of what it says."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + b"%06o\0 " % sum(blank) + header[156:]


def with_field(header: bytes, field: str, value: bytes) -> bytes:
    start, end = FIELDS[field]
    return sealed(header[:start] + value.ljust(end - start, b"\0")[: end - start] + header[end:])


def sizes(size: int) -> Iterator[bytes]:
    """Spellings of a size, and other sizes."""
    yield from (b"%011o\0" % (size + by) for by in (-1, 1, 512, -512, 2**31, 2**32, 2**33 - 1 - size) if size + by >= 0)
    yield from (b"%011o " % size, b"%012o" % size, b"%10o \0" % size, b"%11o\0" % size, b"%o" % size, b"0" * 12)
    yield from (
        b"\x80" + size.to_bytes(11, "big"),
        b"\xff" * 12,
        b"-0000000001\0",
        b"+%010o\0" % size,
        b"%011d\0" % size,
    )


def headers(archive: bytes, member: Member) -> Iterator[Change]:
    """The archive with another header of one member."""
    before, header = archive[: member.start], archive[member.start : member.start + 512]
    after = archive[member.start + 512 :]
    for field, values in VALUES.items():
        for value in values:
            yield f"header: {field}", before + with_field(header, field, value) + after
    for name in NAMES:
        yield "header: name, traversing and others", before + with_field(header, "name", name.encode()) + after
    for value in sizes(member.size):
        yield "header: size", before + with_field(header, "size", value) + after
    for checksum in (b"%06o \0", b"%07o\0", b"%6o\0 ", b" %05o\0 "):
        total = sum(header[:148] + b" " * 8 + header[156:])
        yield "header: checksum", before + header[:148] + (checksum % total)[:8].ljust(8) + header[156:] + after
    for kind in b"xgLKS":
        extra = with_field(tiny.member("pax", b"19 path=../../../x\n"), "type", bytes([kind]))
        yield (
            "header: an extension in front",
            before + extra + tiny.member("pax", b"19 path=../../../x\n")[512:] + (header + after),
        )


def put_together(parts: list[bytes]) -> bytes:
    return b"".join(parts) + END


def members(subjects: Subjects, source: Random, count: int) -> Iterator[Change]:
    """Members doubled, left out, in another order."""
    archive = subjects.bundles[1]
    parts = [archive[member.start : member.end] for member in subjects.members]
    for i in range(len(parts)):
        yield "members left out", put_together(parts[:i] + parts[i + 1 :])
        for j in range(len(parts) + 1):
            yield "members doubled", put_together([*parts[:j], parts[i], *parts[j:]])
        for name in ("evil", "../evil", "/tmp/evil", "function/zz.py"):
            yield "members added", put_together([*parts[:i], tiny.member(name, b"evil"), *parts[i:]])
    for i, j in itertools.combinations(range(len(parts)), 2):
        order = list(parts)
        order[i], order[j] = order[j], order[i]
        yield "members in another order", put_together(order)
    for _ in range(count):
        order = list(parts)
        source.shuffle(order)
        yield "members in another order", put_together(order)


def mixed(subjects: Subjects, source: Random, count: int) -> Iterator[Change]:
    """Each member of one of three releases, headers and all."""
    archives = [list(archive_parts(archive)) for archive in subjects.bundles]
    for i in range(len(archives[0])):
        for theirs in (0, 2):
            parts = list(archives[1])
            parts[i] = archives[theirs][i]
            yield "members of two releases", put_together(parts)
    for head in itertools.product(range(3), repeat=3):
        manifest, signature, files = head
        parts = [archives[manifest][0], archives[signature][1], *archives[files][2:]]
        yield "manifest, signature, files of others", put_together(parts)
    for _ in range(count):
        yield "members of three releases", put_together([source.choice(archives)[i] for i in range(len(archives[0]))])


def archive_parts(archive: bytes) -> Iterator[bytes]:
    from tamper.subjects import members_of

    return (archive[member.start : member.end] for member in members_of(archive))


def changes(subjects: Subjects, count: int, seed: int) -> Iterator[Change]:
    source = Random(seed)
    for member in subjects.members:
        yield from headers(subjects.bundles[1], member)
    yield from members(subjects, source, count)
    yield from mixed(subjects, source, count)


def aims(subjects: Subjects) -> dict[str, list[int]]:
    """Where a bundle may be hit: by what lies there."""
    found = subjects.members
    head, signature = found[0], found[1]
    lines = [*range(*signature.data.indices(1 << 30))]
    text = subjects.bundles[1][signature.data]
    tails = [signature.start + 512 + i for i, byte in enumerate(text) if byte == 0x0A]
    return {
        "headers": [member.start + i for member in found for i in range(512)],
        "sizes": [member.start + i for member in found for i in range(124, 136)],
        "padding": [i for member in found for i in range(member.data.stop, member.end)],
        "the manifest": [*range(*head.data.indices(1 << 30))],
        "signature lines": lines,
        "base64 tails": [at - back for at in tails for back in range(4) if at - back >= signature.start + 512],
        "the end": [*range(found[-1].end, found[-1].end + 1024)],
    }

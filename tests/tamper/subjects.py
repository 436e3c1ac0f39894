"""What is tampered with: three releases of one function, deltas, trust files and release indices, all accepted."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import published
import roles
import tiny
from store import SCRIPT, release

from edgebuild.core import delta
from edgebuild.core.delta import Delta, Part
from edgebuild.pipeline.delta import codecs
from edgebuild.stages.delta.matches import steps

TRUST = tiny.KEY.trust
ATTACKER = tiny.Key.new(77)
"""A key that nobody trusts."""
FORGED = tiny.Key(tiny.KEY.key_id, ATTACKER.signing)
"""The same under the id of one that is trusted."""
INDEX_COMMENT = "edgebuild release"


def noise(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


@dataclass(frozen=True)
class Member:
    """A member of an archive, as it stands in it."""

    name: str
    start: int
    size: int

    @property
    def data(self) -> slice:
        return slice(self.start + 512, self.start + 512 + self.size)

    @property
    def end(self) -> int:
        return self.start + 512 + self.size + -self.size % 512


@dataclass(frozen=True)
class Subjects:
    """`program` is program.so for this machine. Releases 1, 2 and 3 have files of the same sizes; 2 is tampered with, 1
    is what it is a delta of, 3 one more that is validly signed.
    """

    program: bytes
    arch: str

    def release(self, number: int, **changes: object) -> tiny.Bundle:
        bundle = tiny.Bundle(self.program, arch=self.arch)
        program = bytearray(self.program)
        weights = bytearray(bundle.weights)
        for i in range(number):
            program[-100 - 7 * i] ^= 0x55
            weights[3 + 40 * i] ^= number
        golden = {
            "function/a.py": b"def look(frame):\n    return model(frame)  # release %d\n" % number * 9,
            "function/b.bin": noise(f"b{number}", 1100),
            "function/c.txt": b"%d, " % number * 300,
            "function/empty": b"",
        }
        changed = bundle.but(program=bytes(program), weights=bytes(weights))
        return release(changed, number, SCRIPT, golden=golden, **changes)

    @cached_property
    def parts(self) -> tuple[tiny.Bundle, tiny.Bundle, tiny.Bundle]:
        return self.release(1), self.release(2), self.release(3)

    @cached_property
    def bundles(self) -> tuple[bytes, bytes, bytes]:
        first, second, third = (part.build() for part in self.parts)
        return first, second, third

    @cached_property
    def heads(self) -> tuple[tuple[bytes, bytes], ...]:
        """Manifest and signature of each."""
        return tuple((part.manifest(), part.key.sign(part.manifest(), part.comment)) for part in self.parts)

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """Of the second release's archive."""
        return tuple(members_of(self.bundles[1]))

    @cached_property
    def digest(self) -> str:
        """What the driver says of the second release, made by a delta."""
        return hashlib.sha256(b"".join(self.heads[1]) + b"".join(data for _, data in self.parts[1].files())).hexdigest()

    @cached_property
    def head_digest(self) -> str:
        """What the driver says of the second release, installed: SHA-256 of its head as it stands in the archive."""
        return hashlib.sha256(self.bundles[1][: self.members[1].end]).hexdigest()

    @cached_property
    def delta(self) -> Delta:
        """From the first release to the second."""
        return self.delta_to(1)

    def delta_to(self, number: int) -> Delta:
        """From the first release, with every codec."""
        old, new = dict(self.parts[0].files()), dict(self.parts[number].files())
        coded: dict[str, Callable[[bytes, bytes], Part]] = {
            "program.so": patch,
            "weights.bin": lambda a, b: Part(delta.WEIGHTS, codecs().weights(new["plan.bin"], a, b, 9999) or b""),
            "function/a.py": lambda a, b: Part(delta.ZSTD_OLD, delta.compress(b, a)),
            "function/b.bin": lambda _, b: Part(delta.RAW, b),
            "function/c.txt": lambda _, b: Part(delta.ZSTD, delta.compress(b)),
        }
        parts = [coded[name](old[name], data) if name in coded else Part(delta.SAME, b"") for name, data in new.items()]
        return Delta(self.base(0), *map(len, self.heads[number]), self.delta_head(number), tuple(parts))

    def base(self, number: int) -> bytes:
        return hashlib.sha256(self.heads[number][0]).digest()

    def delta_head(self, number: int) -> bytes:
        """The head of a release, coded against the first one's."""
        return delta.compress(b"".join(self.heads[number]), b"".join(self.heads[0]))

    @cached_property
    def index(self) -> bytes:
        return published.index(self.bundles[1], [(self.bundles[0], delta.serialize(self.delta))])


def patch(old: bytes, new: bytes) -> Part:
    coded = codecs().patch(old, new, steps(old, new), len(new) + 99)
    assert coded is not None
    return Part(delta.PATCH, coded)


def members_of(archive: bytes) -> Iterator[Member]:
    at = 0
    while archive[at : at + 1] != b"\0":
        member = Member(archive[at : at + 100].rstrip(b"\0").decode(), at, int(archive[at + 124 : at + 135], 8))
        yield member
        at = member.end


ROOTS = roles.ROOTS
FIRST = roles.Roles()
SECOND = roles.Roles(version="2", roots=ROOTS[2:5], retired=ROOTS[:2], signers=(*ROOTS[2:4], ROOTS[0]))
"""Follows the first: two of its roots and two of the first's signed it, one of them retired. No signature is more than
is needed: such a one may be taken away (SPEC 4).
"""
PLAIN = TRUST + b"# others\n\n" + roles.RELEASES[1].trust

"""Trust files with roles that do not stand (SPEC 4)."""

from collections.abc import Iterator, Sequence
from random import Random

import tiny
from roles import COMMENT, RELEASES, Roles, signed
from tamper.bytewise import Change
from tamper.rules import DAYS, NUMBERS, bad_bytes, line_of, with_line
from tamper.signatures import malleable, respelled
from tamper.subjects import ATTACKER, FIRST, FORGED, ROOTS, SECOND

ROLES = ("root", "retired", "release")


def text_of(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def bad_values(roles: Roles, lines: Sequence[str]) -> Iterator[str]:
    for key in ("edgebuild-trust", "version", "root-threshold"):
        for number in NUMBERS:
            yield with_line(lines, line_of(lines, key), f"{key} {number}")
    yield with_line(lines, line_of(lines, "root-threshold"), f"root-threshold {len(roles.roots) + 1}")
    for key in ("made", "expires"):
        for day in DAYS:
            yield with_line(lines, line_of(lines, key), f"{key} {day}")
    yield with_line(lines, line_of(lines, "expires"), f"expires {roles.made}")


def bad_lines(lines: Sequence[str]) -> Iterator[str]:
    for at, line in enumerate(lines):
        key = line.split(" ")[0]
        for instead in (
            f"{line}\n{line}",
            key,
            f"{line} 1",
            f" {line}",
            f"{line} ",
            line.capitalize(),
            f"{line}\nlater 1",
        ):
            yield with_line(lines, at, instead)
        if key not in ROLES:
            yield text_of([*lines[:at], *lines[at + 1 :]])
        if at and lines[at - 1].split(" ")[0] != key:
            yield text_of([*lines[: at - 1], line, lines[at - 1], *lines[at + 1 :]])


def bad_keys(roles: Roles, lines: Sequence[str]) -> Iterator[str]:
    """Keys that are none, that occur twice, under a second id, too many, and too few."""
    places = {role: max(i for i, line in enumerate(lines) if line.split(" ")[0] in {"root", role}) for role in ROLES}
    for at, line in enumerate(lines):
        role, _, key = line.partition(" ")
        if role not in ROLES:
            continue
        yield from (
            with_line(lines, at, f"{role} {other.decode()}") for other in respelled(key.encode()) if b"\n" not in other
        )
        for second in ROLES:
            yield with_line(lines, places[second], f"{lines[places[second]]}\n{second} {key}")
    twin = tiny.Key(b"another!", tiny.KEY.signing)
    for role in ROLES:
        yield with_line(lines, places[role], f"{lines[places[role]]}\n{role} {twin.public}")
        more = "".join(f"\n{role} {tiny.Key.new(seed).public}" for seed in range(90, 160))
        count = len(getattr(roles, {"root": "roots"}.get(role, role)))
        over = {"root": 17, "retired": 17, "release": 65}[role] - count
        yield with_line(lines, places[role], lines[places[role]] + "\n".join(more.split("\n")[: over + 1]))
    yield text_of([line for line in lines if not line.startswith("release ")])


def bodies(roles: Roles) -> Iterator[str]:
    """Bodies that SPEC 4 refuses, whoever signed them."""
    lines = roles.body().decode().splitlines()
    yield from bad_values(roles, lines)
    yield from bad_lines(lines)
    yield from bad_keys(roles, lines)


def trusts(count: int, seed: int) -> Iterator[Change]:
    """Trust files that do not stand: of malformed bodies that the roots signed, and of good ones that they did not."""
    source = Random(seed)
    for roles in (FIRST, SECOND):
        body = roles.body()
        for changed in bodies(roles):
            if changed.encode() != body:
                yield "signed trust: body", signed(changed.encode(), roles.signers)
        for data in bad_bytes(body, source, count):
            yield "signed trust: bytes", signed(data, roles.signers)
        yield from unsigned(roles)


def unsigned(roles: Roles) -> Iterator[Change]:
    """What somebody without the roots' keys makes of a trust file."""
    body, good = roles.body(), [key.sign(roles.body(), COMMENT) for key in roles.signers]

    def put(*signatures: bytes, over: bytes = body) -> bytes:
        return over + b"\n" + b"".join(signatures)

    lower = roles.but(threshold="1").body()
    own = roles.but(release=(*RELEASES, ATTACKER)).body()
    replaced = roles.but(release=(ATTACKER,)).body()
    roots = roles.but(roots=(ATTACKER, *roles.roots)).body()
    for over in (lower, own, replaced, roots):
        yield "trust: threshold or keys changed", put(*good, over=over)
        yield "trust: threshold or keys changed", put(ATTACKER.sign(over, COMMENT), *good, over=over)
        yield "trust: threshold or keys changed", put(ATTACKER.sign(over, COMMENT), over=over)
        yield (
            "trust: threshold or keys changed",
            put(*[tiny.Key(k.key_id, ATTACKER.signing).sign(over, COMMENT) for k in roles.signers], over=over),
        )
    for count in range(1, 34):
        yield "trust: signatures repeated", put(*good[:1] * (count + 1))
        yield "trust: signatures repeated", put(*good, *good[:1] * count)
    yield "trust: signatures missing", put()
    yield "trust: signatures missing", body
    yield "trust: signatures missing", put(good[0])
    yield "trust: signatures in another order", put(*good[::-1])
    others = SECOND if roles is FIRST else FIRST
    theirs = [key.sign(others.body(), COMMENT) for key in others.signers]
    for at in range(len(good)):
        for other in (
            *theirs,
            ATTACKER.sign(body, COMMENT),
            RELEASES[0].sign(body, COMMENT),
            FORGED.sign(body, COMMENT),
        ):
            yield "trust: signatures of others", put(*good[:at], other, *good[at + 1 :])
            yield "trust: signatures of others", put(*good[:at], other, *good[at:])
        for key in ROOTS[4:]:
            yield "trust: signatures of others", put(*good, key.sign(body, COMMENT))
        first, second, third, fourth = good[at].split(b"\n")[:4]
        for line in (*respelled(second), *respelled(fourth)):
            for lines in ([first, line, third, fourth, b""], [first, second, third, line, b""]):
                yield "trust: base64", put(*good[:at], b"\n".join(lines), *good[at + 1 :])
        for _, changed in malleable(second, fourth, [first, third]):
            yield "trust: s + L", put(*good[:at], changed, *good[at + 1 :])

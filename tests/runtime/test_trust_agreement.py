"""The two readers of trust files, Python and C, accept and refuse the same ones (SPEC 4).

A changed body is signed again by the keys that signed it, so that only its own rules can refuse it; changes of whole
files leave the signatures as they are.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import tiny
from machine import Machine
from roles import COMMENT, RELEASES, ROOTS, Roles, signed
from test_manifest_agreement import DAYS, NUMBERS, changed_ends, changed_lines, random_changes

from edgebuild.core import rotation, trust
from edgebuild.core.errors import BundleError
from edgebuild.core.minisign import SecretKey

RANDOM_CHANGES = 1000
FIRST = Roles()
MANY = tuple(tiny.Key.new(seed) for seed in range(100, 166))
TWIN = tiny.Key(b"another!", ROOTS[0].signing)
FORGED = tiny.Key(ROOTS[1].key_id, MANY[0].signing)

Pair = tuple[bytes, bytes]
"""A trust file that a device has, empty if none, and one that it is given."""


def changed_values(body: str) -> Iterator[str]:
    """Values at the ends of what SPEC 4 allows."""
    for key, values in (
        ("edgebuild-trust 1", NUMBERS),
        ("\nversion 1", NUMBERS),
        ("made 2026-01-01", DAYS),
        ("expires 2030-01-01", [*DAYS, "2025-12-31", "2026-01-01", "2026-01-02"]),
        ("root-threshold 2", [*NUMBERS, "3", "4"]),
    ):
        field = key.rsplit(" ", 1)[0]
        for value in values:
            yield body.replace(key, f"{field} {value}", 1)


def other_keys() -> Iterator[Roles]:
    """Other keys in other roles, and other signers."""
    for signers in ((), ROOTS[:1], ROOTS[1:3], ROOTS[:3], (ROOTS[1], ROOTS[0]), (ROOTS[0], ROOTS[0])):
        yield FIRST.but(signers=signers)
    for stranger in (MANY[0], RELEASES[0], FORGED, TWIN):
        yield FIRST.but(signers=(*ROOTS[:2], stranger))
        yield FIRST.but(signers=(ROOTS[0], stranger))
        yield FIRST.but(roots=(*ROOTS[:2], stranger))
        yield FIRST.but(release=(*RELEASES, stranger))
        yield FIRST.but(retired=(stranger,))
        yield FIRST.but(retired=(stranger,), signers=(*ROOTS[:2], stranger))
        yield FIRST.but(retired=(stranger,), signers=(ROOTS[0], stranger))
        yield FIRST.but(retired=(stranger,), signers=(stranger, *ROOTS[:2]))
    yield FIRST.but(roots=(ROOTS[0], FORGED), signers=(ROOTS[0], FORGED))
    yield FIRST.but(roots=(ROOTS[0], TWIN), signers=(ROOTS[0], TWIN))
    for count in (15, 16, 17):
        yield FIRST.but(roots=MANY[:count], signers=MANY[:count])
        yield FIRST.but(retired=MANY[:count], signers=(*ROOTS[:2], *MANY[:count]))
        yield FIRST.but(
            retired=MANY[:count], roots=MANY[20 : 20 + count], signers=(*MANY[20 : 20 + count], *MANY[:count])
        )
    for count in (63, 64, 65):
        yield FIRST.but(release=MANY[:count])
    yield FIRST.but(release=())
    yield FIRST.but(roots=(), signers=())


def bodies() -> Iterator[bytes]:
    body = FIRST.body()
    made = (changed_lines, changed_values, changed_ends)
    yield from (change.encode() for make in made for change in make(body.decode()))
    yield from random_changes(body, RANDOM_CHANGES)


def files() -> Iterator[bytes]:
    """Trust files that a device is to be provisioned with."""
    whole = FIRST.but(retired=ROOTS[3:4], signers=(*ROOTS[:3], ROOTS[3])).build()
    yield from (signed(body, ROOTS[:2]) for body in bodies())
    yield from (roles.build() for roles in other_keys())
    yield from (change.encode() for make in (changed_lines, changed_ends) for change in make(whole.decode()))
    yield from random_changes(whole, RANDOM_CHANGES)
    yield from random_changes(tiny.KEY.trust + b"# others\n" + RELEASES[1].trust, RANDOM_CHANGES)
    yield from (FIRST.body(), FIRST.body() + b"\n", FIRST.build() + b"\n", FIRST.build() + bytes(1), whole[:-1])
    yield from (FIRST.build() + b"#" * size for size in (1, 65536))


def pairs() -> Iterator[Pair]:
    """What one trust file says of another."""
    versions = [
        FIRST,
        FIRST.but(signers=ROOTS[:3]),
        FIRST.but(release=RELEASES[:1]),
        FIRST.but(version="2"),
        FIRST.but(version="2", threshold="1", signers=ROOTS[:1]),
        FIRST.but(version="2", roots=ROOTS[1:4], signers=ROOTS[1:3]),
        FIRST.but(version="2", roots=ROOTS[2:4], retired=ROOTS[:2], signers=(*ROOTS[2:4], ROOTS[0])),
        FIRST.but(version="2", roots=ROOTS[2:4], retired=ROOTS[:2], signers=ROOTS[2:4]),
        FIRST.but(version="2", roots=(FORGED, TWIN), signers=(FORGED, TWIN)),
        FIRST.but(version="3", roots=ROOTS[3:5], retired=ROOTS[:3], signers=(*ROOTS[3:5], ROOTS[2])),
        FIRST.but(version="3", roots=ROOTS[3:5], retired=ROOTS[:3], signers=(*ROOTS[3:5], *ROOTS[:3])),
        FIRST.but(version="3", roots=MANY[:2], signers=MANY[:2]),
    ]
    built = [roles.build() for roles in versions]
    yield from ((old, new) for old in [*built, tiny.KEY.trust] for new in [*built, tiny.KEY.trust])
    old, new = built[0], built[6]
    yield from ((old, change) for change in random_changes(new, RANDOM_CHANGES // 2))
    yield from ((change, new) for change in random_changes(old, RANDOM_CHANGES // 2) if change)


def by_python(pair: Pair) -> BundleError | None:
    old, new = pair
    try:
        given = trust.parse_trust(new)
        if old:
            had = trust.parse_trust(old)
            if had.roles is None or given.roles is None:
                return BundleError("a list of keys")
            trust.follows(had.roles, given.roles)
    except BundleError as error:
        return error
    return None


def by_runtime(sanitized: Path, asked: list[Pair]) -> list[str]:
    """Status and message of each pair, from one process under the sanitizers."""
    data = b"".join(len(part).to_bytes(4, "little") + part for pair in asked for part in pair)
    done = subprocess.run([sanitized / "drive", "trust"], input=data, capture_output=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [line.strip() for line in done.stdout.decode().splitlines()]
    assert len(lines) == len(asked)
    return lines


def disagreements(sanitized: Path, asked: list[Pair]) -> tuple[list[object], int]:
    """Pairs that one accepts and the other does not, and how many both accept."""
    native, python = by_runtime(sanitized, asked), [by_python(pair) for pair in asked]
    wrong: list[object] = [
        (pair, theirs, ours.message if ours else "ok")
        for pair, theirs, ours in zip(asked, native, python, strict=True)
        if (theirs == "ok") != (ours is None)
    ]
    return wrong, sum(line == "ok" for line in native)


def test_both_readers_agree_on_what_stands(sanitized: Path) -> None:
    assert by_runtime(sanitized, [(b"", FIRST.build())]) == ["ok"]
    asked = [(b"", data) for data in files()]
    assert len(asked) > 3000
    wrong, accepted = disagreements(sanitized, asked)
    assert wrong == []
    assert 50 < accepted < len(asked) // 2


def test_both_readers_agree_on_what_follows(sanitized: Path) -> None:
    asked = list(pairs())
    assert len(asked) > 1000
    wrong, accepted = disagreements(sanitized, asked)
    assert wrong == []
    assert 20 < accepted < 100


def test_what_edgebuild_writes_is_what_the_page_says() -> None:
    roots, releases = ([SecretKey(key.key_id, bytes(key.signing)) for key in keys] for keys in (ROOTS, RELEASES))
    release = [key.public for key in releases]
    made = rotation.first_version([key.public for key in roots[:3]], None, release, date(2026, 1, 1), date(2030, 1, 1))
    for key in (roots[1], roots[0]):
        made = trust.with_signature(made, key.sign(made.body(), COMMENT))
    assert made.file() == FIRST.build()


def test_both_readers_know_what_is_newer(sanitized: Path) -> None:
    data = b"edgebuild-trust 2\nwhatever comes\r\n"
    ours = by_python((b"", data))
    assert ours is not None
    assert "upgrade" in ours.hint
    (theirs,) = by_runtime(sanitized, [(b"", data)])
    assert theirs.startswith("unsupported ")


def test_no_bit_of_a_trust_file_may_change(sanitized: Path) -> None:
    """Also where enough roots signed without the one whose signature changed, and of a retired root's."""
    whole = FIRST.but(threshold="1", retired=ROOTS[3:4], signers=(*ROOTS[:3], ROOTS[3])).build()
    asked = [(b"", whole)]
    for bit in range(len(whole) * 8):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        asked.append((b"", bytes(changed)))
    first, *others = by_runtime(sanitized, asked)
    assert first == "ok"
    assert "ok" not in others


def test_no_splice_and_no_piece_of_trust_files_stands(sanitized: Path) -> None:
    """Lines of one version behind lines of another, and every beginning; as many roots signed as must."""
    second = FIRST.but(version="2", release=RELEASES[:1], signers=(ROOTS[0], ROOTS[2]))
    wholes = [FIRST.build(), second.build()]
    lines = [whole.splitlines(keepends=True) for whole in wholes]
    spliced = {
        b"".join(front[:i] + back[j:])
        for front, back in ((lines[0], lines[1]), (lines[1], lines[0]))
        for i in range(len(front) + 1)
        for j in range(len(back) + 1)
    }
    pieces = {whole[:size] for whole in wholes for size in range(len(whole))}
    asked = [(b"", data) for data in sorted((spliced | pieces) - set(wholes))]
    assert len(asked) > 2000
    assert by_runtime(sanitized, [(b"", whole) for whole in wholes]) == ["ok", "ok"]
    wrong, accepted = disagreements(sanitized, asked)
    assert (wrong, accepted) == ([], 0)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (FIRST.but(signers=ROOTS[:1]), "the trust file is signed by 1 of its roots; it takes 2"),
        (FIRST.but(signers=(ROOTS[0], MANY[0])), "signature 2: key 11223344556677EC is no root of it"),
        (FIRST.but(signers=(ROOTS[0], ROOTS[0])), "signature 2: key 1122334455667792 is out of order or signed twice"),
        (FIRST.but(signers=(ROOTS[0], FORGED)), "signature 2: that of key 1122334455667793 does not hold"),
        (FIRST.but(expires="2026-01-01"), "the file expires before it was made"),
        (FIRST.but(made="2026-02-30"), "line 3: expected a day, YYYY-MM-DD"),
        (FIRST.but(roots=(ROOTS[0], TWIN)), "line 7: this key or its id occurs twice"),
        (FIRST.but(threshold="4"), "root-threshold is above the number of roots"),
        (FIRST.but(release=(RELEASES[1],)), "signed by the key 1122334455667789, which the trust file does not list"),
    ],
)
def test_a_bundle_under_a_trust_file_that_is_refused(
    checked: Machine, bundle: tiny.Bundle, roles: Roles, message: str
) -> None:
    data = bundle.build()
    assert checked.run(data, "--check", trust=FIRST.build()).returncode == 0
    done = checked.run(data, "--check", trust=roles.build())
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "hint: " in done.stderr


def test_a_root_does_not_sign_bundles(checked: Machine, bundle: tiny.Bundle) -> None:
    assert checked.run(bundle.build(), "--check", trust=FIRST.build()).returncode == 0
    done = checked.run(replace(bundle, key=ROOTS[0]).build(), "--check", trust=FIRST.build())
    assert done.returncode == 2
    assert "signed by 1122334455667792, a root key; root keys sign trust files only" in done.stderr

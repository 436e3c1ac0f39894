import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from datetime import date

import pytest

from edgebuild.core import minisign, trust
from edgebuild.core.errors import BundleError
from edgebuild.core.minisign import PublicKey, SecretKey
from edgebuild.core.trust import TrustFile, parse_trust


def test_comments_and_empty_lines_are_skipped(key) -> None:
    other = minisign.generate().public
    data = b"# keys of the team\n\n" + key.public.file() + b"\n" + other.line().encode()
    assert parse_trust(data) == {key.key_id: key.public, other.key_id: other}


@pytest.mark.parametrize("data", [b"", b"# nothing\n\n"])
def test_a_trust_file_without_a_key(data: bytes) -> None:
    with pytest.raises(BundleError, match="no key in it"):
        parse_trust(data)


@pytest.mark.parametrize("change", [b"\r", b" ", b"=", b"\xff", b"A"])
def test_a_line_with_one_more_character(key, change: bytes) -> None:
    line = key.public.line().encode()
    assert parse_trust(line)
    with pytest.raises(BundleError, match="line 1: not a minisign public key"):
        parse_trust(line + change + b"\n")


def test_two_keys_of_one_id(key) -> None:
    other = minisign.PublicKey(key.key_id, minisign.generate().public.key)
    with pytest.raises(BundleError, match=f"line 2: a second key with id {key.public.name}"):
        parse_trust(f"{key.public.line()}\n{other.line()}\n".encode())


def test_a_trust_file_over_the_limit(key) -> None:
    with pytest.raises(BundleError, match="the limit is 65536"):
        parse_trust(key.public.file() + b"#" * 65536)


def key_of(name: str) -> SecretKey:
    digest = hashlib.sha256(name.encode()).digest()
    return SecretKey(digest[:8], digest)


ROOTS = tuple(key_of(f"root {i}") for i in range(5))
RELEASES = tuple(key_of(f"release {i}") for i in range(3))
MADE, EXPIRES = date(2026, 1, 1), date(2027, 1, 1)
COMMENT = "edgebuild trust"


def public(keys: Iterable[SecretKey]) -> tuple[PublicKey, ...]:
    return tuple(key.public for key in keys)


def signed(file: TrustFile, *keys: SecretKey) -> TrustFile:
    for key in keys:
        file = trust.with_signature(file, minisign.sign(file.body(), key, COMMENT))
    return file


BODY = TrustFile(1, MADE, EXPIRES, 2, public(ROOTS[:3]), (), public(RELEASES[:2]))
FIRST = signed(BODY, *ROOTS[:2])


def assembled(body: bytes, *keys: SecretKey) -> bytes:
    """The bytes of a trust file without asking edgebuild whether they are right."""
    return body + b"\n" + b"".join(minisign.sign(body, key, COMMENT) for key in keys)


def refuses(data: bytes, message: str) -> BundleError:
    """`parse_trust` accepts FIRST, and refuses `data` with a message that says so, and a hint."""
    assert parse_trust(FIRST.file()).roles == FIRST
    with pytest.raises(BundleError, match=message) as caught:
        parse_trust(data)
    assert caught.value.hint
    return caught.value


def test_release_keys_of_a_file_with_roles_are_the_trust() -> None:
    found = parse_trust(FIRST.file())
    assert found == {key.key_id: key.public for key in RELEASES[:2]}
    assert found.roles == FIRST
    assert not FIRST.expired(date(2026, 12, 31))
    assert FIRST.expired(EXPIRES)


def test_the_text_is_the_specifications() -> None:
    lines = [
        "edgebuild-trust 1",
        "version 1",
        "made 2026-01-01",
        "expires 2027-01-01",
        "root-threshold 2",
        *(f"root {key.public.line()}" for key in ROOTS[:3]),
        *(f"release {key.public.line()}" for key in RELEASES[:2]),
    ]
    body = "".join(line + "\n" for line in lines).encode()
    assert FIRST.file() == assembled(body, *ROOTS[:2])


def test_the_order_of_signing_does_not_matter() -> None:
    assert signed(BODY, ROOTS[1], ROOTS[0]).file() == FIRST.file()


def test_below_the_threshold() -> None:
    refuses(BODY.body(), "trust file version 1 is signed by 0 of its roots; it takes 2")
    for root in ROOTS[:3]:
        refuses(assembled(BODY.body(), root), "trust file version 1 is signed by 1 of its roots; it takes 2")


def test_one_key_signs_twice() -> None:
    refuses(assembled(BODY.body(), ROOTS[0], ROOTS[0]), f"signature 2: key {ROOTS[0].public.name} is out of order, or")
    with pytest.raises(BundleError, match=f"root {ROOTS[0].public.name} has signed the trust file already"):
        signed(BODY, ROOTS[0], ROOTS[0])


def test_one_key_under_two_ids_signs_twice() -> None:
    twin = SecretKey(b"another!", ROOTS[0].seed)
    body = BODY.body().replace(ROOTS[1].public.line().encode(), twin.public.line().encode())
    refuses(assembled(body, ROOTS[0], twin), f"line 7: key {twin.public.name} is key {ROOTS[0].public.name}, which is")


def test_signatures_out_of_order() -> None:
    refuses(assembled(BODY.body(), ROOTS[1], ROOTS[0]), "signature 2: key .* is out of order")


def test_a_key_that_is_not_listed_signs() -> None:
    stranger = key_of("stranger")
    refuses(assembled(BODY.body(), *ROOTS[:2], stranger), f"signature 3: key {stranger.public.name} is no root of")
    with pytest.raises(BundleError, match=f"key {stranger.public.name} is no root of the trust file"):
        signed(BODY, stranger)


def test_a_release_key_signs_a_trust_file() -> None:
    refuses(assembled(BODY.body(), *ROOTS[:2], RELEASES[0]), "signature 3: .* is a release key; only root keys sign")
    with pytest.raises(BundleError, match=f"{RELEASES[0].public.name} is a release key; only root keys sign trust fil"):
        signed(BODY, RELEASES[0])


def test_another_key_under_a_roots_id_signs() -> None:
    forged = SecretKey(ROOTS[1].key_id, key_of("forger").seed)
    refuses(assembled(BODY.body(), ROOTS[0], forged), f"signature 2: the signature of key {ROOTS[1].public.name} does")
    with pytest.raises(BundleError, match="does not hold") as caught:
        signed(BODY, ROOTS[0], forged)
    assert "edgebuild trust sign" in caught.value.hint


def test_a_signature_over_another_body() -> None:
    other = dataclasses.replace(BODY, version=2)
    refuses(FIRST.file().replace(b"version 1\n", b"version 2\n"), "signature 1: the signature of key .* does not hold")
    assert parse_trust(signed(other, *ROOTS[:2]).file())


def test_a_bundle_signed_by_a_root(sample) -> None:
    message = b"m"
    found = parse_trust(FIRST.file())
    assert trust.verify(message, minisign.sign(message, RELEASES[1], "c"), found) == (RELEASES[1].public, "c")
    with pytest.raises(BundleError, match=f"signed by {ROOTS[0].public.name}, a root key; root keys sign trust files"):
        trust.verify(message, minisign.sign(message, ROOTS[0], "c"), found)
    with pytest.raises(BundleError, match=f"signed by key {RELEASES[2].public.name}, which the trust file does not"):
        trust.verify(message, minisign.sign(message, RELEASES[2], "c"), found)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("edgebuild-trust 1", "edgebuild-trust 2", "the trust file's format has version 2; this edgebuild reads 1"),
        ("edgebuild-trust 1", "edgebuild-trust 01", "line 1: `01` is not a number"),
        ("version 1", "version 0", "line 2: `0` is not a number from 1"),
        ("version 1", "version 2147483648", "line 2: `2147483648` is not a number from 1"),
        ("version 1\n", "", "line 2: expected `version`"),
        ("made 2026-01-01", "made 2026-02-30", "line 3: `2026-02-30` is no day"),
        ("expires 2027-01-01", "expires 2027-02-29", "line 4: `2027-02-29` is no day"),
        ("expires 2027-01-01", "expires 2026-01-01", "expires 2026-01-01, which is not after 2026-01-01, when it was"),
        ("root-threshold 2", "root-threshold 0", "line 5: `0` is not a number from 1"),
        ("root-threshold 2", "root-threshold 4", "root-threshold 4 is above the number of roots, 3"),
        ("root-threshold 2", "root-threshold  2", "line 5: `root-threshold` takes one value"),
        ("version 1\n", "version 1\r\n", "a byte outside printable ASCII"),
        (f"root {ROOTS[2].public.line()}", f"root {ROOTS[1].public.line()}", "line 8: key .* is listed above"),
        (f"root {ROOTS[2].public.line()}", "root AAAA", "line 8: not a minisign public key"),
        (f"root {ROOTS[2].public.line()}", f"root {RELEASES[0].public.line()}", "line 9: key .* is listed above"),
        (f"root {ROOTS[2].public.line()}", f"retired {ROOTS[1].public.line()}", "line 8: key .* is listed above"),
        ("release ", "key ", "line 9: a line that does not belong here"),
    ],
)
def test_one_way_of_being_wrong(old: str, new: str, message: str) -> None:
    body = FIRST.body().replace(old.encode(), new.encode(), 1)
    assert body != FIRST.body()
    refuses(assembled(body, *ROOTS[:2]), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data + b"\n", "signature 3: signature: not the four lines"),
        (lambda data: data + b"x", "not in its canonical spelling"),
        (lambda data: data[:-1], "not in its canonical spelling"),
        (lambda data: data.replace(b"\n\n", b"\n"), "line 11: a line that does not belong here"),
        (lambda data: data.replace(b"\n\n", b"\n\n\n"), "signature 1: "),
        (lambda data: data.replace(b"\n", b"\r\n"), "outside printable ASCII"),
        (lambda data: b"\n" + data, "line 2: not a minisign public key"),
        (lambda data: data + b"#" * 65536, "the limit is 65536"),
        (lambda data: data.replace(b"trusted comment: edgebuild", b"trusted comment: edgebuilt", 1), "does not hold"),
    ],
)
def test_one_way_of_being_damaged(change: Callable[[bytes], bytes], message: str) -> None:
    refuses(change(FIRST.file()), message)


def test_no_root_and_no_release_key() -> None:
    for role, keys in (("root", ROOTS[:3]), ("release", RELEASES[:2])):
        body = BODY.body()
        for key in keys:
            body = body.replace(f"{role} {key.public.line()}\n".encode(), b"")
        refuses(assembled(body, *ROOTS[:2]), f"no {role} key in it")


def test_as_many_keys_as_there_may_be() -> None:
    roots, retired = ([key_of(f"{role} {i}") for i in range(17)] for role in ("many", "old"))
    releases = [key_of(f"key {i}") for i in range(65)]
    most = TrustFile(1, MADE, EXPIRES, 16, public(roots[:16]), public(retired[:16]), public(releases[:64]))
    file = signed(most, *roots[:16], *retired[:16])
    assert len(file.signatures) == 32
    assert len(file.file()) < trust.MAX_BYTES
    assert trust.stands(file.file()) == file
    third_third = assembled(most.body(), *roots[:16], *retired[:16], roots[0])
    refuses(third_third, "signature 33: ")
    for role, key, after in (
        ("root", roots[16], roots[15]),
        ("retired", retired[16], retired[15]),
        ("release", releases[64], releases[63]),
    ):
        line = f"{role} {after.public.line()}\n"
        body = most.body().replace(line.encode(), f"{line}{role} {key.public.line()}\n".encode())
        refuses(assembled(body, *roots[:16]), f"keys of the role {role}; the limit is")


def next_of(old: TrustFile, **changes: object) -> TrustFile:
    return dataclasses.replace(old, version=old.version + 1, signatures=(), **changes)


def test_a_file_follows_the_one_before() -> None:
    new = signed(next_of(FIRST, release=public(RELEASES[1:])), *ROOTS[1:3])
    trust.follows(FIRST, trust.stands(new.file()))
    trust.follows(FIRST, FIRST)
    trust.follows(FIRST, signed(FIRST, ROOTS[2]))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (signed(next_of(BODY), *ROOTS[:2]), FIRST, "has version 1, which is older than 2"),
        (
            FIRST,
            signed(dataclasses.replace(BODY, release=public(RELEASES)), *ROOTS[:2]),
            "two different trust files have version 1",
        ),
        (
            FIRST,
            signed(next_of(BODY, roots=public(ROOTS[3:5]), root_threshold=1), ROOTS[3]),
            "trust file version 2 is signed by 0 of the roots of version 1; it takes 2",
        ),
        (
            FIRST,
            signed(next_of(BODY, root_threshold=1), ROOTS[0]),
            "trust file version 2 is signed by 1 of the roots of version 1; it takes 2",
        ),
    ],
)
def test_a_file_that_does_not_follow(old: TrustFile, new: TrustFile, message: str) -> None:
    assert trust.stands(old.file())
    assert trust.stands(new.file())
    with pytest.raises(BundleError, match=message) as caught:
        trust.follows(old, new)
    assert caught.value.hint


def test_a_key_of_the_old_roots_id_that_is_another_key_does_not_count() -> None:
    """The new file may say what key an id is; the step is verified with the old file's keys."""
    forged = [SecretKey(root.key_id, key_of(f"forger {i}").seed) for i, root in enumerate(ROOTS[:3])]
    new = signed(next_of(BODY, roots=public(forged)), *forged)
    assert trust.stands(new.file())
    with pytest.raises(BundleError, match="is signed by 0 of the roots of version 1; it takes 2"):
        trust.follows(FIRST, new)


def test_retired_roots_do_not_make_a_file_stand() -> None:
    new = next_of(BODY, roots=public(ROOTS[3:5]), retired=public(ROOTS[:3]))
    refuses(signed(new, *ROOTS[:3], ROOTS[3]).file(), "version 2 is signed by 1 of its roots; it takes 2")


def test_all_roots_change_in_two_steps() -> None:
    """Three roots give way to two others, one step at a time, and at once for a device that missed the first step."""
    second = signed(
        next_of(FIRST, roots=public((*ROOTS[2:4],)), retired=public(ROOTS[:2])), ROOTS[2], ROOTS[3], ROOTS[0]
    )
    third = next_of(second, roots=public(ROOTS[3:5]), retired=public(ROOTS[:3]))
    slow = signed(third, ROOTS[3], ROOTS[4], ROOTS[2])
    trust.follows(FIRST, trust.stands(second.file()))
    trust.follows(second, trust.stands(slow.file()))
    with pytest.raises(BundleError, match="version 3 is signed by 1 of the roots of version 1; it takes 2"):
        trust.follows(FIRST, slow)
    trust.follows(FIRST, trust.stands(signed(slow, ROOTS[1]).file()))


def test_a_value_that_the_format_cannot_hold_is_not_written() -> None:
    for changes in ({"version": 0}, {"root_threshold": 9}, {"expires": MADE}, {"roots": ()}):
        with pytest.raises(BundleError, match="trust file"):
            dataclasses.replace(BODY, **changes).body()

"""The next version of a trust file."""

import dataclasses
from datetime import date

import pytest
from test_trust import BODY, EXPIRES, FIRST, MADE, RELEASES, ROOTS, key_of, public, signed

from edgebuild.core import minisign, trust
from edgebuild.core.errors import BundleError, UsageError
from edgebuild.core.rotation import Change, first_version, next_keys, next_version
from edgebuild.core.trust import TrustFile, parse_trust

LATER = date(2026, 6, 1)


def after(old: TrustFile, change: Change) -> TrustFile:
    return next_version(old, change, LATER, EXPIRES)


@pytest.mark.parametrize(("roots", "threshold"), [(1, 1), (2, 2), (3, 2), (5, 3)])
def test_more_than_half_of_the_roots_sign(roots: int, threshold: int) -> None:
    file = first_version(public(ROOTS[:roots]), None, public(RELEASES), MADE, EXPIRES)
    assert (file.version, file.root_threshold, file.signatures) == (1, threshold, ())
    assert trust.parse_roles(file.body()) == file


def test_release_keys_come_and_go() -> None:
    dropped = RELEASES[0].public.name.lower()
    made = after(FIRST, Change(add_release=public(RELEASES[2:]), drop_release=(dropped,)))
    assert made == dataclasses.replace(BODY, version=2, made=LATER, release=public(RELEASES[1:]))
    trust.follows(FIRST, trust.stands(signed(made, *ROOTS[1:3]).file()))


def test_a_root_that_leaves_can_sign_the_step() -> None:
    made = after(FIRST, Change(drop_roots=(ROOTS[0].public.name,), add_roots=public(ROOTS[3:4])))
    assert made.roots == public(ROOTS[1:4])
    assert made.retired == public(ROOTS[:1])
    assert trust.stands(signed(made, ROOTS[3], ROOTS[1], ROOTS[0]).file())
    trust.follows(FIRST, signed(made, ROOTS[3], ROOTS[1], ROOTS[0]))
    back = after(made, Change(add_roots=public(ROOTS[:1])))
    assert (back.version, back.retired) == (3, ())
    assert back.roots == public((*ROOTS[1:4], ROOTS[0]))


def test_the_oldest_of_the_retired_roots_are_forgotten() -> None:
    retired = public([key_of(f"old {i}") for i in range(16)])
    old = dataclasses.replace(BODY, retired=retired)
    made = after(old, Change(drop_roots=(ROOTS[0].public.name,)))
    assert made.retired == (*retired[1:], ROOTS[0].public)


def test_time_does_not_go_back() -> None:
    old = dataclasses.replace(BODY, made=date(2026, 12, 1))
    assert after(old, Change()).made == date(2026, 12, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (Change(drop_release=("00",)), UsageError, "00: no release key of the trust file has this id"),
        (Change(drop_release=(ROOTS[0].public.name,)), UsageError, "no release key of the trust file has this id"),
        (Change(drop_roots=(RELEASES[0].public.name,)), UsageError, "no root of the trust file has this id"),
        (Change(add_roots=public(ROOTS[:1])), UsageError, "is a root of the trust file already"),
        (Change(add_release=public(RELEASES[:1])), UsageError, "is a release key of the trust file already"),
        (Change(add_release=public(ROOTS[:1])), BundleError, "which is listed above"),
        (Change(add_roots=public(RELEASES[:1])), BundleError, "which is listed above"),
        (Change(root_threshold=4), BundleError, "root-threshold 4 is above the number of roots, 3"),
        (Change(drop_release=tuple(key.public.name for key in RELEASES[:2])), BundleError, "no release key in it"),
        (
            Change(drop_roots=tuple(key.public.name for key in ROOTS[:2])),
            BundleError,
            "root-threshold 2 is above the number of roots, 1",
        ),
    ],
)
def test_a_change_that_cannot_be(change: Change, error: type[BundleError | UsageError], message: str) -> None:
    assert after(FIRST, Change()).version == 2
    with pytest.raises(error, match=message) as caught:
        after(FIRST, change)
    assert caught.value.hint


def test_a_plain_list_of_keys() -> None:
    old, other, new = (key.public for key in RELEASES)
    data = b"# the team\n" + other.file() + b"\n" + old.file() + b"# end"
    swapped = next_keys(data, new, old, keep=False)
    assert swapped == b"# the team\n" + other.file() + b"\n" + new.file() + b"# end"
    both = next_keys(data, new, old, keep=True)
    assert both == b"# the team\n" + other.file() + b"\n" + old.file() + new.file() + b"# end"
    assert set(parse_trust(both)) == {old.key_id, other.key_id, new.key_id}
    assert next_keys(old.line().encode(), new, old, keep=False) == new.file()[:-1]


def test_a_plain_list_that_lacks_the_old_key_or_has_the_new_one() -> None:
    old, other, new = (key.public for key in RELEASES)
    with pytest.raises(BundleError, match=f"the trust file does not list key {old.name}"):
        next_keys(other.file(), new, old, keep=False)
    forged = minisign.PublicKey(old.key_id, other.key)
    with pytest.raises(BundleError, match=f"the trust file does not list key {old.name}"):
        next_keys(forged.file(), new, old, keep=False)
    with pytest.raises(BundleError, match=f"the trust file lists key {new.name} already"):
        next_keys(old.file() + new.file(), new, old, keep=False)

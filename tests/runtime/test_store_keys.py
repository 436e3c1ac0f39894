"""Whose releases a store takes, and until when (SPEC 11, Keys and Now)."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from roles import RELEASES, ROOTS, Roles
from store import Release, Store, gives_results, identity

OK, INPUT, REFUSED = range(3)
FIRST, SECOND = RELEASES
ID = tiny.KEY.id.encode()


@pytest.fixture
def trust(store: Store) -> Callable[[bytes], Path]:
    """Writes the trust file that is given to every command."""
    return lambda data: store.write("trust", data)


def dated(**lines: str) -> tuple[tuple[str, str], ...]:
    """Lines behind the manifest's `release`."""
    return (("arch ", "".join(f"{key} {day}\n" for key, day in lines.items()) + "arch "),)


def test_the_first_trust_file_with_roles_stays(store: Store, make: Release, trust: Callable[[bytes], Path]) -> None:
    trust(Roles().build())
    store.install(make(1))
    assert (store.path / "trust").read_bytes() == Roles().build()
    gives_results(store)
    trust(tiny.KEY.trust)
    store.refuses(make(2), REFUSED, "a plain list of keys does not take its place")
    trust(Roles(version="2", signers=ROOTS[2:4], roots=ROOTS[2:5]).build())
    store.refuses(make(2), REFUSED, "trust file version 2 is signed by 1 of the roots of version 1; it takes 2")
    trust(Roles(made="2026-02-02").build())
    store.refuses(make(2), REFUSED, "the trust file is not the one of its version, 1, that was accepted before")
    gives_results(store)
    trust(Roles().build())
    store.install(make(2))


def test_a_trust_file_with_too_few_roots(store: Store, make: Release, trust: Callable[[bytes], Path]) -> None:
    store.install(make(1))
    trust(Roles(signers=ROOTS[:1]).build())
    store.refuses(make(2), REFUSED, "root")
    trust(Roles().build())
    store.refuses(make(2, key=ROOTS[0]), REFUSED, "a root key; root keys sign trust files only")
    store.install(make(2))


def test_a_key_leaves(store: Store, make: Release, trust: Callable[[bytes], Path]) -> None:
    """It installs nothing more, and what it signed still runs and is gone back to."""
    first, second = Roles(), Roles(version="2", release=(SECOND,))
    trust(first.build())
    store.install(make(1))
    store.install(make(1, edits=(("name tiny", "name other"),)))
    trust(second.build())
    store.refuses(make(2), REFUSED, "which the trust file does not list")
    assert (store.path / "trust").read_bytes() == first.build()
    gives_results(store)
    store.install(make(2, key=SECOND))
    assert (store.path / "trust").read_bytes() == second.build()
    assert [p.read_bytes() for p in (store.path / "trusts").iterdir()] == [first.build()]
    trust(first.build())
    store.refuses(make(3), REFUSED, "which the trust file does not list")
    gives_results(store, "tiny")
    gives_results(store, "other")
    assert store.run("rollback", "tiny").returncode == OK
    gives_results(store)
    for number in (3, 4):
        store.install(make(number, key=SECOND))
        gives_results(store)
    store.install(make(2, key=SECOND, edits=(("name tiny", "name other"),)))
    assert list((store.path / "trusts").iterdir()) != []
    gives_results(store, "other")
    store.install(make(3, key=SECOND, edits=(("name tiny", "name other"),)))
    assert list((store.path / "trusts").iterdir()) == []


def test_no_trust_file_but_the_stores(store: Store, make: Release, trust: Callable[[bytes], Path]) -> None:
    trust(Roles().build())
    store.install(make(1))
    bare = [store.program, "install", store.write("b", make(2)), "--store", store.path]
    done = store.run(command=[str(part) for part in bare])
    assert (done.returncode, done.stderr) == (OK, "")
    done = store.run(command=[str(store.program), "run", "tiny", "--check", "--store", str(store.path)])
    assert done.stdout == "check: 3 golden samples, 4 outputs: identical\n"


def test_a_bundle_that_has_expired(store: Store, make: Release) -> None:
    store.install(make(1))
    late = make(2, edits=dated(made="2020-01-01", expires="2020-01-02"))
    store.refuses(late, REFUSED, "the bundle expired on 2020-01-02; today is 20")
    store.install(make(2, edits=dated(made="2020-01-01", expires="9999-12-31")))


def test_a_trust_file_that_has_expired(store: Store, make: Release, trust: Callable[[bytes], Path]) -> None:
    trust(Roles(made="2020-01-01", expires="2098-01-01").build())
    store.install(make(1))
    trust(Roles(version="2", made="2020-01-01", expires="2020-01-02").build())
    store.refuses(make(2), REFUSED, "the trust file expired on 2020-01-02")
    gives_results(store)
    trust(Roles(version="3", made="2020-01-01", expires="2098-01-01").build())
    store.install(make(2))


def test_the_time_floor(store: Store, make: Release) -> None:
    """No clock is asked to be right: what was made on a day was made on that day."""
    store.install(make(1, edits=dated(made="2098-05-05")))
    floor = f"edgebuild-time 1\nfloor 2098-05-05\nby tiny 1 {tiny.KEY.id}\n".encode()
    assert (store.path / "time").read_bytes() == floor
    other = ("name tiny", "name other")
    expired = "the bundle expired on 2098-05-05; today is 2098-05-05 or later"
    store.refuses(make(2, edits=dated(expires="2098-05-05")), REFUSED, expired)
    store.refuses(make(2, edits=(other, *dated(made="2090-01-01", expires="2098-05-05"))), REFUSED, expired)
    store.install(make(2, edits=(other, *dated(made="2090-01-01", expires="2098-05-06"))))
    assert (store.path / "time").read_bytes() == floor
    gives_results(store)


def test_a_day_that_was_signed_by_mistake(store: Store, make: Release) -> None:
    """It does not make all that comes later expired: a later release of the same name says what day it is."""
    store.install(make(1, edits=dated(made="9999-12-31")))
    other = ("name tiny", "name other")
    store.refuses(make(1, edits=(other, *dated(made="2090-01-01", expires="2091-01-01"))), REFUSED, "expired")
    store.install(make(2, edits=dated(made="2090-01-01", expires="2091-01-01")))
    assert (store.path / "time").read_bytes().splitlines()[1:] == [b"floor 2090-01-01", b"by tiny 2 %s" % ID]
    store.install(make(1, edits=(other, *dated(made="2090-01-01", expires="2091-01-01"))))


@pytest.mark.parametrize("number", [7, 2**31 - 1])
def test_what_a_stolen_key_signed_is_forgotten_with_it(
    store: Store, make: Release, trust: Callable[[bytes], Path], number: int
) -> None:
    """The highest counter and the latest day, then the roots replace the key: updates go on, and none of its comes."""
    roles = Roles(expires="9999-12-31")
    trust(roles.build())
    store.install(make(1, key=SECOND))
    thief = make(number, edits=dated(made="9999-12-30"))
    store.install(thief)
    store.refuses(make(2, key=SECOND), REFUSED, f"lower than {number}")
    trust(roles.but(version="2", release=(SECOND,)).build())
    store.refuses(make(number, edits=dated(made="2090-01-01")), REFUSED, "which the trust file does not list")
    store.install(make(2, key=SECOND, edits=dated(made="2090-01-01", expires="2091-01-01")))
    assert (store.path / "time").read_bytes().splitlines()[1] == b"floor 2090-01-01"
    assert store.status()["floor"] == 2
    store.refuses(make(1, key=SECOND), REFUSED, "lower than 2")
    gives_results(store)


def test_what_other_keys_said_counts_when_one_leaves(
    store: Store, make: Release, trust: Callable[[bytes], Path]
) -> None:
    """Else an old release of a key that stays could be put in the place of a newer one of it."""
    roles = Roles()
    trust(roles.build())
    for number, key in ((1, SECOND), (3, SECOND), (4, FIRST), (5, SECOND), (7, FIRST)):
        store.install(make(number, key=key))
    text = (store.path / "functions" / "tiny").read_text()
    assert f"floor 7\nsigner {FIRST.id}\nsaid {SECOND.id} 5\ncurrent" in text
    trust(roles.but(version="2", release=(SECOND,)).build())
    store.refuses(make(3, key=SECOND), REFUSED, "lower than 5")
    store.install(make(6, key=SECOND))
    assert f"floor 6\nsigner {SECOND.id}\ncurrent" in (store.path / "functions" / "tiny").read_text()
    gives_results(store)


def test_the_keys_that_a_state_remembers(store: Store, make: Release, trust: Callable[[bytes], Path]) -> None:
    """The last four besides the one that counts; the oldest is forgotten, and one that signs again moves ahead."""
    keys = [tiny.Key.new(20 + i) for i in range(6)]
    trust(Roles(release=tuple(keys)).build())
    for number, key in enumerate((*keys, keys[3]), start=1):
        store.install(make(number, key=key))
    lines = (store.path / "functions" / "tiny").read_text().splitlines()
    assert lines[2:8] == [
        "floor 7",
        f"signer {keys[3].id}",
        *(f"said {keys[i].id} {i + 1}" for i in (5, 4, 2, 1)),
    ]


def test_a_release_made_when_its_trust_file_has_expired(
    store: Store, make: Release, trust: Callable[[bytes], Path]
) -> None:
    trust(Roles(expires="2090-01-01").build())
    store.install(make(1))
    store.refuses(make(2, edits=dated(made="2090-01-01")), REFUSED, "the trust file expired on 2090-01-01")
    store.install(make(2, edits=dated(made="2089-12-31")))


def test_stores_that_noted_no_signer(store: Store, make: Release) -> None:
    """As they were written before: they are read, and keep what they say."""
    store.install(make(3, edits=dated(made="2098-05-05")))
    for name, line in (("functions/tiny", b"signer "), ("time", b"by ")):
        path = store.path / name
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(one for one in lines if not one.startswith(line)))
    store.refuses(make(2), REFUSED, "lower than 3")
    store.refuses(make(4, edits=dated(made="2090-01-01", expires="2098-05-05")), REFUSED, "expired")
    gives_results(store)
    store.install(make(4, edits=dated(made="2098-05-06")))
    assert store.status()["floor"] == 4


@pytest.mark.parametrize(
    "content", [b"", b"edgebuild-time 1\nfloor 2098-02-30\n", b"edgebuild-time 1\nfloor 2098-02-01"]
)
def test_a_time_floor_that_was_edited(store: Store, make: Release, content: bytes) -> None:
    store.install(make(1))
    (store.path / "time").write_bytes(content)
    store.refuses(make(2), REFUSED, "`time` in the store is not what edgebuild-run wrote")
    gives_results(store)


def test_identity_of_a_release_signed_again(store: Store, make: Release, trust: Callable[[bytes], Path]) -> None:
    """Another signature of what is current takes the place of the one there, and nothing else changes."""
    trust(Roles().build())
    store.install(make(1))
    again = make(1, key=SECOND)
    assert identity(again) == identity(make(1))
    assert store.install(again)["already"] is True
    assert store.status()["signer"] == "112233445566778A"
    gives_results(store)

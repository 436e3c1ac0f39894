"""`edgebuild-run follow` (SPEC 13), from a folder and over a bad line."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import roles
import tiny
from machine import HOST
from published import Server, manifest_id, publish, served
from store import SCRIPT, Store, release

from edgebuild.pipeline.delta import make_delta
from edgebuild.stages.runtime import runtime_binary

OK, INPUT, REFUSED, CHECK, UNSUPPORTED, IO = range(6)
NOISE = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(30_000))


@pytest.fixture
def store(sanitized: Path, tmp_path: Path) -> Store:
    return Store(sanitized / "edgebuild-run", tmp_path)


@pytest.fixture
def make(bundle: tiny.Bundle) -> Callable[..., bytes]:
    """A release of a megabyte, most of which no codec makes smaller; its runtime is a script."""
    return lambda number, **changes: release(
        bundle, number, SCRIPT, golden={"function/noise": NOISE, **changes.pop("golden", {})}, **changes
    ).build()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "releases"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with served(folder) as found:
        yield found


def follow(store: Store, base: object, *arguments: object) -> dict:
    done = store.run("follow", base, "--json", *arguments)
    assert (done.returncode, done.stderr) == (OK, ""), done
    return json.loads(done.stdout.splitlines()[0])


def fails(store: Store, base: object, code: int, message: str, *arguments: object) -> None:
    before = {name: found for name, found in store.listing().items() if not name.startswith("partial/")}
    done = store.run("follow", base, *arguments)
    assert message in done.stderr
    assert (done.returncode, done.stdout) == (code, "")
    after = {name: found for name, found in store.listing().items() if not name.startswith("partial/")}
    assert before in ({}, {name: found for name, found in after.items() if name in before})
    assert {name for name in after if name.startswith("functions/")} <= set(before) | {"functions"}


def test_a_folder_is_followed(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    publish(folder, make(1))
    fails(store, folder, INPUT, "nothing is installed as tiny yet")
    fails(store, folder, REFUSED, "no bundle for nowhere", "--target", "nowhere")
    said = follow(store, folder, "--target", "test")
    assert (said["up_to_date"], said["delta"]) == (False, False)
    assert store.status()["id"] == manifest_id(make(1))
    again = follow(store, folder)
    assert again["up_to_date"]
    publish(folder, make(2))
    assert not follow(store, folder)["up_to_date"]
    assert store.status()["id"] == manifest_id(make(2))


def test_the_delta_is_taken(store: Store, make: Callable[..., bytes], folder: Path, server: Server) -> None:
    old, new = make(1), make(2)
    publish(folder, new, [(make(7), b"of another"), (old, make_delta(old, new).data)])
    store.install(old)
    said = follow(store, server.url)
    assert (said["delta"], said["up_to_date"]) == (True, False)
    assert said["bytes_fetched"] < 5000
    assert [name for name, _ in server.seen] == ["release.json", "release.json.minisig", "1.edelta"]
    assert store.status()["id"] == manifest_id(new)
    assert list((store.path / "partial").iterdir()) == []


@pytest.mark.parametrize("damage", [b"EBD1 no delta at all", b""])
def test_a_wrong_delta_costs_only_the_whole_bundle(
    store: Store, make: Callable[..., bytes], folder: Path, server: Server, damage: bytes
) -> None:
    old, new = make(1), make(2)
    publish(folder, new, [(old, damage or make_delta(old, new).data)])
    if not damage:
        (folder / "0.edelta").write_bytes(bytes((folder / "0.edelta").stat().st_size))
    store.install(old)
    done = store.run("follow", server.url, "--json")
    assert done.returncode == OK
    assert "the whole bundle was taken" in done.stderr
    assert json.loads(done.stdout.splitlines()[0])["delta"] is False
    assert store.status()["id"] == manifest_id(new)


def test_a_line_that_breaks_is_taken_up_again(
    store: Store, make: Callable[..., bytes], folder: Path, server: Server
) -> None:
    """Answers of 500 and 503, and bodies that end early: every byte is fetched once."""
    bundle = make(1)
    publish(folder, bundle)
    server.faults = [503, 0, 500, 0, -1000, -300_000, 429, -500_000]
    said = follow(store, server.url, "--target", "test")
    assert store.status()["id"] == manifest_id(bundle)
    whole = sum((folder / name).stat().st_size for name in ("release.json", "release.json.minisig", "tiny.ebundle"))
    assert said["bytes_fetched"] == whole
    assert server.sent <= whole + 20_000
    assert said["connections"] == len(server.seen) == 9


def test_a_server_without_ranges(store: Store, make: Callable[..., bytes], folder: Path, server: Server) -> None:
    publish(folder, make(1))
    server.ranges = False
    server.faults = [0, 0, -400_000]
    said = follow(store, server.url, "--target", "test")
    assert store.status()["id"] == manifest_id(make(1))
    assert said["connections"] == 4


def test_the_next_attempt_fetches_what_is_missing(
    store: Store, make: Callable[..., bytes], folder: Path, server: Server
) -> None:
    bundle = make(1)
    publish(folder, bundle)
    server.faults = [0, 0, -700_000, 500, 500]
    fails(store, server.url, IO, "the server answers 500", "--target", "test", "--attempts", "2")
    server.faults = []
    said = follow(store, server.url, "--target", "test")
    assert store.status()["id"] == manifest_id(bundle)
    assert said["bytes_fetched"] < len(bundle) - 600_000
    assert int(server.seen[-1][1].removeprefix("bytes=").rstrip("-")) > 600_000


def test_a_delta_that_broke_off_goes_on(store: Store, make: Callable[..., bytes], folder: Path, server: Server) -> None:
    old, new = make(1), make(2, golden={"function/more": NOISE[::-1][:400_000]})
    delta = make_delta(old, new).data
    publish(folder, new, [(old, delta)])
    store.install(old)
    server.faults = [0, 0, -300_000, 500, 500]
    fails(store, server.url, IO, "the server answers 500", "--attempts", "2")
    server.faults = []
    said = follow(store, server.url)
    assert said["delta"]
    assert store.status()["id"] == manifest_id(new)
    assert said["bytes_fetched"] < len(delta) - 250_000


def test_what_is_not_signed_is_not_looked_at(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    publish(folder, make(1), key=tiny.Key.new(2))
    fails(store, folder, REFUSED, "which the trust file does not list", "--target", "test")
    publish(folder, make(1))
    text = (folder / "release.json").read_bytes()
    (folder / "release.json").write_bytes(text.replace(b'"release": 9', b'"release": 8'))
    fails(store, folder, REFUSED, "the signature does not hold", "--target", "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "edgebuild-release 2"}, "not a release index of version 1"),
        ({"bundles": [{"target": "test"}]}, "not a release index of version 1"),
        ({"more": 1}, "not a release index of version 1"),
        ({"name": "../up"}, "not a release index of version 1"),
        ({"release": -1}, "not a release index of version 1"),
        ({"made": "2026-02-30"}, "not a release index of version 1"),
    ],
)
def test_a_malformed_index_is_refused(
    store: Store, make: Callable[..., bytes], folder: Path, changes: dict, message: str
) -> None:
    publish(folder, make(1), **changes)
    fails(store, folder, REFUSED, message, "--target", "test")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """For 127.0.0.1, signed by itself."""
    key, path = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", path], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + key.read_bytes())
    return path


def test_https_goes_through_curl(
    sanitized: Path, tmp_path: Path, make: Callable[..., bytes], folder: Path, certificate: Path
) -> None:
    program, bundle = sanitized / "edgebuild-run", make(1)
    publish(folder, bundle)
    with served(folder, certificate) as server:
        fails(Store(program, tmp_path), server.url, IO, "certificate does not hold", "--target", "test")
        nowhere = {"PATH": str(tmp_path)}
        fails(Store(program, tmp_path, nowhere), server.url, IO, "https:// needs curl", "--target", "test")
        store = Store(program, tmp_path, {"CURL_CA_BUNDLE": str(certificate)})
        server.faults = [503, 0, 0, -300_000, 0]
        said = follow(store, server.url, "--target", "test")
        assert store.status()["id"] == manifest_id(bundle)
        assert said["bytes_fetched"] == sum(path.stat().st_size for path in folder.iterdir())
        server.faults = [0, 0, -300_000]
        publish(folder, make(2, golden={"function/more": NOISE[::-1]}))
        server.ranges = False
        follow(store, server.url)
        assert store.status()["id"] != manifest_id(bundle)
        (folder / "release.json").unlink()
        fails(store, server.url, IO, "has no release.json")


FIRST = roles.Roles()
NEXT = roles.Roles(version="2", release=(tiny.Key.new(3),))
NEXT_KEY = tiny.Key.new(3)


def publish_next(folder: Path, make: Callable[..., bytes], trust: bytes = NEXT.build(), version: int = 2) -> bytes:
    """A release of the key that only the next trust file lists."""
    bundle = make(2, key=NEXT_KEY)
    digest = hashlib.sha256(trust).hexdigest()
    row = {"file": "trust", "size": len(trust), "sha256": digest, "version": version}
    publish(folder, bundle, key=NEXT_KEY, trust=row)
    (folder / "trust").write_bytes(trust)
    return bundle


def test_a_new_release_key_comes_with_the_next_trust_file(
    store: Store, make: Callable[..., bytes], folder: Path
) -> None:
    store.write("trust", FIRST.build())
    store.install(make(1))
    bundle = publish_next(folder, make)
    said = follow(store, folder)
    assert said["new_trust"]
    assert store.status()["id"] == manifest_id(bundle)
    assert (store.path / "trust").read_bytes() == NEXT.build()
    assert follow(store, folder) | {"bytes_fetched": 0} == said | {
        "up_to_date": True, "new_trust": False, "bytes_fetched": 0, "connections": 2
    }  # fmt: skip
    publish(folder, make(3))  # the key that left
    fails(store, folder, REFUSED, "which the trust file does not list")


def test_a_stolen_key_stops_no_update(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    """The highest counter and the last day that it could sign: the next trust file ends both, from outside."""
    store.write("trust", FIRST.build())
    store.install(make(1))
    store.install(make(2**31 - 1, edits=(("arch ", "made 2029-12-31\narch "),)))
    publish(folder, make(2))
    fails(store, folder, REFUSED, "lower than 2147483647")
    bundle = publish_next(folder, make)
    assert follow(store, folder)["new_trust"]
    assert store.status()["id"] == manifest_id(bundle)
    assert (store.path / "time").read_bytes() == b"edgebuild-time 1\nfloor 2026-01-01\n"


@pytest.mark.parametrize(
    "trust",
    [
        NEXT.but(signers=roles.ROOTS[:1]).build(),
        NEXT.but(roots=roles.ROOTS[2:5], signers=roles.ROOTS[2:4]).build(),
        NEXT.but(version="1").build(),
        tiny.Key.new(3).trust,
        b"",
    ],
)
def test_a_trust_file_that_does_not_follow_changes_nothing(
    store: Store, make: Callable[..., bytes], folder: Path, trust: bytes
) -> None:
    store.write("trust", FIRST.build())
    store.install(make(1))
    publish_next(folder, make, trust)
    fails(store, folder, REFUSED, "which the trust file does not list")
    assert (store.path / "trust").read_bytes() == FIRST.build()


def test_plain_keys_are_never_replaced_from_outside(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    store.install(make(1))
    publish_next(folder, make)
    fails(store, folder, REFUSED, "which the trust file does not list")


def test_a_newer_trust_file_is_taken_with_a_known_key_too(
    store: Store, make: Callable[..., bytes], folder: Path
) -> None:
    store.write("trust", FIRST.build())
    store.install(make(1))
    trust = FIRST.but(version="7").build()
    row = {"file": "trust", "size": len(trust), "sha256": hashlib.sha256(trust).hexdigest(), "version": 7}
    publish(folder, make(2), trust=row)
    (folder / "trust").write_bytes(trust)
    assert follow(store, folder)["new_trust"]
    assert (store.path / "trust").read_bytes() == trust


def test_an_index_that_has_expired_is_refused(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    publish(folder, make(1), made="2020-01-01", expires="2021-01-01")
    fails(store, folder, REFUSED, "release.json expired on 2021-01-01", "--target", "test")


def test_files_that_are_not_there(store: Store, make: Callable[..., bytes], folder: Path, server: Server) -> None:
    folder.mkdir()
    fails(store, folder, IO, "has no release.json")
    fails(store, server.url, IO, "has no release.json")
    publish(folder, make(1))
    (folder / "tiny.ebundle").unlink()
    fails(store, server.url, IO, "has no tiny.ebundle", "--target", "test")
    (folder / "tiny.ebundle").write_bytes(make(1)[:-512])
    fails(store, server.url, IO, "and should have", "--target", "test")
    fails(store, "http://127.0.0.1:1/x", IO, "Connection refused", "--attempts", "1")
    fails(store, "http://user@host/x", IO, "this is no URL")
    fails(store, "http://host/a b", IO, "this is no URL")


def test_an_old_release_does_not_come_back(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    publish(folder, make(1))
    store.install(make(2))
    fails(store, folder, REFUSED, "lower than 2")


def test_releases_of_another_function_are_refused(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    publish(folder, make(1))
    fails(store, folder, REFUSED, "has releases of tiny, not of other", "--target", "test", "--name", "other")
    follow(store, folder, "--target", "test", "--name", "tiny")


def test_a_round_that_failed_is_said_in_json_too(store: Store, folder: Path) -> None:
    folder.mkdir()
    with store.process("follow", folder, "--target", "test", "--every", "1", "--json") as process:
        assert process.stderr
        said = json.loads(process.stderr.readline())
        process.kill()
    assert said["code"] == "io"
    assert "has no release.json" in said["error"]
    assert said["hint"]


def test_every_so_often(store: Store, make: Callable[..., bytes], folder: Path) -> None:
    """Rounds go on behind one that failed."""
    folder.mkdir()
    with store.process("follow", folder, "--target", "test", "--every", "1") as process:
        assert process.stderr
        assert process.stdout
        assert "has no release.json" in process.stderr.readline()
        publish(folder, make(1))
        assert process.stdout.readline().startswith("updated by a whole bundle")
        process.stdout.readline()
        process.stdout.readline()
        assert process.stdout.readline().startswith("up to date")
        process.kill()
    assert store.status()["id"] == manifest_id(make(1))


def test_memory_does_not_grow_with_the_bundle(tmp_path: Path, make: Callable[..., bytes], folder: Path) -> None:
    fast = Store(runtime_binary(f"{HOST}-linux-gnu"), tmp_path)
    publish(folder, make(1, golden={"function/large": NOISE * 20}))
    command = fast.command("follow", folder, "--target", "test")
    script = (
        "import os, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
    code, peak = done.stdout.split()
    print(f"{peak} KiB at most for a bundle of 20 MB")  # noqa: T201
    assert code == "0"
    assert int(peak) < 16 << 10

"""What a hostile server, or a bad moment, may not do to a device that follows one (SPEC 11 and 13)."""

import dataclasses
import json
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from published import Server, listening, publish, served
from roles import RELEASES, Roles
from store import SCRIPT, Release, Store, gives_results, identity

from edgebuild.core import delta
from edgebuild.pipeline.delta import make_delta

OK, INPUT, REFUSED, CHECK, UNSUPPORTED, IO, MEMORY = range(7)
CRASH = SCRIPT + b"kill -SEGV $$\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "releases"


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with served(folder) as found:
        yield found


@pytest.fixture
def scripted(make: Release) -> Callable[[int], bytes]:
    """A release whose runtime is a script, so that its canary costs nothing."""
    return lambda number: make(number, SCRIPT)


def wrong_golden() -> dict[str, bytes]:
    pixels = tiny.reference(tiny.golden_frames())["pixels"]
    pixels[0, 0, 0, 0] ^= 1
    return {"golden/out-0.npy": tiny.npy(pixels)}


# The line


@pytest.mark.parametrize("size", [8000, 8180, 8192, 8200, 12_000, 16_000, 16_384, 40_000])
def test_a_head_of_any_size(store: Store, size: int) -> None:
    head = b"HTTP/1.1 404 no\r\nX: "
    head += b"x" * (size - len(head) - 4) + b"\r\n\r\n"
    with listening(lambda connection, _: connection.sendall(head)) as url:
        done = store.run("follow", url, "--target", "test", "--attempts", "1")
    assert done.returncode == IO, done.stderr
    assert ("has no release.json" if size <= 8192 else "its answer is no HTTP") in done.stderr


def test_bytes_behind_the_body(store: Store, scripted: Callable[[int], bytes], folder: Path) -> None:
    """They are none of it (RFC 9112, section 6.3)."""
    publish(folder, scripted(1))

    def answer(connection: socket.socket, name: str) -> None:
        body = (folder / name).read_bytes()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body + b"HTTP/1.1 200 OK\r\n")

    with listening(answer) as url:
        done = store.run("follow", url, "--target", "test")
    assert done.returncode == OK, done.stderr
    assert store.status()["id"] == identity(scripted(1))


def drip(connection: socket.socket, text: bytes) -> None:
    for byte in text:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n"])
def test_a_server_that_drips(store: Store, start: bytes) -> None:
    """It never is silent, and never comes to an end: the store would be locked for as long."""

    def answer(connection: socket.socket, _: str) -> None:
        connection.sendall(start)
        drip(connection, b"HTTP/1.1 200 OK\r\nX: " + b"x" * 10_000)

    hasty = Store(store.program, store.folder, {"EDGEBUILD_TEST_SILENCE_MS": "500"})
    with listening(answer) as url:
        done = hasty.run("follow", url, "--target", "test", "--attempts", "2", timeout=20)
    assert done.returncode == IO
    assert "Connection timed out" in done.stderr


def test_a_server_that_hangs_up_after_each_byte(store: Store) -> None:
    seen: list[str] = []

    def answer(connection: socket.socket, name: str) -> None:
        seen.append(name)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"x" * len(seen))

    with listening(answer) as url:
        done = store.run("follow", url, "--target", "test", "--attempts", "3", timeout=30)
    assert done.returncode == IO
    assert len(seen) == 3


def test_a_fifo_in_the_folder(store: Store, scripted: Callable[[int], bytes], folder: Path) -> None:
    publish(folder, scripted(1))
    (folder / "release.json").unlink()
    os.mkfifo(folder / "release.json")
    done = store.run("follow", folder, "--target", "test", timeout=20)
    assert done.returncode == IO
    assert "it is no regular file" in done.stderr


def test_a_small_delta_goes_on_where_it_broke_off(store: Store, make: Release, folder: Path, server: Server) -> None:
    noise = b"".join(tiny.KEY.sign(bytes([i]), "x") for i in range(150))
    old, new = make(1, SCRIPT), make(2, SCRIPT, golden={"function/more": noise})
    made = make_delta(old, new).data
    assert 10_000 < len(made) < 60_000
    publish(folder, new, [(old, made)])
    store.install(old)
    server.faults = [0, 0, -8000, 500, 500]
    assert store.run("follow", server.url, "--attempts", "2").returncode == IO
    server.seen.clear()
    said = json.loads(store.run("follow", server.url, "--json").stdout.splitlines()[0])
    assert said["delta"]
    assert server.seen[-1] == ("0.edelta", "bytes=8000-")


@pytest.mark.parametrize("fault", ["missing", "cut off", "refused"])
def test_a_delta_that_is_not_to_be_had(
    store: Store, scripted: Callable[[int], bytes], folder: Path, server: Server, fault: str
) -> None:
    """What no other attempt would mend is no reason to stay with the old release for ever."""
    old, new = scripted(1), scripted(2)
    publish(folder, new, [(old, make_delta(old, new).data)])
    store.install(old)
    path = folder / "0.edelta"
    if fault == "missing":
        path.unlink()
    elif fault == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        server.faults = [0, 0, 403]
    done = store.run("follow", server.url, "--json")
    assert done.returncode == OK, done.stderr
    assert "warning: the whole bundle was taken: " in done.stderr
    assert store.status()["id"] == identity(new)


# What the index names, and nothing else


@pytest.mark.parametrize("what", ["release", "name", "target"])
def test_another_release_than_the_index_names(store: Store, make: Release, folder: Path, what: str) -> None:
    """Signed as well, of the same size, and not older than what is installed."""
    edits = {"release": (), "name": (("name tiny", "name mini"),), "target": (("target test", "target best"),)}[what]
    named, other = make(3, SCRIPT), make(2, SCRIPT, edits=edits)
    assert len(named) == len(other)
    if what == "release":
        store.install(make(1, SCRIPT))
    publish(folder, named)
    (folder / "tiny.ebundle").write_bytes(other)
    done = store.run("follow", folder, "--target", "test")
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert "is not the release that release.json names" in done.stderr
    assert [path.name for path in (store.path / "blobs").iterdir()] == [] or what == "release"
    states = [path.name for path in (store.path / "functions").iterdir()]
    assert states == (["tiny"] if what == "release" else [])
    if what == "release":
        assert store.status()["release"] == 1


def test_a_release_that_is_bad_is_not_fetched_again(store: Store, make: Release, folder: Path, server: Server) -> None:
    old, bad = make(1), make(2, golden=wrong_golden())
    publish(folder, bad, [(old, make_delta(old, bad).data)])
    store.install(old)
    done = store.run("follow", server.url)
    assert (done.returncode, store.status()["bad"]) == (CHECK, [identity(bad)])
    server.seen.clear()
    done = store.run("follow", server.url)
    assert done.returncode == REFUSED
    assert "this release of tiny was installed before and is marked bad" in done.stderr
    assert [name for name, _ in server.seen] == ["release.json", "release.json.minisig"]


def test_a_release_that_is_too_old_is_not_fetched(
    store: Store, scripted: Callable[[int], bytes], folder: Path, server: Server
) -> None:
    publish(folder, scripted(1), release=1)
    store.install(scripted(2))
    done = store.run("follow", server.url)
    assert done.returncode == REFUSED
    assert "lower than 2, which tiny had already" in done.stderr
    assert [name for name, _ in server.seen] == ["release.json", "release.json.minisig"]


# The device itself


@pytest.mark.parametrize("ignored", [signal.SIGCHLD, signal.SIGPIPE])
def test_a_canary_counts_whatever_signals_are_ignored(store: Store, make: Release, ignored: signal.Signals) -> None:
    """Whoever starts edgebuild-run may ignore SIGCHLD; children then leave no exit code behind."""

    def ignore() -> None:
        signal.signal(ignored, signal.SIG_IGN)

    store.install(make(1))
    broken = store.write("b", make(2, golden=wrong_golden()))
    done = store.run("install", broken, preexec_fn=ignore)
    assert (done.returncode, store.status()["release"]) == (CHECK, 1)
    done = store.run("run", "tiny", "--input", store.frames(), preexec_fn=ignore, timeout=30)
    assert done.returncode == OK


def test_a_canary_that_was_killed_from_outside(store: Store, make: Release) -> None:
    """As the kernel does where memory runs out: that says nothing about the release."""
    store.install(make(1))
    done = store.run("install", store.write("b", make(2, b"#!/bin/sh\nkill -KILL $$\n")))
    assert done.returncode == MEMORY
    assert "the canary was killed" in done.stderr
    assert (store.status()["release"], store.status()["bad"]) == (1, [])


def test_what_gave_results_outlasts_releases_that_gave_none(store: Store, make: Release) -> None:
    """Two bad releases in a row that pass their canary: there is still one to go back to."""
    store.install(make(1))
    gives_results(store)
    for number in (2, 3):
        store.install(make(number, CRASH))
        assert store.run("run", "tiny", "--input", store.frames()).returncode == 128 + signal.SIGSEGV
        assert store.status()["previous"] == identity(make(1))
    for _ in range(2):
        store.run("run", "tiny", "--input", store.frames())
    assert store.status()["id"] == identity(make(1))
    gives_results(store)


def test_a_damaged_trust_file_stops_nothing_that_runs(store: Store, make: Release) -> None:
    store.write("trust", Roles().build())
    store.install(make(1))
    (store.path / "trust").write_bytes(bytes(100))
    gives_results(store)
    done = store.run("install", store.write("b", make(2)))
    assert done.returncode == REFUSED
    assert "`trust` in the store is not what edgebuild-run wrote" in done.stderr


def test_a_damaged_release_is_mended(store: Store, make: Release, folder: Path) -> None:
    """It is up to date by its ID, and does not run; nothing else comes."""
    publish(folder, make(1))
    assert store.run("follow", folder, "--target", "test").returncode == OK
    gives_results(store)
    (blob,) = (path for path in (store.path / "blobs").iterdir() if path.read_bytes() == tiny.table().tobytes())
    blob.chmod(0o600)
    blob.write_bytes(bytes(blob.stat().st_size))
    assert store.run("run", "tiny", "--input", store.frames()).returncode == REFUSED
    done = store.run("follow", folder)
    assert done.returncode == OK
    gives_results(store)
    assert "up to date" in store.run("follow", folder).stdout


def test_what_other_installations_left_makes_room(fast: Store, make: Release, small_disk: Path) -> None:
    """A release that never came to an end must not keep the next one from being installed."""
    noise = random.Random(5).randbytes(2_500_000)
    store = Store(fast.program, small_disk)
    assert store.run("install", fast.write("1", make(1))).returncode == OK
    (store.path / "partial" / ("0" * 64)).write_bytes(bytes(4 << 19))
    done = store.run("install", fast.write("2", make(2, golden={"function/more": noise})))
    assert done.returncode == OK, done.stderr
    assert list((store.path / "partial").iterdir()) == []


def test_a_delta_that_is_cut_off_is_not_decoded_to_the_end(store: Store, make: Release) -> None:
    """Zeros behind its end would make as many bytes as the file has, of 2 GiB at most."""
    noise = random.Random(5).randbytes(2_500_000)
    old = make(1, SCRIPT, golden={"function/more": noise})
    new = make(
        2, SCRIPT, golden={"function/more": b"begin" + noise[:1_000_000] + b"middle" + noise[1_000_000:] + b"end"}
    )
    store.install(old)
    parsed = delta.parse(make_delta(old, new).data)
    (at,) = (i for i, part in enumerate(parsed.parts) if part.codec == delta.PATCH and len(part.data) > 30)
    parts = list(parsed.parts)
    parts[at] = delta.Part(delta.PATCH, parts[at].data[:15])

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    path = store.write("d", delta.serialize(dataclasses.replace(parsed, parts=tuple(parts))))
    done = store.run("install", path, preexec_fn=limit, restore_signals=False)
    assert done.returncode == REFUSED, done.stderr
    assert "the delta is malformed: the size of a coded file" in done.stderr


def test_a_trust_file_that_cannot_be_kept_marks_nothing_bad(store: Store, make: Release, folder: Path) -> None:
    first, second = Roles(release=RELEASES[:1]), Roles(version="2", release=RELEASES[1:])
    store.write("trust", first.build())
    store.install(make(1))
    publish(folder, make(2, key=RELEASES[1]), key=RELEASES[1])
    (folder / "trust").write_bytes(second.build())
    (store.path / "trusts" / "1" / "x").mkdir(parents=True)
    done = store.run("follow", folder)
    assert (done.returncode, store.status()["bad"]) == (IO, [])
    assert "trusts/1 in the store" in done.stderr

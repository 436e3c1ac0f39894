"""What a hostile server, or a bad moment, may not do to a device that follows one (SPEC 11 and 13)."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from published import Server, publish, served
from store import SCRIPT, Release, Store

from edgebuild.pipeline.delta import make_delta

OK, INPUT, REFUSED, CHECK, UNSUPPORTED, IO, MEMORY = range(7)
CRASH = SCRIPT + b"kill -SEGV $$\n"
Answer = Callable[[socket.socket, str], None]


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


@contextmanager
def listening(answer: Answer) -> Iterator[str]:
    """The URL of a server that reads a request and then does as it likes with the connection."""

    def serve(connection: socket.socket) -> None:
        with connection:
            request = connection.recv(4096).decode()
            try:
                answer(connection, request.split(" ")[1].rsplit("/")[-1])
            except OSError:
                return  # the device has hung up

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("size", [8000, 8180, 8192, 8200, 12_000, 16_000, 16_384, 40_000])
def test_a_head_of_any_size(store: Store, size: int) -> None:
    head = b"HTTP/1.1 404 no\r\nX: "
    head += b"x" * (size - len(head) - 4) + b"\r\n\r\n"
    with listening(lambda connection, _: connection.sendall(head)) as url:
        done = store.run("follow", url, "--target", "test", "--attempts", "1")
    assert done.returncode == IO, done.stderr
    assert ("has no release.json" if size <= 8192 else "its answer is no HTTP") in done.stderr


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


# What the index names, and nothing else


# The device itself

"""What a hostile server, or a bad moment, may not do to a device that follows one (SPEC 11 and 13)."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from published import Server, served
from store import SCRIPT, Release, Store

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


# What the index names, and nothing else


# The device itself

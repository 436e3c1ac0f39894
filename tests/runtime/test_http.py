"""What servers answer that is not the plainest answer: RFC 9110 and 9112, as far as `follow` speaks them (SPEC 13)."""

import itertools
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from published import Answer, listening, manifest_id, publish
from store import SCRIPT, Release, Store

OK, IO = 0, 5
NOISE = bytes(range(256)) * 400
REQUEST = re.compile(r"GET (\S+) HTTP/1\.1\r\nHost: (\S+)\r\n.*Range: bytes=(\d+)-\r\n", re.DOTALL)


@pytest.fixture
def bundle_of_one(make: Release) -> bytes:
    """Its runtime is a script, so that its canary costs nothing."""
    return make(1, SCRIPT, golden={"function/noise": NOISE})


@pytest.fixture
def folder(tmp_path: Path, bundle_of_one: bytes) -> Path:
    publish(tmp_path / "releases", bundle_of_one)
    return tmp_path / "releases"


def chunked(body: bytes, sizes: Iterator[int], extension: bytes = b"", trailer: bytes = b"") -> bytes:
    parts, at = [], 0
    while at < len(body):
        piece = body[at : at + next(sizes)]
        parts.append(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece))
        at += len(piece)
    return b"".join(parts) + b"0\r\n" + trailer + b"\r\n"


def serving(folder: Path, head: bytes, form: Callable[[bytes], bytes]) -> Answer:
    """Every file from where it is asked for, behind this head."""

    def answer(connection: socket.socket, request: str) -> None:
        path, _, start = REQUEST.match(request).groups()
        file = folder / path.rsplit("/")[-1]
        if not file.exists():
            connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        data = file.read_bytes()
        line = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n" % (
            int(start), len(data) - 1, len(data)
        )  # fmt: skip
        connection.sendall(line + head + b"\r\n" + form(data[int(start) :]))

    return answer


def follows(store: Store, url: str, *arguments: object) -> dict:
    done = store.run("follow", url, "--target", "test", "--json", *arguments)
    assert (done.returncode, done.stderr) == (OK, ""), done
    return json.loads(done.stdout.splitlines()[0])


CHUNKED = b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("head", "sizes", "extension", "trailer"),
    [
        (CHUNKED, [65536], b"", b""),
        (b"transfer-encoding:  Chunked \r\nContent-Length: 3\r\n", [1, 4096, 7], b"", b""),
        (CHUNKED, [16384], b';name="value"', b"Expires: 0\r\nX: y\r\n"),
        (CHUNKED, [9973], b" ", b""),
    ],
)
def test_chunked_bodies(
    store: Store, folder: Path, bundle_of_one: bytes, head: bytes, sizes: list[int], extension: bytes, trailer: bytes
) -> None:
    form = lambda body: chunked(body, itertools.cycle(sizes), extension, trailer) + b"HTTP/1.1 200 OK\r\n"  # noqa: E731
    with listening(serving(folder, head, form), heads=True) as url:
        said = follows(store, url)
    assert store.status()["id"] == manifest_id(bundle_of_one)
    whole = sum((folder / name).stat().st_size for name in ("release.json", "release.json.minisig", "tiny.ebundle"))
    assert said["bytes_fetched"] == whole
    assert said["connections"] == 3


def test_a_chunked_body_that_breaks_off_is_taken_up_again(store: Store, folder: Path, bundle_of_one: bytes) -> None:
    """Also one whose line ends between two chunks: that is no end of the file."""
    cuts = iter([10**9, 10**9, 50_000, 4096 + 8, 2 * (4096 + 8), 10**9])
    form = lambda body: chunked(body, itertools.repeat(4096))[: next(cuts)]  # noqa: E731
    with listening(serving(folder, CHUNKED, form), heads=True) as url:
        said = follows(store, url)
    assert store.status()["id"] == manifest_id(bundle_of_one)
    assert said["connections"] == 6
    cuts = iter([30, *itertools.repeat(10**9, 9)])
    with listening(serving(folder, CHUNKED, form), heads=True) as url:
        assert follows(store, url)["up_to_date"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\r\n", b"x\r\n", b"-1\r\n", b"10000000000000000\r\nx", b"5\nabcde", b"5\r\nabcdefg\r\n0\r\n\r\n",
        b"5;" + b"x" * 9000, b"0\r\n" + b"X: y\r\n" * 2000, b"ffffffffffffff\r\nx",
    ],
)  # fmt: skip
def test_chunks_that_are_none(store: Store, body: bytes) -> None:
    def answer(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

    with listening(answer) as url:
        done = store.run("follow", url, "--target", "test", "--attempts", "1")
    assert done.returncode == IO, done
    assert "its chunks are none" in done.stderr or "the connection was closed" in done.stderr


@pytest.mark.parametrize("head", [b"Transfer-Encoding: gzip, chunked\r\n", b"Content-Encoding: gzip\r\n"])
def test_other_codings_are_refused(store: Store, folder: Path, head: bytes) -> None:
    with listening(serving(folder, head, lambda body: body), heads=True) as url:
        done = store.run("follow", url, "--target", "test", "--attempts", "1")
    assert done.returncode == IO
    assert "it sends the file encoded" in done.stderr


def test_the_identity_is_no_coding(store: Store, folder: Path) -> None:
    with listening(serving(folder, b"Content-Encoding: identity\r\n", lambda body: body), heads=True) as url:
        follows(store, url)


def test_ranges_that_are_given_in_part(store: Store, folder: Path, bundle_of_one: bytes) -> None:
    """A server may give less than was asked for (RFC 9110, section 14.2)."""

    def answer(connection: socket.socket, request: str) -> None:
        path, _, start = REQUEST.match(request).groups()
        data, first = (folder / path.rsplit("/")[-1]).read_bytes(), int(start)
        piece = data[first : first + (60_000 if len(data) > 60_000 else 300)]
        line = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(line % (first, first + len(piece) - 1, len(data), len(piece)) + piece)

    with listening(answer, heads=True) as url:
        follows(store, url)
    assert store.status()["id"] == manifest_id(bundle_of_one)


def test_what_is_said_in_front_of_the_answer(store: Store, folder: Path) -> None:
    answer = serving(folder, b"", lambda body: body)

    def hinting(connection: socket.socket, request: str) -> None:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")
        answer(connection, request)

    with listening(hinting, heads=True) as url:
        follows(store, url)
    with listening(lambda connection, _: connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 99)) as url:
        done = store.run("follow", url, "--target", "test", "--attempts", "1")
    assert done.returncode == IO
    assert "its answer is no HTTP" in done.stderr


def test_the_request(store: Store, folder: Path) -> None:
    """IPv6 in brackets, a port, a slash at the end, a path with escapes."""
    seen: list[tuple[str, str]] = []
    answer = serving(folder, b"", lambda body: body)

    def noting(connection: socket.socket, request: str) -> None:
        seen.append(REQUEST.match(request).groups()[:2])
        answer(connection, request)

    try:
        with listening(noting, "::1", heads=True) as url:
            follows(store, f"{url}/a%20b/")
    except OSError:
        pytest.skip("there is no IPv6 here")
    assert seen[0] == ("/a%20b/release.json", url.removeprefix("http://"))
    for long in (f"http://h/{'x' * 1100}", "/x" * 600):
        done = store.run("follow", long, "--target", "test")
        assert done.returncode == IO
        assert "the name is too long" in done.stderr
    for wrong in ("http://[::1/x", "http://h:0/x", "http://h:65536/x", "http://h/x#y", "http:///x", "http://[::1]x/"):
        done = store.run("follow", wrong, "--target", "test")
        assert done.returncode == IO
        assert "this is no URL of a folder" in done.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\n\r\n",
            "the server answers 301",
        ),
        (b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-9/10\r\n\r\nabc", "it answered with another range"),
        (b"HTTP/1.1 206 Partial\r\n\r\nabc", "it answered with another range"),
        (b"HTTP/1.1 416 no\r\n\r\n", "the server answers 416"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\nshort", "the connection was closed too early"),
        (b"HTTP/2 200\r\n\r\nabc", "its answer is no HTTP"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "the server answers 101"),
    ],
)
def test_answers_that_are_refused(store: Store, line: bytes, said: str) -> None:
    with listening(lambda connection, _: connection.sendall(line)) as url:
        done = store.run("follow", url, "--target", "test", "--attempts", "2")
    assert done.returncode == IO
    assert said in done.stderr
    assert not list(store.path.glob("functions/*"))


def test_a_file_that_changes_while_it_is_fetched(store: Store, folder: Path, make: Release) -> None:
    """Two files of one size, half of each: it is found out, and the next attempt has the right one."""
    right = (folder / "tiny.ebundle").read_bytes()
    other = make(1, SCRIPT, golden={"function/noise": NOISE[::-1]})
    assert len(other) == len(right)
    (folder / "tiny.ebundle").write_bytes(other)
    count = itertools.count()

    def form(body: bytes) -> bytes:
        if next(count) != 2:
            return body
        (folder / "tiny.ebundle").write_bytes(right)
        return body[: len(body) - 30_000]

    with listening(serving(folder, b"", form), heads=True) as url:
        done = store.run("follow", url, "--target", "test")
        assert done.returncode != OK
        assert not list(store.path.glob("functions/*"))
        follows(store, url)
    assert store.status()["id"] == manifest_id(right)


def test_a_first_release_that_fails_is_not_fetched_again(store: Store, make: Release, tmp_path: Path) -> None:
    """Until the index names another."""
    folder = tmp_path / "failing"
    publish(folder, make(1, b"#!/bin/sh\nexit 9\n", golden={"function/noise": NOISE}))
    seen: list[str] = []
    answer = serving(folder, b"", lambda body: body)

    def noting(connection: socket.socket, request: str) -> None:
        seen.append(REQUEST.match(request)[1])
        answer(connection, request)

    with listening(noting, heads=True) as url:
        first = store.run("follow", url, "--target", "test")
        assert "the canary failed: exit code 9" in first.stderr
        assert seen[-1] == "/tiny.ebundle"
        for _ in range(2):
            seen.clear()
            done = store.run("follow", url, "--target", "test")
            assert done.returncode == 2
            assert "is marked bad" in done.stderr
            assert seen == ["/release.json", "/release.json.minisig"]
        assert json.loads(store.run("status", "--json").stdout)["functions"] == []
        assert store.run("gc").returncode == OK
        assert store.run("run", "tiny").returncode == 1
        publish(folder, make(2, SCRIPT))
        follows(store, url)
    assert store.status()["id"] == manifest_id(make(2, SCRIPT))
    assert store.status()["bad"] == [manifest_id(make(1, b"#!/bin/sh\nexit 9\n", golden={"function/noise": NOISE}))]

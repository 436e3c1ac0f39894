"""A release's folder as a device sees it: its index, made by hand, and a server whose line is bad."""

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import tiny

Answer = Callable[[socket.socket, str], None]


def manifest_id(bundle: bytes) -> str:
    size = int(bundle[124:135], 8)
    return hashlib.sha256(bundle[512 : 512 + size]).hexdigest()


def item(name: str, data: bytes) -> dict[str, Any]:
    return {"file": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def index(bundle: bytes, deltas: Sequence[tuple[bytes, bytes]] = (), **changes: Any) -> bytes:
    """The bytes of release.json; `deltas` are pairs of old bundle and delta."""
    rows = [{"from": manifest_id(old), **item(f"{i}.edelta", delta)} for i, (old, delta) in enumerate(deltas)]
    entry = {"target": "test", "id": manifest_id(bundle), **item("tiny.ebundle", bundle), "deltas": rows}
    other = {"target": "other", "id": "0" * 64, **item("x.ebundle", b"x"), "deltas": []}
    value = {
        "format": "edgebuild-release 1", "name": "tiny", "version": "1.0.9", "release": 9, "made": None,
        "expires": None, "trust": None, "bundles": [other, entry],
    } | changes  # fmt: skip
    return json.dumps(value, indent=1).encode()


def publish(
    folder: Path,
    bundle: bytes,
    deltas: Sequence[tuple[bytes, bytes]] = (),
    key: tiny.Key = tiny.KEY,
    **changes: Any,
) -> None:
    """Writes release.json and all that it names."""
    folder.mkdir(exist_ok=True)
    text = index(bundle, deltas, **changes)
    files = {"tiny.ebundle": bundle, **{f"{i}.edelta": delta for i, (_, delta) in enumerate(deltas)}}
    files |= {"release.json": text, "release.json.minisig": key.sign(text, "edgebuild release")}
    for name, data in files.items():
        (folder / name).write_bytes(data)


@dataclass
class Server:
    """What the server is told to do wrong, and what it saw. Every answer takes the next of `faults`: 0, a status
    code, or -n where the line breaks after n bytes of the body.
    """

    url: str
    faults: list[int] = field(default_factory=list)
    ranges: bool = True
    seen: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0


@contextmanager
def served(folder: Path, certificate: Path | None = None) -> Iterator[Server]:
    """The folder over HTTP, or over HTTPS with a certificate and its key in one file."""
    server: Server

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = self.path.strip("/").split("/")[-1]
            asked = self.headers.get("Range", "")
            server.seen.append((name, asked))
            fault = server.faults.pop(0) if server.faults else 0
            path = folder / name
            if fault > 0 or not path.is_file():
                self.send_error(fault if fault > 0 else 404)
                return
            data = path.read_bytes()
            start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and server.ranges else 0
            body = data[start:]
            if start > len(data):
                self.send_error(416)
                return
            self.send_response(206 if asked and server.ranges else 200)
            self.send_header("Content-Length", str(len(body)))
            if asked and server.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            part = body[: abs(fault)] if fault < 0 else body
            server.sent += len(part)
            self.wfile.write(part)
            if len(part) < len(body):
                self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A device that was killed has hung up."""

    http = Quiet(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
    scheme = "http" if certificate is None else "https"
    server = Server(f"{scheme}://127.0.0.1:{http.server_port}/releases")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


@contextmanager
def listening(answer: Answer, host: str = "127.0.0.1", *, heads: bool = False) -> Iterator[str]:
    """The URL of a server that reads a request and then does as it likes with the connection. It is told the file's
    name, or with `heads` the whole request.
    """

    def serve(connection: socket.socket) -> None:
        with connection:
            request = connection.recv(4096).decode()
            try:
                answer(connection, request if heads else request.split(" ")[1].rsplit("/")[-1])
            except OSError:
                return  # the device has hung up

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        threading.Thread(target=accept, daemon=True).start()
        name = f"[{host}]" if ":" in host else host
        yield f"http://{name}:{listener.getsockname()[1]}"

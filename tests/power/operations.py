"""What is interrupted: each operation, the store that it starts from, and what may be current after it."""

import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tiny
from machine import HOST
from published import manifest_id, publish, served
from roles import Roles
from store import SCRIPT, release

from edgebuild.pipeline.delta import make_delta
from edgebuild.stages.runtime import runtime_binary

OK, CHECK, CRASHED = 0, 3, 139
READY = b"fd=; while [ $# -gt 1 ]; do [ $1 = --ready-fd ] && fd=$2; shift; done; echo >/proc/self/fd/$fd\n"
ANOTHER = tiny.Key.new(3)
TRUST = {
    "keys": tiny.KEY.trust,
    "roles": Roles().build(),
    "other roles": Roles(version="2", made="2026-02-02", release=(ANOTHER,)).build(),
}
FLOORS = {"roles": "2026-01-01", "other roles": f"2026-03-03\nby tiny 2 {ANOTHER.id}"}
"""The time floor behind what is installed with a trust file: the latest date in it and the release."""
NOISE = b"".join(hashlib.sha256(bytes([i])).digest() for i in range(64))


def appear(path: Path, data: bytes) -> None:
    """Whole or not at all: devices of several threads read the same files."""
    partial = path.with_name(f".{path.name}.{threading.get_ident()}")
    partial.write_bytes(data)
    partial.replace(path)


@dataclass(frozen=True)
class Releases:
    """Releases of one function whose results differ; their runtime is a script, which is quick, or the real one for
    `arch`.
    """

    folder: Path
    program: bytes
    real: bool = False
    arch: str = HOST
    bundles: dict[str, bytes] = field(default_factory=dict)
    servers: ExitStack = field(default_factory=ExitStack)
    urls: dict[Path, str] = field(default_factory=dict)

    def bundle(self, name: str) -> bytes:
        """Release `name`: its number, and behind it `c` if it crashes, `f` if its canary fails, `k` if it has a date
        and is signed by another key.
        """
        if name not in self.bundles:
            self.bundles[name] = self._make(int(name[0]), name[1:])
        return self.bundles[name]

    def file(self, name: str) -> Path:
        path = self.folder / f"{name}.ebundle"
        if not path.exists():
            appear(path, self.bundle(name))
        return path

    def delta(self, old: str, new: str) -> Path:
        path = self.folder / f"{old}-{new}.edelta"
        if not path.exists():
            appear(path, make_delta(self.bundle(old), self.bundle(new)).data)
        return path

    def published(self, old: str, new: str) -> Path:
        """A folder to follow, with the delta if there is something to start from."""
        folder = self.folder / f"published-{old}-{new}"
        if not folder.exists():
            pairs = [(self.bundle(old), self.delta(old, new).read_bytes())] if old else []
            publish(folder, self.bundle(new), pairs)
        return folder

    def published_with_trust(self, new: str, trust: str) -> Path:
        """A folder of a release by the key that only this trust file, which lies in it, lists."""
        folder = self.folder / f"published-{new}-{trust.replace(' ', '-')}"
        if not folder.exists():
            data = TRUST[trust]
            row = {"file": "trust", "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "version": 2}
            publish(folder, self.bundle(new), key=ANOTHER, trust=row)
            (folder / "trust").write_bytes(data)
        return folder

    def url_of(self, folder: Path) -> str:
        """The folder behind a server, which ends with this process."""
        if folder not in self.urls:
            self.urls[folder] = self.servers.enter_context(served(folder)).url
        return self.urls[folder]

    def name_of(self, identity: str) -> str:
        (name,) = [name for name, bundle in self.bundles.items() if manifest_id(bundle) == identity]
        return name

    @property
    def run(self) -> list[str]:
        """The command whose results `answer` reads."""
        path = self.folder / "frames.npy"
        if not path.exists():
            appear(path, tiny.npy(tiny.golden_frames()))
        return ["run", "tiny", "--input", str(path)]

    def answer(self, name: str) -> str:
        if not self.real:
            return name[0]
        return str(self._results(int(name[0]))["pixels"][:, 0, 0, 0].tolist())

    def read_answer(self, output: str) -> str:
        if not self.real:
            return output.strip()
        return str([json.loads(line)["outputs"]["pixels"][0] for line in output.splitlines()])

    def _table(self, number: int) -> np.ndarray:
        return np.roll(tiny.table(), number)

    def _results(self, number: int) -> dict[str, np.ndarray]:
        pixels = self._table(number)[tiny.golden_frames()]
        total = pixels.astype(np.int32).sum(axis=(1, 2, 3), dtype=np.int32)
        mean = total.astype(np.float32) / np.float32(tiny.N)
        return {"pixels": pixels, "total": total, "mean": mean, "bright": total > tiny.N * 255 // 2}

    def _runtime(self, number: int, kind: str) -> bytes:
        if kind == "c":
            return SCRIPT + b"kill -SEGV $$\n"
        if kind == "f":
            return b"#!/bin/sh\nexit 9\n"
        if self.real:
            return runtime_binary(f"{self.arch}-linux-gnu").read_bytes()
        return SCRIPT + READY + f"echo {number}\n".encode()

    def _make(self, number: int, kind: str) -> bytes:
        golden = {f"golden/out-{j}.npy": tiny.npy(array) for j, array in enumerate(self._results(number).values())}
        golden |= {"function/noise": NOISE[number:], "function/same": NOISE}
        bundle = tiny.Bundle(self.program, weights=self._table(number).tobytes(), arch=self.arch)
        edits = (("arch ", "made 2026-03-03\narch "),) if kind == "k" else ()
        key = ANOTHER if kind == "k" else tiny.KEY
        return release(bundle, number, self._runtime(number, kind), golden=golden, edits=edits, key=key).build()


@dataclass(frozen=True)
class Device:
    """One store in a folder of its own, and the edgebuild-run that works on it, under the shim."""

    program: Path
    shim: Path
    folder: Path
    releases: Releases
    trust: str = "keys"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def command(self, *arguments: object) -> list[str]:
        trust = self.releases.folder / self.trust
        if not trust.exists():
            appear(trust, TRUST[self.trust])
        return [str(a) for a in (self.program, *arguments, "--store", self.store, "--trust", trust)]

    def environment(self, **variables: str) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": "/", "LD_PRELOAD": str(self.shim), **variables}

    def recorded(self, **variables: str) -> dict[str, str]:
        """The environment in which calls are counted."""
        return self.environment(POWER_STORE=str(self.store), **variables)

    def run(
        self, *arguments: object, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=environment or self.environment(),
        )

    def must(self, *arguments: object, code: int = OK) -> str:
        done = self.run(*arguments)
        assert done.returncode == code, done
        return done.stdout

    def install(self, *names: str) -> None:
        for name in names:
            self.must("install", self.releases.file(name))

    def runs(self) -> None:
        assert self.releases.read_answer(self.must(*self.releases.run)) != ""


Prepare = Callable[[Device], None]
Arguments = Callable[[Releases], list[object]]


@dataclass(frozen=True)
class Operation:
    """`before` and `after`: the current release, "" for none."""

    name: str
    prepare: Prepare
    arguments: Arguments
    before: str
    after: str
    retry: str = ""  # the bundle that must install afterwards; "": the same must succeed again
    code: int = OK
    trust: str = "keys"  # that is given to it, and from then on
    taken: str = ""  # that lies beside the release, and counts from then on
    runs: bool = True  # what is current before it runs

    @property
    def repeats(self) -> bool:
        """A second time it does what the first time was cut off."""
        return not self.retry or self.name in {"gc", "run, first result"}

    @property
    def kept(self) -> str:
        """The trust file that the store has afterwards."""
        return self.taken or self.trust

    @property
    def outcomes(self) -> set[str]:
        return {self.before or "none", self.after}


def installed(*names: str, trust: str = "keys") -> Prepare:
    def prepare(device: Device) -> None:
        device = replace(device, trust=trust)
        for name in names:
            device.install(name)
            if len(name) == 1:
                device.runs()

    return prepare


def unconfirmed(device: Device) -> None:
    installed("1")(device)
    device.install("2")


def crashed_twice(device: Device) -> None:
    installed("1", "2c")(device)
    for _ in range(2):
        device.must(*device.releases.run, code=CRASHED)


def damaged(device: Device) -> None:
    installed("1")(device)
    blob = device.store / "blobs" / hashlib.sha256(NOISE).hexdigest()
    blob.chmod(0o600)
    blob.write_bytes(bytes(len(NOISE)))


def littered(device: Device) -> None:
    """What nothing names: of a release that never became current, and of an installation that was cut off."""
    installed("1", "2")(device)
    (device.store / "blobs" / hashlib.sha256(b"old").hexdigest()).write_bytes(b"old")
    (device.store / "releases" / hashlib.sha256(b"head").hexdigest()).write_bytes(b"head")
    (device.store / "partial" / hashlib.sha256(b"part").hexdigest()).write_bytes(b"pa")
    (device.store / "functions" / ".new-tiny").write_bytes(b"edgebuild-")
    (device.store / ".new-time").write_bytes(b"")


def nothing(_: Device) -> None:
    """There is no store yet."""


def install(name: str) -> Arguments:
    return lambda releases: ["install", releases.file(name)]


def delta(old: str, new: str) -> Arguments:
    return lambda releases: ["install", releases.delta(old, new)]


def follow(old: str, new: str) -> Arguments:
    return lambda releases: ["follow", releases.published(old, new), "--target", "test"]


HASTY = ("--attempts", "2")
"""What fails for good is not waited for."""


def follow_url(old: str, new: str) -> Arguments:
    return lambda releases: ["follow", releases.url_of(releases.published(old, new)), "--target", "test", *HASTY]


def follow_with_trust(new: str, trust: str, *, http: bool = False) -> Arguments:
    def arguments(releases: Releases) -> list[object]:
        folder = releases.published_with_trust(new, trust)
        return ["follow", *([releases.url_of(folder), *HASTY] if http else [folder])]

    return arguments


NEXT_TRUST = {"trust": "roles", "taken": "other roles"}


def plain(*arguments: object) -> Arguments:
    return lambda _: list(arguments)


def run(releases: Releases) -> list[object]:
    return [*releases.run]


OPERATIONS = (
    Operation("first install", nothing, install("1"), "", "1"),
    Operation("install", installed("1"), install("2"), "1", "2"),
    Operation("install over two", installed("1", "2"), install("3"), "2", "3"),
    Operation("install, first roles", installed("1"), install("2"), "1", "2", trust="roles"),
    Operation("install, other roles", installed("1", trust="roles"), install("2k"), "1", "2k", trust="other roles"),
    Operation("install of what is current", installed("1"), install("1"), "1", "1"),
    Operation("install that fails its canary", installed("1"), install("2f"), "1", "1", "3", code=CHECK),
    Operation("repair", damaged, install("1"), "1", "1", runs=False),
    Operation("delta", installed("1"), delta("1", "2"), "1", "2"),
    Operation("follow, first", nothing, follow("", "1"), "", "1"),
    Operation("follow, whole", installed("1"), follow("", "2"), "1", "2"),
    Operation("follow, delta", installed("1"), follow("1", "2"), "1", "2"),
    Operation("follow, http", installed("1"), follow_url("1", "2"), "1", "2"),
    Operation("follow, http, whole", installed("1"), follow_url("", "2"), "1", "2"),
    Operation(
        "follow, next trust",
        installed("1", trust="roles"),
        follow_with_trust("2k", "other roles"),
        "1",
        "2k",
        **NEXT_TRUST,
    ),
    Operation(
        "follow, next trust, http",
        installed("1", trust="roles"),
        follow_with_trust("2k", "other roles", http=True),
        "1",
        "2k",
        **NEXT_TRUST,
    ),
    Operation("rollback", installed("1", "2"), plain("rollback", "tiny"), "2", "1", "3"),
    Operation("rollback --bad", installed("1", "2"), plain("rollback", "tiny", "--bad"), "2", "1", "3"),
    Operation("gc", littered, plain("gc"), "2", "2", "3"),
    Operation("run, first result", unconfirmed, run, "2", "2", "3"),
    Operation("run, third crash", crashed_twice, run, "2c", "1", "3"),
)
BY_NAME = {operation.name: operation for operation in OPERATIONS}

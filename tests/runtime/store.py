"""A store as a test sees it: what edgebuild-run says about it, and every byte of it."""

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tiny

Release = Callable[..., bytes]

# A runtime that passes any canary and then does what the test wants.
SCRIPT = b'#!/bin/sh\ncase "$*" in *--check*) exit 0 ;; esac\n'


@dataclass(frozen=True)
class Store:
    """A folder for one store, a trust file, and the edgebuild-run that works on it."""

    program: Path
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "store"

    @property
    def trust(self) -> Path:
        path = self.folder / "trust"
        if not path.exists():
            path.write_bytes(tiny.KEY.trust)
        return path

    def frames(self) -> Path:
        return self.write("frames.npy", tiny.npy(tiny.golden_frames()))

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def command(self, *arguments: object) -> list[str]:
        return [str(a) for a in (self.program, *arguments, "--store", self.path, "--trust", self.trust)]

    def process(self, *arguments: object, **options: object) -> "subprocess.Popen[str]":
        streams: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(self.command(*arguments), env=self._environment(), **(streams | options))  # type: ignore[call-overload, no-any-return]

    def run(self, *arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
        defaults: dict[str, object] = {"capture_output": True, "text": True, "timeout": 120, "env": self._environment()}
        command = options.pop("command", None) or self.command(*arguments)
        return subprocess.run(command, check=False, **(defaults | options))  # type: ignore[call-overload, no-any-return]

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.environment}

    def install(self, bundle: bytes) -> dict:
        """What `install --json` says of a bundle that must be accepted."""
        done = self.run("install", self.write("a.ebundle", bundle), "--json")
        assert (done.returncode, done.stderr) == (0, ""), done
        return json.loads(done.stdout)

    def refuses(self, bundle: bytes, code: int, message: str, arrived: bytes | None = None) -> None:
        """A bundle that must be refused, and leaves the store as it was but for a file that has `arrived`."""
        before = self.listing()
        if arrived is not None:
            digest = hashlib.sha256(arrived).hexdigest()
            before |= {f"blobs/{digest}": f"100444 {digest}"}
        done = self.run("install", self.write("a.ebundle", bundle))
        assert message in done.stderr
        assert (done.returncode, done.stdout) == (code, "")
        assert self.listing() == before

    def status(self, name: str = "tiny") -> dict:
        """What `status` says of one name."""
        done = self.run("status", name, "--json")
        assert (done.returncode, done.stderr) == (0, ""), done
        (function,) = json.loads(done.stdout)["functions"]
        return function

    def listing(self) -> dict[str, str]:
        """Every path of the store, with its mode and the hash of what it holds."""
        found = {}
        for path in sorted(self.path.rglob("*")):
            info = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path.relative_to(self.path))] = f"{info.st_mode:o} {hashlib.sha256(content).hexdigest()}"
        return found


def release(bundle: tiny.Bundle, number: int, runtime: bytes, **changes: object) -> tiny.Bundle:
    """The bundle as release `number`, with a runtime."""
    golden = {"edgebuild-run": runtime, **changes.pop("golden", {})}  # type: ignore[dict-item]
    edits = [("release 1\n", f"release {number}\n"), ("version 1.0.0", f"version 1.0.{number}")]
    edits += changes.pop("edits", ())  # type: ignore[arg-type]
    return bundle.but(golden=golden, edits=tuple(edits), **changes)


def identity(bundle: bytes) -> str:
    size = int(bundle[124:135], 8)
    return hashlib.sha256(bundle[512 : 512 + size]).hexdigest()


def gives_results(store: Store, name: str = "tiny") -> "subprocess.CompletedProcess[str]":
    done = store.run("run", name, "--input", store.frames())
    assert done.returncode == 0, done.stderr
    totals = [json.loads(line)["outputs"]["total"] for line in done.stdout.splitlines()]
    assert totals == tiny.reference(tiny.golden_frames())["total"].tolist()
    return done

"""The two readers: the native one, thousands of mutants a process under the sanitizers, and Python's."""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tamper.cases import CRASH, Case

from edgebuild.core import minisign
from edgebuild.core.bundle import head, read_bundle
from edgebuild.core.errors import BundleError
from edgebuild.core.trust import Trust, follows, parse_trust
from edgebuild.pipeline.delta import apply_delta
from edgebuild.release import index

REFUSED = "refused"
SECONDS = 600


def native(program: Path, folder: Path, base: bytes, trust: bytes, roles: bytes, cases: Sequence[Case]) -> list[str]:
    """A line for each case. A case at which the driver ends is a crash, and another driver goes on behind it."""
    lines: list[str] = []
    store = folder / "store"
    store.mkdir(mode=0o700, exist_ok=True)
    (folder / "base.ebundle").write_bytes(base)
    (folder / "trust").write_bytes(trust)
    (folder / "roles").write_bytes(roles)
    command = [program, store, *(folder / name for name in ("base.ebundle", "trust", "roles"))]
    while len(lines) < len(cases):
        data = b"".join(case.record() for case in cases[len(lines) :])
        done = subprocess.run(command, input=data, capture_output=True, check=False, timeout=SECONDS)
        found = done.stdout.decode(errors="replace").split("\n")
        lines += found[:-1]
        if done.returncode or done.stderr or len(lines) < len(cases):
            lines.append(f"{CRASH} {done.returncode} {done.stderr.decode(errors='replace')[:3000]}")
    assert len(lines) == len(cases)
    return lines


def python(case: Case, base: bytes, trust: bytes) -> str | None:
    """What Python says, in the driver's words; None for what only a device does. It raises nothing but BundleErrors."""
    judges = {"b": _bundle, "t": _trust, "i": _index}
    try:
        if case.letter == "d":
            return "ok " + _delta(case.parts[0], base, trust)
        judge = judges.get(case.letter)
        return None if judge is None else "ok " + judge(*case.parts)
    except BundleError as error:
        return f"{REFUSED} {error.message}"


def _bundle(trust: bytes, data: bytes) -> str:
    read_bundle(data, parse_trust(trust))
    return ""


def _trust(old: bytes, new: bytes) -> str:
    before, after = parse_trust(old) if old else None, parse_trust(new)
    if before is not None:
        if before.roles is None or after.roles is None:
            raise BundleError("a trust file without roles neither follows nor is followed")
        follows(before.roles, after.roles)
    return keys(after)


def keys(trust: Trust) -> str:
    """As the driver lists them."""
    return "".join(f"{(key.key_id + key.key).hex()}," for key in trust.values())


def _index(trust: bytes, text: bytes, signature: bytes) -> str:
    minisign.verify(text, signature, parse_trust(trust))
    index.parse(text)
    return ""


def _delta(data: bytes, base: bytes, trust: bytes) -> str:
    made = apply_delta(base, data)
    read = read_bundle(made, parse_trust(trust))
    return hashlib.sha256(b"".join(head(made)) + b"".join(read.files.values())).hexdigest()

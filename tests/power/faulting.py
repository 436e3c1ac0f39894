"""Lets one system call after the other fail, and looks at what the store is then, and at what was said.

faults.c holds every call of edgebuild-run and of what it starts (the canary, a release) in a seccomp filter. What comes
of a call that failed is judged as after a kill, and by the exit code: what the machine failed at is 5 or 6, and never
the release's fault.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from errno import EAGAIN, EINTR, EIO, EMFILE, ENFILE, ENOLCK, ENOMEM, ENOSPC, EROFS
from pathlib import Path

from machine import HOST
from power.operations import Device, Operation
from power.sweep import WORKERS, Bench, Found, Verdict, allowed, judge

from edgebuild.core.zig import zig_cc

SOURCE = Path(__file__).with_name("faults.c")
OK, REFUSED, IO, MEMORY = 0, 2, 5, 6
HALF = "half"
NAMES = {0: HALF, **{number: name for name, number in globals().items() if isinstance(number, int) and name[0] == "E"}}
MODIFIES = ("write", "mkdirat", "mkdir", "renameat", "renameat2", "openat", "ftruncate", "fsync", "unlinkat", "fchmod")
FAULTS: Mapping[str, tuple[int | str, ...]] = {
    "openat": (EMFILE, EIO, ENOMEM, EROFS),
    "open": (EMFILE, EIO, ENOMEM, EROFS),
    "read": (EIO, EINTR),
    "pread64": (EIO, EINTR),
    "write": (ENOSPC, EIO, EINTR, HALF),
    "close": (EIO,),
    "fstat": (EIO,),
    "newfstatat": (EIO,),
    "lseek": (EIO,),
    "mmap": (ENOMEM,),
    "munmap": (ENOMEM,),
    "mprotect": (ENOMEM,),
    "madvise": (ENOMEM,),
    "fsync": (EIO, ENOSPC),
    "syncfs": (EIO,),
    "ftruncate": (EIO, EINTR),
    "fchmod": (EIO,),
    "mkdirat": (ENOSPC, EROFS),
    "mkdir": (ENOSPC, EROFS),
    "unlinkat": (EIO, EROFS),
    "renameat": (ENOSPC, EIO, EROFS),
    "renameat2": (ENOSPC, EIO, EROFS),
    "getdents64": (EIO,),
    "fstatfs": (EIO, EINTR),
    "flock": (ENOLCK, EINTR),
    "fcntl": (ENOMEM,),
    "faccessat": (EIO,),
    "memfd_create": (ENOMEM, EMFILE),
    "clone": (EAGAIN, ENOMEM),
    "clone3": (EAGAIN, ENOMEM),
    "execve": (ENOMEM, EIO),
    "execveat": (ENOMEM, EIO),
    "wait4": (EINTR,),
    "pipe2": (EMFILE, ENFILE),
    "dup2": (EMFILE,),
    "poll": (EINTR, ENOMEM),
    "signalfd4": (EMFILE, ENOMEM),
    "clock_nanosleep": (EINTR,),
    "getrandom": (EINTR,),
    "socket": (EMFILE, ENOMEM),
    "connect": (EINTR, ENOMEM),
    "sendto": (EINTR, ENOMEM),
    "recvfrom": (EINTR, EIO),
    "getsockopt": (ENOMEM,),
}
"""What each call may fail with, on a machine that has run out of something or whose disk is failing."""
LASTING: Mapping[int, str] = {
    ENOSPC: ",".join(name for name in MODIFIES if name not in {"unlinkat", "fchmod"}),
    EROFS: ",".join(name for name in MODIFIES if name != "openat"),
    EIO: ",".join(("read", "pread64", *MODIFIES)),
    EMFILE: "openat,pipe2,memfd_create,socket,signalfd4,dup2",
    ENOMEM: "mmap,memfd_create,clone,clone3,execve,execveat",
}
"""What stays as it is from one call on: a disk that is full, or read-only, or broken, a machine out of memory."""


@dataclass(frozen=True)
class Held:
    """A call that faults.c saw."""

    task: int
    number: int
    name: str
    makes: bool


@dataclass(frozen=True)
class Fault:
    """`last` is the last call that fails; `calls` those that do."""

    task: int
    first: int
    last: int
    error: int | str
    calls: str
    what: str

    def arguments(self, trace: str = "-") -> list[str]:
        return [trace, *(str(part) for part in (self.task, self.first, self.last, self.error, self.calls))]


NO_FAULT = Fault(-1, 0, -1, EIO, "any", "nothing")


def build_faults(folder: Path) -> Path:
    program = folder / "faults"
    flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    subprocess.run([*zig_cc(f"{HOST}-linux-gnu"), *flags, str(SOURCE), "-o", str(program)], check=True)
    return program


def can_hold_calls(faults: Path) -> bool:
    """Containers may forbid a filter that listens."""
    done = subprocess.run([faults, *NO_FAULT.arguments(), "/bin/true"], capture_output=True, check=False)
    return done.returncode == 0


def run_with(
    faults: Path, device: Device, operation: Operation, fault: Fault, trace: str = "-"
) -> "subprocess.CompletedProcess[str]":
    command = [str(faults), *fault.arguments(trace), *device.command(*operation.arguments(device.releases))]
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/"}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment)


def held(faults: Path, bench: Bench, operation: Operation) -> list[Held]:
    """The calls of an operation of which none fails."""
    with bench.started(operation) as device:
        trace = device.folder / "trace"
        done = run_with(faults, device, operation, NO_FAULT, str(trace))
        assert done.returncode == operation.code, done
        rows = [line.split() for line in trace.read_text().splitlines()]
    return [Held(int(task), int(number), name, makes == "c") for task, number, name, makes in rows]


def single_faults(calls: list[Held], *, own_runtime: bool = True) -> Iterator[Fault]:
    """Without `own_runtime` none of what is started: a shell takes a script that it cannot read for one that ends."""
    for call in calls:
        if call.task and not own_runtime:
            continue
        for error in FAULTS.get(call.name, ()):
            if error in {EROFS, ENOSPC} and call.name in {"openat", "open"} and not call.makes:
                continue
            name = error if isinstance(error, str) else NAMES[error]
            what = f"{call.name} {call.number} of process {call.task}: {name}"
            yield Fault(call.task, call.number, call.number, error, "any", what)


def lasting_faults(calls: list[Held]) -> Iterator[Fault]:
    """From each call on that can be the first one."""
    for error, names in LASTING.items():
        for call in calls:
            if call.task == 0 and call.name in names.split(","):
                what = f"{NAMES[error]} from {call.name} {call.number} on"
                yield Fault(0, call.number, 1 << 30, error, names, what)


def is_marked_bad(device: Device) -> bool:
    done = device.run("status", "--json")
    return any(function["bad"] for function in json.loads(done.stdout)["functions"]) if not done.returncode else False


DAMAGED = ("cannot read the file", "has lost its", "which has no such file")
"""What is said, with exit code 2, of files that the store does not give back: they are as good as damaged."""
DYING = (127, 139)
"""How a release's runtime ends that the dynamic loader could not load, or that crashes: `run` passes that on."""


def said_right(device: Device, operation: Operation, fault: Fault, code: int, text: str) -> list[str]:
    """What is wrong with how it ended. No fault of the machine is taken for one of the release."""
    is_run = operation.name.startswith("run")
    right = {operation.code, IO, MEMORY}
    if any(words in text for words in DAMAGED):
        right.add(REFUSED)
    if is_run and (fault.task or "crash" in operation.name):
        right.update(DYING)
    if code not in right:
        return [f"exit code {code}: {text.strip()}"]
    if code not in {OK, *DYING} and "error: " not in text:
        return [f"exit code {code} without a word: {text!r}"]
    wanted = operation.code != OK or "--bad" in operation.name or "crash" in operation.name
    if not wanted and is_marked_bad(device):
        return [f"the release is marked bad: {text.strip()}"]
    return []


def fail_everywhere(faults: Path, bench: Bench, operation: Operation, chosen: Sequence[Fault]) -> Found:

    def look(index: int) -> Verdict:
        fault = chosen[index]
        with bench.started(operation) as device:
            try:
                done = run_with(faults, device, operation, fault)
            except subprocess.TimeoutExpired:
                return Verdict(fault.what, "?", 0.0, ("it hangs",))
            problems = said_right(device, operation, fault, done.returncode, done.stderr)
            # What it says it did, it did.
            may_be = (operation.after,) if done.returncode == operation.code == OK else allowed(operation)
            verdict = judge(device, operation, fault.what, may_be)
            return Verdict(verdict.where, verdict.current, verdict.start, (*problems, *verdict.problems))

    with ThreadPoolExecutor(WORKERS) as pool:
        return Found(operation.name, len(chosen), list(pool.map(look, range(len(chosen)))))

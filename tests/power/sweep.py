"""Cuts an operation at every call, or loses what was not synced, and looks at what the store is then."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from machine import HOST
from power.calls import Call, read_journal
from power.losses import Disk, Tree, write_tree
from power.operations import FLOORS, TRUST, Device, Operation, Releases
from published import manifest_id

from edgebuild.stages.runtime import runtime_binary

WORKERS = 2
CRASHES = 3
START_LIMIT = 2.0
"""Seconds until a device runs again, issue 5."""


@dataclass(frozen=True)
class Verdict:
    """Of one state. `current` is a release's name, "" for none; `start` the seconds that `run` took."""

    where: str
    current: str
    start: float
    problems: tuple[str, ...]


@dataclass
class Found:
    """Of one operation."""

    operation: str
    calls: int = 0
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        return [f"{self.operation}, {v.where}: {problem}" for v in self.verdicts for problem in v.problems]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(verdict.current or "none" for verdict in self.verdicts)

    @property
    def slowest(self) -> float:
        return max((verdict.start for verdict in self.verdicts), default=0.0)


def scratch_root() -> str | None:
    """In memory where there is such a place: a sync costs nothing there, and nothing here depends on its work."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


class Bench:
    """Devices that start from copies of the same stores."""

    def __init__(self, shim: Path, folder: Path, releases: Releases, program: Path | None = None) -> None:
        self.shim, self.folder, self.releases = shim, folder, releases
        self.program = program or runtime_binary(f"{HOST}-linux-gnu")
        self._bases: dict[str, Path] = {}

    @contextmanager
    def device(self, operation: Operation) -> Iterator[Device]:
        with tempfile.TemporaryDirectory(prefix="device-", dir=self.folder) as folder:
            yield Device(self.program, self.shim, Path(folder), self.releases, operation.trust)

    def base(self, operation: Operation) -> Path:
        """The folder with the store that the operation starts from."""
        if operation.name not in self._bases:
            folder = Path(tempfile.mkdtemp(prefix="base-", dir=self.folder))
            operation.prepare(Device(self.program, self.shim, folder, self.releases))
            self._bases[operation.name] = folder
        return self._bases[operation.name]

    @contextmanager
    def started(self, operation: Operation) -> Iterator[Device]:
        with self.device(operation) as device:
            if (self.base(operation) / "store").exists():
                shutil.copytree(self.base(operation) / "store", device.store)
            yield device

    def journal(self, operation: Operation) -> list[Call]:
        """The calls of an operation that nothing interrupts."""
        with self.started(operation) as device:
            path = device.folder / "journal"
            done = device.run(*operation.arguments(self.releases), environment=device.recorded(POWER_JOURNAL=str(path)))
            assert done.returncode == operation.code, done
            return read_journal(path)


def current_of(device: Device) -> tuple[str, list[str]]:
    """What `status` says is current, and what is wrong with what it says."""
    done = device.run("status", "--json")
    if not device.store.exists() or (done.returncode and "nothing was installed in it" in done.stderr):
        return "", []
    if done.returncode:
        return "?", [f"status: {done.stderr.strip()}"]
    functions = json.loads(done.stdout)["functions"]
    if not functions:
        return "", []
    (function,) = functions
    return device.releases.name_of(function["id"]), ["its head is damaged"] if function["damaged"] else []


def start(device: Device, current: str) -> tuple[float, list[str]]:
    """Seconds until `run` gives results, or has counted a crash, and what is wrong with it."""
    longest = 0.0
    for _ in range(CRASHES if current.endswith("c") else 1):
        began = time.perf_counter()
        done = device.run(*device.releases.run)
        longest = max(longest, time.perf_counter() - began)
        if done.returncode == 0:
            break
    problems = [f"the next start took {longest:.1f} s"] if longest > START_LIMIT else []
    if done.returncode:
        return longest, [*problems, f"run: exit code {done.returncode}: {done.stderr.strip()}"]
    wanted = device.releases.answer("1" if current.endswith("c") else current)
    got = device.releases.read_answer(done.stdout)
    return longest, problems if got == wanted else [*problems, f"run: {got} and not {wanted}"]


def is_blob(path: Path) -> bool:
    return hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def leftovers(device: Device) -> list[str]:
    """What is in the store behind a further installation and should not be there, or is not there and should be."""
    names = {folder: {p.name for p in (device.store / folder).iterdir()} for folder in ("partial", "releases")}
    heads = {manifest_id(bundle) for bundle in device.releases.bundles.values()}
    problems = [f"partial/{name} is left over" for name in names["partial"]]
    problems += [f"{path.name} is left over" for path in device.store.rglob(".new-*")]
    problems += [f"releases/{name} is none" for name in names["releases"] - heads]
    problems += [f"blobs/{p.name} is damaged" for p in (device.store / "blobs").iterdir() if not is_blob(p)]
    if len(names["releases"]) > 2:
        problems += [f"{len(names['releases'])} releases are left over"]
    return problems


def retry(device: Device, operation: Operation) -> list[str]:
    """A further installation must succeed, and leave nothing of what was interrupted."""
    releases = device.releases
    command = ["install", releases.file(operation.retry)] if operation.retry else operation.arguments(releases)
    done = device.run(*command)
    if done.returncode or done.stderr:
        return [f"the next {command[0]}: {done.stderr.strip()}"]
    current, problems = current_of(device)
    if current != (operation.retry or operation.after):
        problems.append(f"the next {command[0]} leaves {current}")
    return [*problems, *leftovers(device)]


def downgraded(device: Device, operation: Operation) -> list[str]:
    """A release is never current without the trust file and the time floor that it was accepted with."""
    kept = {name: path.read_bytes() for name in ("trust", "time") if (path := device.store / name).is_file()}
    wanted = {
        "trust": TRUST[operation.kept],
        "time": f"edgebuild-time 1\nfloor {FLOORS[operation.kept]}\n".encode(),
    }
    return [f"`{name}` is not the one of the release" for name in wanted if kept.get(name) != wanted[name]]


def judge(device: Device, operation: Operation, where: str, allowed: Sequence[str]) -> Verdict:
    """The store must hold exactly the old or the new release, which runs, and take a further one."""
    current, problems = current_of(device)
    taken = 0.0
    if current not in allowed:
        problems.append(f"the current release is {current or 'none'}")
    elif current and not problems and operation.runs:
        taken, problems = start(device, current)
    if current == operation.after and operation.kept in FLOORS:
        problems += downgraded(device, operation)
    return Verdict(where, current, taken, (*problems, *retry(device, operation)))


def allowed(operation: Operation) -> tuple[str, ...]:
    return (operation.before, operation.after)


def _parallel(work: Callable[[int], Verdict], count: int) -> list[Verdict]:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, range(count)))


def cut_everywhere(bench: Bench, operation: Operation) -> Found:
    """SIGKILL before each call, and in the middle of each write."""
    calls = bench.journal(operation)
    cuts = [(number, False) for number in range(len(calls))]
    cuts += [(number, True) for number, call in enumerate(calls) if len(call.data) > 1]

    def cut(index: int) -> Verdict:
        number, half = cuts[index]
        where = f"killed {'in' if half else 'before'} call {number}, {calls[number]}"
        with bench.started(operation) as device:
            variables = {"POWER_CUT": str(number)} | ({"POWER_HALF": "1"} if half else {})
            done = device.run(*operation.arguments(bench.releases), environment=device.recorded(**variables))
            assert done.returncode == -signal.SIGKILL, (where, done)
            return judge(device, operation, where, allowed(operation))

    return Found(operation.name, len(calls), _parallel(cut, len(cuts)))


def cut_at_random(bench: Bench, operations: Sequence[Operation], count: int, seed: int = 0) -> list[Found]:
    """SIGKILL at a random moment of the time that an operation takes, which is measured before; what may be done again
    up to three times in a row.
    """
    found = {operation.name: Found(operation.name) for operation in operations}
    randoms = random.Random(seed)
    choices = []
    for i in range(count):
        operation = operations[i % len(operations)]
        times = 1 if operation.retry else randoms.randint(1, 3)
        choices.append((operation, [randoms.random() for _ in range(times)]))
    usual = {operation.name: _duration(bench, operation) for operation in operations}

    def cut(index: int) -> None:
        operation, moments = choices[index]
        with bench.started(operation) as device:
            for moment in moments:
                process = _begin(bench, device, operation)
                time.sleep(moment * usual[operation.name])
                process.kill()
                process.wait()
            times = " and ".join(f"{moment * usual[operation.name] * 1000:.2f}" for moment in moments)
            verdict = judge(device, operation, f"killed after {times} ms", allowed(operation))
        found[operation.name].verdicts.append(verdict)

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(cut, range(count)))
    return list(found.values())


def _begin(bench: Bench, device: Device, operation: Operation) -> "subprocess.Popen[bytes]":
    command = device.command(*operation.arguments(bench.releases))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=device.environment(), **quiet)


def _duration(bench: Bench, operation: Operation) -> float:
    def once() -> float:
        with bench.started(operation) as device:
            process = _begin(bench, device, operation)
            began = time.perf_counter()
            process.wait()
            return time.perf_counter() - began

    return min(once() for _ in range(3))


def _key(tree: Tree) -> str:
    digest = hashlib.sha256()
    for path, (mode, content) in tree.items():
        digest.update(f"{path} {mode:o} {'-' if content is None else len(content)}\n".encode())
        digest.update(content or b"")
    return digest.hexdigest()


@dataclass(frozen=True)
class Case:
    """A state to be judged, and what may be current in it."""

    where: str
    tree: Tree
    allowed: tuple[str, ...]


def judge_trees(bench: Bench, operation: Operation, cases: Sequence[Case], *, to_first: bool = False) -> list[Verdict]:
    """Equal states are judged once, the last ones first; with `to_first` until there is a problem."""
    distinct = list({(_key(case.tree), case.allowed): case for case in reversed(cases)}.values())

    def look(index: int) -> Verdict:
        case = distinct[index]
        with bench.device(operation) as device:
            write_tree(case.tree, device.folder)
            return judge(device, operation, case.where, case.allowed)

    if not to_first:
        return _parallel(look, len(distinct))
    verdicts: list[Verdict] = []
    for index in range(len(distinct)):
        verdicts.append(look(index))
        if verdicts[-1].problems:
            break
    return verdicts


def lose_everywhere(
    bench: Bench,
    operation: Operation,
    calls: Sequence[Call] | None = None,
    *,
    subsets: int = 0,
    to_first: bool = False,
) -> Found:
    """Every state of the model in losses.py, after every call; what the operation reported must not be lost again.

    `calls` take the place of those that it makes.
    """
    calls = bench.journal(operation) if calls is None else calls
    disk = Disk(bench.base(operation), "store", calls)
    cases = [
        Case(
            f"power lost before call {loss.before}{f', {calls[loss.before]}' if loss.before < len(calls) else ''}, "
            f"kept: {loss.kept}",
            loss.tree,
            allowed(operation) if loss.before < len(calls) else (operation.after,),
        )
        for loss in disk.losses(subsets=subsets)
    ]
    return Found(operation.name, len(calls), judge_trees(bench, operation, cases, to_first=to_first))


def lose_after_cut(bench: Bench, operation: Operation) -> Found:
    """Killed before each call and done again at once, then power is lost: what was not synced the first time is not
    taken for durable the second time.
    """
    count = len(bench.journal(operation))

    def cut(number: int) -> list[Case]:
        with bench.started(operation) as device:
            path = device.folder / "journal"
            arguments = operation.arguments(bench.releases)
            device.run(*arguments, environment=device.recorded(POWER_JOURNAL=str(path), POWER_CUT=str(number)))
            killed = len(read_journal(path)) if path.exists() else 0
            done = device.run(*arguments, environment=device.recorded(POWER_JOURNAL=str(path)))
            assert done.returncode == operation.code, (number, done)
            calls = read_journal(path)
        disk = Disk(bench.base(operation), "store", calls)
        return [
            Case(
                f"killed before call {number}, done again, power lost before call {before}",
                disk.durable(before),
                allowed(operation) if before < len(calls) else (operation.after,),
            )
            for before in range(killed, len(calls) + 1)
        ]

    with ThreadPoolExecutor(WORKERS) as pool:
        cases = [case for some in pool.map(cut, range(count)) for case in some]
    return Found(operation.name, count, judge_trees(bench, operation, cases))

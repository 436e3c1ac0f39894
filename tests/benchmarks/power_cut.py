"""The power-cut sweep of issue 5, whole: `python tests/benchmarks/power_cut.py [--randoms N] [--disks] [OPERATION]...`.

Bundles carry the real runtime. Every operation is killed before every call that changes the store and in the middle of
every write; every state is tried that the disk may be in when the power goes after any call, with every subset of up to
six unsynced changes; every operation is killed, done again, and then loses its power; and there are 500 kills at random
moments. Last, each sync is left out: what that breaks is found, or the sync is named as one that nothing depends on.

With --disks instead: the store lies on a disk with a file system, whose image is copied at each call and mounted again.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "runtime")]

import tiny  # noqa: E402
from machine import HOST  # noqa: E402
from power.block import FILE_SYSTEMS, Disks, cannot  # noqa: E402
from power.calls import build_shim  # noqa: E402
from power.losses import without  # noqa: E402
from power.operations import OPERATIONS, Operation, Releases  # noqa: E402
from power.sweep import (  # noqa: E402
    Bench,
    Found,
    cut_at_random,
    cut_everywhere,
    lose_after_cut,
    lose_everywhere,
    scratch_root,
)

SUBSETS = 6
MUTATED = ("install over two", "install, other roles", "rollback", "gc")


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def show(what: str, found: Found, began: float) -> None:
    outcomes = ", ".join(f"{name} {count}" for name, count in sorted(found.outcomes.items()))
    say(
        f"{found.operation:30} {what:20} {found.calls:5} calls {len(found.verdicts):6} states: {outcomes}; "
        f"slowest start {found.slowest * 1000:.0f} ms; {len(found.problems)} problems "
        f"({time.perf_counter() - began:.0f} s)"
    )
    for problem in found.problems[:5]:
        say(f"    {problem}")


def sweep(bench: Bench, operation: Operation) -> list[Found]:
    steps = [
        ("killed", lambda: cut_everywhere(bench, operation)),
        ("power lost", lambda: lose_everywhere(bench, operation, subsets=SUBSETS)),
    ]
    if operation.repeats:
        steps.append(("killed, repeated", lambda: lose_after_cut(bench, operation)))
    results = []
    for what, step in steps:
        began = time.perf_counter()
        results.append(step())
        show(what, results[-1], began)
    return results


def mutate(bench: Bench, operation: Operation) -> None:
    """Leaves out each sync, by what it is on."""
    calls = bench.journal(operation)
    kinds = Counter(kind_of(call.path) for call in calls if call.name == "fsync" and not call.failed)
    for kind, count in kinds.items():
        found = lose_everywhere(bench, operation, without(calls, "fsync", kind), to_first=True)
        verdict = f"found: {found.problems[0].splitlines()[0]}" if found.problems else "nothing depends on it"
        say(f"{operation.name:30} without {count:2} syncs of {kind}: {verdict}")


def kind_of(path: str) -> str:
    """A pattern of the paths that are synced for the same reason."""
    if path.startswith("partial/"):
        return "partial/.*"
    folder, slash, name = path.partition("/")
    return f"{folder}/.new-.*" if slash and name.startswith(".new-") else path.replace(".", r"\.")


def lose_disks(bench: Bench, operations: Sequence[Operation]) -> Iterator[Found]:
    for system in FILE_SYSTEMS:
        if why := cannot(system):
            say(f"{system.name}: left out: {why}")
            continue
        disks = Disks(bench, system)
        for operation in operations:
            began = time.perf_counter()
            found = disks.lose(operation)
            show(system.name, found, began)
            yield found


def total(found: Sequence[Found]) -> None:
    states = sum(len(one.verdicts) for one in found)
    slowest = max(one.slowest for one in found)
    problems = sum(len(one.problems) for one in found)
    say(f"all: {states} states, {problems} problems, slowest start {slowest * 1000:.0f} ms")
    if problems:
        raise SystemExit(1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("operations", nargs="*", choices=[[], *(operation.name for operation in OPERATIONS)])
    parser.add_argument("--randoms", type=int, default=500)
    parser.add_argument("--disks", action="store_true")
    arguments = parser.parse_args()
    chosen = [operation for operation in OPERATIONS if operation.name in arguments.operations] or OPERATIONS
    with (
        tempfile.TemporaryDirectory() as built,
        tempfile.TemporaryDirectory(prefix="power-", dir=scratch_root()) as folder,
    ):
        releases = Releases(Path(folder), tiny.program_so(Path(built), f"{HOST}-linux-gnu"), real=True)
        bench = Bench(build_shim(Path(built)), Path(folder), releases)
        if arguments.disks:
            total(list(lose_disks(bench, chosen)))
            return
        found = [one for operation in chosen for one in sweep(bench, operation)]
        began = time.perf_counter()
        randoms = cut_at_random(bench, chosen, arguments.randoms)
        for one in randoms:
            show("killed at random", one, began)
        for operation in chosen:
            if operation.name in MUTATED:
                mutate(bench, operation)
        total([*found, *randoms])


if __name__ == "__main__":
    main()

"""Whatever call fails, whenever: the old or the new release is current and runs, and no fault of the machine is taken
for one of the release.

A sample of what tests/benchmarks/faults.py tries whole: each time another part of it.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
from machine import HOST
from power.calls import build_shim
from power.faulting import (
    NO_FAULT,
    Fault,
    build_faults,
    can_hold_calls,
    fail_everywhere,
    held,
    lasting_faults,
    run_with,
    single_faults,
)
from power.operations import BY_NAME, Releases
from power.sweep import Bench, scratch_root

SAMPLE = 60
"""Faults of an operation, of one to two thousand."""
NAMES = ("install", "install, other roles", "delta", "follow, http", "rollback", "gc", "run, first result")


@dataclass(frozen=True)
class Faulty:
    bench: Bench
    faults: Path


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faulty]:
    built = tmp_path_factory.mktemp("built")
    faults = build_faults(built)
    if not can_hold_calls(faults):
        pytest.skip("no filter of system calls may listen here")
    with tempfile.TemporaryDirectory(prefix="faults-", dir=scratch_root()) as name:
        releases = Releases(Path(name), tiny.program_so(built, f"{HOST}-linux-gnu"), real=True)
        yield Faulty(Bench(build_shim(built), Path(name), releases), faults)


@pytest.mark.parametrize("name", NAMES)
def test_calls_that_fail(faulty: Faulty, name: str) -> None:
    operation = BY_NAME[name]
    calls = held(faulty.faults, faulty.bench, operation)
    cases = [*single_faults(calls), *lasting_faults(calls)]
    assert len(cases) > SAMPLE
    chosen = cases[NAMES.index(name) :: len(cases) // SAMPLE]
    assert fail_everywhere(faulty.faults, faulty.bench, operation, chosen).problems == []


def test_the_program_is_linked_as_it_likes(faulty: Faulty) -> None:
    """What the kernel is asked for is what fails, not a function of a library: the canary's calls are among them."""
    calls = held(faulty.faults, faulty.bench, BY_NAME["install"])
    assert {"openat", "write", "fsync", "mmap", "memfd_create"} <= {call.name for call in calls if call.task == 0}
    assert {"execveat", "mmap", "memfd_create"} <= {call.name for call in calls if call.task == 1}


def fails_at(faulty: Faulty, name: str, task: int, call: str, error: int) -> "tuple[int, str]":
    """What an operation ends with when the first such call of a process fails."""
    operation = BY_NAME[name]
    number = next(c.number for c in held(faulty.faults, faulty.bench, operation) if (c.task, c.name) == (task, call))
    with faulty.bench.started(operation) as device:
        done = run_with(faulty.faults, device, operation, Fault(task, number, number, error, "any", call))
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ["install", "run, first result"])
def test_no_memory_to_execute_a_release(faulty: Faulty, name: str) -> None:
    code, text = fails_at(faulty, name, 1, "execveat", 12)
    assert code == 6
    assert "cannot execute the release's edgebuild-run: Cannot allocate memory" in text


def test_a_loader_without_memory(faulty: Faulty) -> None:
    operation = BY_NAME["install"]
    calls = held(faulty.faults, faulty.bench, operation)
    number = [call.number for call in calls if (call.task, call.name) == (1, "mmap")][3]
    with faulty.bench.started(operation) as device:
        fault = Fault(1, number, number, 12, "any", "mmap")
        done = run_with(faulty.faults, device, operation, fault)
        assert done.returncode == 6
        assert "the canary could not run: " in done.stderr
        assert "error while loading shared libraries" in done.stderr


def test_nothing_fails_where_nothing_is_to(faulty: Faulty) -> None:
    with faulty.bench.started(BY_NAME["install"]) as device:
        assert run_with(faulty.faults, device, BY_NAME["install"], NO_FAULT).returncode == 0

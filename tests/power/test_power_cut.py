"""The power goes at any moment of what changes a store: then the old or the new release is current, and it runs.

tests/benchmarks/power_cut.py does the same with the real runtime in the bundles, more states and more random moments.
"""

import re
import subprocess
from pathlib import Path

import pytest
from power.calls import UNUSED, WRAPPED, read_journal
from power.losses import Disk, moved, without, write_tree
from power.operations import BY_NAME, OPERATIONS, Operation
from power.sweep import (
    Bench,
    Found,
    cut_at_random,
    cut_everywhere,
    lose_after_cut,
    lose_everywhere,
)
from tracing import can_trace

EVERY = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
INSTALL, NEW_KEYS = BY_NAME["install"], BY_NAME["install, other roles"]
KINDS = "open,openat,write,fsync,syncfs,ftruncate,fchmod,mkdir,mkdirat,unlinkat,renameat"


def holds(found: Found, operation: Operation) -> None:
    assert found.problems == []
    assert set(found.outcomes) == operation.outcomes


@EVERY
def test_killed_at_every_call(bench: Bench, operation: Operation) -> None:
    holds(cut_everywhere(bench, operation), operation)


@EVERY
def test_power_lost_at_every_call(bench: Bench, operation: Operation) -> None:
    """With what was not synced lost, in whole or in part."""
    holds(lose_everywhere(bench, operation), operation)


AGAIN = ("install", "install, other roles", "repair", "follow, delta", "follow, next trust", "gc")


@pytest.mark.parametrize("name", AGAIN)
def test_killed_then_done_again_then_power_lost(bench: Bench, name: str) -> None:
    holds(lose_after_cut(bench, BY_NAME[name]), BY_NAME[name])


def test_power_lost_where_the_folder_around_may_not_be_read(bench: Bench) -> None:
    """The store's own name is durable even then."""
    operation = BY_NAME["first install"]
    with bench.device(operation) as device:
        device.folder.chmod(0o300)
        journal = bench.folder / "unread"
        environment = device.recorded(POWER_JOURNAL=str(journal))
        done = device.run(*operation.arguments(bench.releases), environment=environment)
        device.folder.chmod(0o700)
        assert done.returncode == 0, done
    calls = read_journal(journal)
    assert [call.path for call in calls if call.name == "syncfs"] == ["."]
    assert "store/functions/tiny" in Disk(bench.base(operation), "store", calls).durable(len(calls))
    without_it = without(calls, "syncfs", ".*")
    assert Disk(bench.base(operation), "store", without_it).durable(len(without_it)) == {}


def test_killed_at_random(bench: Bench) -> None:
    found = cut_at_random(bench, OPERATIONS, 60)
    assert [problem for one in found for problem in one.problems] == []
    assert sum(len(one.verdicts) for one in found) == 60


# That the test sees what it is to see


def test_the_shim_stands_in_for_every_call(bench: Bench) -> None:
    listed = subprocess.run(["nm", "-D", "--undefined-only", bench.program], capture_output=True, text=True, check=True)
    used = {line.split()[-1].split("@")[0].removesuffix("64") for line in listed.stdout.splitlines()}
    assert used & UNUSED == set()
    assert used & WRAPPED == WRAPPED


def traced(bench: Bench, operation: Operation) -> list[tuple[str, str]]:
    """Name and last part of the path of each call on the store, as the kernel saw them."""
    with bench.started(operation) as device:
        log = device.folder / "trace"
        command = ["strace", "-y", "-s", "0", "-e", f"trace={KINDS}", "-o", str(log)]
        command += device.command(*operation.arguments(bench.releases))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == operation.code, done
        store, lines = str(device.store), log.read_text().splitlines()
    names = {"openat": "open", "renameat": "rename", "unlinkat": "unlink", "mkdirat": "mkdir"}
    calls = []
    for line in lines:
        if store not in line or not (found := re.match(r"(\w+)\(", line)):
            continue
        if found[1] in {"open", "openat"} and "O_CREAT" not in line and "O_TRUNC" not in line:
            continue
        calls.append((names.get(found[1], found[1]), "failed" if " = -1 " in line else "ok"))
    return calls


@pytest.mark.parametrize("name", ["first install", "install over two", "follow, delta", "rollback", "gc"])
def test_the_shim_sees_what_the_kernel_sees(bench: Bench, name: str) -> None:
    if not can_trace():
        pytest.skip("strace is not there, or may not trace")
    recorded = [
        (call.name, "failed" if call.failed else "ok") for call in bench.journal(BY_NAME[name]) if call.path != ".."
    ]
    assert traced(bench, BY_NAME[name]) == recorded


def listing(store: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(store)): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in store.rglob("*")
    }


def test_the_model_of_the_disk_agrees_with_the_disk(bench: Bench) -> None:
    """Nothing lost, it holds what the store holds."""
    for name in ("first install", "install over two", "follow, delta", "gc"):
        operation = BY_NAME[name]
        with bench.started(operation) as device, bench.device(operation) as other:
            path = device.folder / "journal"
            device.run(*operation.arguments(bench.releases), environment=device.recorded(POWER_JOURNAL=str(path)))
            calls = bench.journal(operation)
            write_tree(Disk(bench.base(operation), "store", calls).after(len(calls)), other.folder)
            assert listing(other.store) == listing(device.store)


@pytest.mark.parametrize(
    ("operation", "synced", "problem"),
    [
        (INSTALL, "functions/.new-tiny", "is no state that edgebuild-run wrote"),
        (INSTALL, "functions", "the current release is 1"),
        (INSTALL, "releases/.new-.*", "its head is damaged"),
        (INSTALL, "releases", "its head is damaged"),
        (INSTALL, "partial/.*", "the store's file for edgebuild-run is damaged"),
        (INSTALL, "blobs", "the store's file for edgebuild-run is missing"),
        (NEW_KEYS, r"\.", "`trust` is not the one of the release"),
        (NEW_KEYS, "trusts", "which the trust file does not list"),
    ],
)
def test_a_missing_sync_is_found(bench: Bench, operation: Operation, synced: str, problem: str) -> None:
    found = lose_everywhere(bench, operation, without(bench.journal(operation), "fsync", synced), to_first=True)
    assert any(problem in one for one in found.problems), found.problems


def test_a_wrong_order_is_found(bench: Bench) -> None:
    calls = moved(bench.journal(INSTALL), "functions", before="releases")
    found = lose_everywhere(bench, INSTALL, calls, to_first=True)
    assert "its head is damaged" in found.problems[0]

"""What an installation meets on its way: it goes on where it stopped, or changes nothing (SPEC 11)."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from store import SCRIPT, Release, Store, gives_results, identity
from tracing import can_trace

from edgebuild.pipeline.delta import make_delta

OK, INPUT, REFUSED, CHECK, UNSUPPORTED, IO = range(6)
BLOCK = 512


@pytest.fixture(scope="module")
def weights() -> bytes:
    """3 MB of which no two parts are alike, but for the table at their start."""
    noise = np.random.default_rng(3).bytes(3 << 20)
    return tiny.table().tobytes() + noise[: -256 - 64]


@pytest.fixture
def large(make: Release, weights: bytes) -> Release:
    """A release with these weights."""

    def build(number: int, **changes: object) -> bytes:
        return make(number, **{"weights": weights, "plan": tiny.plan_bin(weights=len(weights))} | changes)

    return build


def install_from_pipe(store: Store, data: bytes, end: str) -> "subprocess.CompletedProcess[str]":
    """`install -` of bytes whose sender then closes the pipe, or while whose sender waits install is killed."""
    with store.process("install", "-", "--json", stdin=subprocess.PIPE, text=False) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(data)
        process.stdin.flush()
        if end == "kill":
            wait_until_read(process.pid)
            process.kill()
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess([], process.returncode, out.decode(), err.decode())


def wait_until_read(pid: int) -> None:
    """Until the process waits for more."""
    for _ in range(1000):
        state = Path(f"/proc/{pid}/wchan").read_text()
        if "pipe" in state:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_an_interrupted_installation_goes_on(store: Store, large: Release, end: str, share: float) -> None:
    store.install(large(1, weights=tiny.table().tobytes(), plan=tiny.plan_bin()))
    before, data = store.listing(), large(2)
    cut = install_from_pipe(store, data[: int(share * len(data))], end)
    assert cut.returncode == (REFUSED if end == "close" else -signal.SIGKILL)
    assert store.status()["id"] != identity(data)
    after = store.listing()
    assert before.items() <= after.items()
    assert all(path.startswith(("blobs/", "partial/")) for path in after.keys() - before.keys())
    arrived = sum(p.stat().st_size for p in [*(store.path / "partial").iterdir()])
    done = install_from_pipe(store, data, "close")
    assert (done.returncode, done.stderr) == (OK, "")
    said = json.loads(done.stdout)
    total = said["bytes_written"] + said["bytes_kept"]
    assert total == sum(len(body) for body in bodies(data))
    assert said["bytes_kept"] >= arrived
    assert said["bytes_written"] <= total - arrived
    assert list((store.path / "partial").iterdir()) == []
    gives_results(store)


def bodies(bundle: bytes) -> Iterator[bytes]:
    """The files behind the head of an archive."""
    at, members = 0, []
    while bundle[at]:
        size = int(bundle[at + 124 : at + 135], 8)
        members.append(bundle[at + BLOCK : at + BLOCK + size])
        at += BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
    yield from members[2:]


def bytes_read(store: Store, path: Path) -> tuple[int, dict]:
    """How many bytes `install` reads of a file, and what it says."""
    trace = store.folder / "trace"
    command = [
        "strace",
        "-e",
        "trace=read",
        "-o",
        str(trace),
        "-P",
        str(path),
        *store.command("install", path, "--json"),
    ]
    done = store.run(command=command)
    assert done.returncode == OK, done.stderr
    lines = [line for line in trace.read_text().splitlines() if line.startswith("read(")]
    return sum(int(line.rsplit(" ", 1)[1]) for line in lines), json.loads(done.stdout)


@pytest.mark.skipif(not can_trace(), reason="strace is not there, or may not trace")
def test_what_is_here_is_not_read_again(fast: Store, large: Release, weights: bytes) -> None:
    first, second = fast.write("1", large(1)), fast.write("2", large(2))
    read, said = bytes_read(fast, first)
    assert (read, said["bytes_kept"]) == (len(first.read_bytes()), 0)
    read, said = bytes_read(fast, second)
    assert (said["bytes_written"], said["already"]) == (0, False)
    assert read < 20_000 < len(weights)
    read, said = bytes_read(fast, second)
    assert said["already"] is True
    assert read < 5000


@pytest.mark.skipif(not can_trace(), reason="strace is not there, or may not trace")
def test_what_arrived_in_part_is_not_read_again(fast: Store, large: Release) -> None:
    data = large(1)
    assert install_from_pipe(fast, data[:-1_000_000], "close").returncode == REFUSED
    (part,) = (fast.path / "partial").iterdir()
    arrived = part.stat().st_size
    assert arrived > 1_500_000
    read, said = bytes_read(fast, fast.write("a", data))
    assert said["bytes_kept"] >= arrived - 64
    assert read < len(data) - said["bytes_kept"] + 20_000


@pytest.mark.parametrize("change", ["byte", "byte, from a file", "longer", "link"])
def test_a_part_that_was_changed(store: Store, large: Release, change: str) -> None:
    """It is found out and thrown away; a file, unlike a pipe, is then read again from its start."""
    store.install(large(1, weights=tiny.table().tobytes(), plan=tiny.plan_bin()))
    data = large(2)
    assert install_from_pipe(store, data[:-1_000_000], "close").returncode == REFUSED
    (part,) = (store.path / "partial").iterdir()
    content = part.read_bytes()
    outside = store.write("outside", content)
    if change.startswith("byte"):
        part.write_bytes(content[:1000] + bytes([content[1000] ^ 1]) + content[1001:])
    if change == "byte":
        done = install_from_pipe(store, data, "close")
        assert done.returncode == IO
        assert f"weights.bin, of which {len(content)} bytes had arrived before, is not the one" in done.stderr
        assert store.status()["release"] == 1
    elif change == "longer":
        part.write_bytes(content + bytes(8 << 20))
    else:
        part.unlink()
        part.symlink_to(outside)
    store.install(data)
    assert outside.read_bytes() == content
    gives_results(store)


# Two at once


def test_a_second_installation_waits(store: Store, large: Release) -> None:
    data = large(1)
    with store.process("install", "-", stdin=subprocess.PIPE, text=False) as first:
        assert first.stdin
        first.stdin.write(data[:-1000])
        first.stdin.flush()
        wait_until_read(first.pid)
        with store.process("install", store.write("b", large(2)), "--json") as second:
            time.sleep(0.3)
            assert second.poll() is None
            first.stdin.write(data[-1000:])
            first.stdin.close()
            assert first.wait(timeout=60) == OK
            assert second.wait(timeout=60) == OK
    assert store.status()["release"] == 2


def test_a_second_installation_gives_up(store: Store, make: Release) -> None:
    store.install(make(1))
    before = store.listing()
    with store.process("install", "-", stdin=subprocess.PIPE) as first:
        assert first.stdin
        time.sleep(0.3)
        start = time.monotonic()
        done = store.run("install", store.write("b", make(2)))
        assert 9 < time.monotonic() - start < 30
        assert done.returncode == IO
        assert "the store is in use: another process installs into it or removes from it" in done.stderr
        gives_results(store)  # what is installed does not wait
        first.kill()
    after = store.listing()
    assert {path: after[path] for path in after if path != "functions/tiny"} == {
        path: before[path] for path in before if path != "functions/tiny"
    }
    store.install(make(2))


# Disks


def limited(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_file_that_cannot_be_written(store: Store, large: Release) -> None:
    store.install(large(1, weights=tiny.table().tobytes(), plan=tiny.plan_bin()))
    before, data = store.listing(), store.write("b", large(2))
    done = store.run("install", data, preexec_fn=lambda: limited(1 << 20))
    assert done.returncode == IO
    assert "cannot write partial/" in done.stderr
    assert "File too large" in done.stderr
    assert "free some space" in done.stderr
    assert before.items() <= store.listing().items()
    gives_results(store)
    store.install(data.read_bytes())


def fill(path: Path) -> None:
    """Takes all room that is left."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def test_a_full_disk(fast: Store, large: Release, make: Release, small_disk: Path) -> None:
    store = Store(fast.program, small_disk)
    first, second = (fast.write(str(number), data) for number, data in enumerate((make(1), large(2))))
    assert store.run("install", first).returncode == OK
    filler = small_disk / "filler"
    fill(filler)
    before = store.listing()
    done = store.run("install", second)
    assert done.returncode == IO
    assert "bytes more in the store, and its disk has room for 0" in done.stderr
    assert store.listing() == before
    filler.unlink()
    data = second.read_bytes()
    with store.process("install", "-", stdin=subprocess.PIPE, text=False) as process:
        assert process.stdin
        process.stdin.write(data[:-1_500_000])
        process.stdin.flush()
        wait_until_read(process.pid)
        fill(filler)
        _, err = process.communicate(data[-1_500_000:], timeout=60)
    assert process.returncode == IO
    assert b"No space left on device" in err
    assert before.items() <= store.listing().items()
    filler.unlink()
    done = store.run("install", second, "--json")
    assert json.loads(done.stdout)["bytes_kept"] > 1_000_000
    assert store.status()["release"] == 2


def test_a_store_that_is_not_to_be_had(store: Store, make: Release) -> None:
    bundle = store.write("b", make(1))
    nowhere = ["install", bundle, "--store", store.folder / "no" / "where", "--trust", store.trust]
    done = store.run(command=[str(part) for part in (store.program, *nowhere)])
    assert done.returncode == IO
    assert "cannot make the store" in done.stderr
    for command in (("status",), ("gc",), ("rollback", "tiny"), ("run", "tiny", "--check")):
        done = store.run(*command)
        assert (done.returncode, done.stdout) == (IO, "")
        assert "cannot open the store" in done.stderr
    assert not store.path.exists()
    store.path.mkdir()
    store.path.chmod(0o777)
    done = store.run("install", bundle)
    assert done.returncode == REFUSED
    assert "others than this user may write to the store" in done.stderr


# What others may have put there

HOSTILE_STATES = {
    "empty": b"",
    "no text": bytes(100),
    "long": b"x" * 5000,
    "path": b"edgebuild-state 1\ntarget test\nfloor 1\ncurrent ../../%s\nconfirmed no\ncrashes 0\n" % (b"0" * 58),
    "crashes": b"edgebuild-state 1\ntarget test\nfloor 1\ncurrent %s\nconfirmed no\ncrashes 4\n" % (b"0" * 64),
    "more": b"edgebuild-state 1\ntarget test\nfloor 1\ncurrent %s\nconfirmed no\ncrashes 0\nmore\n" % (b"0" * 64),
    "zeros": b"edgebuild-state 1\ntarget test\nfloor 01\ncurrent %s\nconfirmed no\ncrashes 0\n" % (b"0" * 64),
}


@pytest.mark.parametrize("content", HOSTILE_STATES.values(), ids=HOSTILE_STATES.keys())
def test_states_that_were_edited(store: Store, make: Release, content: bytes) -> None:
    store.install(make(1))
    (store.path / "functions/tiny").write_bytes(content)
    before = store.listing()
    for command in (("status",), ("gc",), ("rollback", "tiny"), ("run", "tiny", "--check")):
        done = store.run(*command)
        assert done.returncode == REFUSED
        assert "functions/tiny in the store is" in done.stderr
    store.refuses(make(2), REFUSED, "functions/tiny in the store is")
    assert store.listing() == before


@pytest.mark.parametrize("kind", ["link", "fifo"])
@pytest.mark.parametrize("folder", ["blobs", "releases"])
def test_things_that_are_no_files(store: Store, make: Release, bundle: tiny.Bundle, kind: str, folder: str) -> None:
    """They are not followed, and an installation puts files in their place."""
    store.install(make(1))
    name = hashlib.sha256(bundle.weights).hexdigest() if folder == "blobs" else identity(make(1))
    path = store.path / folder / name
    outside = store.write("outside", path.read_bytes())
    path.unlink()
    path.symlink_to(outside) if kind == "link" else os.mkfifo(path)
    done = store.run("run", "tiny", "--check")
    assert done.returncode == REFUSED
    assert "in the store is no regular file" in done.stderr
    assert store.run("status").returncode == OK
    store.install(make(1))
    assert path.read_bytes() == outside.read_bytes()
    assert not path.is_symlink()
    gives_results(store)


def test_a_folder_that_is_none(store: Store, make: Release) -> None:
    store.install(make(1))
    other = store.folder / "other"
    (store.path / "blobs").rename(other)
    (store.path / "blobs").symlink_to(other)
    for command in (("status",), ("gc",), ("run", "tiny", "--check"), ("install", store.write("b", make(2)))):
        done = store.run(*command)
        assert done.returncode == REFUSED
        assert "./blobs in the store is no folder" in done.stderr
    assert len(list(other.iterdir())) == 9


@pytest.mark.parametrize("at", [0, 600, 1500, -1])
def test_a_head_that_was_edited(store: Store, make: Release, at: int) -> None:
    store.install(make(1))
    store.install(make(2))
    path = store.path / "releases" / identity(make(2))
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    done = store.run("run", "tiny", "--check")
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert json.loads(store.run("status", "--json").stdout)["functions"][0]["damaged"] is True
    assert store.run("rollback", "tiny").returncode == OK
    gives_results(store)


# Nothing grows


def test_cycles_do_not_grow_the_store(fast: Store, make: Release) -> None:
    bundles = [fast.write(str(n), make(1, edits=(("timeout-ms 500", f"timeout-ms {500 + n}"),))) for n in range(3)]
    sizes = []
    for cycle in range(60):
        assert fast.run("install", bundles[cycle % 3]).returncode == OK
        assert fast.run("rollback", "tiny").returncode == (OK if cycle else INPUT)
        found = [path for path in fast.path.rglob("*") if path.is_file()]
        sizes.append((len(found), sum(path.stat().st_size for path in found)))
    assert len(set(sizes[3:])) == 1, sizes


def test_garbage_is_removed(store: Store, make: Release) -> None:
    store.install(make(1))
    store.install(make(2, SCRIPT))
    before = store.listing()
    for name in ("blobs/.new-x", "releases/.new-y", "functions/.new-tiny", ".new-time", "partial/z", "blobs/other"):
        (store.path / name).write_bytes(b"left over")
    (store.path / "releases" / ("0" * 64)).write_bytes(b"left over")
    said = json.loads(store.run("gc", "--json").stdout)
    assert (said["releases_removed"], said["blobs_removed"]) == (1, 2)
    assert store.listing() == before


def test_memory_of_an_installation(fast: Store, large: Release, weights: bytes) -> None:
    """From a pipe, of a bundle of 25 MB: the installing process holds a few buffers."""
    more = {f"function/{i}.bin": np.random.default_rng(i).bytes(5 << 20) for i in range(5)}
    data = large(1, golden=more)
    with fast.process("install", "-", stdin=subprocess.PIPE, text=False) as process:
        assert process.stdin
        process.stdin.write(data[:-100])
        process.stdin.flush()
        wait_until_read(process.pid)
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.communicate(data[-100:], timeout=60)
        assert process.returncode == OK
    (peak,) = (int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    print(f"{peak} bytes while installing {len(data)} bytes")  # noqa: T201
    assert peak < 4_000_000


def planned(make: Release, number: int, ops: int) -> bytes:
    """A release of 6,016 weights, which change by steps from one to the next, with a plan of so many operators."""
    randoms = np.random.default_rng(3)
    rest = randoms.integers(-100, 101, 6016 - 256) + (number - 1) * randoms.integers(-1, 2, 6016 - 256)
    weights = tiny.table().tobytes() + rest.astype(np.int8).tobytes()
    return make(number, weights=weights, plan=tiny.plan_bin(weights=6016, table_bytes=6016, more_ops=ops))


def delta_of_weights(old: bytes, new: bytes) -> bytes:
    made = make_delta(old, new)
    assert {row.path: row.codec for row in made.rows}["weights.bin"] == "weights"
    return made.data


@pytest.mark.parametrize("ops", [(12_000, 12_001), (25_000, 25_000)])
def test_memory_of_a_delta_with_large_plans(fast: Store, make: Release, ops: tuple[int, int]) -> None:
    """Two plans of half a megabyte each, or one of a whole: they are in memory, and no more than SPEC 12 says."""
    old, new = (planned(make, number, count) for number, count in zip((1, 2), ops, strict=True))
    fast.install(old)
    script = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True)\n"
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    command = fast.command("install", fast.write("d.edelta", delta_of_weights(old, new)))
    done = subprocess.run([sys.executable, "-c", script, *command], capture_output=True, text=True, check=True)
    code, peak = map(int, done.stdout.split())
    print(f"{peak} KiB at most while a delta is applied, and its canary runs")  # noqa: T201
    assert code == OK
    assert peak < 16 << 10


def test_plans_that_are_too_large_for_a_delta(store: Store, make: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever made it did not keep to the page; the whole bundle is what is left."""
    monkeypatch.setattr("edgebuild.stages.delta.PLANS_MAX", 1 << 30)
    old, new = (planned(make, number, 27_000) for number in (1, 2))
    store.install(old)
    before = store.status()
    done = store.run("install", store.write("d.edelta", delta_of_weights(old, new)))
    assert done.returncode == REFUSED
    assert "plan.bin is too large for a delta" in done.stderr
    assert store.status() == before

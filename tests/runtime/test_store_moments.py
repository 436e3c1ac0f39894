"""Bad moments of a device: a disk that became read-only, closed streams, a wrong clock, several at once (SPEC 11)."""

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from published import publish, served
from roles import Roles
from store import SCRIPT, Release, Store, gives_results, identity

from edgebuild.pipeline.delta import make_delta

OK, INPUT, REFUSED, CHECK, UNSUPPORTED, IO, MEMORY = range(7)
NOT_COUNTED = "warning: crashes of this release are not counted: "


@pytest.fixture
def scripted(make: Release) -> Callable[..., bytes]:
    """A release whose runtime is a script."""
    return lambda number, script=b"echo ran\n": make(number, SCRIPT + script)


@pytest.fixture
def read_only(small_disk: Path, tmp_path: Path, sanitized: Path) -> Iterator[Store]:
    """A store whose disk `freeze` makes read-only."""
    (small_disk / "store").mkdir(mode=0o700)
    yield Store(sanitized / "edgebuild-run", small_disk)
    freeze(small_disk, "rw")


def freeze(disk: Path, how: str = "ro") -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)


def test_a_read_only_disk(read_only: Store, scripted: Callable[..., bytes]) -> None:
    """What is installed runs, confirmed or not, and what would change it fails."""
    store = read_only
    store.install(scripted(1))
    next_bundle = store.write("next", scripted(2))
    freeze(store.folder)
    before = store.listing()
    done = store.run("run", "tiny")
    assert (done.returncode, done.stdout) == (OK, "ran\n")
    assert NOT_COUNTED in done.stderr
    assert "Read-only file system" in done.stderr
    assert json.loads(store.run("status", "--json").stdout)["functions"][0]["id"] == identity(scripted(1))
    done = store.run("install", next_bundle)
    assert done.returncode == IO
    assert "Read-only file system" in done.stderr
    assert store.listing() == before
    freeze(store.folder, "rw")
    assert store.run("install", next_bundle).returncode == OK


def test_a_read_only_disk_that_nobody_ran_on(read_only: Store, make: Release) -> None:
    store = read_only
    store.install(make(1))
    frames = store.frames()
    store.run("run", "tiny", "--input", frames)
    assert store.status()["confirmed"] is True
    (store.path / "state-lock").unlink()
    freeze(store.folder)
    done = store.run("run", "tiny", "--input", frames)
    assert done.returncode == OK, done.stderr
    assert "warning" not in done.stderr


def test_a_full_disk_keeps_no_release_from_running(
    sanitized: Path, small_disk: Path, scripted: Callable[..., bytes]
) -> None:
    """Not confirmed, and the third crash among them: the previous one runs then, which the store does not know."""
    store = Store(sanitized / "edgebuild-run", small_disk)
    store.install(scripted(1))
    store.run("run", "tiny")
    store.install(scripted(2, b"kill -SEGV $$\n"))
    for _ in range(2):
        assert store.run("run", "tiny").returncode == 128 + signal.SIGSEGV
    with (small_disk / "filler").open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(4096)):
                pass
        except OSError:
            pass
    state = (store.path / "functions/tiny").read_bytes()
    done = store.run("run", "tiny")
    assert (done.returncode, done.stdout) == (OK, "ran\n"), done
    assert NOT_COUNTED in done.stderr
    assert "crashed 3 times in a row" in done.stderr
    assert (store.path / "functions/tiny").read_bytes() == state
    (small_disk / "filler").unlink()
    assert store.run("run", "tiny").returncode == OK
    assert store.status()["id"] == identity(scripted(1))


@pytest.mark.parametrize("folder", ["partial", "trusts"])
def test_a_folder_that_is_gone(store: Store, make: Release, folder: str) -> None:
    """What nothing that runs needs is not missed, and made again by the next installation."""
    store.install(make(1))
    (store.path / folder).rmdir()
    gives_results(store)
    for command in ("status", "gc"):
        assert store.run(command).returncode == OK
    store.install(make(2))
    assert (store.path / folder).is_dir()


@pytest.mark.parametrize("folder", ["blobs", "releases", "functions"])
def test_a_folder_that_is_missed(store: Store, make: Release, folder: str) -> None:
    store.install(make(1))
    (store.path / folder).rename(store.folder / "gone")
    done = store.run("run", "tiny")
    assert done.returncode == IO
    assert f"the store has no folder {folder}" in done.stderr
    store.install(make(2))
    gives_results(store)


@pytest.mark.parametrize("code", [MEMORY, 127])
def test_a_release_that_could_not_start_is_not_marked_bad(
    store: Store, scripted: Callable[..., bytes], code: int
) -> None:
    store.install(scripted(1))
    store.run("run", "tiny")
    hungry = scripted(2, b"[ -e %s ] && exit %d\necho ran\n" % (str(store.folder / "hungry").encode(), code))
    store.install(hungry)
    (store.folder / "hungry").touch()
    codes = [store.run("run", "tiny").returncode for _ in range(3)]
    assert codes == [code, code, OK]
    assert (store.status()["id"], store.status()["bad"]) == (identity(scripted(1)), [])
    (store.folder / "hungry").unlink()
    store.install(hungry)
    assert store.run("run", "tiny").returncode == OK


@pytest.mark.parametrize("code", [REFUSED, UNSUPPORTED, 9])
def test_a_canary_that_fails_once(store: Store, make: Release, code: int) -> None:
    """What a machine failed at for a moment is not the release's fault; what it fails at again is."""
    store.install(make(1, SCRIPT))
    flag = store.folder / "once"
    flag.touch()
    once = b"#!/bin/sh\nif [ -e %s ]; then rm %s; exit %d; fi\n" % (*(str(flag).encode(),) * 2, code)
    store.install(make(2, once))
    done = store.run("install", store.write("b", make(3, b"#!/bin/sh\nexit %d\n" % code)))
    assert done.returncode == CHECK
    assert store.status()["bad"] == [identity(make(3, b"#!/bin/sh\nexit %d\n" % code))]


def test_a_canary_whose_loader_gives_up(store: Store, make: Release) -> None:
    store.install(make(1, SCRIPT))
    done = store.run("install", store.write("b", make(2, b"#!/bin/sh\necho 'error: no libc' >&2\nexit 127\n")))
    assert done.returncode == MEMORY
    assert "the canary could not run: no libc" in done.stderr
    assert store.status()["bad"] == []


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_streams_that_are_closed(store: Store, make: Release, closed: tuple[int, ...]) -> None:
    """No file of the store gets the number of one, so that what is said does not land in it."""
    bundles = [store.write(str(number), make(number)) for number in (1, 2)]
    frames = store.frames()

    def close() -> None:
        for number in closed:
            os.close(number)

    for command in (("install", bundles[0]), ("install", bundles[1]), ("status",), ("rollback", "tiny"), ("gc",)):
        done = subprocess.run(store.command(*command), preexec_fn=close, check=False, timeout=60)
        assert done.returncode == (IO if 1 in closed else OK)
    done = subprocess.run(store.command("run", "tiny", "--input", frames), preexec_fn=close, check=False, timeout=60)
    assert done.returncode == (IO if 1 in closed else OK)
    assert [p.read_bytes() for p in (store.path / "lock", store.path / "state-lock")] == [b"", b""]
    assert store.status()["id"] == identity(make(1))
    gives_results(store)


# What the clock says


def dated(**lines: str) -> tuple[tuple[str, str], ...]:
    return (("arch ", "".join(f"{key} {day}\n" for key, day in lines.items()) + "arch "),)


def at(store: Store, seconds: int) -> Store:
    return Store(store.program, store.folder, {"EDGEBUILD_TEST_NOW": str(seconds)})


def test_a_clock_that_starts_in_1970(store: Store, make: Release) -> None:
    """Nothing old comes back: the newest day that was signed counts."""
    reset = at(store, 0)
    reset.install(make(1, edits=dated(made="2026-03-03", expires="2026-09-09")))
    reset.refuses(make(2, edits=dated(expires="2026-03-03")), REFUSED, "the bundle expired on 2026-03-03")
    reset.install(make(3, edits=dated(expires="2026-03-04")))
    gives_results(reset)


def test_a_clock_that_was_in_2100_once(store: Store, make: Release) -> None:
    """It stops updates for as long as it is there, and no longer; what is installed runs on."""
    early, late = at(store, 1_780_000_000), at(store, 4_200_000_000)
    trust = Roles(expires="2030-01-01").build()
    store.write("trust", trust)
    early.install(make(1, edits=dated(made="2026-03-03")))
    late.refuses(make(2), REFUSED, "the trust file expired on 2030-01-01")
    gives_results(late)
    assert late.run("rollback", "tiny").returncode == INPUT
    assert late.run("gc").returncode == OK
    early.install(make(2, edits=dated(expires="2027-01-01")))


# Several at once


def test_everything_at_once(fast: Store, scripted: Callable[..., bytes]) -> None:
    """Installers, gc, rollback, follow and run, some of them killed: it always runs, and nothing is left."""
    store = fast
    folder = store.folder / "releases"
    bundles = [store.write(str(number), scripted(number)) for number in range(1, 5)]
    delta = store.write("delta", make_delta(scripted(1), scripted(4)).data)
    publish(folder, scripted(4), [(scripted(1), delta.read_bytes())])
    store.install(scripted(1))
    with served(folder) as server:
        commands = [("install", bundles[1]), ("gc",), ("rollback", "tiny"), ("run", "tiny"), ("install", bundles[2])]
        commands += [("follow", server.url), ("install", delta), ("status",), ("run", "tiny"), ("gc",)]
        for turn in range(2):
            processes = [store.process(*command) for command in commands[turn % 3 :] + commands[: turn % 3]]
            for i, process in enumerate(processes):
                if (i + turn) % 4 == 0:
                    time.sleep(0.01)
                    process.kill()
            for process in processes:
                out, err = process.communicate(timeout=60)
                assert process.returncode in {OK, INPUT, REFUSED, IO, -signal.SIGKILL}, (process.args, err)
                assert "damaged" not in err
                if process.args[1] == "run" and process.returncode != -signal.SIGKILL:
                    assert (process.returncode, out) == (OK, "ran\n"), err
            assert store.run("run", "tiny").stdout == "ran\n"
    store.install(scripted(9))
    assert store.run("gc").returncode == OK
    assert list((store.path / "partial").iterdir()) == []
    assert list(store.path.rglob(".new-*")) == []
    assert len(list((store.path / "releases").iterdir())) == 2


def test_an_installer_that_is_stopped(store: Store, scripted: Callable[..., bytes]) -> None:
    """It holds its lock: others fail clearly, what is installed runs, and once killed it is in nobody's way."""
    store.install(scripted(1))
    bundle = scripted(2)
    with store.process("install", "-", stdin=subprocess.PIPE, text=False) as process:
        assert process.stdin
        process.stdin.write(bundle[:-4096])
        process.stdin.flush()
        time.sleep(0.3)
        process.send_signal(signal.SIGSTOP)
        assert store.run("run", "tiny").stdout == "ran\n"
        done = store.run("gc")
        assert done.returncode == IO
        assert "the store is in use" in done.stderr
        process.kill()
    store.install(bundle)


def test_a_state_that_stays_locked(store: Store, scripted: Callable[..., bytes]) -> None:
    """By a process that is stopped: what is installed runs all the same, after one wait."""
    store.install(scripted(1))
    with (store.path / "state-lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        start = time.monotonic()
        done = store.run("run", "tiny")
        assert (done.returncode, done.stdout) == (OK, "ran\n")
        assert NOT_COUNTED in done.stderr
        assert time.monotonic() - start < 18
    assert store.status()["crashes"] == 0


def test_output_that_nobody_takes(store: Store, make: Release) -> None:
    """A full pipe makes `run` wait, not its supervisor deaf: it ends when it is told to, and that is no crash."""
    store.install(make(1))
    frames = store.write("many.npy", tiny.npy(tiny.golden_frames().repeat(2000, axis=0)))
    with store.process("run", "tiny", "--input", frames) as process:
        for _ in range(200):
            if store.status()["confirmed"]:
                break
            time.sleep(0.05)
        process.terminate()
        assert process.wait(timeout=20) in {OK, 128 + signal.SIGTERM}
        assert process.stdout
        process.stdout.close()
    assert (store.status()["confirmed"], store.status()["crashes"]) == (True, 0)


# Things that are no files, where files should be


@pytest.mark.parametrize("name", ["lock", "state-lock", "time", "trust", "functions/tiny"])
@pytest.mark.parametrize("kind", ["folder", "fifo", "link"])
def test_what_is_no_file(store: Store, make: Release, name: str, kind: str) -> None:
    """Nobody waits for one, follows one or writes through one; and when it is gone all goes on."""
    store.write("trust", Roles().build())
    store.install(make(1, edits=dated(made="2026-03-03")))
    path, kept, outside = store.path / name, store.folder / "kept", store.write("outside", b"outside")
    path.rename(kept)
    {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(outside)}[kind]()
    for command in (("status",), ("gc",), ("install", store.write("b", make(2))), ("run", "tiny", "--check")):
        done = store.run(*command, timeout=60)
        assert done.returncode in {OK, INPUT, REFUSED, IO}, done
        assert "Sanitizer" not in done.stderr
    assert outside.read_bytes() == b"outside"
    if kind == "folder" and path.is_dir():
        path.rmdir()
    elif not path.is_file() or path.is_symlink():
        path.unlink()
    if not path.exists():
        kept.rename(path)
    store.run("install", store.write("b", make(3)))
    gives_results(store)

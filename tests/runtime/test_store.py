"""The store (SPEC 11): what is installed, what runs, and what comes back when it fails."""

import hashlib
import json
import signal
import subprocess
from pathlib import Path

import pytest
import tiny
from machine import HOST
from store import SCRIPT, Release, Store, gives_results, identity, release

OK, INPUT, REFUSED, CHECK, UNSUPPORTED, IO = range(6)
CRASH = SCRIPT + b"kill -SEGV $$\n"


def wrong_golden() -> dict[str, bytes]:
    pixels = tiny.reference(tiny.golden_frames())["pixels"]
    pixels[0, 0, 0, 0] ^= 1
    return {"golden/out-0.npy": tiny.npy(pixels)}


# What is installed


def test_install_run_status(store: Store, make: Release) -> None:
    first = make(1)
    said = store.install(first)
    assert (said["name"], said["version"], said["release"], said["already"]) == ("tiny", "1.0.1", 1, False)
    assert (said["id"], said["previous"], said["bytes_kept"]) == (identity(first), None, 0)
    assert store.path.stat().st_mode & 0o777 == 0o700
    before = store.status()
    assert (before["confirmed"], before["crashes"], before["floor"], before["bad"]) == (False, 0, 1, [])
    gives_results(store)
    assert store.status() == before | {"confirmed": True}


def test_files_of_the_store_are_those_of_the_spec(store: Store, bundle: tiny.Bundle, runtime: bytes) -> None:
    made = release(bundle, 1, runtime)
    store.install(made.build())
    manifest = made.manifest()
    head = tiny.member("manifest", manifest) + tiny.member("manifest.minisig", tiny.KEY.sign(manifest, made.comment))
    number = hashlib.sha256(manifest).hexdigest()
    expected = {f"blobs/{hashlib.sha256(data).hexdigest()}": data for _, data in made.files()}
    expected |= {f"releases/{number}": head, "lock": b"", "state-lock": b""}
    expected["functions/tiny"] = (
        f"edgebuild-state 1\ntarget test\nfloor 1\nsigner {tiny.KEY.id}\ncurrent {number}\nconfirmed no\ncrashes 0\n"
    ).encode()
    found = {str(p.relative_to(store.path)): p.read_bytes() for p in store.path.rglob("*") if p.is_file()}
    assert found == expected
    assert {p.stat().st_mode & 0o777 for p in (store.path / "blobs").iterdir()} == {0o444}


def test_what_is_current_is_not_installed_again(store: Store, make: Release) -> None:
    store.install(make(1))
    before = store.listing()
    times = {p: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    again = store.install(make(1))
    assert (again["already"], again["bytes_written"], again["id"]) == (True, 0, identity(make(1)))
    assert store.listing() == before
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*")} == times


def test_a_new_release_keeps_the_old_one(store: Store, make: Release) -> None:
    for number in (1, 2, 3):
        said = store.install(make(number))
        gives_results(store)
    assert (said["bytes_written"], said["previous"]) == (0, identity(make(2)))
    status = store.status()
    assert (status["id"], status["previous"], status["floor"]) == (identity(make(3)), identity(make(2)), 3)
    heads = {path.name for path in (store.path / "releases").iterdir()}
    assert heads == {identity(make(2)), identity(make(3))}


def test_two_names_share_blobs(store: Store, make: Release) -> None:
    store.install(make(1))
    said = store.install(make(1, edits=(("name tiny", "name other"),)))
    assert (said["name"], said["bytes_written"]) == ("other", 0)
    done = store.run("status", "--json")
    assert [row["name"] for row in json.loads(done.stdout)["functions"]] == ["other", "tiny"]
    assert [line.split()[:3] for line in store.run("status").stdout.splitlines()[1:3]] == [
        ["other", "1.0.1", "1"],
        ["tiny", "1.0.1", "1"],
    ]
    gives_results(store, "other")


def test_a_damaged_file_is_written_again(store: Store, make: Release, bundle: tiny.Bundle) -> None:
    store.install(make(1))
    before = store.listing()
    blob = store.path / "blobs" / hashlib.sha256(bundle.weights).hexdigest()
    blob.chmod(0o600)
    blob.write_bytes(bytes(len(bundle.weights)))
    done = store.run("run", "tiny", "--input", store.frames())
    assert (done.returncode, done.stdout) == (REFUSED, "")
    assert "weights.bin is not the one that was signed" in done.stderr
    said = store.install(make(1))
    assert (said["already"], said["bytes_written"]) == (False, len(bundle.weights))
    gives_results(store)
    after = store.listing()
    assert {path: before[path] for path in before if path != "functions/tiny"} == {
        path: after[path] for path in after if path != "functions/tiny"
    }


# What is refused, and leaves everything as it was


@pytest.mark.parametrize("installed", [False, True])
def test_bundles_that_are_refused(store: Store, make: Release, installed: bool) -> None:
    store.install(make(1, edits=(("name tiny", "name other"),)))
    if installed:
        store.install(make(2))
    source = b"def look(frame): ..."
    good = make(3, golden={"function/look.py": source})
    changed = good.replace(source, source.replace(b"look", b"book"))
    store.refuses(good.replace(b"release 3\n", b"release 4\n"), REFUSED, "the signature does not hold")
    store.refuses(make(3, key=tiny.Key.new(2)), REFUSED, "which the trust file does not list")
    store.refuses(make(3, edits=(("abi 1", "abi 2"),)), UNSUPPORTED, "the bundle needs kernel ABI 2")
    store.refuses(b"", REFUSED, "the bundle is cut off")
    store.refuses(b"x" * 5000, REFUSED, "this is not a bundle")
    store.refuses(make(3, edits=(("weights.bin", "../weights.bin"),)), REFUSED, "malformed path")
    if installed:
        store.refuses(make(3, edits=(("target test", "target other"),)), REFUSED, "is for the target other")
        store.refuses(make(1), REFUSED, "the bundle has release 1, lower than 2")
        store.refuses(changed, REFUSED, "function/look.py is not the one that was signed (SHA-256)")
        store.refuses(good[:-512], REFUSED, "the bundle is cut off", arrived=source)
        store.refuses(good + b"\0", REFUSED, "the bundle has bytes behind its end")
        assert store.status()["id"] == identity(make(2))
    store.install(good)


def test_a_release_that_fails_its_canary_is_bad(store: Store, make: Release) -> None:
    store.install(make(1))
    good = store.listing()
    done = store.run("install", store.write("b", make(2, golden=wrong_golden())))
    assert done.returncode == CHECK
    assert "error: the canary failed: exit code 3: output pixels differs in golden sample 0" in done.stderr
    status = store.status()
    assert (status["id"], status["floor"], status["previous"]) == (identity(make(1)), 1, None)
    assert status["bad"] == [identity(make(2, golden=wrong_golden()))]
    after = store.listing()
    assert {path for path in after if after[path] != good.get(path)} == {"functions/tiny"}
    store.refuses(make(2, golden=wrong_golden()), REFUSED, "is marked bad")
    gives_results(store)


def test_the_first_release_of_all_fails_its_canary(store: Store, make: Release) -> None:
    """All that stays is that it did, until another one is installed."""
    bad = make(2, golden=wrong_golden())
    done = store.run("install", store.write("b", bad))
    assert done.returncode == CHECK
    (left,) = [p for p in store.path.rglob("*") if p.is_file() and p.stat().st_size]
    text = f"edgebuild-state 1\ntarget test\nfloor 1\nbad {identity(bad)}\n"
    assert (left.name, left.read_text()) == ("tiny", text)
    assert json.loads(store.run("status", "--json").stdout)["functions"] == []
    for command in (("run", "tiny", "--check"), ("rollback", "tiny"), ("status", "tiny")):
        done = store.run(*command)
        assert done.returncode == INPUT
        assert "nothing is installed as tiny" in done.stderr
    store.refuses(bad, REFUSED, "is marked bad")
    store.install(make(1))
    assert store.status()["bad"] == [identity(bad)]
    gives_results(store)


@pytest.mark.parametrize(
    ("runtime_script", "message"),
    [
        (b"#!/bin/sh\nkill -SEGV $$\n", "the canary failed: it crashed (Segmentation fault)"),
        (b"#!/bin/sh\nexec sleep 100\n", "the canary failed: it did not end within 1 s"),
        (b"#!/bin/sh\nexec 2>&-\nexec sleep 100\n", "the canary failed: it did not end within 1 s"),
        (b"no program\n", "the canary failed: exit code 4: cannot execute the release's edgebuild-run"),
        (b"#!/bin/sh\necho 'error: \033[31mno\nmore' >&2\nexit 9\n", "the canary failed: exit code 9: ?[31mno\n"),
    ],
)
def test_a_canary_that_dies(store: Store, make: Release, runtime_script: bytes, message: str) -> None:
    store.install(make(1))
    impatient = Store(store.program, store.folder, {"EDGEBUILD_TEST_CANARY_MS": "700"})
    done = impatient.run("install", store.write("b", make(2, runtime_script)))
    assert done.returncode == CHECK
    assert message in done.stderr
    status = store.status()
    assert (status["id"], len(status["bad"])) == (identity(make(1)), 1)


def test_a_release_that_is_too_slow(store: Store, make: Release, tmp_path: Path) -> None:
    store.install(make(1))
    loop = "for (volatile int i = 0; i < 50000000; i++) {}\n  (void)scratch;"
    slow = tiny.program_so(tmp_path, f"{HOST}-linux-gnu", kernels=tiny.KERNELS.replace("(void)scratch;", loop, 1))
    late = make(2, program=slow, edits=(("timeout-ms 500", "timeout-ms 10"),))
    done = store.run("install", store.write("b", late))
    assert done.returncode == CHECK
    assert "the canary failed: exit code 3: the median latency is " in done.stderr
    assert "over the manifest's timeout-ms 10" in done.stderr
    assert store.status()["bad"] == [identity(late)]
    store.install(make(3, program=slow, edits=(("timeout-ms 500\n", ""),)))


# Going back


def test_rollback_by_hand(store: Store, make: Release) -> None:
    store.install(make(1))
    done = store.run("rollback", "tiny")
    assert (done.returncode, done.stdout) == (INPUT, "")
    assert "there is no previous release of tiny" in done.stderr
    store.install(make(2))
    said = json.loads(store.run("rollback", "tiny", "--json").stdout)
    assert (said["from"], said["id"], said["bad"]) == (identity(make(2)), identity(make(1)), False)
    status = store.status()
    assert (status["id"], status["previous"]) == (identity(make(1)), identity(make(2)))
    assert (status["confirmed"], status["floor"], status["bad"]) == (True, 2, [])
    gives_results(store)
    store.refuses(make(1, edits=(("timeout-ms 500", "timeout-ms 501"),)), REFUSED, "lower than 2")
    assert store.install(make(2))["already"] is False
    assert store.status()["id"] == identity(make(2))


def test_rollback_marks_bad(store: Store, make: Release) -> None:
    store.install(make(1))
    store.install(make(2))
    done = store.run("rollback", "tiny", "--bad")
    assert done.stdout.endswith(", the former is marked bad\n")
    status = store.status()
    assert (status["id"], status["previous"], status["bad"]) == (identity(make(1)), None, [identity(make(2))])
    store.refuses(make(2), REFUSED, "this release of tiny was installed before and is marked bad")


def test_rollback_to_a_damaged_release_is_refused(store: Store, make: Release) -> None:
    store.install(make(1))
    store.install(make(2))
    (store.path / "releases" / identity(make(1))).unlink()
    before = store.listing()
    done = store.run("rollback", "tiny")
    assert done.returncode == REFUSED
    assert "is not in the store" in done.stderr
    assert store.listing() == before


def test_three_crashes_roll_back(store: Store, make: Release) -> None:
    store.install(make(1))
    gives_results(store)
    store.install(make(2, CRASH))
    for crashes in (1, 2):
        assert store.run("run", "tiny", "--input", store.frames()).returncode == 128 + signal.SIGSEGV
        assert store.status()["crashes"] == crashes
    done = gives_results(store)
    assert "crashed 3 times in a row; back to release " + identity(make(1))[:12] in done.stderr
    status = store.status()
    assert (status["id"], status["confirmed"], status["crashes"]) == (identity(make(1)), True, 0)
    assert (status["previous"], status["bad"], status["floor"]) == (None, [identity(make(2, CRASH))], 2)
    store.refuses(make(2, CRASH), REFUSED, "is marked bad")


def test_three_starts_that_a_power_cut_ended(store: Store, make: Release) -> None:
    """Nobody sees the process die: what was written before its start counts."""
    store.install(make(1))
    store.install(make(2, SCRIPT + b"kill -KILL $PPID\nsleep 9\n"))
    for crashes in (1, 2, 3):
        assert store.run("run", "tiny", "--input", store.frames()).returncode == -signal.SIGKILL
        assert store.status()["crashes"] == crashes
    gives_results(store)
    assert store.status()["id"] == identity(make(1))


def test_crashes_without_a_previous_release(store: Store, make: Release) -> None:
    store.install(make(1, CRASH))
    for crashes in (1, 2, 3, 3):
        assert store.run("run", "tiny", "--input", store.frames()).returncode == 128 + signal.SIGSEGV
        assert store.status()["crashes"] == crashes


def test_a_confirmed_release_that_crashes(store: Store, make: Release) -> None:
    """A result in between, and the count starts again."""
    fails = SCRIPT + b"[ -e %s ] && kill -SEGV $$\n" % str(store.folder / "fail").encode()
    works = b"fd=; while [ $# -gt 1 ]; do [ $1 = --ready-fd ] && fd=$2; shift; done; echo >/proc/self/fd/$fd\n"
    store.install(make(1))
    store.install(make(2, fails + works))
    crash, result = [128 + signal.SIGSEGV, OK]

    def start(failing: bool) -> int:
        (store.folder / "fail").touch() if failing else (store.folder / "fail").unlink(missing_ok=True)
        return store.run("run", "tiny", "--input", store.frames()).returncode

    assert start(failing=False) == result
    assert store.status()["confirmed"] is True
    assert [start(failing=True), start(failing=True)] == [crash, crash]
    assert store.status()["crashes"] == 2
    assert start(failing=False) == result
    assert store.status()["crashes"] == 0
    assert [start(failing=True), start(failing=True), start(failing=True)] == [crash, crash, OK]
    assert store.status()["id"] == identity(make(1))


READY = b"fd=; while [ $# -gt 1 ]; do [ $1 = --ready-fd ] && fd=$2; shift; done; echo >/proc/self/fd/$fd\n"


def test_a_release_that_crashes_behind_its_first_result(store: Store, make: Release) -> None:
    """Every time: a result alone does not make a release a good one."""
    store.install(make(1))
    gives_results(store)
    store.install(make(2, SCRIPT + READY + b"sleep 0.2; kill -SEGV $$\n"))
    codes = [store.run("run", "tiny", "--input", store.frames()).returncode for _ in range(3)]
    assert codes == [128 + signal.SIGSEGV, 128 + signal.SIGSEGV, OK]
    status = store.status()
    assert (status["id"], status["bad"]) == (
        identity(make(1)),
        [identity(make(2, SCRIPT + READY + b"sleep 0.2; kill -SEGV $$\n"))],
    )


def test_a_process_that_runs_on_is_well(sanitized: Path, tmp_path: Path, make: Release) -> None:
    """Crashes between long runs are not in a row."""
    store = Store(sanitized / "edgebuild-run", tmp_path, {"EDGEBUILD_TEST_WELL_MS": "100"})
    store.install(make(1))
    gives_results(store)
    store.install(make(2, SCRIPT + READY + b"sleep 1; kill -SEGV $$\n"))
    for _ in range(4):
        assert store.run("run", "tiny", "--input", store.frames()).returncode == 128 + signal.SIGSEGV
        assert store.status()["crashes"] == 1


@pytest.mark.parametrize("ends", [b"exit 0\n", b"exit 1\n", b"exit 5\n"])
def test_an_end_that_is_no_crash(store: Store, make: Release, ends: bytes) -> None:
    """An input that is missing says nothing of the release."""
    store.install(make(1))
    store.install(make(2, SCRIPT + ends))
    for _ in range(4):
        assert store.run("run", "tiny", "--input", store.frames()).returncode == int(ends[5:6])
    status = store.status()
    assert (status["id"], status["crashes"], status["confirmed"]) == (identity(make(2, SCRIPT + ends)), 0, False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on(store: Store, make: Release, number: signal.Signals) -> None:
    store.install(make(1))
    store.install(make(2))
    # Whoever started the tests may ignore the signal, and we would inherit that.
    heard = {"preexec_fn": lambda: signal.signal(number, signal.SIG_DFL)}
    with store.process("run", "tiny", "--input", "/dev/zero", "--format", "rgb", **heard) as process:
        assert process.stdout
        for _ in range(100):  # the supervisor hears of the first result a moment after we do
            process.stdout.readline()
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    status = store.status()
    assert (status["crashes"], status["confirmed"]) == (0, True)


def test_the_release_ends_with_its_supervisor(fast: Store, make: Release) -> None:
    fast.install(make(1))
    with fast.process("run", "tiny", "--input", "/dev/zero", "--format", "rgb") as process:
        assert process.stdout
        process.stdout.readline()
        process.kill()
        process.wait()
        process.stdout.read()  # until the last one that could write to it has ended


def test_damaged_releases_count_as_crashes(store: Store, make: Release) -> None:
    store.install(make(1))
    store.install(make(2))
    (store.path / "releases" / identity(make(2))).unlink()
    for crashes in (1, 2):
        done = store.run("run", "tiny", "--input", store.frames())
        assert (done.returncode, store.status()["crashes"]) == (REFUSED, crashes)
    gives_results(store)
    status = store.status()
    assert (status["id"], status["bad"]) == (identity(make(1)), [])  # the store's fault, not the release's
    store.install(make(2))
    assert store.status()["id"] == identity(make(2))
    gives_results(store)


def test_another_trust_file_is_no_crash(store: Store, make: Release) -> None:
    store.install(make(1))
    store.install(make(2))
    other = store.write("other-trust", tiny.Key.new(2).trust)
    for _ in range(4):
        command = [store.program, "run", "tiny", "--input", store.frames(), "--store", store.path, "--trust", other]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == REFUSED
        assert "which the trust file does not list" in done.stderr
    assert (store.status()["id"], store.status()["crashes"]) == (identity(make(2)), 0)


def test_run_passes_its_options_on(store: Store, make: Release) -> None:
    store.install(make(1))
    assert store.run("run", "tiny", "--check").stdout == "check: 3 golden samples, 4 outputs: identical\n"
    done = store.run("run", "tiny", "--input", store.frames(), "--repeat", "2", "--json")
    assert json.loads(done.stderr)["runs"] == 6
    done = store.run("run", "tiny", "--input", "nowhere.npy")
    assert (done.returncode, done.stdout) == (IO, "")
    assert "cannot open nowhere.npy" in done.stderr
    done = store.run("run", "other", "--input", store.frames())
    assert done.returncode == INPUT
    assert "nothing is installed as other" in done.stderr


def test_a_release_straight_from_the_store(store: Store, make: Release) -> None:
    store.install(make(1))
    number = identity(make(1))
    assert store.run("--release", number, "--check").stdout == "check: 3 golden samples, 4 outputs: identical\n"
    assert store.run("--release", number, "--verify").stdout.startswith("verified: tiny 1.0.1 for test, release 1")
    done = store.run("--release", "0" * 64, "--check")
    assert done.returncode == REFUSED
    assert "the release 0000000000000000 is not in the store" in done.stderr
    for wrong in ("", "../../etc/passwd", number[:-1], number.upper()):
        done = store.run("--release", wrong, "--check")
        assert done.returncode == INPUT
        assert f"--release: wrong value {wrong}" in done.stderr

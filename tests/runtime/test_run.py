"""What a run prints, how it keeps time, and what it costs."""

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
from machine import HOST, Machine

from edgebuild.core.zig import zig_cc

# Bytes that a run may hold beside weights and arena.
MEMORY_BUDGET = 3_000_000

# Counts what asks for memory, and says so when the program ends.
COUNTING_ALLOCATOR = """
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);
static atomic_long count;
void *malloc(size_t n) { count++; return __libc_malloc(n); }
void *calloc(size_t n, size_t m) { count++; return __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { count++; return __libc_realloc(p, n); }
void *aligned_alloc(size_t a, size_t n) { count++; return __libc_memalign(a, n); }
int posix_memalign(void **p, size_t a, size_t n) { count++; *p = __libc_memalign(a, n); return 0; }
void *mmap(void *p, size_t n, int prot, int flags, int fd, long at) {
  count++; return (void *)syscall(SYS_mmap, p, n, prot, flags, fd, at); }
__attribute__((destructor)) static void report(void) {
  char text[32];
  (void)!write(2, text, (size_t)snprintf(text, sizeof text, "\\nallocations: %ld\\n", count)); }
"""


def lines_of(done: "subprocess.CompletedProcess[str]") -> list[dict]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def frames_npy(machine: Machine, count: int) -> Path:
    frames = np.resize(tiny.golden_frames(), (count, tiny.H, tiny.W, 3))
    return machine.write(f"frames-{count}.npy", tiny.npy(frames))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_outputs(checked: Machine, bundle: tiny.Bundle, threads: int) -> None:
    done = checked.run(bundle.build(), "--input", frames_npy(checked, 12), "--threads", str(threads))
    expected = tiny.reference(np.resize(tiny.golden_frames(), (12, tiny.H, tiny.W, 3)))
    for seq, line in enumerate(lines_of(done)):
        assert set(line) == {"seq", "outputs", "latency_us"}
        assert line["seq"] == seq
        assert line["latency_us"] > 0
        outputs = line["outputs"]
        assert list(outputs) == ["pixels", "total", "mean", "bright"]
        assert outputs["pixels"] == expected["pixels"][seq].ravel().tolist()
        assert outputs["total"] == expected["total"][seq]
        assert np.float32(outputs["mean"]) == expected["mean"][seq]
        assert outputs["bright"] is bool(expected["bright"][seq])


@pytest.mark.parametrize("arch", ["aarch64", "riscv64"])
def test_another_arch_computes_the_same(
    arch: str, host: Machine, bundle: tiny.Bundle, program: Callable[..., bytes], request: pytest.FixtureRequest
) -> None:
    emulated: Machine = request.getfixturevalue(arch)
    other = tiny.Bundle(program(arch), arch=arch)
    assert emulated.run(other.build(), "--check").stdout == "check: 3 golden samples, 4 outputs: identical\n"
    arguments = ("--input", frames_npy(host, 5), "--threads", "2")
    here, there = (machine.run(data.build(), *arguments) for machine, data in ((host, bundle), (emulated, other)))
    assert [line["outputs"] for line in lines_of(here)] == [line["outputs"] for line in lines_of(there)]


def test_repeat_and_summary(host: Machine, bundle: tiny.Bundle) -> None:
    arguments = ("--input", frames_npy(host, 3), "--repeat", "50", "--threads", "1")
    done = host.run(bundle.build(), *arguments, "--json")
    assert len(lines_of(done)) == 3
    summary = json.loads(done.stderr)
    assert {key: summary[key] for key in ("frames", "runs", "threads")} == {"frames": 3, "runs": 150, "threads": 1}
    latency = summary["latency_us"]
    assert 0 < latency["min"] <= latency["median"] <= latency["p99"]
    text = host.run(bundle.build(), *arguments).stderr
    assert re.fullmatch(r"3 frames, 150 runs, 1 threads: latency in us: min [\d.]+, median [\d.]+, p99 [\d.]+\n", text)


def test_profile(host: Machine, bundle: tiny.Bundle) -> None:
    done = host.run(bundle.build(), "--input", frames_npy(host, 3), "--profile", "--json")
    assert len(lines_of(done)) == 3
    ops = [json.loads(line) for line in done.stderr.splitlines()][:-1]
    assert [op["op"] for op in ops] == ["lookup", "reduce"]
    assert math.isclose(sum(op["share"] for op in ops), 1, abs_tol=1e-3)


def test_verify_runs_nothing(host: Machine, bundle: tiny.Bundle) -> None:
    data = bundle.but(program=b"no ELF").build()
    done = host.run(data, "--verify", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {
        "verified": True,
        "name": "tiny",
        "version": "1.0.0",
        "target": "test",
        "release": 1,
        "signer": "1122334455667789",
        "files": 9,
    }


def test_timer_trigger(host: Machine, bundle: tiny.Bundle) -> None:
    data = bundle.but(trigger="timer 40").build()
    times = []
    for pace in ((), ("--no-pace",)):
        start = time.perf_counter()
        assert len(lines_of(host.run(data, "--input", frames_npy(host, 6), *pace))) == 6
        times.append(time.perf_counter() - start)
    assert times[0] >= 5 * 0.04
    assert times[1] < times[0]


def test_closed_output_ends_quietly(host: Machine, bundle: tiny.Bundle) -> None:
    path, trust = host.write("a.ebundle", bundle.build()), host.write("trust", tiny.KEY.trust)
    command = [host.program, path, "--trust", trust, "--input", "/dev/zero", "--format", "rgb"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 0
        assert b"error" not in process.stderr.read()


def test_full_disk_is_an_error(host: Machine, bundle: tiny.Bundle) -> None:
    path, trust = host.write("a.ebundle", bundle.build()), host.write("trust", tiny.KEY.trust)
    with Path("/dev/full").open("wb") as full:
        command = [host.program, path, "--trust", trust, "--input", frames_npy(host, 3)]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 5
    assert b"error: cannot write to standard output: No space left on device" in done.stderr


def test_nothing_is_allocated_while_running(host: Machine, bundle: tiny.Bundle) -> None:
    source, library = host.write("count.c", COUNTING_ALLOCATOR.encode()), host.folder / "count.so"
    subprocess.run([*zig_cc(f"{HOST}-linux-gnu"), "-shared", "-fPIC", source, "-o", library], check=True)
    path, trust = host.write("a.ebundle", bundle.build()), host.write("trust", tiny.KEY.trust)

    def allocations(frames: int, threads: int) -> int:
        command = [host.program, path, "--trust", trust, "--input", frames_npy(host, frames), "--repeat", "3"]
        environment = {**os.environ, "LD_PRELOAD": str(library)}
        done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, env=environment, check=True)
        assert len(done.stdout.splitlines()) == frames
        return int(re.search(rb"allocations: (\d+)", done.stderr)[1])  # type: ignore[index]

    for threads in (1, 3):
        few, many = allocations(1, threads), allocations(200, threads)
        print(f"{threads} threads: {few} allocations for 1 frame, {many} for 200")  # noqa: T201
        assert 0 < few == many


def test_peak_memory(host: Machine, bundle: tiny.Bundle) -> None:
    """What lies in a bundle beside the weights costs nothing: it is hashed on its way and forgotten."""
    weights, frames = 8 << 20, np.zeros((40_000, tiny.H, tiny.W, 3), np.uint8)
    large = bundle.but(
        plan=tiny.plan_bin(weights=weights),
        weights=tiny.table().tobytes().ljust(weights, b"\0"),
        golden={"golden/in-0.npy": tiny.npy(frames), "edgebuild-run": bytes(4 << 20)},
    )
    path, trust = host.write("a.ebundle", large.build()), host.write("trust", tiny.KEY.trust)
    command = [host.program, path, "--trust", trust, "--input", "-", "--format", "rgb", "--threads", "2"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(tiny.golden_frames()[:1].tobytes())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b'{"seq":0')
        status = Path(f"/proc/{process.pid}/status").read_text()
        process.stdin.close()
        assert process.wait(timeout=30) == 0
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
    print(f"{peak - weights} bytes over the weights")  # noqa: T201
    assert weights < peak < weights + MEMORY_BUDGET


def test_unit_tests_in_c(sanitized: Path) -> None:
    for name in ("test_sha256", "test_pool", "test_trial"):
        done = subprocess.run([sanitized / name], capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout

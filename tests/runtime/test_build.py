"""The build itself: size, reproducibility, dependencies, layers."""

import re
import shutil
from pathlib import Path

import pytest
from machine import Machine

from edgebuild.core.errors import CompileError, EnvironmentProblem
from edgebuild.core.resources import resource
from edgebuild.stages import runtime
from edgebuild.stages.runtime import build_runtime, release_build, runtime_binary

TRIPLES = ("x86_64-linux-gnu", "aarch64-linux-gnu", "riscv64-linux-gnu")
SIZE_BUDGET = 700_000
GLIBC = (2, 28)

# A module may include those of its own layer and of the layers before it (DESIGN, "The runtime").
LAYERS = (
    {"edgebuild_run", "status", "arena", "reader", "cpu", "date", "clock"},
    {"crypto", "sha256_block", "sodium_glue"},
    {"manifest", "minisign", "archive", "sealed", "feed"},
    {"trust"},
    {"bundle"},
    {"plan", "program", "pool", "bits"},
    {"numbers", "coded", "unzstd"},
    {"coded_weights", "coded_patch", "delta"},
    {"trial"},
    {"engine"},
    {"disk", "state"},
    {"store"},
    {"launch", "gc", "keys"},
    {"canary"},
    {"install", "supervise"},
    {"install_delta"},
    {"chunks"},
    {"index", "remote"},
    {"follow"},
    {"stream", "json", "latency"},
    {"source", "source_npy", "source_ppm", "source_rgb", "source_y4m", "trust_file"},
    {"check", "options", "runner"},
    {"commands"},
    {"main"},
)


@pytest.mark.parametrize("triple", TRIPLES)
def test_size(triple: str) -> None:
    size = runtime_binary(triple).stat().st_size
    print(f"edgebuild-run for {triple}: {size} bytes")  # noqa: T201
    assert size <= SIZE_BUDGET


@pytest.mark.parametrize("triple", TRIPLES)
def test_needs_no_newer_glibc_and_no_other_library(triple: str) -> None:
    data = runtime_binary(triple).read_bytes()
    versions = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"GLIBC_(\d+\.\d+)", data)}
    assert versions
    assert max(versions) <= GLIBC
    libraries = set(re.findall(rb"\0(lib[a-z]+)\.so\.\d", data))
    assert libraries <= {b"libc", b"libdl", b"libpthread"}


def test_version(host: Machine) -> None:
    done = host.run(b"", "--version", trust=None)
    assert done.returncode == 0
    assert re.fullmatch(r"edgebuild-run \d+\.\d+\.\d+ \(ABI 1, \w+\)\n", done.stdout)


def test_help_documents_the_exit_codes(host: Machine) -> None:
    done = host.run(b"", "--help", trust=None)
    assert done.returncode == 0
    assert "exit code: 0 success, 1 wrong argument or input, 2 bundle refused" in done.stdout


def test_unchanged_sources_are_not_built_again() -> None:
    before = runtime_binary(TRIPLES[0]).stat()
    after = runtime_binary(TRIPLES[0]).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_other_folder_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = runtime_binary(TRIPLES[1]).read_bytes()
    sodium, zstd = runtime.library_source(runtime.SODIUM), runtime.library_source(runtime.ZSTD)
    copy = tmp_path / "another place"
    shutil.copytree(resource("runtime-min"), copy / "runtime-min")
    shutil.copytree(sodium / "src/libsodium", copy / "libsodium/src/libsodium")
    shutil.copytree(zstd, copy / "zstd")
    monkeypatch.setattr(runtime, "resource", lambda name: copy / name)
    monkeypatch.setattr(runtime, "library_source", lambda sdist: copy / sdist.library)
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path / "cache"))
    again = build_runtime(release_build(TRIPLES[1])) / "edgebuild-run"
    assert again.is_relative_to(tmp_path)
    assert again.read_bytes() == expected
    assert str(tmp_path).encode() not in expected


def test_includes_point_down() -> None:
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    root = resource("runtime-min")
    for path in [*(root / "src").iterdir(), *(root / "include").iterdir()]:
        for included in re.findall(r'^#include "([^"]+)\.h"', path.read_text(), re.MULTILINE):
            assert rank[included] <= rank[path.stem], f"{path.name} includes {included}.h"


def test_no_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(EnvironmentProblem, match=r"cannot get the source of libsodium \(pynacl") as caught:
        runtime.library_source(runtime.SODIUM)
    assert "package index" in caught.value.hint
    assert list(tmp_path.rglob("*")) == [tmp_path / "libsodium"]


def test_no_clang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime.shutil, "which", lambda _: None)
    with pytest.raises(EnvironmentProblem, match="clang is not installed") as caught:
        runtime_binary(TRIPLES[0], sanitize=True)
    assert caught.value.hint == "apt install clang"


def test_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {sdist: runtime.library_source(sdist) for sdist in (runtime.SODIUM, runtime.ZSTD)}
    monkeypatch.setattr(runtime, "library_source", found.__getitem__)
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path))
    broken = runtime.Build(("/bin/false",), "0")
    with pytest.raises(CompileError, match="the native runtime does not build"):
        build_runtime(broken)
    assert list(tmp_path.rglob("*")) == [tmp_path / "runtime"]

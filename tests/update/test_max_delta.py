"""`compile --max-delta`: the update that comes nearest to the new network in so many bytes."""

import platform
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command_line import Edgebuild
from core.bundles import make_bundle
from networks import Release, samples, values, write

from edgebuild.core.bundle import file_rows
from edgebuild.core.keys import signing_key
from edgebuild.stages.quantize import Aim, Basis, Choices, Settings, Update, quantize
from edgebuild.stages.runtime import runtime_binary


@pytest.fixture
def tuned() -> Any:
    """A later training: every weight has changed, some by much."""
    rng, given = np.random.default_rng(3), values()
    for name in ("w1", "w2", "w3"):
        spread = np.abs(given[name]).max()
        change = rng.laplace(size=given[name].shape) * 0.06 * spread
        given[name] = (given[name] + change).astype(np.float32)
    for name in ("b1", "b2", "b3"):
        given[name] = given[name] + np.float32(0.2)
    return given


def delta_bytes(edgebuild: Edgebuild, old: Release, new: Release) -> int:
    """As `edgebuild delta` makes it."""
    ran = edgebuild("delta", old.path, new.path, "--json")
    assert ran.code == 0, ran.err
    return int(ran.json["bytes"])


def test_a_part_of_the_update_fits(
    compiled: Callable[..., Release], old: Release, edgebuild: Edgebuild, tuned: Any
) -> None:
    whole = compiled(tuned, "3.0.0", "--update-of", old.path)
    assert delta_bytes(edgebuild, old, whole) > 3800
    part = compiled(tuned, "3.0.1", "--update-of", old.path, "--max-delta", "2.5KB")
    update = part.report["update"]
    assert delta_bytes(edgebuild, old, part) == update["delta_bytes"]
    assert 2000 < update["delta_bytes"] <= 2500
    assert 0 < update["changed"] < whole.report["update"]["changed"]
    errors = [10 ** (-release.report["accuracy"]["sqnr_db"] / 10) for release in (whole, part)]
    least = compiled(tuned, "3.0.2", "--update-of", old.path, "--max-delta", "1500B")
    errors.append(10 ** (-least.report["accuracy"]["sqnr_db"] / 10))
    assert errors[0] < errors[1] < errors[2] < 0.3
    assert least.report["update"]["delta_bytes"] <= 1500
    for release in (part, least):
        assert {release.file(name) == old.file(name) for name in ("program.so", "plan.bin")} == {True}


def test_where_all_fits_all_is_shipped(compiled: Callable[..., Release], old: Release, tuned: Any) -> None:
    whole = compiled(tuned, "3.1.0", "--update-of", old.path)
    roomy = compiled(tuned, "3.1.1", "--update-of", old.path, "--max-delta", "1MiB")
    assert roomy.file("weights.bin") == whole.file("weights.bin")
    assert roomy.report["update"]["price"] == 0


def test_the_next_update_builds_on_a_part(compiled: Callable[..., Release], old: Release, tuned: Any) -> None:
    part = compiled(tuned, "3.2.0", "--update-of", old.path, "--max-delta", "1500B")
    rest = compiled(tuned, "3.2.1", "--update-of", part.path)
    assert rest.read.manifest.release == 3
    assert rest.report["accuracy"]["sqnr_db"] > part.report["accuracy"]["sqnr_db"] + 6


@pytest.mark.parametrize("size", ["300B", "450B"])
def test_what_cannot_fit_is_refused_with_numbers(
    refused: Callable[..., str], old: Release, tuned: Any, size: str
) -> None:
    said = refused(7, "--update-of", old.path, "--max-delta", size, given=tuned)
    assert "nothing fits" in said or "comes no nearer" in said
    assert any(character.isdigit() for character in said)
    assert "hint: allow" in said


def test_a_price_gives_one_update(tuned: Any, tmp_path: Path) -> None:
    """Whatever was tried before: or a search among prices misses the room that there is."""
    seen = np.load(samples(tmp_path / "c.npz"))["x"]

    def frames() -> list[dict[str, Any]]:
        return [{"x": frame} for frame in seen]

    first = quantize(onnx.load(write(tmp_path / "old.onnx", values())), frames)
    basis = Basis(first.model, first.floating, Choices(first.report["observer"], first.factors, frozenset(), {}))
    update = Update(onnx.load(write(tmp_path / "new.onnx", tuned)), frames, Settings(), basis)
    once, dear, again = (update.choices(Aim(relative=price)) for price in (1e-4, 1e-2, 1e-4))
    assert all(np.array_equal(once[name].q, again[name].q) for name in once)
    assert any(not np.array_equal(once[name].q, dear[name].q) for name in once)


@pytest.fixture
def with_another_runtime(old: Release, place: Path) -> Callable[[str], Release]:
    """The first release as it would be with another runtime: a script."""

    def made(script: str) -> Release:
        folder = Path(tempfile.mkdtemp(dir=place))
        path = folder / old.path.name
        files = {name: bytes(data) for name, data in old.read.files.items()}
        files["edgebuild-run"] = f"#!/bin/sh\n{script}\n".encode()
        path.write_bytes(make_bundle(replace(old.read.manifest, files=file_rows(files)), files, signing_key(None)))
        basis = old.path.name.replace(".ebundle", ".basis.zip")
        (folder / basis).write_bytes((old.path.parent / basis).read_bytes())
        return Release(path, {})

    return made


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the script starts the runtime of x86-64")
def test_the_old_runtime_may_stay(
    compiled: Callable[..., Release],
    refused: Callable[..., str],
    edgebuild: Edgebuild,
    tuned: Any,
    with_another_runtime: Callable[[str], Release],
) -> None:
    first = with_another_runtime(f'exec {runtime_binary("x86_64-linux-gnu")} "$@"')
    said = refused(7, "--update-of", first.path, "--max-delta", "2.5KB", given=tuned)
    assert "nothing fits into 2500 bytes: what is not weights takes" in said
    assert "edgebuild-run 1" in said
    assert "--keep-runtime" in said
    kept = compiled(tuned, "3.4.0", "--update-of", first.path, "--max-delta", "2.5KB", "--keep-runtime")
    update = kept.report["update"]
    assert kept.file("edgebuild-run") == first.file("edgebuild-run")
    assert update["runtime"] == "kept"
    assert "edgebuild-run" not in update["delta_files"]
    assert sum(update["delta_files"].values()) < update["delta_bytes"] == delta_bytes(edgebuild, first, kept) <= 2500
    roomy = compiled(tuned, "3.4.1", "--update-of", first.path, "--max-delta", "1MiB")
    assert roomy.report["update"]["runtime"] == "new"
    assert roomy.report["update"]["delta_files"]["edgebuild-run"] > 50_000


def test_a_runtime_that_does_not_serve_is_not_kept(
    refused: Callable[..., str], tuned: Any, with_another_runtime: Callable[[str], Release]
) -> None:
    first = with_another_runtime("echo error: plan.bin has format 9 >&2; exit 8")
    said = refused(7, "--update-of", first.path, "--keep-runtime", given=tuned)
    assert "--keep-runtime: with the runtime of 1.0.0" in said
    assert "plan.bin has format 9" in said
    assert "leave out --keep-runtime" in said


@pytest.mark.parametrize("size", ["", "0KB", "100 KBs", "-5", "1e6", "kb"])
def test_sizes_that_are_none_are_refused(refused: Callable[..., str], old: Release, size: str) -> None:
    said = refused(2, "--update-of", old.path, "--max-delta", size)
    assert f"--max-delta {size}".strip() in said
    assert "100KB" in said


def test_a_budget_needs_a_base(refused: Callable[..., str]) -> None:
    assert "--max-delta needs the release that devices have" in refused(2, "--max-delta", "100KB")
    assert "--keep-runtime needs the release that devices have" in refused(2, "--keep-runtime")

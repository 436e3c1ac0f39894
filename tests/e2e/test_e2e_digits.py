"""The default recipe, all the way: accuracy, size, identical bytes, caching, the device's answers."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from builds import Built, Machine

from edgebuild.core import keys, minisign
from edgebuild.core.bundle import Bundle, file_rows, read_bundle, read_unverified
from edgebuild.core.errors import CheckError
from edgebuild.core.resources import resource
from edgebuild.core.runner import Trial, prefix_for
from edgebuild.core.target_file import load_target
from edgebuild.demo import y4m
from edgebuild.stages import check, sign
from edgebuild.stages.runtime import runtime_binary


def run_bundle(
    machine: Machine, bundle: Path, *arguments: str, target: str = "host", stdin: bytes = b""
) -> list[dict[str, object]]:
    prefix, reason = prefix_for(load_target(target))
    assert prefix is not None, reason
    program = [*prefix, str(runtime_binary(load_target(target).triple)), str(bundle), "--trust", str(machine.trust)]
    done = subprocess.run([*program, *arguments], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def files_of(built: Built) -> dict[str, bytes]:
    return {path: bytes(data) for path, data in read_unverified(built.data).files.items()}


def test_accuracy_and_size(digits: Built) -> None:
    accuracy, size = digits.report["accuracy"], digits.report["size"]
    assert accuracy["metric"] == "top1"
    assert accuracy["data"] == "test"
    assert accuracy["float"] >= 97.0
    assert accuracy["drop"] <= 0.5
    assert size["ratio"] == pytest.approx(size["int8_bytes"] / size["float_bytes"], abs=1e-4)
    assert size["ratio"] <= 0.28


def test_the_report_has_its_documented_keys(digits: Built) -> None:
    report = digits.report
    assert report["checked"] is True
    assert report["quality"] == "trained"
    assert set(report["latency_us"]) == {"min", "median", "p99"}
    assert 0 < report["latency_us"]["min"] <= report["latency_us"]["median"] <= report["latency_us"]["p99"]
    assert 0 < report["macs"]["integer"] <= report["macs"]["total"]
    assert list(report["seconds"]) == [
        "ingest", "quantize", "compile", "runtime", "package", "check", "evaluate", "precision", "diagnose", "sign",
    ]  # fmt: skip
    assert report["bundle_bytes"] == len(digits.data)
    assert report["arena_bytes"] > 0
    assert report["runtime_bytes"] <= 400_000
    assert all(set(operator) == {"name", "kind"} for operator in report["float_operators"])


def test_the_device_reads_held_out_digits_from_y4m(
    machine: Machine, digits: Built, held_out: tuple[np.ndarray, list[int]]
) -> None:
    frames, labels = held_out
    shape = read_unverified(digits.data).manifest.inputs[0]
    lines = run_bundle(machine, digits.bundle, "--input", "-", "--no-pace", stdin=b"".join(y4m(iter(frames), shape)))
    right = sum(line["outputs"]["label"] == label for line, label in zip(lines, labels, strict=True))
    assert right >= 0.965 * len(labels)


def test_the_bundle_is_verified_by_us_and_by_minisign(machine: Machine, digits: Built, tmp_path: Path) -> None:
    ran = machine.edgebuild("verify", digits.bundle, "--trust", machine.trust)
    assert "files unchanged" in ran.stdout
    subprocess.run(["tar", "xf", digits.bundle, "manifest", "manifest.minisig"], cwd=tmp_path, check=True)
    key = machine.home / "config/edgebuild/keys/dev.key.pub"
    tool = shutil.which("minisign")
    assert tool, "install Debian's package minisign"
    subprocess.run([tool, "-Vm", "manifest", "-p", key], cwd=tmp_path, check=True, capture_output=True)


def test_an_unknown_signer_is_refused(machine: Machine, digits: Built, tmp_path: Path) -> None:
    other = tmp_path / "trust"
    other.write_bytes(minisign.generate().public.file())
    refused = machine.edgebuild("verify", digits.bundle, "--trust", other, code=8)
    assert re.search(": signed by key [0-9A-F]{16}, which the trust file does not list", refused.stderr)


def test_inspect_has_its_documented_keys(machine: Machine, digits: Built) -> None:
    found = json.loads(machine.edgebuild("inspect", digits.bundle, "--trust", machine.trust, "--json").stdout)
    assert (found["name"], found["version"], found["target"]) == ("digits", "1.0.0", "host")
    assert found["signer"] == digits.report["signer"]
    assert found["verified"] is True
    assert found["inputs"] == [{"name": "frame", "shape": [64, 64, 3], "dtype": "uint8"}]
    assert [(item["name"], item["dtype"]) for item in found["outputs"]] == [
        ("label", "int64"),
        ("confidence", "float32"),
    ]
    assert {file["path"] for file in found["files"]} >= {"program.so", "function/function.py", "golden/out-1.npy"}
    assert found["macs"] == digits.report["macs"]
    assert found["macs"]["total"] == sum(op["macs"] for op in found["ops"])
    assert found["arena_bytes"] == digits.report["arena_bytes"]
    last = max(item["offset"] + item["bytes"] for item in found["tensors"] if item["space"] == "arena")
    assert last <= found["arena_bytes"] <= last + 63
    for op in found["ops"]:
        assert set(op) == {"name", "kind", "inputs", "outputs", "macs", "integer"}
        assert all(set(item) == {"name", "shape", "dtype", "space"} for item in (*op["inputs"], *op["outputs"]))


def test_inspect_without_trust_says_so(machine: Machine, digits: Built) -> None:
    assert json.loads(machine.edgebuild("inspect", digits.bundle, "--json").stdout)["verified"] is False
    assert "unverified: no --trust given" in machine.edgebuild("inspect", digits.bundle).stdout


def test_a_build_without_changes_imports_no_framework(machine: Machine, digits: Built) -> None:
    """`make bench` measures the time; what would make it slow is an import."""
    arguments = ("compile", "digits", "--target", "host", "--out", "again", "--json")
    done = machine.edgebuild(*arguments, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "tvm", "onnx", "onnxruntime", "sklearn"}
    assert (machine.home / "again" / digits.bundle.name).read_bytes() == digits.data


def test_another_folder_and_an_empty_cache_give_the_same_bytes(machine: Machine, digits: Built, tmp_path: Path) -> None:
    """Trained, exported, calibrated, compiled and signed anew, in a copy of the recipe."""
    shutil.copytree(resource("recipes") / "digits", tmp_path / "elsewhere" / "copy")
    anew = Machine(machine.home, tmp_path / "cache")
    built = anew.compile(tmp_path / "elsewhere" / "copy", "--target", "host", "--out", str(tmp_path / "out"))
    assert files_of(built) == files_of(digits)
    assert built.data == digits.data


def test_two_trainings_differ_in_weights_only(machine: Machine, digits: Built) -> None:
    other = machine.compile("digits", "--target", "host", "--seed", "1", "--out", "seed")
    one, two = files_of(digits), files_of(other)
    assert one["weights.bin"] != two["weights.bin"]
    assert one["program.so"] == two["program.so"]
    assert one["plan.bin"] == two["plan.bin"]


@pytest.mark.parametrize(
    "target", ["aarch64-generic", "raspberry-pi-5", "x86_64-avx2", "x86_64-generic", "riscv64-generic", "riscv64-v"]
)
def test_every_cpu_gives_the_same_bits(
    target: str, machine: Machine, digits: Built, held_out: tuple[np.ndarray, list[int]], tmp_path: Path
) -> None:
    other = machine.compile("digits", "--target", target, "--out", "cross")
    assert other.report["checked"] is True, other.report["check_reason"]
    np.save(tmp_path / "frames.npy", held_out[0][:32])
    arguments = ("--input", str(tmp_path / "frames.npy"), "--no-pace")
    here = run_bundle(machine, digits.bundle, *arguments)
    there = run_bundle(machine, other.bundle, *arguments, target=target)
    assert [line["outputs"] for line in here] == [line["outputs"] for line in there]


def test_without_qemu_a_cross_compiled_bundle_says_unchecked(machine: Machine, tmp_path: Path) -> None:
    arguments = ("compile", "digits", "--target", "aarch64-generic", "--out", tmp_path)
    ran = machine.edgebuild(*arguments, PATH="/nonexistent")
    assert "NO: qemu-aarch64 is not installed" in ran.stdout
    report = json.loads((tmp_path / "digits-1.0.0-aarch64-generic.report.json").read_text())
    assert report["checked"] is False
    assert "qemu-user" in report["check_reason"]
    bundle = tmp_path / "digits-1.0.0-aarch64-generic.ebundle"
    assert not read_unverified(bundle.read_bytes()).manifest.checked


def altered(built: Built, path: str) -> tuple[Bundle, dict[str, bytes]]:
    read = read_unverified(built.data)
    files = {name: bytes(data) for name, data in read.files.items()}
    files[path] = files[path][:-1] + bytes([files[path][-1] ^ 1])
    return read, files


def test_a_program_that_misses_its_golden_outputs_is_caught(digits: Built, tmp_path: Path) -> None:
    """The same check that a build makes, first on the untouched bundle, then on one that promises another output."""
    import dataclasses

    key = minisign.generate()
    trust = tmp_path / "trust"
    trust.write_bytes(key.public.file())
    trial = Trial((), runtime_binary(load_target("host").triple), tmp_path / "b.ebundle", trust)
    read, files = altered(digits, "golden/out-1.npy")
    same = {name: bytes(data) for name, data in read.files.items()}
    trial.bundle.write_bytes(sign.sign(read.manifest, same, key))
    check.check(trial)
    trial.bundle.write_bytes(sign.sign(dataclasses.replace(read.manifest, files=file_rows(files)), files, key))
    with pytest.raises(CheckError, match="does not reproduce its golden outputs"):
        check.check(trial)


def test_a_bundle_that_was_never_run_checks_itself(digits: Built, tmp_path: Path) -> None:
    """The program that misses a golden output gives no result at all; nobody else has seen it run."""
    import dataclasses

    key = minisign.generate()
    trust, frames = tmp_path / "trust", tmp_path / "frames.npy"
    trust.write_bytes(key.public.file())
    read, files = altered(digits, "golden/out-1.npy")
    frames.write_bytes(bytes(read.files["golden/in-0.npy"]))
    trial = Trial((), runtime_binary(load_target("host").triple), tmp_path / "b.ebundle", trust)
    for content, code in ((files, 3), ({name: bytes(data) for name, data in read.files.items()}, 0)):
        manifest = dataclasses.replace(read.manifest, files=file_rows(content), checked=False)
        trial.bundle.write_bytes(sign.sign(manifest, content, key))
        done = trial.run("--input", str(frames), "--no-pace")
        assert done.returncode == code
        assert bool(done.stdout) == (code == 0)
        assert (b"the bundle's first run anywhere is not right" in done.stderr) == (code == 3)


def test_the_signature_is_by_the_development_key(machine: Machine, digits: Built) -> None:
    trust = keys.load_trust(machine.trust)
    signer = read_bundle(digits.data, trust).signer
    assert signer is not None
    assert signer.name == digits.report["signer"]

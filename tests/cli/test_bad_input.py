"""Wrong files of every kind through the real command line: an error that names the file, a hint, nothing written."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from edgebuild.core import bundle, minisign
from edgebuild.core.cache import CACHE_VARIABLE
from edgebuild.core.manifest import File, Manifest, Tensor, Trigger

HEAD = '<ir_version: 8, opset_import: ["": 18]> net '
LINEAR = HEAD + "(float[1,4] x) => (float[1,2] y) <float[4,2] w = {1,2,3,4,5,6,7,8}> { y = MatMul(x, w) }"
SAMPLES = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def write_model(
    text: str = LINEAR, path: str = "m.onnx", change: Callable[[onnx.ModelProto], None] | None = None
) -> None:
    model = onnx.parser.parse_model(text)
    if change:
        change(model)
    Path(path).write_bytes(model.SerializeToString())


def refused(ran, code: int, message: str, hint: str) -> None:
    assert (ran.code, ran.out) == (code, "")
    last = ran.err[ran.err.index("error: ") :]
    assert message in last.splitlines()[0]
    assert last.splitlines()[1].startswith("hint: ")
    assert hint in last.splitlines()[1]
    assert sorted(Path().rglob("*.ebundle")) == sorted(Path().rglob("*.report.json")) == []


@pytest.mark.parametrize(
    ("arrays", "message", "hint"),
    [
        ({"x": np.array([{}, None])}, "c.npz: array 'x.npy' holds Python objects", "numeric"),
        ({"x": SAMPLES, "labels": np.zeros((8, 2), np.int64)}, "array 'labels' is int64 with shape [2]", "class index"),
        ({"x": SAMPLES, "labels": np.full(8, np.nan)}, "array 'labels' is float64 with shape []", "class index"),
        ({"x": SAMPLES, "labels": np.array(list("abcdefgh"))}, "array 'labels' is str32", "class index"),
        ({"x": SAMPLES, "z": SAMPLES}, "array 'z' is no input of the model", "known: x"),
        ({"x": SAMPLES, "labels": np.zeros(7, np.int64)}, "different numbers of samples: x 8, labels 7", "first axis"),
    ],
)
def test_calibration_arrays(edgebuild, arrays: dict[str, np.ndarray], message: str, hint: str) -> None:
    write_model()
    np.savez("c.npz", **arrays)
    refused(edgebuild("compile", "m.onnx", "--calibration", "c.npz"), 5, message, hint)


def test_calibration_of_another_byte_order_is_taken(edgebuild) -> None:
    from edgebuild.core.calibration import load_set

    np.savez("c.npz", x=SAMPLES.astype(">f4"))
    found = list(load_set(Path("c.npz")).samples([Tensor("x", "float32", (1, 4))]))
    assert found[0]["x"].dtype == np.dtype("float32")
    np.testing.assert_array_equal(np.concatenate([sample["x"] for sample in found]), SAMPLES)


@pytest.mark.parametrize("data", [b"", b"hello", b"PK\x03\x04" + bytes(40)])
def test_calibration_that_is_no_npz(edgebuild, data: bytes) -> None:
    write_model()
    Path("c.npz").write_bytes(data)
    ran = edgebuild("compile", "m.onnx", "--calibration", "c.npz")
    refused(ran, 5, "c.npz: is no readable .npz file", "numpy.savez")


def list_output_twice(model: onnx.ModelProto) -> None:
    model.graph.output.append(model.graph.output[0])


@pytest.mark.parametrize(
    ("text", "change", "message", "hint"),
    [
        (
            HEAD + "(float[1,4,4] x) => (float[1] y) { [head] y = Det(x) }",
            None,
            "m.onnx: not supported: Det ('head')",
            "replace",
        ),
        (HEAD + "(float[1,n] x) => (float[1,n] y) { y = Relu(x) }", None, "m.onnx: input 'x' is dynamic", "static"),
        (HEAD + "() => (float[2] y) <float[2] c = {1,2}> { y = Relu(c) }", None, "m.onnx: the model has no input", ""),
        (LINEAR, list_output_twice, "m.onnx: output 'y' is listed twice", "once"),
        (
            HEAD + "(double[1,4] x) => (double[1,4] y) { y = Relu(x) }",
            None,
            "m.onnx: input 'x' gives DOUBLE",
            "float32",
        ),
        (
            HEAD + "(float[1,4] x) => (float[1,4] y) { [up] z = Cast<to=11>(x)\n y = Cast<to=1>(z) }",
            None,
            "m.onnx: Cast 'up' gives DOUBLE",
            "float32",
        ),
        (
            HEAD + "(float[1,1,1,1,1,1,4] x) => (float[1,1,1,1,1,1,4] y) { y = Relu(x) }",
            None,
            "m.onnx: input 'x' gives 7 axes; the most is 6",
            "reshape",
        ),
        (
            HEAD + "(float[1,4] x) => (float[n,m] y) <int64[2] s = {100000,25000}, float[1] o = {0}> "
            "{ z = ReduceSum<keepdims=1>(x)\n y = Expand(z, s) }",
            None,
            "m.onnx: Expand 'Expand' gives a tensor of shape [100000, 25000]",
            "smaller",
        ),
        (
            HEAD + "(float[1,4] x) => (" + ", ".join(f"float[1,4] y{i}" for i in range(210)) + ") {"
            "" + "\n".join(f"y{i} = Relu(x)" for i in range(210)) + "}",
            None,
            "m.onnx: 211 inputs and outputs; a bundle holds 200",
            "used",
        ),
    ],
)
def test_models(
    edgebuild, text: str, change: Callable[[onnx.ModelProto], None] | None, message: str, hint: str
) -> None:
    write_model(text, change=change)
    shape = (4, 4) if "[1,4,4]" in text else (1, 1, 1, 1, 1, 4) if "[1,1,1" in text else (4,)
    np.savez("c.npz", x=np.ones((8, *shape), np.float32))
    refused(edgebuild("compile", "m.onnx", "--calibration", "c.npz"), 4, message, hint)


def test_a_folder_called_onnx(edgebuild) -> None:
    Path("m.onnx").mkdir()
    refused(edgebuild("compile", "m.onnx"), 2, "m.onnx: is a folder, not an ONNX file", "name a model")


TARGET = """
description = "a board"
triple = "aarch64-linux-gnu"
cpu = "cortex-a53"
attributes = ["-aes", "-sha2"]
features = ["neon", "crc"]
isa = "neon"
engines = ["tvm"]
"""


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('"cortex-a53"', '"cortex-a35x"', "target board: cpu: LLVM knows no 'cortex-a35x'", "did you mean 'cortex-a3"),
        (
            '"-aes", "-sha2"',
            "",
            "code for cpu 'cortex-a53' uses aes, sha2, not listed",
            'attributes = ["-aes", "-sha2"]',
        ),
        ('isa = "neon"', 'isa = "dotprod"', "board.toml: isa: 'dotprod' needs the CPU features dotprod", "list them"),
        ('isa = "neon"', 'isa = "avx2"', "board.toml: isa: 'avx2' needs the CPU features avx2, fma", "list them"),
        ('cpu = "cortex-a53"', "cpu = 53", "board.toml: cpu: expected a string, found an integer 53", "write a string"),
        ("cpu =", "cpus =", "board.toml: unknown key 'cpus'", "did you mean 'cpu'?"),
        (
            'features = ["neon", "crc"]\nisa = "neon"',
            'features = ["neon", "dotprod", "crc"]\nisa = "dotprod"',
            "target board: features: cpu 'cortex-a53' with these attributes has no dotprod",
            'switch it on: attributes = ["+dotprod"]',
        ),
        (
            '"-aes", "-sha2"',
            '"-aes", "-sha2", "+foo"',
            "target board: attributes: LLVM knows no '+foo'",
            "leave it out",
        ),
        ('"-aes", "-sha2"', '"aes sha2"', "board.toml: attributes: 'aes sha2' is none of LLVM's", "write + or -"),
        ('"-aes", "-sha2"', '"-neon"', "cpu 'cortex-a53' with these attributes has no neon", '["+neon"]'),
    ],
)
def test_targets(edgebuild, old: str, new: str, message: str, hint: str) -> None:
    write_model()
    np.savez("c.npz", x=SAMPLES)
    assert TARGET.count(old) == 1
    Path("board.toml").write_text(TARGET.replace(old, new))
    ran = edgebuild("compile", "m.onnx", "--calibration", "c.npz", "--target", "board.toml")
    refused(ran, 3, message, hint)


OTHERS = {
    "x86-64-v3 has no VNNI": ("x86_64", "x86-64-v3", [], ["avx2", "fma", "avxvnni"], "avxvnni", "has no avxvnni"),
    "x86-64 has no AVX2": ("x86_64", "x86-64", [], ["avx2", "fma"], "avx2", "has no avx2, fma"),
    "without SSE2": ("x86_64", "x86-64", ["-sse2"], [], "sse2", "has no sse2"),
    "32 bits": ("x86_64", "i686", [], [], "plain", "has no 64bit"),
    "no vectors": ("riscv64", "generic-rv64", ["+m", "+a", "+f", "+d"], ["v"], "rvv", "has no v"),
    "no multiplication": ("riscv64", "generic-rv64", ["+a"], [], "plain", "has no m, f, d"),
    "32 bits of RISC-V": ("riscv64", "generic-rv32", ["+m", "+a", "+f", "+d"], [], "plain", "has no 64bit"),
    "floats elsewhere": ("x86_64", "x86-64", ["+soft-float"], [], "sse2", "soft-float is another calling convention"),
    "and on RISC-V": (
        "riscv64",
        "generic-rv64",
        ["+m", "+a", "+zfinx", "+f", "+d"],
        [],
        "plain",
        "zfinx is another call",
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_cpu_without_what_the_target_asks_for(edgebuild, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """LLVM ends the process, or never ends, where kernels use what the CPU lacks: so it is never asked."""
    monkeypatch.setenv(CACHE_VARIABLE, str(Path("cache").resolve()))  # nobody has ingested this model before
    arch, cpu, attributes, features, isa, message = OTHERS[case]
    write_model()
    np.savez("c.npz", x=SAMPLES)
    fields = {"triple": f"{arch}-linux-gnu", "cpu": cpu, "attributes": attributes, "features": features, "isa": isa}
    fields |= {"description": "a board", "engines": ["tvm"]}
    Path("board.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items()))
    ran = edgebuild("compile", "m.onnx", "--calibration", "c.npz", "--target", "board.toml")
    assert ran.err.startswith("error: ")  # before any stage was finished
    refused(ran, 3, message, "leave it out, or take another cpu" if "another" in message else "attributes = [")


def test_a_target_file_that_is_not_there(edgebuild) -> None:
    ran = edgebuild("compile", "--target", "nothing.toml")
    refused(ran, 3, "nothing.toml: cannot be read: No such file", "name an existing file")
    Path("My Board.toml").write_text(TARGET)
    refused(edgebuild("compile", "--target", "My Board.toml"), 3, "a target's file name may hold a-z", "rename it")


@pytest.mark.parametrize(
    "arguments",
    [
        ["compile", "--out", "/proc/nothing/here"],
        ["init", "/proc/nothing"],
        ["keys", "new", "--out", "/proc/a.key"],
        ["runtime", "-o", "/nowhere/at/all"],
    ],
)
def test_places_that_cannot_be_written(edgebuild, arguments: list[str]) -> None:
    refused(edgebuild(*arguments), 9, f"{arguments[-1]}: cannot be written: ", "choose another folder")


def test_a_cache_that_cannot_be_written(edgebuild, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    np.savez("c.npz", x=SAMPLES)
    monkeypatch.setenv("EDGEBUILD_CACHE", "/proc/nothing")
    ran = edgebuild("compile", "m.onnx", "--calibration", "c.npz")
    refused(ran, 9, "/proc/nothing/stages: cannot be written", "EDGEBUILD_CACHE=FOLDER")


def test_output_that_nobody_can_take() -> None:
    command = [sys.executable, "-m", "edgebuild", "targets", "--json"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, "standard output: no room left on the disk" in done.stderr) == (9, True)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert "error" not in done.stderr  # whoever reads may stop early


@pytest.mark.parametrize(
    "content", [b"", b"hello\n", b"-----BEGIN PRIVATE KEY-----\nAAAA\n", b"\0" * 200, b"untrusted comment: x\nRWQ=\n"]
)
def test_key_files(edgebuild, content: bytes) -> None:
    Path("my.key").write_bytes(content)
    refused(edgebuild("compile", "--key", "my.key"), 8, "my.key: not a minisign secret key", "edgebuild keys new")
    refused(edgebuild("keys", "show", "my.key"), 8, "my.key: not a minisign key", "two lines")


def test_missing_and_unreadable_files(edgebuild) -> None:
    Path("folder").mkdir()
    refused(edgebuild("compile", "--key", "folder"), 9, "folder: the key file cannot be read", "edgebuild keys new")
    refused(edgebuild("inspect", "folder"), 9, "folder: Is a directory", ".ebundle")
    refused(edgebuild("inspect", "nothing"), 9, "nothing: No such file", ".ebundle")
    Path("b").write_bytes(made_bundle())
    missing = edgebuild("verify", "b", "--trust", "nothing")
    refused(missing, 8, "error: nothing: no such trust file", "edgebuild keys show")
    refused(edgebuild("verify", "b", "--trust", "folder"), 9, "the trust file cannot be read", "edgebuild keys show")


KEY = minisign.SecretKey(bytes(8), bytes(32))


def made_bundle() -> bytes:
    files = dict.fromkeys(("edgebuild-run", "program.so", "plan.bin", "weights.bin"), b"x")
    rows: tuple[File, ...] = bundle.file_rows(files)
    made = Manifest(
        "m", "1", "host", 1, "x86_64", (), 1, "trained", "f", Trigger(), None, inputs=(), outputs=(), files=rows
    )
    signature = minisign.sign(bundle.manifest_format.serialize(made), KEY, bundle.comment(made))
    return b"".join(bundle.pieces(made, signature, files))


@pytest.mark.parametrize(
    ("trust", "message", "hint"),
    [
        ("", "t: trust file: no key in it", "append"),
        ("# nothing\n", "t: trust file: no key in it", "append"),
        ("nonsense\n", "t: trust file, line 1: not a minisign public key", "base64"),
        (f"{KEY.public.line()}\n" * 2, "t: trust file, line 2: a second key with id", "keep one"),
        ("#" * 70_000, "t: trust file: 70000 bytes; the limit is 65536", "only keys"),
        (f"{minisign.generate().public.line()}\n", "b: signed by key 0000000000000000", "if you trust it"),
    ],
)
def test_trust_files(edgebuild, trust: str, message: str, hint: str) -> None:
    Path("b").write_bytes(made_bundle())
    Path("t").write_text(KEY.public.file().decode())
    assert edgebuild("verify", "b", "--trust", "t").code == 0
    Path("t").write_text(trust)
    refused(edgebuild("verify", "b", "--trust", "t"), 8, message, hint)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (0, "b: not a bundle: it is cut off before `manifest`"),
        (100, "b: not a bundle: it is cut off before `manifest`"),
        (600, "b: the bundle is cut off inside `manifest`"),
        (-1100, "b: the bundle is cut off inside `weights.bin`"),
        (-1, "b: the archive does not end where its manifest says"),
    ],
)
def test_a_bundle_cut_off(edgebuild, size: int, message: str) -> None:
    Path("t").write_text(KEY.public.file().decode())
    Path("b").write_bytes(made_bundle()[:size])
    refused(edgebuild("verify", "b", "--trust", "t"), 8, message, "")
    refused(edgebuild("inspect", "b"), 8, message, "")


def test_a_file_that_is_no_bundle(edgebuild) -> None:
    write_model()
    Path("long").write_bytes(b"\x7fELF" * 1000)
    refused(edgebuild("inspect", "long"), 8, "long: not a bundle: no archive member `manifest`", "edgebuild compile")


@pytest.mark.parametrize(
    ("data", "message", "hint"),
    [
        (b"EBD1" + bytes(99), "x.ebundle: is a delta, no bundle", "name the bundle"),
        (b"edgebuild-trust 1\n", "x.ebundle: is a trust file, no bundle", "trust show"),
    ],
)
def test_another_file_of_ours_is_named(edgebuild, data: bytes, message: str, hint: str) -> None:
    Path("x.ebundle").write_bytes(data)
    for command in (("inspect", "x.ebundle"), ("sign", "x.ebundle"), ("delta", "x.ebundle", "x.ebundle")):
        ran = edgebuild(*command)
        assert (ran.code, ran.out) == (8, "")
        assert f"error: {message}\nhint: " in ran.err
        assert hint in ran.err

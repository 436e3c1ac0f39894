"""`edgebuild keys new --password`, `edgebuild sign`."""

import io
import json
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import SAMPLES, made_bundle, write_model

from edgebuild.core import bundle, keys, minisign, signer

DEVELOPMENT = minisign.SecretKey(bytes(8), bytes(32))  # signed made_bundle()
RELEASE = minisign.SecretKey(b"released", b"r" * 32)
TRUST = {RELEASE.key_id: RELEASE.public}


def test_keys_new_with_a_password(edgebuild, monkeypatch) -> None:
    monkeypatch.setenv("EDGEBUILD_KEY_PASSWORD", "swordfish")
    ran = edgebuild("keys", "new", "--password", "--out", "my.key")
    assert (ran.code, ran.err) == (0, "")
    assert Path("my.key").read_text().startswith("untrusted comment: minisign encrypted secret key ")
    public = keys.load_public(Path("my.key.pub"))
    shown = edgebuild("keys", "show", "my.key", "--json")
    assert (shown.code, shown.json["public"]) == (0, public.line())
    monkeypatch.setenv("EDGEBUILD_KEY_PASSWORD", "shark")
    wrong = edgebuild("keys", "show", "my.key")
    assert wrong.code == 8
    assert wrong.err.startswith("error: my.key: wrong password, or the secret key is damaged\nhint: give the one ")
    assert "or name its public half, my.key.pub, which needs none" in wrong.err


def test_keys_new_without_a_terminal(edgebuild) -> None:
    ran = edgebuild("keys", "new", "--password", "--out", "my.key")
    assert ran.code == 8
    assert "there is no terminal to ask on\nhint: put it into $EDGEBUILD_KEY_PASSWORD" in ran.err
    assert not Path("my.key").exists()


@pytest.fixture
def built() -> Path:
    """A bundle that a development key signed, a release key, and a trust file with the second alone."""
    Path("b.ebundle").write_bytes(made_bundle())
    Path("release.key").write_bytes(RELEASE.file())
    Path("trust").write_bytes(RELEASE.public.file())
    return Path("b.ebundle")


def signed_elsewhere(path: Path, *arguments: str) -> Path:
    """What a release manager does on another machine."""
    with tarfile.open(path) as archive:
        archive.extract("manifest", filter="data")
    command = ["minisign", "-S", *arguments, "-m", "manifest", "-s", "release.key", "-x", "m.minisig"]
    subprocess.run(command, check=True, capture_output=True)
    return Path("m.minisig")


def test_another_key_and_the_same_files(edgebuild, built: Path) -> None:
    before = made_bundle()
    ran = edgebuild("sign", built, "--key", "release.key")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out == f"m 1 for host: signed by {RELEASE.public.name}, 4 files unchanged\n"
    read = bundle.read_bundle(built.read_bytes(), TRUST)
    assert read.files == bundle.read_unverified(before).files
    assert edgebuild("sign", built, "--key", "release.key", "--json").json["signer"] == RELEASE.public.name
    assert sorted(path.name for path in Path().iterdir()) == ["b.ebundle", "release.key", "trust"]


def test_the_report_beside_it_names_the_new_signer(edgebuild, built: Path) -> None:
    write_model()
    np.savez("c.npz", x=SAMPLES)
    assert edgebuild("compile", "m.onnx", "--calibration", "c.npz", "--json").code == 0
    path = Path("m-1.0.0-host.ebundle")
    report, page = path.with_suffix(".report.json"), path.with_suffix(".report.html")
    before = json.loads(report.read_text())
    assert edgebuild("sign", path, "--key", "release.key").code == 0
    after = json.loads(report.read_text())
    assert after == before | {"signer": RELEASE.public.name, "bundle_bytes": path.stat().st_size}
    assert before["signer"] != RELEASE.public.name
    assert RELEASE.public.name in page.read_text()
    assert before["signer"] not in page.read_text()


@pytest.mark.parametrize("content", ['{"name": "m", "version": "2", "target": "host", "signer": "x"}', "[]", "{", ""])
def test_what_is_no_report_of_the_bundle_stays(edgebuild, built: Path, content: str) -> None:
    report = Path("b.report.json")
    report.write_text(content)
    assert edgebuild("sign", built, "--key", "release.key").code == 0
    assert report.read_text() == content


def test_a_report_that_has_no_page(edgebuild, built: Path) -> None:
    report = Path("b.report.json")
    report.write_text('{"name": "m", "version": "1", "target": "host", "signer": "x"}')
    assert edgebuild("sign", built, "--key", "release.key").code == 0
    assert json.loads(report.read_text())["signer"] == RELEASE.public.name
    assert not Path("b.report.html").exists()


def test_the_key_may_come_from_the_environment(edgebuild, built: Path, monkeypatch) -> None:
    monkeypatch.setenv("EDGEBUILD_KEY", "release.key")
    assert edgebuild("sign", built, "--out", "out.ebundle").code == 0
    assert bundle.read_bundle(Path("out.ebundle").read_bytes(), TRUST).signer == RELEASE.public
    assert built.read_bytes() == made_bundle()


def test_a_signature_of_minisign_is_attached(edgebuild, built: Path) -> None:
    signature = signed_elsewhere(built)
    ran = edgebuild("sign", built, "--signature", signature, "--trust", "trust")
    assert (ran.code, ran.err) == (0, "")
    assert signature.read_bytes() in built.read_bytes()
    assert edgebuild("verify", built, "--trust", "trust").code == 0


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (minisign.sign(b"another", RELEASE, "c"), f"the signature of key {RELEASE.public.name} does not", "tar -xf"),
        (minisign.sign(b"x", DEVELOPMENT, "c"), "signed by key 0000000000000000, which the trust file", "trust file"),
        (b"", "signature: not lines of ASCII text", "minisign -Sm"),
        (b"untrusted comment: x\n" * 4, "signature: not the four lines", "minisign -Sm"),
        (b"x" * 5000, "signature: 5000 bytes; the limit is 1024", "minisign -Sm"),
        (None, "the signature cannot be read: No such file", "minisign -Sm"),
    ],
)
def test_a_signature_that_does_not_fit(edgebuild, built: Path, content: bytes | None, message: str, hint: str) -> None:
    if content is not None:
        Path("m.minisig").write_bytes(content)
    ran = edgebuild("sign", built, "--signature", "m.minisig", "--trust", "trust", "--out", "out")
    assert (ran.code, ran.out) == (9 if content is None else 8, "")
    assert f"m.minisig: {message}" in ran.err
    assert content is None or ran.err.startswith("error: b.ebundle: m.minisig: ")
    assert hint in ran.err.partition("\nhint: ")[2]
    assert not Path("out").exists()
    assert built.read_bytes() == made_bundle()


def test_a_legacy_signature(edgebuild, built: Path) -> None:
    ran = edgebuild("sign", built, "--signature", signed_elsewhere(built, "-l"), "--trust", "trust")
    assert ran.code == 8
    assert "legacy kind, which is not prehashed" in ran.err


def program(body: str) -> str:
    """A command that runs `body`, with the manifest in `text` and minisign's way of signing it."""
    Path("signer.py").write_text(
        "import subprocess, sys, time\n"
        "text = sys.stdin.buffer.read()\n"
        "open('text', 'wb').write(text)\n"
        "sign = ['minisign', '-Sm', 'text', '-s', 'release.key', '-x', 'text.minisig']\n"
        "subprocess.run(sign, check=True, stdout=subprocess.DEVNULL)\n"
        "signature = open('text.minisig').read()\n" + body
    )
    return shlex.join([sys.executable, "signer.py"])


def test_a_command_signs(edgebuild, built: Path) -> None:
    assert shutil.which("minisign"), "install Debian's package minisign"
    command = program("print(signature, end='')")
    ran = edgebuild("sign", built, "--signer", command, "--trust", "trust")
    assert (ran.code, ran.err) == (0, "")
    assert bundle.read_bundle(built.read_bytes(), TRUST).signer == RELEASE.public
    with tarfile.open(fileobj=io.BytesIO(built.read_bytes())) as archive:
        member = archive.extractfile("manifest")
        assert member is not None
        assert Path("text").read_bytes() == member.read()


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("print('Enter PIN'); print(signature, end='')", 8, "not the four lines that edgebuild or minisign writes"),
        ("print(signature)", 8, "not the four lines"),
        ("", 8, "not lines of ASCII text"),
        ("sys.exit('no token in slot 1')", 9, "failed with exit code 1: no token in slot 1"),
        ("sys.exit(3)", 9, "failed with exit code 3"),
        ("print(signature, end='', flush=True); time.sleep(60)", 9, "no answer in 2 seconds"),
        ("print(signature.replace('A', 'B'), end='')", 8, ""),
    ],
)
def test_a_command_that_does_not_sign(edgebuild, built: Path, monkeypatch, body: str, code: int, message: str) -> None:
    if "sleep" in body:
        monkeypatch.setattr(signer, "TIMEOUT_S", 2)
    ran = edgebuild("sign", built, "--signer", program(body), "--trust", "trust")
    assert (ran.code, ran.out) == (code, "")
    assert f"--signer {program(body)}: " in ran.err
    assert message in ran.err
    assert "\nhint: " in ran.err
    assert built.read_bytes() == made_bundle()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--key", "release.key", "--signer", "x"], 2, "more than one signer"),
        (["--signer", "x", "--signature", "y"], 2, "more than one signer"),
        (["--signer", " ", "--trust", "trust"], 2, "--signer: no command"),
        (["--signer", "a 'b", "--trust", "trust"], 2, "--signer a 'b: No closing quotation"),
        (["--signer", "no-such-program-here", "--trust", "trust"], 9, "cannot be run: No such file"),
        (["--signer", "cat"], 8, "no such trust file"),
        (["--key", "trust"], 8, "trust: not a minisign secret key"),
        (["--key", "release.key", "--out", "nowhere/b"], 9, "nowhere: cannot be written: No such file"),
    ],
)
def test_a_wrong_command_line(edgebuild, built: Path, arguments: list[str], code: int, message: str) -> None:
    ran = edgebuild("sign", built, *arguments)
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    assert built.read_bytes() == made_bundle()


def test_a_damaged_bundle_is_not_signed(edgebuild, built: Path) -> None:
    data = bytearray(made_bundle())
    data[data.index(b"x" + bytes(511))] ^= 1
    built.write_bytes(data)
    ran = edgebuild("sign", built, "--key", "release.key")
    assert ran.code == 8
    assert "b.ebundle: `edgebuild-run` is not the file that was signed" in ran.err
    assert built.read_bytes() == data


def test_compile_takes_a_command(edgebuild, home: Path, built: Path) -> None:
    write_model()
    np.savez("c.npz", x=SAMPLES)
    arguments = ("compile", "m.onnx", "--calibration", "c.npz", "--json")
    command = program("print(signature, end='')")
    without = edgebuild(*arguments, "--signer", command)
    assert (without.code, without.out) == (8, "")
    assert "config/edgebuild/trust: no such trust file" in without.err
    trust = home / "config" / "edgebuild" / "trust"
    trust.parent.mkdir(parents=True)
    trust.write_bytes(RELEASE.public.file())
    ran = edgebuild(*arguments, "--signer", command)
    assert ran.code == 0, ran.err
    assert ran.json["signer"] == RELEASE.public.name
    assert bundle.read_bundle(Path("m-1.0.0-host.ebundle").read_bytes(), TRUST).signer == RELEASE.public

import base64
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.bindings import nacl_bindings_pick_scrypt_params

from edgebuild.core import minisign, scrypt
from edgebuild.core.errors import BundleError

COMMENT = "edgebuild digits 1.0.0 host"
MESSAGE = b"edgebuild-manifest 1\n"


def run_minisign(*arguments: str, cwd: Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    tool = shutil.which("minisign")
    assert tool, "install Debian's package minisign"
    return subprocess.run([tool, *arguments], cwd=cwd, input=typed, capture_output=True, text=True, check=False)


def test_minisign_verifies_ours(tmp_path: Path, key) -> None:
    (tmp_path / "manifest").write_bytes(MESSAGE)
    (tmp_path / "manifest.minisig").write_bytes(minisign.sign(MESSAGE, key, COMMENT))
    (tmp_path / "key.pub").write_bytes(key.public.file())
    by_line = run_minisign("-Vm", "manifest", "-x", "manifest.minisig", "-P", key.public.line(), cwd=tmp_path)
    by_file = run_minisign("-Vm", "manifest", "-p", "key.pub", cwd=tmp_path)
    assert by_line.returncode == by_file.returncode == 0
    assert f"Trusted comment: {COMMENT}" in by_line.stdout

    (tmp_path / "manifest").write_bytes(MESSAGE + b"\n")
    assert run_minisign("-Vm", "manifest", "-p", "key.pub", cwd=tmp_path).returncode != 0


def test_minisign_signs_with_our_key_the_same_bytes(tmp_path: Path, key) -> None:
    (tmp_path / "manifest").write_bytes(MESSAGE)
    (tmp_path / "key").write_bytes(key.file())
    arguments = ["-S", "-s", "key", "-m", "manifest", "-c", minisign.SIGNATURE_COMMENT, "-t", COMMENT]
    assert run_minisign(*arguments, cwd=tmp_path).returncode == 0
    assert (tmp_path / "manifest.minisig").read_bytes() == minisign.sign(MESSAGE, key, COMMENT)


def test_keys_of_minisign_are_read(tmp_path: Path) -> None:
    assert run_minisign("-G", "-W", "-s", "key", "-p", "key.pub", cwd=tmp_path).returncode == 0
    secret = minisign.parse_secret_file((tmp_path / "key").read_bytes())
    assert minisign.parse_public_file((tmp_path / "key.pub").read_bytes()) == secret.public
    # minisign writes the key id in the comment without leading zeros
    assert secret.public.file().splitlines()[1:] == (tmp_path / "key.pub").read_bytes().splitlines()[1:]


def test_a_key_survives_its_file() -> None:
    made = minisign.generate()
    assert minisign.parse_secret_file(made.file()) == made
    assert minisign.parse_public_file(made.public.file()) == made.public


@given(st.data())
def test_no_byte_of_a_signature_may_change(key, data: st.DataObject) -> None:
    trust = {key.key_id: key.public}
    signature = bytearray(minisign.sign(MESSAGE, key, COMMENT))
    assert minisign.verify(MESSAGE, bytes(signature), trust) == (key.public, COMMENT)
    at = data.draw(st.integers(0, len(signature) - 1))
    signature[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BundleError):
        minisign.verify(MESSAGE, bytes(signature), trust)
    assert trust == {key.key_id: key.public}


def test_an_unknown_key_is_named(key) -> None:
    other = minisign.generate()
    with pytest.raises(BundleError, match=f"signed by key {other.public.name}, which the trust file does not list"):
        minisign.verify(MESSAGE, minisign.sign(MESSAGE, other, COMMENT), {key.key_id: key.public})


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"untrusted comment: signature from edgebuild", b"untrusted comment: signature"),
        (b"untrusted comment: signature from edgebuild", b"untrusted comment: signature from minisign"),
        (b"untrusted comment: signature from edgebuild", b"untrusted comment: signature\tfrom edgebuild"),
        (b"edgebuild digits", b"edgebuild\tdigits"),
        (b"edgebuild digits", b"edgebuild\vdigits"),
        (b"\n", b"\r\n"),
        (b"=\n", b"\n"),
        (b"trusted comment: edgebuild", b"trusted comment:  edgebuild"),
    ],
)
def test_another_spelling_is_refused(key, old: bytes, new: bytes) -> None:
    signature = minisign.sign(MESSAGE, key, COMMENT)
    assert old in signature
    with pytest.raises(BundleError):
        minisign.verify(MESSAGE, signature.replace(old, new), {key.key_id: key.public})


@pytest.mark.parametrize("arguments", [[], ["-t", "any words, \ttabs too ~"], ["-t", " "]])
def test_what_minisign_signs_is_accepted(tmp_path: Path, key, arguments: list[str]) -> None:
    (tmp_path / "manifest").write_bytes(MESSAGE)
    (tmp_path / "key").write_bytes(key.file())
    assert run_minisign("-Sm", "manifest", "-s", "key", *arguments, cwd=tmp_path).returncode == 0
    signature = (tmp_path / "manifest.minisig").read_bytes()
    signer, comment = minisign.verify(MESSAGE, signature, {key.key_id: key.public})
    assert signer == key.public
    assert comment == arguments[1] if arguments else comment.startswith("timestamp:")


def test_a_legacy_signature_is_named(tmp_path: Path, key) -> None:
    (tmp_path / "manifest").write_bytes(MESSAGE)
    (tmp_path / "key").write_bytes(key.file())
    assert run_minisign("-S", "-l", "-m", "manifest", "-s", "key", cwd=tmp_path).returncode == 0
    with pytest.raises(BundleError, match="minisign's legacy kind, which is not prehashed") as caught:
        minisign.parse_signature((tmp_path / "manifest.minisig").read_bytes())
    assert "without -l" in caught.value.hint


def test_a_signature_over_the_limit_is_refused(key) -> None:
    whole = minisign.sign(MESSAGE, key, "x" * (1024 - len(minisign.sign(MESSAGE, key, ""))))
    assert len(whole) == 1024
    minisign.parse_signature(whole)
    with pytest.raises(BundleError, match="1025 bytes; the limit is 1024"):
        minisign.parse_signature(whole.replace(b"xx", b"xxx", 1))


def test_stray_bits_of_base64_are_refused(key) -> None:
    """66 bits of base64 hold 64 bits of data: the last character's low bits must be zero."""
    lines = minisign.sign(MESSAGE, key, COMMENT).split(b"\n")
    stray = lines[3][:-3] + bytes([lines[3][-3] + 1]) + lines[3][-2:]
    with pytest.raises(BundleError, match="canonical base64"):
        minisign.parse_signature(b"\n".join([*lines[:3], stray, b""]))


@pytest.mark.parametrize(
    "data", [b"", b"a key", b"untrusted comment: x\nAAAA\n", b"\xff\xfe", b"-----BEGIN KEY-----\n"]
)
def test_a_file_that_is_not_a_key(data: bytes) -> None:
    with pytest.raises(BundleError, match="not a minisign secret key") as caught:
        minisign.parse_secret_file(data)
    assert "two lines" in caught.value.hint
    with pytest.raises(BundleError):
        minisign.parse_public_file(data)


CHEAP = scrypt.Limits(1 << 15, 1 << 24)


def test_a_protected_key(key) -> None:
    data = key.file(b"correct horse", CHEAP)
    assert minisign.is_protected(data)
    assert not minisign.is_protected(key.file())
    assert minisign.parse_secret_file(data, b"correct horse") == key
    assert minisign.parse_secret_file(key.file(), b"not asked for") == key
    assert key.file(b"correct horse", CHEAP) != data  # another salt
    with pytest.raises(BundleError, match="protected by a password"):
        minisign.parse_secret_file(data)
    for wrong in (b"", b"correct hors", b"correct horse\n"):
        with pytest.raises(BundleError, match="wrong password, or the secret key is damaged"):
            minisign.parse_secret_file(data, wrong)


def test_no_bit_of_a_protected_key_may_change(key) -> None:
    """The limits are left out: changed ones may ask for much work."""
    head, line, _ = key.file(b"pw", CHEAP).split(b"\n")
    body = base64.b64decode(line)
    for at in [*range(38), *range(54, 158, 5)]:
        changed = bytearray(body)
        changed[at] ^= 0x10
        with pytest.raises(BundleError):
            minisign.parse_secret_file(head + b"\n" + base64.b64encode(changed) + b"\n", b"pw")


def test_a_protected_key_of_ours_signs_in_minisign(tmp_path: Path, key) -> None:
    (tmp_path / "manifest").write_bytes(MESSAGE)
    for limits in (CHEAP, scrypt.Limits(1 << 20, 1 << 24), scrypt.Limits(1 << 22, 1 << 20), scrypt.Limits(0, 0)):
        (tmp_path / "key").write_bytes(key.file("pässword".encode(), limits))
        sign = ("-Sm", "manifest", "-s", "key")
        assert run_minisign(*sign, cwd=tmp_path, typed="pässword\n").returncode == 0
        signature = (tmp_path / "manifest.minisig").read_bytes()
        assert minisign.verify(MESSAGE, signature, {key.key_id: key.public})[0] == key.public
        assert "Wrong password" in run_minisign(*sign, cwd=tmp_path, typed="password\n").stderr


def test_a_protected_key_of_minisign_is_read_and_ours_has_its_limits(tmp_path: Path) -> None:
    made = run_minisign("-G", "-s", "key", "-p", "key.pub", cwd=tmp_path, typed="a b\na b\n")
    assert made.returncode == 0
    data = (tmp_path / "key").read_bytes()
    assert minisign.is_protected(data)
    secret = minisign.parse_secret_file(data, b"a b")
    assert minisign.parse_public_file((tmp_path / "key.pub").read_bytes()) == secret.public
    assert base64.b64decode(data.split(b"\n")[1])[38:54] == scrypt.Limits().to_bytes()


@pytest.mark.parametrize("limits", [scrypt.Limits(1 << 25, (1 << 30) + 1), scrypt.Limits((1 << 25) + 1, 1 << 20)])
def test_a_hostile_key_file_costs_nothing(key, limits: scrypt.Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    head, line, _ = key.file(b"pw", CHEAP).split(b"\n")
    body = base64.b64decode(line)
    data = head + b"\n" + base64.b64encode(body[:38] + limits.to_bytes() + body[54:]) + b"\n"
    monkeypatch.setattr("hashlib.scrypt", None)
    with pytest.raises(BundleError, match=f"asks for {limits.memory} bytes of memory"):
        minisign.parse_secret_file(data, b"pw")


@given(st.integers(0, 1 << 25), st.integers(0, 1 << 30))
def test_scrypt_parameters_are_libsodiums(operations: int, memory: int) -> None:
    """PyNaCl has a copy of pickparams."""
    log_n, r, p = nacl_bindings_pick_scrypt_params(operations, memory)
    assert scrypt.Limits(operations, memory).parameters() == (1 << log_n, r, p)


def test_two_halves_that_do_not_fit(key) -> None:
    other = minisign.SecretKey(key.key_id, bytes(32))
    assert len(other.file()) == len(key.file())
    mixed = key.file()[:-100] + other.file()[-100:]
    with pytest.raises(BundleError, match="damaged"):
        minisign.parse_secret_file(mixed)

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.core import minisign
from edgebuild.core.errors import BundleError

COMMENT = "edgebuild digits 1.0.0 host"
MESSAGE = b"edgebuild-manifest 1\n"


def run_minisign(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("minisign")
    assert tool, "install Debian's package minisign"
    return subprocess.run([tool, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


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


def test_a_key_with_a_password_is_refused(key) -> None:
    with_kdf = key.file().replace(b"RWQAA", b"RWRTY")
    with pytest.raises(BundleError, match="protected by a password"):
        minisign.parse_secret_file(with_kdf)


def test_two_halves_that_do_not_fit(key) -> None:
    other = minisign.SecretKey(key.key_id, bytes(32))
    assert len(other.file()) == len(key.file())
    mixed = key.file()[:-100] + other.file()[-100:]
    with pytest.raises(BundleError, match="damaged"):
        minisign.parse_secret_file(mixed)

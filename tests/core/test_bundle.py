import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest
from bundles import make_bundle, make_manifest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.core import bundle, manifest, minisign, tar
from edgebuild.core.errors import BundleError


def refused(data: bytes, trust, message: str | None = None) -> None:
    before = dict(trust)
    with pytest.raises(BundleError, match=message):
        bundle.read_bundle(data, trust)
    assert trust == before


def test_the_untouched_bundle_is_read(sample) -> None:
    read = bundle.read_bundle(sample.data, sample.trust)
    assert read.manifest == sample.manifest
    assert read.signer == sample.key.public
    assert {path: bytes(data) for path, data in read.files.items()} == sample.files
    assert len(sample.data) % 512 == 0


def test_the_same_parts_give_the_same_bytes(sample) -> None:
    assert make_bundle(sample.manifest, sample.files, sample.key) == sample.data


@given(st.data())
def test_no_byte_may_change(sample, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(sample.data) - 1))
    changed = bytearray(sample.data)
    changed[at] ^= data.draw(st.integers(1, 255))
    refused(bytes(changed), sample.trust)


@given(st.data())
def test_a_cut_bundle_is_refused(sample, data: st.DataObject) -> None:
    refused(sample.data[: data.draw(st.integers(0, len(sample.data) - 1))], sample.trust)


def test_an_unknown_key_is_refused(sample) -> None:
    stranger = minisign.generate()
    refused(make_bundle(sample.manifest, sample.files, stranger), sample.trust, "does not list")


def test_a_key_that_takes_anothers_id_is_refused(sample) -> None:
    impostor = minisign.SecretKey(sample.key.key_id, bytes(32))
    refused(make_bundle(sample.manifest, sample.files, impostor), sample.trust, "does not hold")


def test_a_signature_for_another_bundle_is_refused(sample) -> None:
    other = manifest.serialize(dataclasses.replace(sample.manifest, version="1.0.1"))
    signature = minisign.sign(other, sample.key, bundle.comment(sample.manifest))
    data = b"".join(bundle.pieces(sample.manifest, signature, sample.files))
    refused(data, sample.trust, "does not hold")


def test_what_minisign_signed_is_a_bundle(sample, tmp_path: Path) -> None:
    """With its default comments; no byte of it may change either."""
    tool = shutil.which("minisign")
    assert tool, "install Debian's package minisign"
    (tmp_path / "key").write_bytes(sample.key.file())
    (tmp_path / "manifest").write_bytes(manifest.serialize(sample.manifest))
    subprocess.run([tool, "-Sm", "manifest", "-s", "key"], cwd=tmp_path, check=True, capture_output=True)
    signature = (tmp_path / "manifest.minisig").read_bytes()
    assert signature.startswith(b"untrusted comment: signature from minisign secret key\n")
    assert b"\t" in signature
    data = b"".join(bundle.pieces(sample.manifest, signature, sample.files))
    assert bundle.read_bundle(data, sample.trust).signer == sample.key.public
    at = data.index(signature)
    for i in range(at, at + len(signature)):
        for bit in range(8):
            changed = bytearray(data)
            changed[i] ^= 1 << bit
            refused(bytes(changed), sample.trust)


def test_files_of_another_order_are_refused(sample) -> None:
    signature = minisign.sign(manifest.serialize(sample.manifest), sample.key, bundle.comment(sample.manifest))
    members = [("manifest", manifest.serialize(sample.manifest)), ("manifest.minisig", signature)]
    files = list(sample.files.items())
    refused(tar.write([*members, *files[::-1]]), sample.trust, "the archive's header of `edgebuild-run`")
    refused(tar.write([*members, *files, files[0]]), sample.trust, "does not end")
    refused(tar.write([*members, *files[:-1]]), sample.trust, "the archive's header of `function/function.py`")


def test_a_manifest_of_another_release_is_refused(sample) -> None:
    """Signed manifest of one release, files of another."""
    newer = {**sample.files, "weights.bin": sample.files["weights.bin"][::-1]}
    other = make_manifest(newer)
    signature = minisign.sign(manifest.serialize(other), sample.key, bundle.comment(other))
    data = b"".join(bundle.pieces(other, signature, sample.files))
    refused(data, sample.trust, "`weights.bin` is not the file that was signed")


def test_a_newer_abi_is_refused(sample) -> None:
    text = manifest.serialize(sample.manifest).replace(b"\nabi 1\n", b"\nabi 2\n")
    signature = minisign.sign(text, sample.key, bundle.comment(sample.manifest))
    members = [("manifest", text), ("manifest.minisig", signature), *sample.files.items()]
    refused(tar.write(members), sample.trust, "kernel ABI 2")


def test_without_trust_the_signer_stays_unknown(sample) -> None:
    read = bundle.read_unverified(sample.data)
    assert read.signer is None
    assert read.manifest == sample.manifest
    assert bundle.signature_key_name(sample.data) == sample.key.public.name


def test_minisign_verifies_the_manifest_of_a_bundle(sample, tmp_path: Path) -> None:
    tool = shutil.which("minisign")
    assert tool, "install Debian's package minisign"
    (tmp_path / "x.ebundle").write_bytes(sample.data)
    subprocess.run(["tar", "xf", "x.ebundle", "manifest", "manifest.minisig"], cwd=tmp_path, check=True)
    verify = [tool, "-Vm", "manifest", "-P", sample.key.public.line()]
    assert subprocess.run(verify, cwd=tmp_path, capture_output=True, check=False).returncode == 0


def test_a_missing_golden_file_is_not_packed(sample) -> None:
    files = {path: data for path, data in sample.files.items() if path != "golden/in-0.npy"}
    short = dataclasses.replace(sample.manifest, files=bundle.file_rows(files))
    with pytest.raises(BundleError, match=r"golden/in-0.npy` is missing"):
        make_bundle(short, files, sample.key)

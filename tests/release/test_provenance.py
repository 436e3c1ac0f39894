"""The provenance: DSSE's envelope as others verify it, in-toto's statement, SLSA's predicate."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from releases import KEY, OTHER, Home, resigned
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from edgebuild.core import digest
from edgebuild.core.errors import BundleError
from edgebuild.core.trust import Trust
from edgebuild.release import folder as release_folder
from edgebuild.release import names, provenance, sums

NAME = "dense-1.1.0.intoto.jsonl"
TRUST = Trust([KEY.public])


def statement_of(folder: Path) -> Any:
    (path,) = folder.glob("*.intoto.jsonl")
    (line,) = path.read_text().splitlines()
    return json.loads(base64.b64decode(json.loads(line)["payload"]))


def test_the_encoding_is_that_of_the_page() -> None:
    """The example of DSSE's protocol.md."""
    found = provenance.pae("http://example.com/HelloWorld", b"hello world")
    assert found == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_another_implementation_verifies_it(home: Home) -> None:
    (line,) = (home.second / NAME).read_text().splitlines()
    envelope = json.loads(line)
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    assert [one["keyid"] for one in envelope["signatures"]] == [KEY.public.name]
    read = Envelope.from_dict(envelope)
    key = SSlibKey(KEY.public.name, "ed25519", "ed25519", {"public": KEY.public.key.hex()})
    assert read.verify([key], 1)
    other = SSlibKey(KEY.public.name, "ed25519", "ed25519", {"public": OTHER.public.key.hex()})
    with pytest.raises(VerificationError):
        read.verify([other], 1)


def test_the_statement(home: Home) -> None:
    found = statement_of(home.second)
    assert set(found) == {"_type", "subject", "predicateType", "predicate"}
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    listed = sums.parse((home.second / names.SUMS).read_bytes())
    subjects = {one["name"]: one["digest"]["sha256"] for one in found["subject"]}
    unsigned = {name: one for name, one in listed.items() if name != NAME and not name.endswith(".minisig")}
    assert subjects == unsigned


def test_the_predicate(home: Home) -> None:
    predicate = statement_of(home.second)["predicate"]
    definition = predicate["buildDefinition"]
    assert set(definition) == {"buildType", "externalParameters", "internalParameters", "resolvedDependencies"}
    asked = definition["externalParameters"]
    assert (asked["name"], asked["version"], asked["release"], asked["made"]) == ("dense", "1.1.0", 2, "2026-02-28")
    assert [one["name"] for one in asked["targets"]] == ["host", "aarch64-generic"]
    dependencies = definition["resolvedDependencies"]
    by_name = {one["name"]: one["digest"] for one in dependencies if "name" in one}
    assert by_name["recipe/model.onnx"]["sha256"] == digest.of_file(home.tuned / "model.onnx")
    assert "edgebuildSet" in by_name["calibration/noise"]
    assert sum(name.startswith("previous/") for name in by_name) == 2
    packages = [one["uri"] for one in dependencies if "uri" in one]
    assert any(one.startswith("pkg:pypi/apache-tvm@0.27.0") for one in packages)
    assert all(set(one) <= {"name", "uri", "digest", "annotations"} for one in dependencies)
    assert predicate["runDetails"]["builder"]["id"].startswith("pkg:pypi/edgebuild@")


def changed(payload: bytes, /, **fields: Any) -> bytes:
    found = json.loads(payload) | fields
    return json.dumps(found).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: b"", "is 0 envelopes, not one"),
        (lambda line: line * 2, "is 2 envelopes, not one"),
        (lambda line: b"{\n", "the envelope: is not JSON"),
        (lambda line: changed(line, payloadType="text/plain"), "payloadType is not application/vnd.in-toto"),
        (lambda line: changed(line, payload="!"), "not base64"),
        (lambda line: changed(line, signatures=[]), "no signature of the envelope is by a key of the trust file"),
        (lambda line: changed(line, signatures=None), "no signature of the envelope is by a key of the trust file"),
        (lambda line: changed(line, signatures=[{"keyid": KEY.public.name, "sig": "AAAA"}]), "does not hold"),
        (lambda line: provenance.envelope(b"{}", OTHER), "no signature of the envelope is by a key"),
        (lambda line: provenance.envelope(b"{}", KEY), "the statement is not in-toto's"),
        (
            lambda line: provenance.envelope(
                changed(base64.b64decode(json.loads(line)["payload"]), subject=[{"name": "x"}]), KEY
            ),
            "subjects have no SHA-256",
        ),
        (
            lambda line: provenance.envelope(
                changed(
                    base64.b64decode(json.loads(line)["payload"]),
                    subject=[{"name": names.INDEX, "digest": {"sha256": "0" * 64}}],
                ),
                KEY,
            ),
            "speaks of another `release.json` than SHA256SUMS",
        ),
    ],
)
def test_a_wrong_envelope_in_a_folder_that_is_signed(copy: Path, change: Any, message: str) -> None:
    release_folder.read(copy, TRUST)
    path = copy / NAME
    path.write_bytes(change(path.read_bytes()))
    resigned(copy, NAME)
    with pytest.raises(BundleError, match=message):
        release_folder.read(copy, TRUST)

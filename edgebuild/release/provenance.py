"""What was built from what: an in-toto Statement v1 with SLSA's provenance v1, in a DSSE envelope.

https://github.com/in-toto/attestation (statement), https://slsa.dev/provenance/v1 (predicate),
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md (envelope).

A key at hand signs as DSSE says: plain Ed25519 over PAE(payloadType, payload); `keyid` is minisign's key id. A command
(`--signer`) makes minisign signatures, which are over a hash and are none of DSSE's: then the envelope's `signatures`
are empty, and `NAME-VERSION.intoto.jsonl.minisig` beside it signs the file.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgebuild.core.errors import BundleError
from edgebuild.core.minisign import PublicKey, SecretKey
from edgebuild.core.trust import Trust
from edgebuild.release.index import load_object

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "pkg:pypi/edgebuild#release/v1"
_HINT = "get the release again from its source"


@dataclass(frozen=True)
class Built:
    """What the statement is about: SHA-256 by file, what was asked for, and what went in."""

    subjects: Mapping[str, str]
    external: Mapping[str, Any]
    internal: Mapping[str, Any]
    dependencies: Sequence[Mapping[str, Any]]
    edgebuild: str


def statement(built: Built) -> bytes:
    """The payload."""
    definition = {
        "buildType": BUILD_TYPE,
        "externalParameters": built.external,
        "internalParameters": built.internal,
        "resolvedDependencies": list(built.dependencies),
    }
    builder = {"id": f"pkg:pypi/edgebuild@{built.edgebuild}", "version": {"edgebuild": built.edgebuild}}
    value = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": found}} for name, found in sorted(built.subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"buildDefinition": definition, "runDetails": {"builder": builder}},
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def envelope(payload: bytes, key: SecretKey | None) -> bytes:
    """One line of JSON; without a key an envelope without signatures."""
    signatures = []
    if key is not None:
        signature = key.sign_bytes(pae(PAYLOAD_TYPE, payload))
        signatures.append({"keyid": key.public.name, "sig": base64.b64encode(signature).decode()})
    value = {"payloadType": PAYLOAD_TYPE, "payload": base64.b64encode(payload).decode(), "signatures": signatures}
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()


def subjects(data: bytes, trust: Trust | None) -> dict[str, str]:
    """SHA-256 by file. With `trust`, a signature of a known key must hold before the payload is parsed.

    Raises BundleError.
    """
    lines = data.splitlines()
    if len(lines) != 1:
        raise BundleError(f"is {len(lines)} envelopes, not one", _HINT)
    found = load_object(lines[0], "the envelope")
    payload = _decoded(found.get("payload"))
    if found.get("payloadType") != PAYLOAD_TYPE:
        raise BundleError(f"the envelope's payloadType is not {PAYLOAD_TYPE}", _HINT)
    if trust is not None:
        _verify(found.get("signatures"), pae(PAYLOAD_TYPE, payload), trust)
    content = load_object(payload, "the statement")
    if (content.get("_type"), content.get("predicateType")) != (STATEMENT_TYPE, PREDICATE_TYPE):
        raise BundleError("the statement is not in-toto's, version 1, with SLSA's provenance", _HINT)
    try:
        return {str(part["name"]): str(part["digest"]["sha256"]) for part in content["subject"]}
    except (KeyError, TypeError) as error:
        raise BundleError("the statement's subjects have no SHA-256", _HINT) from error


def _verify(signatures: Any, message: bytes, trust: Trust) -> None:
    keys = {key.name: key for key in trust.values()}
    for part in signatures if isinstance(signatures, list) else []:
        key = keys.get(str(part.get("keyid"))) if isinstance(part, dict) else None
        if key is not None:
            _verify_one(key, message, _decoded(part.get("sig")))
            return
    raise BundleError("no signature of the envelope is by a key of the trust file", "add the key if you trust it")


def _verify_one(key: PublicKey, message: bytes, signature: bytes) -> None:
    from nacl.exceptions import CryptoError  # noqa: PLC0415 - keeps `edgebuild --help` fast
    from nacl.signing import VerifyKey  # noqa: PLC0415

    try:
        VerifyKey(key.key).verify(message, signature)
    except (CryptoError, ValueError, TypeError) as error:
        raise BundleError(f"the envelope's signature of key {key.name} does not hold", _HINT) from error


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise BundleError("the envelope holds something that is not base64", _HINT) from error

"""SPEC section 3 and minisign's key files: Ed25519 over BLAKE2b-512, in four lines of text.

Formats: https://jedisct1.github.io/minisign/ (signature, public key) and minisign's `SeckeyStruct` (secret key, with a
password as `minisign -G` writes it and without as `minisign -G -W` does).
"""

import base64
import binascii
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

from edgebuild.core import scrypt
from edgebuild.core.errors import BundleError
from edgebuild.core.tar import MAX_SIGNATURE

UNTRUSTED = "untrusted comment: "
TRUSTED = "trusted comment: "
SIGNATURE_COMMENT = "signature from edgebuild"
_SIGNATURE_COMMENTS = (SIGNATURE_COMMENT, "signature from minisign secret key")  # not signed: exactly one of these
_PREHASHED, _ALGORITHM, _NO_KDF, _SCRYPT, _CHECKSUM = b"ED", b"Ed", b"\0\0", b"Sc", b"B2"
_SECRET_BYTES, _SALT_BYTES = 158, 32
_SIGNATURE_HINT = "the bundle was damaged, or signed neither by edgebuild nor by `minisign -S` without -c"
_LEGACY_HINT = "sign with `minisign -S` of version 0.10 or later, without -l"
_LINE_HINT = "a key is one line of base64, as `edgebuild keys show` prints it"
_KEY_HINT = "expected a minisign secret key: two lines, as `edgebuild keys new` writes them"


@dataclass(frozen=True)
class PublicKey:
    """`key_id` has 8 bytes, `key` 32."""

    key_id: bytes
    key: bytes

    @property
    def name(self) -> str:
        """The key id as minisign prints it: 16 hex digits of the little-endian number."""
        return self.key_id[::-1].hex().upper()

    def line(self) -> str:
        """The key as one line of base64: a line of a trust file, and what `minisign -P` takes."""
        return _encode(_ALGORITHM + self.key_id + self.key)

    def file(self) -> bytes:
        """The public key file of minisign."""
        return f"{UNTRUSTED}minisign public key {self.name}\n{self.line()}\n".encode()


@dataclass(frozen=True)
class SecretKey:
    """`seed` has 32 bytes; it is all that is secret."""

    key_id: bytes
    seed: bytes

    @property
    def public(self) -> PublicKey:
        from nacl.signing import SigningKey  # noqa: PLC0415 - keeps `edgebuild --help` fast

        return PublicKey(self.key_id, bytes(SigningKey(self.seed).verify_key))

    def sign_bytes(self, message: bytes) -> bytes:
        """A plain Ed25519 signature, 64 bytes."""
        from nacl.signing import SigningKey  # noqa: PLC0415

        return bytes(SigningKey(self.seed).sign(message).signature)

    def sign(self, message: bytes, comment: str) -> bytes:
        """The four lines; `comment` is the trusted comment."""
        return sign(message, self, comment)

    def file(self, password: bytes = b"", limits: scrypt.Limits = scrypt.Limits()) -> bytes:  # noqa: B008 - frozen
        """The secret key file of minisign, protected when there is a password."""
        public = self.public
        secret = self.key_id + self.seed + public.key
        if password:
            salt = os.urandom(_SALT_BYTES)
            body = _SCRYPT + _CHECKSUM + salt + limits.to_bytes()
            body += _sealed(secret + _checksum(secret), password, salt, limits)
            what = f"encrypted secret key {public.name}"
        else:  # salt, limits and checksum serve the password; minisign leaves them zero without one
            body = _NO_KDF + _CHECKSUM + bytes(_SALT_BYTES + 16) + secret + bytes(32)
            what = f"secret key {public.name}"
        return f"{UNTRUSTED}minisign {what}\n{_encode(_ALGORITHM + body)}\n".encode()


def generate() -> SecretKey:
    return SecretKey(os.urandom(8), os.urandom(32))


def sign(message: bytes, key: SecretKey, comment: str) -> bytes:
    """The four lines; `comment` is the trusted comment."""
    signature = key.sign_bytes(_prehash(message))
    over_comment = key.sign_bytes(signature + comment.encode())
    lines = [
        UNTRUSTED + SIGNATURE_COMMENT,
        _encode(_PREHASHED + key.key_id + signature),
        TRUSTED + comment,
        _encode(over_comment),
    ]
    return "".join(line + "\n" for line in lines).encode()


@dataclass(frozen=True)
class Signature:
    """The parsed four lines; nothing in it is verified."""

    key_id: bytes
    signature: bytes
    comment: str
    over_comment: bytes


def parse_signature(data: bytes) -> Signature:
    """Refuses every spelling but the canonical one."""
    if len(data) > MAX_SIGNATURE:
        raise BundleError(f"signature: {len(data)} bytes; the limit is {MAX_SIGNATURE}", _SIGNATURE_HINT)
    lines = _ascii_lines(data, "signature", _SIGNATURE_HINT, tabs=True)
    known = [UNTRUSTED + comment for comment in _SIGNATURE_COMMENTS]
    if len(lines) != 4 or lines[0] not in known or not lines[2].startswith(TRUSTED):
        raise BundleError("signature: not the four lines that edgebuild or minisign writes", _SIGNATURE_HINT)
    body, over_comment = (_decode(lines[i], size, "signature", _SIGNATURE_HINT) for i, size in ((1, 74), (3, 64)))
    if body[:2] == _ALGORITHM:
        raise BundleError("signature: one of minisign's legacy kind, which is not prehashed", _LEGACY_HINT)
    if body[:2] != _PREHASHED:
        raise BundleError("signature: not a prehashed Ed25519 signature", _SIGNATURE_HINT)
    return Signature(body[2:10], body[10:], lines[2][len(TRUSTED) :], over_comment)


def verify(message: bytes, data: bytes, keys: Mapping[bytes, PublicKey]) -> tuple[PublicKey, str]:
    """The key that signed `message` and the trusted comment; raises BundleError unless both signatures hold."""
    parsed = parse_signature(data)
    key = keys.get(parsed.key_id)
    if key is None:
        name = PublicKey(parsed.key_id, bytes(32)).name
        raise BundleError(f"signed by key {name}, which the trust file does not list", "add the key if you trust it")
    _verify_bytes(key, _prehash(message), parsed.signature)
    _verify_bytes(key, parsed.signature + parsed.comment.encode(), parsed.over_comment)
    return key, parsed.comment


def _verify_bytes(key: PublicKey, message: bytes, signature: bytes) -> None:
    from nacl.exceptions import BadSignatureError  # noqa: PLC0415
    from nacl.signing import VerifyKey  # noqa: PLC0415

    try:
        VerifyKey(key.key).verify(message, signature)
    except BadSignatureError as error:
        raise BundleError(
            f"the signature of key {key.name} does not hold", "the bundle was changed: discard it"
        ) from error


def parse_public_line(line: str) -> PublicKey:
    """One line of base64."""
    body = _decode(line, 42, "public key", _LINE_HINT)
    if body[:2] != _ALGORITHM:
        raise BundleError("public key: not a minisign Ed25519 key", _LINE_HINT)
    return PublicKey(body[2:10], body[10:])


def parse_public_file(data: bytes) -> PublicKey:
    """The public key file of minisign: a comment and a line of base64."""
    lines = _ascii_lines(data, "public key", _LINE_HINT)
    if len(lines) != 2 or not lines[0].startswith(UNTRUSTED):
        raise BundleError("not a minisign public key", "expected two lines: `untrusted comment: …` and base64")
    return parse_public_line(lines[1])


def is_protected(data: bytes) -> bool:
    """Whether a secret key file asks for a password. Raises BundleError for what is no secret key."""
    return _secret_body(data)[2:4] == _SCRYPT


def parse_secret_file(data: bytes, password: bytes | None = None) -> SecretKey:
    """The secret key file of minisign; the password is used where the file is protected by one."""
    body = _secret_body(data)
    secret = body[54:]
    if body[2:4] == _SCRYPT:
        if password is None:
            raise BundleError("the secret key is protected by a password", "give the password")
        secret = _sealed(secret, password, body[6:38], scrypt.Limits.from_bytes(body[38:54]))
        if _checksum(secret[:72]) != secret[72:]:
            raise BundleError("wrong password, or the secret key is damaged", "give the one that the key was made with")
    key = SecretKey(secret[:8], secret[8:40])
    if key.public.key != secret[40:72]:
        raise BundleError("the secret key is damaged: its two halves do not fit", _KEY_HINT)
    return key


def _secret_body(data: bytes) -> bytes:
    try:
        lines = _ascii_lines(data, "secret key", _KEY_HINT)
        if len(lines) != 2 or not lines[0].startswith(UNTRUSTED):
            raise BundleError("secret key: not two lines", _KEY_HINT)
        body = _decode(lines[1], _SECRET_BYTES, "secret key", _KEY_HINT)
    except BundleError as error:
        raise BundleError("not a minisign secret key", _KEY_HINT) from error
    if body[:2] != _ALGORITHM or body[2:4] not in (_NO_KDF, _SCRYPT) or body[4:6] != _CHECKSUM:
        raise BundleError("not a minisign secret key", _KEY_HINT)
    return body


def _sealed(secret: bytes, password: bytes, salt: bytes, limits: scrypt.Limits) -> bytes:
    """`secret` under the key stream of the password; once more gives it back."""
    stream = scrypt.key_stream(password, salt, limits, len(secret))
    return bytes(a ^ b for a, b in zip(secret, stream, strict=True))


def _checksum(secret: bytes) -> bytes:
    return hashlib.blake2b(_ALGORITHM + secret, digest_size=32).digest()


def _prehash(message: bytes) -> bytes:
    return hashlib.blake2b(message, digest_size=64).digest()


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str, size: int, what: str, hint: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BundleError(f"{what}: not base64", hint) from error
    if len(data) != size or _encode(data) != text:
        raise BundleError(f"{what}: not the canonical base64 of {size} bytes", hint)
    return data


def _ascii_lines(data: bytes, what: str, hint: str, *, tabs: bool = False) -> list[str]:
    allowed = b"\n\t" if tabs else b"\n"
    if any(byte not in allowed and not 0x20 <= byte <= 0x7E for byte in data) or not data.endswith(b"\n"):
        raise BundleError(f"{what}: not lines of ASCII text", hint)
    return data.decode("ascii")[:-1].split("\n")

"""SPEC section 4: the trust file, from bytes to keys. No file is opened here."""

from edgebuild.core.errors import BundleError
from edgebuild.core.minisign import PublicKey, parse_public_line

MAX_BYTES = 64 * 1024
_SKIPPED = (b"untrusted comment:", b"#")

Trust = dict[bytes, PublicKey]


def parse_trust(data: bytes) -> Trust:
    """Keys by key id. Raises BundleError for a wrong line, for two keys of one id, and when there is no key."""
    if len(data) > MAX_BYTES:
        raise BundleError(
            f"trust file: {len(data)} bytes; the limit is {MAX_BYTES}", "list only keys: edgebuild keys show"
        )
    trust: Trust = {}
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line and not line.startswith(_SKIPPED):
            _add(trust, line, number)
    if not trust:
        raise BundleError("trust file: no key in it", "append the second line of a minisign public key file")
    return trust


def _add(trust: Trust, line: bytes, number: int) -> None:
    try:
        key = parse_public_line(line.decode("ascii"))
    except (BundleError, UnicodeDecodeError) as error:
        raise BundleError(
            f"trust file, line {number}: not a minisign public key", "a line is base64, or a comment that starts with #"
        ) from error
    if key.key_id in trust:
        raise BundleError(f"trust file, line {number}: a second key with id {key.name}", "keep one of them")
    trust[key.key_id] = key

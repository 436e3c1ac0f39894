"""`SHA256SUMS`: what `sha256sum --check` reads; one line a file, in the order of their names."""

import re
from collections.abc import Mapping

from edgebuild.core.errors import BundleError
from edgebuild.release import names

_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")
_MAX_BYTES = 1 << 20
_HINT = "get the release again from its source"


def serialize(digests: Mapping[str, str]) -> bytes:
    """`digests`: SHA-256 by file name."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def parse(data: bytes) -> dict[str, str]:
    """SHA-256 by file name. Raises BundleError for anything but what `serialize` writes."""
    if len(data) > _MAX_BYTES:
        raise BundleError(f"{names.SUMS}: {len(data)} bytes; the limit is {_MAX_BYTES}", _HINT)
    found: dict[str, str] = {}
    for number, line in enumerate(data.decode("ascii", errors="replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or not names.is_file_name(match[2]):
            raise BundleError(f"{names.SUMS}, line {number}: is no SHA-256 and file name", _HINT)
        found[match[2]] = match[1]
    if not found or serialize(found) != data:
        raise BundleError(f"{names.SUMS}: is not a list of files in the order of their names, each once", _HINT)
    return found

"""Sign: a manifest, its files and a key to a bundle's bytes."""

from collections.abc import Mapping

from edgebuild.core import bundle, minisign
from edgebuild.core.manifest import Manifest, serialize
from edgebuild.core.minisign import SecretKey


def sign(manifest: Manifest, files: Mapping[str, bytes], key: SecretKey) -> bytes:
    """The bundle. Ed25519 is deterministic: the same parts and key give the same bytes."""
    signature = minisign.sign(serialize(manifest), key, bundle.comment(manifest))
    return b"".join(bundle.pieces(manifest, signature, files))

"""Sign: a manifest, its files and a signer to a bundle's bytes."""

from collections.abc import Mapping

from edgebuild.core import bundle
from edgebuild.core.bundle import Bundle
from edgebuild.core.manifest import Manifest, serialize
from edgebuild.core.minisign import PublicKey
from edgebuild.core.signer import Signer


def sign(manifest: Manifest, files: Mapping[str, bytes | memoryview], signer: Signer) -> bytes:
    """The bundle. Ed25519 is deterministic: the same parts and key give the same bytes."""
    signature = signer.sign(serialize(manifest), bundle.comment(manifest))
    return b"".join(bundle.pieces(manifest, signature, files))


def sign_again(read: Bundle, signer: Signer, trust: Mapping[bytes, PublicKey]) -> tuple[bytes, Bundle]:
    """The same bundle under another signature, and as a device reads it that has this trust file."""
    data = sign(read.manifest, read.files, signer)
    return data, bundle.read_bundle(data, trust)

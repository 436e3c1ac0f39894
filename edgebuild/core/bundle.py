"""SPEC sections 1 to 3: a bundle's bytes to verified objects, and back. No file is opened here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgebuild.core import manifest as manifest_format
from edgebuild.core import minisign, tar
from edgebuild.core.digest import sha256
from edgebuild.core.errors import BundleError
from edgebuild.core.manifest import File, Manifest
from edgebuild.core.minisign import PublicKey
from edgebuild.core.trust import verify

MANIFEST, SIGNATURE = "manifest", "manifest.minisig"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files fit its manifest; `signer` is None when the signature was not verified."""

    manifest: Manifest
    files: Mapping[str, memoryview]
    signer: PublicKey | None


def comment(manifest: Manifest) -> str:
    """The trusted comment of a signature that edgebuild makes; readers do not ask for it."""
    return f"edgebuild {manifest.name} {manifest.version} {manifest.target}"


def file_rows(files: Mapping[str, bytes]) -> tuple[File, ...]:
    """The manifest's rows of `files`, in their order."""
    return tuple(File(len(data), sha256(data), path) for path, data in files.items())


def pieces(
    manifest: Manifest, signature: bytes, files: Mapping[str, bytes | memoryview]
) -> Iterator[bytes | memoryview]:
    """The bundle's bytes, piece by piece; `files` holds every path of the manifest."""
    members: list[tuple[str, bytes | memoryview]] = [
        (MANIFEST, manifest_format.serialize(manifest)),
        (SIGNATURE, signature),
        *((file.path, files[file.path]) for file in manifest.files),
    ]
    return tar.pieces(members)


def read_bundle(data: bytes | memoryview, trust: Mapping[bytes, PublicKey]) -> Bundle:
    """Verifies in the order of SPEC section 2, steps 1 to 4 and the ABI of step 5; any failure is a BundleError.

    `trust` is the keys that may have signed it: a `Trust`, or a few keys by key id.
    """
    reader = tar.Reader(data)
    manifest_bytes, signature = _head(reader)
    signer, _ = verify(manifest_bytes, signature, trust)
    manifest = manifest_format.parse(manifest_bytes)
    return Bundle(manifest, _files(reader, manifest), signer)


def read_unverified(data: bytes | memoryview) -> Bundle:
    """The same without trust: structure and digests hold, but anyone can have made it."""
    reader = tar.Reader(data)
    manifest_bytes, signature = _head(reader)
    minisign.parse_signature(signature)
    manifest = manifest_format.parse(manifest_bytes)
    return Bundle(manifest, _files(reader, manifest), None)


def head(data: bytes | memoryview) -> tuple[bytes, bytes]:
    """The bytes of manifest and signature; nothing of them is looked at."""
    return _head(tar.Reader(data))


def signature_key_name(data: bytes | memoryview) -> str:
    """The key id that the signature claims; nothing is verified."""
    _, signature = head(data)
    return PublicKey(minisign.parse_signature(signature).key_id, bytes(32)).name


def _head(reader: tar.Reader) -> tuple[bytes, bytes]:
    manifest_bytes = bytes(reader.bounded(MANIFEST, tar.MAX_MANIFEST))
    return manifest_bytes, bytes(reader.bounded(SIGNATURE, tar.MAX_SIGNATURE))


def _files(reader: tar.Reader, manifest: Manifest) -> dict[str, memoryview]:
    files = {}
    for file in manifest.files:
        data = reader.exact(file.path, file.size)
        if sha256(data) != file.sha256:
            raise BundleError(f"`{file.path}` is not the file that was signed: its SHA-256 differs", tar.DAMAGED)
        files[file.path] = data
    reader.end()
    return files

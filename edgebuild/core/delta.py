"""SPEC section 12: a delta's bytes to parts, and back. No file is opened here, and nothing is verified."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import zstandard

from edgebuild.core.errors import BundleError

MAGIC = b"EBD1"
SAME, RAW, ZSTD, ZSTD_OLD, WEIGHTS, PATCH = range(6)
CODECS = ("same", "raw", "zstd", "zstd-old", "weights", "patch")
PREFIX_MAX = 1 << 20
PLANS_MAX = 1 << 20
"""Bytes of the plan.bin of both releases, or of the one where they are the same, that the codec of weights is given."""
WINDOW_LOG = 21
_HEAD = struct.Struct("<4s32sHHI")
_HEAD_MAX = 80 << 10
_SIZE = struct.Struct("<I")
_MALFORMED = "get the delta again from its source, or use the whole bundle"


@dataclass(frozen=True)
class Part:
    """How one file of the new release is coded; `data` is empty for SAME."""

    codec: int
    data: bytes

    @property
    def cost(self) -> int:
        """Its bytes in the delta."""
        return 1 if self.codec == SAME else 5 + len(self.data)


@dataclass(frozen=True)
class Delta:
    """`base`: SHA-256 of the base's manifest. `head`: manifest and signature, compressed against the base's."""

    base: bytes
    manifest_size: int
    signature_size: int
    head: bytes
    parts: tuple[Part, ...]


def serialize(delta: Delta) -> bytes:
    sizes = delta.manifest_size, delta.signature_size, len(delta.head)
    pieces = [_HEAD.pack(MAGIC, delta.base, *sizes), delta.head]
    for part in delta.parts:
        pieces.append(bytes([part.codec]))
        if part.codec != SAME:
            pieces += [_SIZE.pack(len(part.data)), part.data]
    return b"".join(pieces)


def parse(data: bytes) -> Delta:
    """Raises BundleError for what is not a delta, is cut off, or has a codec that is not known."""
    if len(data) < _HEAD.size or data[:4] != MAGIC:
        raise BundleError("not a delta", "give a file that `edgebuild delta` wrote")
    _, base, manifest_size, signature_size, head_size = _HEAD.unpack_from(data)
    if not manifest_size or not 0 < signature_size <= 1024 or head_size > _HEAD_MAX:
        raise BundleError("the delta's sizes are out of bounds", _MALFORMED)
    at = _HEAD.size + head_size
    if at > len(data):
        raise _cut_off()
    return Delta(base, manifest_size, signature_size, data[_HEAD.size : at], tuple(_parts(data, at)))


def _parts(data: bytes, at: int) -> Iterable[Part]:
    while at < len(data):
        codec = data[at]
        if codec >= len(CODECS):
            raise BundleError(f"the delta uses codec {codec}, which this edgebuild does not know", _MALFORMED)
        if codec == SAME:
            at += 1
            yield Part(SAME, b"")
            continue
        if at + 5 > len(data):
            raise _cut_off()
        (size,) = _SIZE.unpack_from(data, at + 1)
        at += 5 + size
        if at > len(data):
            raise _cut_off()
        yield Part(codec, data[at - size : at])


def _cut_off() -> BundleError:
    return BundleError("the delta is cut off", _MALFORMED)


def compress(data: bytes, prefix: bytes = b"", level: int = 19) -> bytes:
    """One zstd frame as SPEC 12 allows it: a window of at most 2 MiB, no checksum (every file has its SHA-256)."""
    window = min(WINDOW_LOG, max(10, (len(data) + len(prefix)).bit_length()))
    settings = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=len(data), window_log=window, write_content_size=0, write_checksum=0, write_dict_id=0
    )
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=settings).compress(data)


def decompress(data: bytes, size: int, prefix: bytes = b"") -> bytes:
    """The frame's content, which must have `size` bytes."""
    dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if prefix else None
    try:
        if zstandard.frame_content_size(data) > size:  # it would be believed, and so much memory be taken
            raise BundleError("a zstd frame of the delta has another size than it should", _MALFORMED)
        made = zstandard.ZstdDecompressor(dict_data=dictionary, max_window_size=1 << WINDOW_LOG).decompress(
            data, max_output_size=size, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BundleError("a zstd frame of the delta is malformed", _MALFORMED) from error
    if len(made) != size:
        raise BundleError("a zstd frame of the delta has another size than it should", _MALFORMED)
    return made

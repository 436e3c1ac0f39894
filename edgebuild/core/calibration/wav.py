"""The RIFF chunks of a .wav file: PCM, also where its header is the "extensible" one.

Python reads that only from 3.12 on (`wave`), and neither checks the block size. The layout is Microsoft's, mmreg.h's
WAVEFORMATEXTENSIBLE: tools write it for 24 bits and more, and for any file with a channel mask.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

_PCM, _EXTENSIBLE = 1, 0xFFFE
_GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
"""Behind the two bytes of a format in the GUID that stands for it."""
_FORMATS = {
    2: "ADPCM", 3: "floating point", 6: "A-law", 7: "µ-law", 0x11: "IMA ADPCM", 0x31: "GSM", 0x50: "MPEG", 0x55: "MP3",
}  # fmt: skip
_FIELDS, _EXTENDED = struct.Struct("<HHIIHH"), struct.Struct("<HHIH")
_CUT_OFF = "it is cut off"
_MOST_BYTES = 4


@dataclass(frozen=True)
class Pcm:
    """`values`: uint8 [frames * channels, bytes of a value], little-endian; one byte is unsigned, more are signed."""

    channels: int
    rate: int
    values: np.ndarray[Any, Any]


def read_wav(data: bytes) -> Pcm:
    """Raises ValueError with the reason, when it is no PCM in a whole file."""
    if len(data) < 12:
        raise ValueError(_CUT_OFF if b"RIFF".startswith(data[:4]) else "it does not begin with RIFF and WAVE")
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("it does not begin with RIFF and WAVE")
    header: tuple[int, int, int] | None = None
    for name, start, size in _chunks(data):
        if start + size > len(data):
            raise ValueError(_CUT_OFF)
        if name == b"fmt " and header is None:
            header = _header(data[start : start + size])
        if name == b"data":
            if header is None:
                raise ValueError("its values come before their format")
            channels, rate, width = header
            frames = size // (channels * width)
            values = np.frombuffer(data, np.uint8, frames * channels * width, start)
            return Pcm(channels, rate, values.reshape(-1, width))
    raise ValueError(_CUT_OFF)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of each chunk, as it claims; chunks begin at even bytes."""
    start = 12
    while start + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, start)
        yield name, start + 8, size
        start += 8 + size + size % 2


def _header(fmt: bytes) -> tuple[int, int, int]:
    """Channels, values a second, and bytes of a value."""
    if len(fmt) < _FIELDS.size:
        raise ValueError(f"its format has {len(fmt)} bytes instead of {_FIELDS.size}")
    kind, channels, rate, _, block, bits = _FIELDS.unpack_from(fmt)
    if kind == _EXTENSIBLE:
        kind = _extended(fmt[_FIELDS.size :])
    if kind != _PCM:
        raise ValueError(f"it holds {_FORMATS.get(kind, f'format {kind:#06x}')}, not PCM")
    width = (bits + 7) // 8
    if not 1 <= width <= _MOST_BYTES:
        raise ValueError(f"its header says {bits} bits a value")
    if not channels or block != channels * width:
        raise ValueError(f"its header says {channels} channels of {bits} bits in blocks of {block} bytes")
    return channels, rate, width


def _extended(more: bytes) -> int:
    """The format in an extensible header; values with fewer bits than their bytes hold lie at the upper end."""
    if len(more) < _EXTENDED.size + len(_GUID_TAIL):
        raise ValueError(f"its extensible format has {len(more)} bytes instead of {_EXTENDED.size + len(_GUID_TAIL)}")
    kind: int = _EXTENDED.unpack_from(more)[3]
    tail = more[_EXTENDED.size : _EXTENDED.size + len(_GUID_TAIL)]
    if tail != _GUID_TAIL:
        raise ValueError("it holds a format of a maker's own, not PCM")
    return kind

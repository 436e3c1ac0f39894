"""The RIFF reader on headers that tools write, on damaged ones, and on such that lie."""

import contextlib
import io
import struct
import wave
from pathlib import Path

import numpy as np
import pytest

from edgebuild.core.calibration import load_set
from edgebuild.core.calibration.wav import read_wav
from edgebuild.core.errors import CalibrationError
from edgebuild.core.manifest import Tensor

RATE = 16000
PCM = bytes.fromhex("0100000000001000800000aa00389b71")
FLOAT, AMBISONIC = b"\3" + PCM[1:], bytes.fromhex("010000002107d3118644c8c1ca000000")
VALUES = struct.pack("<4h", 0, 16384, -32768, 32767)


def chunk(name: bytes, content: bytes, size: int | None = None) -> bytes:
    """`size`: what the header claims."""
    return name + struct.pack("<I", len(content) if size is None else size) + content + b"\0" * (len(content) % 2)


def fmt(kind: int = 1, channels: int = 1, bits: int = 16, block: int | None = None, more: bytes = b"") -> bytes:
    block = channels * ((bits + 7) // 8) if block is None else block
    return chunk(b"fmt ", struct.pack("<HHIIHH", kind, channels, RATE, RATE * block, block, bits) + more)


def extensible(guid: bytes = PCM, bits: int = 16, valid: int | None = None, **header: int) -> bytes:
    return fmt(0xFFFE, bits=bits, more=struct.pack("<HHI", 22, bits if valid is None else valid, 4) + guid, **header)


def riff(*chunks: bytes) -> bytes:
    return chunk(b"RIFF", b"WAVE" + b"".join(chunks))


GOOD = riff(extensible(), chunk(b"fact", b"\4\0\0\0"), chunk(b"data", VALUES))


def read(folder: Path, data: bytes, dtype: str = "float32") -> np.ndarray:
    (folder / "set.toml").write_text(
        f'[set]\nname = "mine"\nlicence = "own"\nkind = "audio"\n[calibration]\npath = "."\nsample_rate = {RATE}\n'
    )
    (folder / "a.wav").write_bytes(data)
    (sample,) = load_set(folder).samples([Tensor("sound", dtype, (4,))], None)
    return sample["sound"]


def test_an_extensible_header(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(tmp_path, GOOD, "int16"), [0, 16384, -32768, 32767])
    np.testing.assert_allclose(read(tmp_path, GOOD), [0, 0.5, -1, 1], atol=1e-4)
    assert read(tmp_path, riff(fmt(), chunk(b"data", VALUES)), "int16").tolist() == [0, 16384, -32768, 32767]


@pytest.mark.parametrize(
    ("bits", "valid", "data", "wanted"),
    [
        (8, 8, b"\x80\xc0\x00", [0, 0.5, -1]),
        (24, 24, b"\0\0\x40\0\0\x80", [0.5, -1]),
        (32, 24, b"\0\0\0\xc0", [-0.5]),
        (16, 12, b"\x00\x40", [0.5]),
    ],
)
def test_widths(tmp_path: Path, bits: int, valid: int, data: bytes, wanted: list[float]) -> None:
    found = read(tmp_path, riff(extensible(bits=bits, valid=valid), chunk(b"data", data)))
    np.testing.assert_array_equal(found[: len(wanted)], wanted)


def test_chunks_of_others_are_passed_over() -> None:
    """Of odd size as well, behind which a byte is left empty; in front of the format, and behind the values."""
    plain = riff(fmt(), chunk(b"data", VALUES))
    full = riff(chunk(b"JUNK", b"x" * 27), fmt(), chunk(b"LIST", b"odd"), chunk(b"data", VALUES), chunk(b"id3 ", b"?"))
    assert read_wav(full).values.tobytes() == read_wav(plain).values.tobytes() == VALUES


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 3])
def test_it_reads_what_python_writes(width: int, channels: int) -> None:
    rng = np.random.default_rng(width)
    data, file = rng.bytes(width * channels * 7), io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((channels, width, RATE, 0, "NONE", ""))
        written.writeframes(data)
    found = read_wav(file.getvalue())
    assert (found.channels, found.rate, found.values.shape) == (channels, RATE, (7 * channels, width))
    assert found.values.tobytes() == data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is cut off"),
        (b"RIF", "it is cut off"),
        (b"ID3\4" + GOOD, "it does not begin with RIFF and WAVE"),
        (b"RF64" + GOOD[4:], "it does not begin with RIFF and WAVE"),
        (riff(), "it is cut off"),
        (riff(extensible()), "it is cut off"),
        (riff(chunk(b"data", VALUES), fmt()), "its values come before their format"),
        (riff(extensible(), chunk(b"data", VALUES, size=2**32 - 1)), "it is cut off"),
        (riff(extensible(), chunk(b"data", VALUES, size=9)), "it is cut off"),
        (riff(extensible(), chunk(b"LIST", b"", size=2**31), chunk(b"data", VALUES)), "it is cut off"),
        (riff(chunk(b"fmt ", b"\1\0", size=40), chunk(b"data", VALUES)), "it is cut off"),
        (riff(chunk(b"fmt ", b"\1\0"), chunk(b"data", VALUES)), "its format has 2 bytes instead of 16"),
        (riff(fmt(0xFFFE, more=b"\0\0"), chunk(b"data", VALUES)), "its extensible format has 2 bytes instead of 24"),
        (riff(fmt(3, bits=32), chunk(b"data", VALUES)), "it holds floating point, not PCM"),
        (riff(extensible(FLOAT, bits=32), chunk(b"data", VALUES)), "it holds floating point, not PCM"),
        (riff(extensible(AMBISONIC), chunk(b"data", VALUES)), "it holds a format of a maker's own, not PCM"),
        (riff(fmt(0x1234), chunk(b"data", VALUES)), "it holds format 0x1234, not PCM"),
        (riff(fmt(channels=0), chunk(b"data", VALUES)), "its header says 0 channels of 16 bits in blocks of 0 bytes"),
        (riff(fmt(block=3), chunk(b"data", VALUES)), "its header says 1 channels of 16 bits in blocks of 3 bytes"),
        (riff(extensible(block=0), chunk(b"data", VALUES)), "1 channels of 16 bits in blocks of 0 bytes"),
        (riff(fmt(bits=0), chunk(b"data", VALUES)), "its header says 0 bits a value"),
        (riff(fmt(bits=64), chunk(b"data", VALUES)), "its header says 64 bits a value"),
        (riff(extensible(bits=65535), chunk(b"data", VALUES)), "its header says 65535 bits a value"),
        (riff(extensible(), chunk(b"data", b"")), "it is empty"),
        (riff(extensible(), chunk(b"data", b"\1")), "it is empty"),
    ],
)
def test_wrong_headers(tmp_path: Path, data: bytes, message: str) -> None:
    assert len(read(tmp_path, GOOD)) == 4
    with pytest.raises(CalibrationError) as caught:
        read(tmp_path, data)
    assert caught.value.message.startswith(f"{tmp_path / 'a.wav'}: is no readable .wav file: it")
    assert caught.value.message.endswith(message)
    assert "ffmpeg -i IN.wav -ac 1 -ar 16000" in caught.value.hint


def test_cut_anywhere() -> None:
    assert read_wav(GOOD).values.tobytes() == VALUES
    for end in range(len(GOOD)):
        with pytest.raises(ValueError, match="it is cut off"):
            read_wav(GOOD[:end])


def test_any_byte_changed() -> None:
    """Values within the file, or a reason; nothing else."""
    for place in range(len(GOOD) - len(VALUES)):
        for value in (0, 1, 2, 0x7F, 0x80, 0xFF):
            data = GOOD[:place] + bytes([value]) + GOOD[place + 1 :]
            with contextlib.suppress(ValueError):
                assert read_wav(data).values.size <= len(VALUES)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    read(tmp_path, GOOD)
    (tmp_path / "b.wav").mkdir()
    with pytest.raises(CalibrationError, match=r"b\.wav: is no readable \.wav file: Is a directory"):
        list(load_set(tmp_path).samples([Tensor("sound", "float32", (4,))], None))

"""The codecs of SPEC section 12 that are C: the library that the native build makes, loaded into this process."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebuild.core.errors import BundleError

_NO_ROOM = -1
_MESSAGE_BYTES = 512


@dataclass(frozen=True)
class Old:
    """The base's file of the same path, and its plan.bin (empty where that does not matter)."""

    data: bytes
    plan: bytes = b""


class _Decoded(ctypes.Structure):
    _fields_ = (
        ("path", ctypes.c_char_p),
        *((name, ctypes.c_char_p) for name in ("before", "plan", "old_plan", "coded")),
        *((name, ctypes.c_uint64) for name in ("old_size", "plan_size", "old_plan_size", "coded_size")),
        ("after", ctypes.c_void_p),
        ("new_size", ctypes.c_uint64),
        ("codec", ctypes.c_int32),
        ("has_old", ctypes.c_int32),
    )


class Codecs:
    """Encoders give None where the coded form is longer than `most` bytes, or the files do not fit the codec."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.eb_encode_weights.restype = ctypes.c_int64
        self._library.eb_encode_patch.restype = ctypes.c_int64
        self._library.eb_decode_file.restype = ctypes.c_int32

    def weights(self, plan: bytes, old: bytes, new: bytes, most: int) -> bytes | None:
        """SPEC 12.1: weights.bin, laid out by `plan`."""
        if len(old) != len(new):
            return None
        out = ctypes.create_string_buffer(max(most, 1))
        size = self._library.eb_encode_weights(
            plan, ctypes.c_uint64(len(plan)), old, new, ctypes.c_uint64(len(new)), out, ctypes.c_uint64(most)
        )
        return None if size < 0 else out.raw[:size]

    def patch(self, old: bytes, new: bytes, steps: Sequence[tuple[int, int, int]], most: int) -> bytes | None:
        """SPEC 12.2; `steps` are copy, extra and seek, the first of which only seeks."""
        out = ctypes.create_string_buffer(max(most, 1))
        flat = (ctypes.c_int64 * (3 * len(steps)))(*(value for step in steps for value in step))
        sizes = ctypes.c_uint64(len(old)), ctypes.c_uint64(len(new))
        size = self._library.eb_encode_patch(
            old, sizes[0], new, sizes[1], flat, ctypes.c_uint64(len(steps)), out, ctypes.c_uint64(most)
        )
        return None if size < 0 else out.raw[:size]

    def decoded(self, codec: int, path: str, coded: bytes, size: int, plan: bytes, old: Old | None) -> bytes:
        """What the device makes of a coded file of `size` bytes. Raises BundleError when it refuses."""
        after = ctypes.create_string_buffer(max(size, 1))
        before = old or Old(b"")
        lengths = (len(before.data), len(plan), len(before.plan), len(coded))
        file = _Decoded(
            path.encode(), before.data, plan, before.plan, coded, *lengths,
            ctypes.addressof(after), size, codec, old is not None,
        )  # fmt: skip
        text = ctypes.create_string_buffer(_MESSAGE_BYTES)
        if self._library.eb_decode_file(ctypes.byref(file), text, ctypes.c_uint64(_MESSAGE_BYTES)):
            raise BundleError(f"{path}: {text.value.decode() or 'the delta does not make it'}", "make the delta again")
        return after.raw[:size]

"""A tiny bundle, written straight from SPEC sections 1 to 6, to hold the runtime to the page and not to our own writer.

Its function looks every byte of a frame [6, 8, 3] up in a table and reduces the result:
pixels = table[frame], total = sum(pixels), mean = total / 144, bright = total > 18360.
"""

import base64
import hashlib
import io
import struct
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from nacl.signing import SigningKey

from edgebuild.core.zig import zig_cc

H, W = 6, 8
N = H * W * 3
SAMPLES = 3
RUNTIME_STUB = b"#!/bin/sh\n"

# Kernels keep to their tensors whatever a mutated plan asks of them: the tests judge the runtime, not the kernels.
KERNELS = """
#include <stdint.h>
typedef void (*eb_kernel_fn)(void *const *args, void *scratch, int32_t begin, int32_t end);
struct eb_program { uint32_t magic, abi, kernel_count, reserved; uint64_t needs; eb_kernel_fn kernels[2]; };

static void lookup(void *const *args, void *scratch, int32_t begin, int32_t end) {
  const uint8_t *in = args[0], *table = args[1];
  uint8_t *out = args[2];
  (void)scratch;
  for (int32_t i = begin; i < end && i < N; i++) out[i] = table[in[i]];
}

static void reduce(void *const *args, void *scratch, int32_t begin, int32_t end) {
  const uint8_t *in = args[0];
  int32_t *total = args[1];
  float *mean = args[2];
  uint8_t *bright = args[3];
  (void)scratch;
  if (begin >= end || !mean || !bright) return;
  *total = 0;
  for (int32_t i = 0; i < N; i++) *total += in[i];
  *mean = (float)*total / (float)N;
  *bright = *total > N * 255 / 2;
}

__attribute__((visibility("default"))) const struct eb_program eb_program = {
  MAGIC, ABI, 2, 0, NEEDS, {lookup, reduce}};
"""


def program_so(
    folder: Path, triple: str, *, magic: int = 0x31504245, abi: int = 1, needs: int = 0, kernels: str = KERNELS
) -> bytes:
    """The kernels as program.so for `triple`."""
    source, library = folder / "program.c", folder / f"program-{triple}-{magic:x}-{abi}-{needs:x}.so"
    if not library.exists():
        source.write_text(kernels)
        defines = [f"-DN={N}", f"-DMAGIC={magic}u", f"-DABI={abi}", f"-DNEEDS={needs}u"]
        flags = ["-shared", "-fPIC", "-O1", "-nostdlib", "-s", "-fvisibility=hidden", "-fno-builtin"]
        subprocess.run([*zig_cc(triple), *flags, *defines, str(source), "-o", str(library)], check=True)
    return library.read_bytes()


def table() -> np.ndarray:
    """uint8 [256], a permutation."""
    return ((np.arange(256) * 37 + 11) % 256).astype(np.uint8)


def reference(frames: np.ndarray) -> dict[str, np.ndarray]:
    """What the function computes on uint8 [n, 6, 8, 3], samples along the first axis."""
    pixels = table()[frames]
    total = pixels.astype(np.int32).sum(axis=(1, 2, 3), dtype=np.int32)
    mean = total.astype(np.float32) / np.float32(N)
    return {"pixels": pixels, "total": total, "mean": mean, "bright": total > N * 255 // 2}


def golden_frames() -> np.ndarray:
    """uint8 [3, 6, 8, 3]."""
    return np.random.default_rng(7).integers(0, 256, (SAMPLES, H, W, 3), dtype=np.uint8)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


_STRINGS = b"\0frame\0table\0pixels\0total\0mean\0bright\0lookup\0reduce\0"
U8, I32, F32, BOOL = 0, 2, 4, 5
ARENA, WEIGHTS = 0, 1


def _name(text: str) -> int:
    return _STRINGS.index(f"\0{text}\0".encode()) + 1


def _tensor(name: str, dtype: int, space: int, dims: tuple[int, ...], offset: int, size: int) -> bytes:
    padded = (*dims, *(0,) * (6 - len(dims)))
    return struct.pack("<IBBBB6IQQ", _name(name), dtype, len(dims), space, 0, *padded, offset, size)


def _op(name: str, kernel: int, first: int, count: int, work: int, grain: int) -> bytes:
    return struct.pack("<8IQ", _name(name), _name(name), kernel, first, count, work, grain, 1, 0)


def plan_bin(
    *,
    arena: int = 1024,
    grain: int = 8,
    more_ops: int = 0,
    weights: int = 256,
    table_input: bool = False,
    table_bytes: int = 256,
) -> bytes:
    """SPEC 5. `more_ops` operators that look up a single byte come behind the others; `table_input`: the table is the
    second input; `table_bytes`: it has more than are looked up.
    """
    tensors = [
        _tensor("frame", U8, ARENA, (H, W, 3), 0, N),
        _tensor("table", U8, ARENA if table_input else WEIGHTS, (table_bytes,), 576 if table_input else 0, table_bytes),
        _tensor("pixels", U8, ARENA, (H, W, 3), 192, N),
        _tensor("total", I32, ARENA, (), 384, 4),
        _tensor("mean", F32, ARENA, (), 448, 4),
        _tensor("bright", BOOL, ARENA, (), 512, 1),
    ]
    ops = [_op("lookup", 0, 0, 3, N, grain), _op("reduce", 1, 3, 4, 1, 1)]
    ops += [_op("lookup", 0, 0, 3, 1, 1)] * more_ops
    written = 1 << 31
    args = [0, 1, 2 | written, 2, 3 | written, 4 | written, 5 | written]
    inputs, outputs = [0, 1] if table_input else [0], [2, 3, 4, 5]
    counts = (len(tensors), len(ops), len(args), len(inputs), len(outputs), len(_STRINGS))
    header = struct.pack("<4s9I3Q", b"EBPL", 1, arena, 512, *counts, weights, 0, 0)
    indices = struct.pack(f"<{len(args) + len(inputs) + len(outputs)}I", *args, *inputs, *outputs)
    return header + b"".join(tensors) + b"".join(ops) + indices + _STRINGS


@dataclass(frozen=True)
class Key:
    """A minisign key pair."""

    key_id: bytes
    signing: SigningKey

    @classmethod
    def new(cls, seed: int) -> "Key":
        return cls(struct.pack("<Q", 0x1122334455667788 + seed), SigningKey(bytes([seed]) * 32))

    @property
    def id(self) -> str:
        """As minisign prints it."""
        return self.key_id[::-1].hex().upper()

    @property
    def public(self) -> str:
        return base64.b64encode(b"Ed" + self.key_id + bytes(self.signing.verify_key)).decode()

    @property
    def trust(self) -> bytes:
        return f"untrusted comment: minisign public key\n{self.public}\n".encode()

    def sign(self, manifest: bytes, comment: str) -> bytes:
        signature = self.signing.sign(hashlib.blake2b(manifest).digest()).signature
        whole = self.signing.sign(signature + comment.encode()).signature
        lines = [
            "untrusted comment: signature from edgebuild",
            base64.b64encode(b"ED" + self.key_id + signature).decode(),
            f"trusted comment: {comment}",
            base64.b64encode(whole).decode(),
        ]
        return "".join(line + "\n" for line in lines).encode()


KEY = Key.new(1)


@dataclass(frozen=True)
class Bundle:
    """The parts of a bundle; tests replace one and call `build`."""

    program: bytes
    plan: bytes = field(default_factory=plan_bin)
    weights: bytes = field(default_factory=lambda: table().tobytes())
    arch: str = "x86_64"
    needs: str = ""
    checked: bool = True
    abi: str = "1"
    trigger: str = "camera 15"
    comment: str = "edgebuild tiny 1.0.0 test"
    golden: dict[str, bytes] = field(default_factory=dict)
    # (found, put instead) in the manifest's text, before it is signed
    edits: tuple[tuple[str, str], ...] = ()
    key: Key = KEY

    def files(self) -> list[tuple[str, bytes]]:
        frames = golden_frames()
        golden = {"golden/in-0.npy": npy(frames)}
        golden |= {f"golden/out-{j}.npy": npy(array) for j, array in enumerate(reference(frames).values())}
        base = {
            "edgebuild-run": RUNTIME_STUB,
            "program.so": self.program,
            "plan.bin": self.plan,
            "weights.bin": self.weights,
        }
        return list((base | golden | self.golden).items())

    def manifest(self) -> bytes:
        lines = ["edgebuild-manifest 1", "name tiny", "version 1.0.0", "target test", "release 1", f"arch {self.arch}"]
        lines += [f"needs {self.needs}"] if self.needs else []
        lines += [f"abi {self.abi}", "quality trained", *([] if self.checked else ["checked no"])]
        lines += ["function look", f"trigger {self.trigger}", "timeout-ms 500"]
        lines += [f"input frame uint8 {H} {W} 3", f"output pixels uint8 {H} {W} 3", "output total int32"]
        lines += ["output mean float32", "output bright bool"]
        lines += [f"file {len(data)} {hashlib.sha256(data).hexdigest()} {name}" for name, data in self.files()]
        text = "".join(line + "\n" for line in lines)
        for found, instead in self.edits:
            assert found in text
            text = text.replace(found, instead, 1)
        return text.encode()

    def build(self) -> bytes:
        manifest = self.manifest()
        members = [("manifest", manifest), ("manifest.minisig", self.key.sign(manifest, self.comment)), *self.files()]
        return b"".join(member(name, data) for name, data in members) + bytes(1024)

    def but(self, **changes: object) -> "Bundle":
        return replace(self, **changes)  # type: ignore[arg-type]


def member(name: str, data: bytes) -> bytes:
    """One member of the archive (SPEC 1)."""
    mode = b"0000755\0" if name == "edgebuild-run" else b"0000644\0"
    fields = name.encode().ljust(100, b"\0") + mode + b"0000000\0" * 2 + b"%011o\0" % len(data) + b"0" * 11 + b"\0"
    rest = b"0" + bytes(100) + b"ustar\x0000" + bytes(512 - 265)
    checksum = sum(fields) + sum(b" " * 8) + sum(rest)
    header = fields + b"%06o\0 " % checksum + rest
    assert len(header) == 512
    return header + data + bytes(-len(data) % 512)

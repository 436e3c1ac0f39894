"""A small valid bundle, made by hand, for the tests of the formats."""

from dataclasses import dataclass

from edgebuild.core import bundle, manifest, minisign
from edgebuild.core.manifest import Manifest, Tensor, Trigger
from edgebuild.core.minisign import SecretKey
from edgebuild.core.trust import Trust

FILES = {
    "edgebuild-run": b"\x7fELF runtime",
    "program.so": b"\x7fELF program" * 100,
    "plan.bin": b"EBPL" + bytes(508),
    "weights.bin": bytes(range(256)) * 4,
    "golden/in-0.npy": b"in",
    "golden/out-0.npy": b"out 0",
    "golden/out-1.npy": b"",
    "function/function.py": b"def f(): ...\n",
}


@dataclass(frozen=True)
class Sample:
    """A bundle with everything that went into it."""

    data: bytes
    manifest: Manifest
    files: dict[str, bytes]
    key: SecretKey
    trust: Trust


def make_manifest(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        name="digits",
        version="1.0.0",
        target="x86_64-avx2",
        release=1,
        arch="x86_64",
        needs=("avx2", "fma"),
        abi=1,
        quality="trained",
        function="classify",
        trigger=Trigger("camera", 15),
        timeout_ms=500,
        inputs=(Tensor("frame", "uint8", (48, 64, 3)),),
        outputs=(Tensor("label", "int64", ()), Tensor("confidence", "float32", (1,))),
        files=bundle.file_rows(files),
    )


def make_bundle(manifest_: Manifest, files: dict[str, bytes], key: SecretKey) -> bytes:
    signature = minisign.sign(manifest.serialize(manifest_), key, bundle.comment(manifest_))
    return b"".join(bundle.pieces(manifest_, signature, files))

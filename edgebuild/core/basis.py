"""`NAME-VERSION-TARGET.basis.zip`, beside a bundle: what a later training needs to be quantized on the same grid.

A ZIP archive without dates: `model.onnx` (the QDQ graph that was compiled: scales, zero points, integers),
`float.onnx` (the float network that was rounded: folded, equalized) and `basis.json`:

    {"format": "edgebuild-basis 1", "digests": {PATH: SHA-256 of a file of the bundle, and of the two graphs},
     "rule", "rescued", "fallback", "precision", "schedules",
     "factors": {TENSOR: base64 of a float32 for each channel}}

It belongs to one bundle: the digests of program.so, plan.bin and weights.bin are that bundle's. It is read on the build
machine only, and nothing on a device trusts it.
"""

import base64
import binascii
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebuild.core.bundle import Bundle
from edgebuild.core.digest import sha256
from edgebuild.core.errors import BundleError

FORMAT = "edgebuild-basis 1"
SUFFIX = ".basis.zip"
PROGRAM = ("program.so", "plan.bin", "weights.bin")
_GRAPHS = ("model.onnx", "float.onnx")
_REMEDY = "compile the old release again from its recipe and weights (the same bytes come out), and keep what it writes"
_LEVEL = 6


@dataclass(frozen=True)
class BasisFile:
    """`factors`: of each channel, float32 little endian, by tensor; `schedules`: block sizes by shape."""

    model: bytes
    floating: bytes
    rule: str
    rescued: tuple[str, ...]
    fallback: Mapping[str, str]
    precision: str
    schedules: Mapping[str, str]
    factors: Mapping[str, bytes]

    def to_bytes(self, program: Mapping[str, bytes]) -> bytes:
        """The archive; `program` holds the files of PROGRAM."""
        graphs = {"model.onnx": self.model, "float.onnx": self.floating}
        digests = {name: sha256(data) for name, data in {**{n: program[n] for n in PROGRAM}, **graphs}.items()}
        fields = {
            "format": FORMAT,
            "digests": digests,
            "rule": self.rule,
            "rescued": sorted(self.rescued),
            "fallback": dict(sorted(self.fallback.items())),
            "precision": self.precision,
            "schedules": dict(sorted(self.schedules.items())),
            "factors": {name: base64.b64encode(data).decode() for name, data in sorted(self.factors.items())},
        }
        return _zipped({"basis.json": (json.dumps(fields, indent=1) + "\n").encode(), **graphs})


def basis_path(bundle: Path) -> Path:
    """Where the file of a bundle lies."""
    return bundle.with_name(bundle.name.removesuffix(".ebundle") + SUFFIX)


def read_basis(data: bytes, bundle: Bundle, where: str) -> BasisFile:
    """Checks that it is whole and belongs to the bundle. Raises BundleError."""
    members = _members(data, where)
    try:
        fields: dict[str, Any] = json.loads(members["basis.json"])
        if fields["format"] != FORMAT:
            raise BundleError(f"{where}: its format is {fields['format']!r}, this edgebuild reads {FORMAT!r}", _REMEDY)
        digests = fields["digests"]
        for name in _GRAPHS:
            if digests[name] != sha256(members[name]):
                raise BundleError(f"{where}: {name} is damaged: its SHA-256 differs", _REMEDY)
        own = {file.path: file.sha256 for file in bundle.manifest.files}
        for name in PROGRAM:
            if digests[name] != own[name]:
                raise BundleError(f"{where}: belongs to another bundle: its {name} is not this one's", _REMEDY)
        return _file(fields, members)
    except (KeyError, TypeError, AttributeError, ValueError, binascii.Error) as error:
        raise BundleError(f"{where}: is not a basis: {error}", _REMEDY) from error


def _file(fields: dict[str, Any], members: Mapping[str, bytes]) -> BasisFile:
    return BasisFile(
        model=members["model.onnx"],
        floating=members["float.onnx"],
        rule=str(fields["rule"]),
        rescued=tuple(str(name) for name in fields["rescued"]),
        fallback={str(k): str(v) for k, v in fields["fallback"].items()},
        precision=str(fields["precision"]),
        schedules={str(k): str(v) for k, v in fields["schedules"].items()},
        factors={str(k): base64.b64decode(v, validate=True) for k, v in fields["factors"].items()},
    )


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def _members(data: bytes, where: str) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in ("basis.json", *_GRAPHS)}
    except (zipfile.BadZipFile, KeyError, EOFError, OSError, zipfile.zlib.error, NotImplementedError) as error:  # type: ignore[attr-defined]
        raise BundleError(f"{where}: is damaged: {error}", _REMEDY) from error

"""SPEC section 2: the manifest's one canonical text, to objects and back."""

import math
import re
from dataclasses import dataclass
from datetime import date
from typing import Literal, get_args

from edgebuild.core.errors import BundleError
from edgebuild.core.lines import MAX_NUMBER, Lines
from edgebuild.core.tar import MAX_FILE, MAX_MANIFEST
from edgebuild.core.target import FEATURES

FORMAT = "1"
ABI = 1
MAX_FILES = 256
MAX_RANK = 6
MAX_TENSOR = 2**31
REMAKE = "the bundle was not made by edgebuild, or by another version of it; compile it again"
NEWER = "it was made for a newer edgebuild: upgrade this one, or compile the bundle again"
RESERVED_PATHS = ("manifest", "manifest.minisig")
REQUIRED_FILES = ("edgebuild-run", "program.so", "plan.bin", "weights.bin")

Dtype = Literal["uint8", "int8", "int32", "int64", "float32", "bool"]
DTYPES: tuple[str, ...] = get_args(Dtype)
DTYPE_BYTES = dict(zip(DTYPES, (1, 1, 4, 8, 4, 1), strict=True))

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~-]{0,31}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATH = re.compile(r"[a-z0-9][a-z0-9._/-]{0,98}")


@dataclass(frozen=True)
class Trigger:
    """What starts the function: `camera` with frames per second, `timer` with a period in ms, or `none`."""

    kind: str = "none"
    value: int | None = None


@dataclass(frozen=True)
class Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class File:
    size: int
    sha256: str
    path: str


@dataclass(frozen=True)
class Manifest:
    """The manifest; field by field SPEC section 2."""

    name: str
    version: str
    target: str
    release: int
    arch: str
    needs: tuple[str, ...]
    abi: int
    quality: str
    function: str
    trigger: Trigger
    timeout_ms: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    files: tuple[File, ...]
    # Whether the build machine ran the bundle and saw its golden outputs.
    checked: bool = True
    made: date | None = None
    expires: date | None = None


def serialize(manifest: Manifest) -> bytes:
    """The canonical bytes of a manifest. Raises BundleError for a value that the format cannot hold."""
    data = _render(manifest)
    if _Parser(data).manifest() != manifest:
        raise BundleError("the manifest holds a value that its format cannot express", "choose a shorter, plainer one")
    return data


def parse(data: bytes) -> Manifest:
    """The manifest of canonical bytes; any other spelling raises BundleError with the line's number."""
    manifest = _Parser(data).manifest()
    if _render(manifest) != data:
        raise BundleError("manifest: not in its canonical spelling", REMAKE)
    return manifest


def _render(manifest: Manifest) -> bytes:
    trigger = manifest.trigger
    rows: list[tuple[object, ...]] = [
        ("edgebuild-manifest", FORMAT),
        ("name", manifest.name),
        ("version", manifest.version),
        ("target", manifest.target),
        ("release", manifest.release),
        *([("made", manifest.made)] if manifest.made is not None else []),
        *([("expires", manifest.expires)] if manifest.expires is not None else []),
        ("arch", manifest.arch),
        *([("needs", *manifest.needs)] if manifest.needs else []),
        ("abi", manifest.abi),
        ("quality", manifest.quality),
        *([] if manifest.checked else [("checked", "no")]),
        ("function", manifest.function),
        ("trigger", trigger.kind) if trigger.value is None else ("trigger", trigger.kind, trigger.value),
        *([("timeout-ms", manifest.timeout_ms)] if manifest.timeout_ms is not None else []),
        *(("input", tensor.name, tensor.dtype, *tensor.shape) for tensor in manifest.inputs),
        *(("output", tensor.name, tensor.dtype, *tensor.shape) for tensor in manifest.outputs),
        *(("file", file.size, file.sha256, file.path) for file in manifest.files),
    ]
    text = "".join(" ".join(str(field) for field in row) + "\n" for row in rows)
    try:
        return text.encode("ascii")
    except UnicodeEncodeError as error:
        raise BundleError("manifest: only ASCII is allowed", REMAKE) from error


class _Parser(Lines):
    def __init__(self, data: bytes) -> None:
        super().__init__(data, MAX_MANIFEST, "manifest", REMAKE)

    def manifest(self) -> Manifest:
        self._format("edgebuild-manifest", FORMAT, "the bundle's manifest", NEWER)
        name, version = self._one("name", _NAME), self._one("version", _VERSION)
        target, release = self._one("target", _NAME), self._numbered("release")
        made, expires = self._optional_day("made"), self._optional_day("expires")
        arch = self._choice("arch", tuple(FEATURES))
        needs = self._needs(arch)
        abi = self._numbered("abi")
        if abi != ABI:
            raise BundleError(f"the bundle needs kernel ABI {abi}; this edgebuild knows {ABI}", NEWER)
        quality = self._choice("quality", ("trained", "speed-only"))
        checked = self._next() != "checked" or self._choice("checked", ("no",)) != "no"
        function, trigger = self._one("function", _IDENTIFIER), self._trigger()
        timeout = self._numbered("timeout-ms") if self._next() == "timeout-ms" else None
        inputs, outputs = self._tensors("input"), self._tensors("output")
        files = self._many("file", self._file)
        self._end()
        _check_files(files, len(inputs), len(outputs))
        return Manifest(
            name,
            version,
            target,
            release,
            arch,
            needs,
            abi,
            quality,
            function,
            trigger,
            timeout,
            inputs,
            outputs,
            files,
            checked,
            made,
            expires,
        )

    def _optional_day(self, key: str) -> date | None:
        return self._day(key) if self._next() == key else None

    def _needs(self, arch: str) -> tuple[str, ...]:
        if self._next() != "needs":
            return ()
        needs = tuple(self._fields("needs"))
        for feature in needs:
            if _NAME.fullmatch(feature) and feature not in FEATURES[arch]:
                raise BundleError(
                    f"the bundle needs the CPU feature {feature} of {arch}, which this edgebuild does not know", NEWER
                )
        if not needs or needs != tuple(feature for feature in FEATURES[arch] if feature in needs):
            raise self._wrong(f"needs must be CPU features of {arch}, each once, in the order of SPEC section 6")
        self._at += 1
        return needs

    def _trigger(self) -> Trigger:
        match self._fields("trigger"):
            case ["none"]:
                trigger = Trigger()
            case [("camera" | "timer") as kind, value]:
                trigger = Trigger(kind, self._number(value, 1, MAX_NUMBER))
            case _:
                raise self._wrong("trigger must be `camera FPS`, `timer PERIOD_MS` or `none`")
        self._at += 1
        return trigger

    def _tensors(self, key: str) -> tuple[Tensor, ...]:
        names: set[str] = set()

        def read(fields: list[str]) -> Tensor:
            tensor = self._tensor(fields)
            if tensor.name in names:
                raise self._wrong(f"a second {key} `{tensor.name}`")
            names.add(tensor.name)
            return tensor

        return self._many(key, read)

    def _tensor(self, fields: list[str]) -> Tensor:
        if len(fields) < 2 or not _IDENTIFIER.fullmatch(fields[0]) or fields[1] not in DTYPES:
            raise self._wrong(f"a tensor is NAME DTYPE DIM ..., DTYPE one of {', '.join(DTYPES)}")
        if len(fields) > 2 + MAX_RANK:
            raise self._wrong(f"a tensor has at most {MAX_RANK} axes")
        shape = tuple(self._number(dim, 1, MAX_NUMBER) for dim in fields[2:])
        if math.prod(shape) * DTYPE_BYTES[fields[1]] > MAX_TENSOR:
            raise self._wrong(f"a tensor has at most {MAX_TENSOR} bytes")
        return Tensor(fields[0], fields[1], shape)

    def _file(self, fields: list[str]) -> File:
        if len(fields) != 3:
            raise self._wrong("a file is SIZE SHA256 PATH")
        size, sha256, path = self._number(fields[0], 0, MAX_FILE), fields[1], fields[2]
        if not _SHA256.fullmatch(sha256):
            raise self._wrong("a file's SHA-256 is 64 lower-case hex digits")
        if not is_path(path):
            raise self._wrong(f"`{path}` is not a valid path")
        if path in RESERVED_PATHS:
            raise self._wrong(f"`{path}` is a part of every bundle, and no file of its own")
        return File(size, sha256, path)


def is_path(path: str) -> bool:
    """Whether a bundle may hold a file of this path."""
    return bool(_PATH.fullmatch(path)) and ".." not in path and "//" not in path and not path.endswith("/")


def is_identifier(name: str) -> bool:
    """Whether a function, input or output may have this name."""
    return bool(_IDENTIFIER.fullmatch(name))


def is_name(name: str) -> bool:
    """Whether a bundle or a target may have this name."""
    return bool(_NAME.fullmatch(name))


def is_version(version: str) -> bool:
    return bool(_VERSION.fullmatch(version))


def golden_paths(inputs: int, outputs: int) -> list[str]:
    return [*(f"golden/in-{i}.npy" for i in range(inputs)), *(f"golden/out-{j}.npy" for j in range(outputs))]


def _check_files(files: tuple[File, ...], inputs: int, outputs: int) -> None:
    if len(files) > MAX_FILES:
        raise BundleError(f"manifest: {len(files)} files; the limit is {MAX_FILES}", REMAKE)
    paths = [file.path for file in files]
    if len(set(paths)) != len(paths):
        raise BundleError("manifest: a path occurs twice", REMAKE)
    for path in [*REQUIRED_FILES, *golden_paths(inputs, outputs)]:
        if path not in paths:
            raise BundleError(f"manifest: the file `{path}` is missing", REMAKE)

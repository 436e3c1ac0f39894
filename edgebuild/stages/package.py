"""Package: program, runtime, golden samples and sources to a manifest and its files, in one fixed order."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

from edgebuild.core import bundle
from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import ABI, DTYPES, Manifest, Tensor, Trigger, is_path
from edgebuild.core.target import Target


@dataclass(frozen=True)
class Contents:
    """What a bundle says of itself, and what it carries.

    `golden` maps `in-0.npy`, `out-0.npy`, … to their bytes, `sources` relative paths to the handler's sources.
    """

    name: str
    version: str
    quality: str
    function: str
    trigger: Trigger
    timeout_ms: int | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    runtime: bytes
    program_so: bytes
    plan: bytes
    weights: bytes
    golden: Mapping[str, bytes]
    sources: Mapping[str, bytes]


@dataclass(frozen=True)
class Stamp:
    """What tells one release from another (SPEC section 2): the counter, and days in UTC."""

    release: int = 1
    made: date | None = None
    expires: date | None = None


@dataclass(frozen=True)
class Package:
    """A bundle but for its signature."""

    manifest: Manifest
    files: dict[str, bytes]


_FIRST = Stamp()


def package(contents: Contents, target: Target, stamp: Stamp = _FIRST, *, checked: bool = True) -> Package:
    """`checked`: this machine can run the bundle, and will. Raises ModelError for an input or output that a manifest
    cannot express.
    """
    for tensor in (*contents.inputs, *contents.outputs):
        if tensor.dtype not in DTYPES:
            raise ModelError(f"'{tensor.name}' is {tensor.dtype}", f"inputs and outputs may be {', '.join(DTYPES)}")
    files = _files(contents)
    manifest = Manifest(
        name=contents.name,
        version=contents.version,
        target=target.name,
        release=stamp.release,
        arch=target.arch,
        needs=target.features,
        abi=ABI,
        quality=contents.quality,
        function=contents.function,
        trigger=contents.trigger,
        timeout_ms=contents.timeout_ms,
        inputs=contents.inputs,
        outputs=contents.outputs,
        files=bundle.file_rows(files),
        checked=checked,
        made=stamp.made,
        expires=stamp.expires,
    )
    return Package(manifest, files)


def _files(contents: Contents) -> dict[str, bytes]:
    inputs = [f"in-{i}.npy" for i in range(len(contents.inputs))]
    outputs = [f"out-{j}.npy" for j in range(len(contents.outputs))]
    return {
        "edgebuild-run": contents.runtime,
        "program.so": contents.program_so,
        "plan.bin": contents.plan,
        "weights.bin": contents.weights,
        **{f"golden/{name}": contents.golden[name] for name in (*inputs, *outputs)},
        **_sources(contents.sources),
    }


def _sources(sources: Mapping[str, bytes]) -> dict[str, bytes]:
    """Sources under `function/`; what a path cannot hold is spelled `_`, and a path that is taken is numbered."""
    packed: dict[str, bytes] = {}
    for number, name in enumerate(sorted(sources)):
        plain = re.sub(r"[^a-z0-9._/-]", "_", name.lower()).replace("..", "_")
        path = f"function/{plain}"
        if path in packed or not is_path(path):
            path = f"function/{number}/{plain.rsplit('/', maxsplit=1)[-1][-60:]}"
        packed[path] = sources[name]
    return packed

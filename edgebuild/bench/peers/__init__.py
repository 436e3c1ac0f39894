"""The peers: one adapter a file, one row in `PEERS`.

An adapter is a module with two functions, each called in a process of its own:

    prepare(source: Source, variant: str, folder: Path) -> None    writes the converted model into `folder`
    load(folder: Path, threads: int, samples: list[Sample]) -> Session

Both raise Unsupported with one line that says why this peer cannot take the model. A peer takes the graph's own inputs
(a uint8 frame, …), so that handler, pre- and post-processing are its work as they are ours.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edgebuild.core.digest import package_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from edgebuild.core.calibration import Sample

INSTALL = "pip install 'edgebuild[bench]'"

QDQ = "qdq"
"""Our quantized graph, as it is."""
OWN = "own"
"""The float graph, quantized by the peer's own tools on the same calibration samples."""
FLOAT32 = "float32"


class Unsupported(Exception):
    """A peer cannot take this model; the message says why, in one line."""


@dataclass(frozen=True)
class Source:
    """What a peer may start from.

    `float_model`, `qdq_model`: ONNX files. `calibration`: an .npz with one array per input, first axis = samples.
    `recipe`: what `edgebuild.bench.case.restore_recipe` makes the recipe of again; None for a bare ONNX file.
    """

    float_model: Path
    qdq_model: Path
    calibration: Path
    recipe: dict[str, Any] | None

    def samples(self, limit: int) -> "Iterator[Sample]":
        """Calibration samples, one at a time."""
        import numpy as np  # noqa: PLC0415

        with np.load(self.calibration) as arrays:
            stacked = {name: arrays[name] for name in arrays.files}
        count = min(limit, *(len(array) for array in stacked.values()))
        yield from ({name: array[i] for name, array in stacked.items()} for i in range(count))


class Session(Protocol):
    """A loaded model; `samples` were given when it was loaded."""

    def bind(self, index: int) -> None:
        """Puts sample `index` in place; not part of a run's time."""

    def run(self) -> None:
        """Runs once, on the sample that was bound."""

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        """Of the last run, in the graph's order."""


@dataclass(frozen=True)
class Peer:
    """A row of the table: `module` is the adapter's, the first of `packages` gives the version.

    `imports` are the modules that must be there; `variants` what it may run, in this order.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    imports: tuple[str, ...]
    variants: tuple[str, ...]
    install: str = INSTALL

    @property
    def version(self) -> str:
        return package_version(self.packages[0])

    def missing(self) -> str:
        """The package that is not installed, or an empty text."""
        names = zip(self.packages, self.imports, strict=True)
        return next((package for package, module in names if not _importable(module)), "")


def _importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


PEERS = {
    peer.name: peer
    for peer in (
        Peer("onnxruntime", "onnxruntime", ("onnxruntime",), ("onnxruntime",), (QDQ, OWN, FLOAT32)),
        Peer("openvino", "openvino", ("openvino", "nncf"), ("openvino", "nncf"), (QDQ, OWN, FLOAT32)),
        Peer(
            "litert",
            "litert",
            ("ai-edge-litert", "litert-torch", "ai-edge-quantizer"),
            ("ai_edge_litert", "litert_torch", "ai_edge_quantizer"),
            (OWN, FLOAT32),
            # Its converter asks for an older typing-extensions than TVM does, and works with the newer one.
            "pip install litert-torch==0.10.0, then pip install 'typing-extensions>=4.13'",
        ),
        Peer("executorch", "executorch", ("executorch", "torchao"), ("executorch", "torchao"), (OWN, FLOAT32)),
        Peer("tvm", "tvm", ("apache-tvm",), ("tvm",), (QDQ, FLOAT32)),
    )
}

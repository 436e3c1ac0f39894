"""Results of stages as the cache keeps them, and the bundle that is tried out before it is signed."""

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.budget import Precision, Step
from edgebuild.core import digest, minisign, runner
from edgebuild.core.manifest import Tensor, Trigger
from edgebuild.core.runner import Trial
from edgebuild.core.target import Target
from edgebuild.stages import package, sign

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgebuild.stages.quantize import Quantized


@dataclass(frozen=True)
class Entry:
    """A stage's result: a folder of files in the cache."""

    folder: Path

    @property
    def digest(self) -> str:
        return digest.of_folder(self.folder)

    def digest_of(self, name: str) -> str:
        return digest.of_file(self.folder / name)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def json(self, name: str) -> Any:
        return json.loads(self.read(name))


@dataclass(frozen=True)
class Meta:
    """What the later stages need to know of the graph without reading it."""

    function: str
    trigger: Trigger
    timeout_ms: int | None
    quality: str
    parity: dict[str, object] | None
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    float_bytes: int

    @classmethod
    def of(cls, entry: Entry) -> "Meta":
        fields = entry.json("meta.json")
        fields["trigger"] = Trigger(**fields["trigger"])
        for key in ("inputs", "outputs"):
            fields[key] = tuple(Tensor(item["name"], item["dtype"], tuple(item["shape"])) for item in fields[key])
        return cls(**fields)

    def to_json(self) -> bytes:
        return json_bytes(dataclasses.asdict(self))


class Draft:
    """The packed bundle under an ephemeral key, for what is run before the real key signs it."""

    def __init__(self, folder: Path, packed: package.Package, runtime: Path, target: Target) -> None:
        self.folder = folder
        self.package = packed
        self.prefix, self.reason = runner.prefix_for(target)
        self._runtime = runtime

    @property
    def native(self) -> bool:
        return self.prefix == ()

    @property
    def digest(self) -> str:
        files = (part for file in self.package.manifest.files for part in (file.path, file.sha256))
        return digest.of_parts(*self.package.manifest.needs, *files)

    @cached_property
    def trial(self) -> Trial:
        assert self.prefix is not None
        key = minisign.generate()
        bundle, trust = self.folder / "test.ebundle", self.folder / "trust"
        bundle.write_bytes(sign.sign(self.package.manifest, self.package.files, key))
        trust.write_bytes(key.public.file())
        return Trial(self.prefix, self._runtime, bundle, trust)

    @cached_property
    def golden_inputs(self) -> "dict[str, np.ndarray[Any, Any]]":
        import io  # noqa: PLC0415

        import numpy as np  # noqa: PLC0415 - an unchanged build does without it

        files, inputs = self.package.files, self.package.manifest.inputs
        return {item.name: np.load(io.BytesIO(files[f"golden/in-{i}.npy"])) for i, item in enumerate(inputs)}


@dataclass(frozen=True)
class Rival:
    """Another state of a network, whose accuracy is measured beside a build's: its QDQ model, and its bundle."""

    model: bytes
    draft: Draft

    @property
    def digest(self) -> str:
        return digest.of_parts(digest.sha256(self.model), self.draft.digest)

    @property
    def graph(self) -> "onnx.ModelProto":
        import onnx  # noqa: PLC0415 - an unchanged build does without it

        return onnx.load_model_from_string(self.model)


@dataclass(frozen=True)
class Built:
    """One way through the stages; `others`: what the old release and, of a part of an update, the whole one reach."""

    quantized: Entry
    program: Entry
    draft: Draft
    checked: dict[str, Any]
    accuracy: dict[str, Any]
    fallback: dict[str, Precision]
    steps: tuple[Step, ...]
    others: dict[str, float]

    @property
    def fallback_rows(self) -> list[dict[str, Any]]:
        """For the report; without gain and cost where recipe.lock says what falls back."""
        if self.steps:
            return [step.to_json() for step in self.steps]
        return [{"layer": layer, "keys": [layer], "precision": kind} for layer, kind in self.fallback.items()]


def model_of(entry: Entry, name: str = "model.onnx") -> "onnx.ModelProto":
    import onnx  # noqa: PLC0415 - an unchanged build does without it

    return onnx.load_model_from_string(entry.read(name))


def files_in(quantized: "Quantized") -> dict[str, bytes]:
    """What the quantize stage leaves in the cache."""
    return {
        "model.onnx": quantized.model.SerializeToString(deterministic=True),
        "float.onnx": quantized.floating.SerializeToString(deterministic=True),
        "report.json": json_bytes(quantized.report),
        "factors.json": json_bytes(
            {name: array.astype("<f4").tobytes().hex() for name, array in quantized.factors.items()}
        ),
    }


def weight_bytes(model: "onnx.ModelProto") -> int:
    """Bytes of all constants of a graph."""
    import onnx  # noqa: PLC0415

    sizes = (onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize for tensor in model.graph.initializer)
    counts = (math.prod(tensor.dims) for tensor in model.graph.initializer)
    return sum(size * count for size, count in zip(sizes, counts, strict=True))


def json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()

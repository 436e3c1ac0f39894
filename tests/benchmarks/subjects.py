"""The trained models that quantization is judged on, with the real samples that calibrate and test them."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import shared_data
from training import fashion, trained

from edgebuild.core import digest
from edgebuild.core.calibration import CalibrationSet, load_set
from edgebuild.core.manifest import Tensor
from edgebuild.core.recipe import Recipe, load_recipe
from edgebuild.core.resources import resource

RECIPES = Path(__file__).resolve().parent / "recipes"
CACHE_VARIABLE = "EDGEBUILD_QUALITY_CACHE"

Array = np.ndarray[Any, Any]
Sample = dict[str, Array]


def cache_folder() -> Path:
    """Where trained weights and other programs' outputs are kept between runs."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "edgebuild-quality")


def published(name: str, _: Path) -> Path:
    """Weights that ../shared/data has in the recipe's form."""
    return shared_data.require((shared_data.WEIGHTS | shared_data.BENCHMARK_WEIGHTS)[name])


def learnt(name: str, _: Path) -> Path:
    """Weights that are trained here, once."""
    return trained(name, cache_folder())


def fashion_set(folder: Path) -> Path:
    """Fashion-MNIST: 1,000 training pictures to calibrate on, the 10,000 others to test on."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, limit in (("train", 1000), ("t10k", None)):
        pictures, labels = fashion(part)
        np.savez(folder / f"{part}.npz", images=pictures[:limit], labels=labels[:limit])
    (folder / "set.toml").write_text(
        '[set]\nname = "fashion"\nlicence = "MIT"\nkind = "images"\n'
        '[calibration]\npath = "train.npz"\n[test]\npath = "t10k.npz"\n',
        encoding="utf-8",
    )
    return folder


@dataclass(frozen=True)
class Subject:
    """`recipe` names a folder of recipes/ or of tests/benchmarks/recipes/.

    `samples` writes the set that calibrates and tests it into a folder, `weights` gives the file that it takes. `gate`:
    what MLPerf Tiny asks of its metric, in percent. `drop_says`: why its drop is not reported, if it is not. `raw`: an
    ONNX file whose outputs are compared with other quantizers', in place of the recipe's graph.
    """

    name: str
    samples: Callable[[Path], Path]
    weights: Callable[[str, Path], Path] | None
    gate: float | None = None
    drop_says: str = ""
    raw: Path | None = None

    def recipe(self, folder: Path) -> Recipe:
        """The recipe with its weights and its calibration set, for which `folder` is filled."""
        place = self.samples(folder / "samples")
        if self.name == "mobilenetv2":
            return load_recipe(shared_data.mobilenetv2_recipe(_fresh(folder / self.name)), calibration=place)
        own = RECIPES / self.name
        home = own if own.is_dir() else resource("recipes") / self.name
        weights = self.weights(self.name, folder / f"{self.name}.safetensors") if self.weights else None
        return load_recipe(home, weights=weights, calibration=place)

    def float_model(self, recipe: Recipe) -> onnx.ModelProto:
        """The graph whose outputs are compared, as the ingest stage gives it; cached."""
        path = cache_folder() / "float" / f"{self.name}-{self._digest(recipe)[:16]}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self._ingest(recipe).SerializeToString(deterministic=True))
        return onnx.load(path)

    def _digest(self, recipe: Recipe) -> str:
        own = digest.of_modules(("core", "stages/ingest"))
        return digest.of_parts(own, digest.of_file(self.raw) if self.raw else recipe.digest())

    def _ingest(self, recipe: Recipe) -> onnx.ModelProto:
        from edgebuild.stages.ingest import onnx as onnx_files
        from edgebuild.stages.ingest import pytorch

        return onnx_files.ingest(self.raw).model if self.raw else pytorch.export(recipe).model

    def frames(self, recipe: Recipe, inputs: Sequence[Tensor]) -> tuple[list[Sample], list[Sample]]:
        """Calibration samples, as many as the recipe says, and all test samples."""
        assert recipe.calibration.set is not None
        place = Path(recipe.calibration.set)
        sets = (load_set(place), recipe.calibration.samples), (load_set(place, "test"), None)
        calibration, test = (self._fitting(chosen, inputs, limit) for chosen, limit in sets)
        return calibration, test

    def _fitting(self, chosen: CalibrationSet, inputs: Sequence[Tensor], limit: int | None) -> list[Sample]:
        """A detector's raw graph takes what its handler makes of a frame: BGR, channels first."""
        if self.raw is None:
            return list(chosen.samples(inputs, limit))
        (taken,) = inputs
        _, channels, height, width = taken.shape
        frame = Tensor("frame", "uint8", (height, width, channels))
        frames = (sample["frame"] for sample in chosen.samples([frame], limit))
        return [{taken.name: _bgr(frame)} for frame in frames]


def _bgr(frame: Array) -> Array:
    return np.ascontiguousarray(frame[..., ::-1].transpose(2, 0, 1)[None], np.float32)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("squeezenet1_1", shared_data.imagenet_set, published),
        Subject("mobilenet_v1_025", shared_data.imagenet_set, published),
        Subject("resnet8", shared_data.cifar10_set, shared_data.keras_weights, gate=85.0),
        Subject("ds_cnn", shared_data.keywords_set, shared_data.keras_weights, gate=90.0),
        Subject("mobilenet_v1_025_96", shared_data.people_set, shared_data.keras_weights, gate=80.0),
        Subject("resnet20_cifar10", shared_data.cifar10_set, published),
        Subject("yolox_nano", shared_data.coco_set, published, raw=shared_data.ONNX / "yolox_nano_416_coco.onnx"),
        Subject(
            "mobilenetv2",
            shared_data.imagenet_set,
            None,
            drop_says="its weights lay on an INT8 grid already",
        ),
        Subject("fashion_mobilenet_v3", fashion_set, learnt),
        Subject("fashion_efficientnet", fashion_set, learnt),
        Subject("fashion_vit", fashion_set, learnt),
    )
}


class Store:
    """Arrays on the disk, by the digest of all that they depend on."""

    def __init__(self) -> None:
        self._folder = cache_folder() / "outputs"
        self._folder.mkdir(parents=True, exist_ok=True)

    def array(self, parts: Sequence[str], make: Callable[[], Array]) -> Array:
        path = self._folder / f"{digest.of_parts(*parts)}.npy"
        if not path.exists():
            made = make()
            partial = path.with_suffix(f".{os.getpid()}.tmp")
            with partial.open("wb") as file:
                np.save(file, made)
            partial.replace(path)
        found: Array = np.load(path)
        return found


def digest_of_samples(samples: Sequence[Sample]) -> str:
    """By what the samples hold."""
    return digest.of_parts(
        *(
            f"{name}{array.shape}{digest.sha256(array.tobytes())}"
            for sample in samples
            for name, array in sample.items()
        )
    )


def shown(value: object) -> str:
    """A setting, in a digest's part."""
    return json.dumps(value, sort_keys=True, default=str)

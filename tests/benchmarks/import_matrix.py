"""Builds models of every framework, and prints README's table of what came in, in Markdown.

    python tests/benchmarks/import_matrix.py [NAME ...] [--only keras,recipes,files] [--cache FOLDER]

Six Keras applications with seeded random weights, all recipes, and all models in ../shared/data. Few samples calibrate:
the table says what compiles, how far each graph is from its framework on real samples, and which operators are left.
"""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import numpy as np  # noqa: E402
import shared_data  # noqa: E402

from edgebuild import pipeline  # noqa: E402
from edgebuild.core import minisign  # noqa: E402
from edgebuild.core.bundle import read_unverified  # noqa: E402
from edgebuild.core.cache import Cache  # noqa: E402
from edgebuild.core.calibration import find_set, load_set  # noqa: E402
from edgebuild.core.errors import EdgebuildError  # noqa: E402
from edgebuild.core.manifest import Tensor  # noqa: E402
from edgebuild.core.plan import Plan, read_plan  # noqa: E402
from edgebuild.core.target_file import load_target  # noqa: E402
from edgebuild.projects import Overrides, bundled_recipes, resolve  # noqa: E402

SAMPLES = 4
KERAS = {
    "MobileNetV2": 224,
    "MobileNetV3Small": 224,
    "EfficientNetB0": 224,
    "ResNet50": 224,
    "DenseNet121": 224,
    "NASNetMobile": 224,
}
CONVOLUTIONS = frozenset({"conv", "depthwise"})


@dataclass(frozen=True)
class Subject:
    """A row: what it is called, where it comes from, and what gives the model's place and its samples."""

    title: str
    source: str
    made: Callable[[Path], tuple[str, Path | None]]


class Quiet:
    """A listener that remembers the stage."""

    stage = ""

    def started(self, stage: str) -> None:
        self.stage = stage

    def advanced(self, stage: str, done: int, total: int | None) -> None:
        pass

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None:
        pass


def keras_application(name: str) -> Callable[[Path], tuple[str, Path | None]]:
    def make(folder: Path) -> tuple[str, Path | None]:
        import tensorflow as tf

        size = KERAS[name]
        tf.keras.utils.set_random_seed(0)
        model = getattr(tf.keras.applications, name)(weights=None, input_shape=(size, size, 3))
        statistics(model, pictures((1, size, size, 3))[:, 0])
        model.save(folder / f"{name.lower()}.keras")
        np.savez(folder / "samples.npz", **{model.layers[0].name: pictures((1, size, size, 3))})
        return str(folder / f"{name.lower()}.keras"), folder / "samples.npz"

    return make


def statistics(model: Any, batch: np.ndarray) -> None:
    """BatchNorm statistics of real pictures: with the initial ones, all outputs are one constant."""
    import tensorflow as tf

    norms = [layer for layer in model.layers if isinstance(layer, tf.keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    model(batch, training=True)
    for layer in norms:
        layer.momentum = 0.99


def recipe(name: str) -> Callable[[Path], tuple[str, Path | None]]:
    return lambda _: (name, None)


def file(path: Path) -> Callable[[Path], tuple[str, Path | None]]:
    def make(folder: Path) -> tuple[str, Path | None]:
        np.savez(folder / "samples.npz", **{item.name: samples_for(item, path) for item in inputs_of(path)})
        return str(path), folder / "samples.npz"

    return make


def inputs_of(path: Path) -> tuple[Tensor, ...]:
    """The inputs that the model will have as edgebuild reads it, found by its framework."""
    from edgebuild.stages.ingest.onnx import load, model_inputs, normalize

    if path.suffix == ".onnx":
        return model_inputs(normalize(load(path)))
    from edgebuild.stages.ingest import tensorflow, tflite

    if path.suffix == ".tflite":
        return model_inputs(tflite.Network(path).model)
    network = (tensorflow.load_saved_model if path.is_dir() else tensorflow.load_keras)(path)
    assert network.specs is not None
    return tuple(Tensor(s.name, s.dtype.name, (1, *s.shape.as_list()[1:])) for s in network.specs)


def samples_for(item: Tensor, path: Path) -> np.ndarray:
    """Real samples of an input's shape: pictures, or the features of sounds."""
    picture_like = len(item.shape) == 4 and 3 in (item.shape[1], item.shape[3])
    values = pictures(item.shape) if picture_like else sounds(item.shape)
    if item.dtype == "float32":
        return values
    if picture_like:  # their whole range, whatever the scale makes of it
        return ((values * 255).round() - (128 if item.dtype == "int8" else 0)).astype(item.dtype)
    import tensorflow as tf

    scale, zero = tf.lite.Interpreter(model_content=path.read_bytes()).get_input_details()[0]["quantization"]
    return (values / scale + zero).round().clip(-128, 127).astype(np.int8)


def pictures(shape: tuple[int, ...]) -> np.ndarray:
    """Photographs as float32 0 … 1; the channels lie where `shape` has three."""
    last = shape[3] == 3
    height, width = shape[1:3] if last else shape[2:]
    frame = Tensor("frame", "uint8", (height, width, 3))
    frames = [sample["frame"] for sample in load_set(find_set("photos")).samples([frame], SAMPLES)]
    values = np.stack(frames).astype(np.float32) / 255
    return (values if last else values.transpose(0, 3, 1, 2))[:, None] if shape[0] == 1 else values


def sounds(shape: tuple[int, ...]) -> np.ndarray:
    """What calibrates the recipes ds_cnn and ad_autoencoder."""
    name, inner = ("features", (1, 49, 10, 1)) if len(shape) == 4 else ("spectrum", (1, 640))
    found = None
    for wanted in (inner, inner[1:], inner[1:3], (5, 128)):
        try:
            rows = load_set(find_set("sounds")).samples([Tensor(name, "float32", wanted)], SAMPLES)
            found = np.stack([row[name] for row in rows])
            break
        except EdgebuildError:
            continue
    assert found is not None
    return found.reshape(-1, *shape).astype(np.float32)


def subjects() -> Iterator[Subject]:
    for name in KERAS:
        yield Subject(f"Keras {name}", "keras", keras_application(name))
    for name in bundled_recipes():
        yield Subject(name, "recipes", recipe(name))
    models = shared_data.ROOT / "models"
    for pattern in ("tensorflow/*", "tflite-reference/*.tflite", "onnx/*.onnx"):
        for path in sorted(models.glob(pattern)):
            yield Subject(path.name, "files", file(path))


def build(subject: Subject, cache: Cache) -> str:
    """The row of one model."""
    listener, start = Quiet(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="edgebuild-matrix-") as folder:
        try:
            wanted, samples = subject.made(Path(folder))
            chosen = resolve(wanted, Overrides(calibration=samples, samples=SAMPLES))
            job = pipeline.Job(chosen, load_target("host"), chosen.name, "1.0.0", untrained=True)
            result = pipeline.build(job, minisign.generate(), listener, cache)
        except EdgebuildError as error:
            return f"| {subject.title} | **no**: {listener.stage}: {error.message} | | | | |"
    plan = read_plan(bytes(read_unverified(result.bundle).files["plan.bin"]))
    seconds = time.perf_counter() - start
    cells = (subject.title, "yes", parity(result.report), floats(result.report, plan), turned(plan), f"{seconds:.0f}")
    return "| " + " | ".join(cells) + " |"


def parity(report: dict[str, Any]) -> str:
    found = report["parity"]
    if found is None:
        return "is ONNX"
    rounded = found["decided_by_rounding"]
    error = max((e for name, e in found["max_relative_error"].items() if name not in rounded), default=0.0)
    if "agreement" in found:
        return f"{100 * min(found['agreement'].values()):.1f} % of the integers equal, the rest within {error:.1g}"
    return f"{error:.1e}" + (f"; rounding decides {', '.join(rounded)}" if rounded else "")


def floats(report: dict[str, Any], plan: Plan) -> str:
    """Operators in float32, by kind, and the share of multiply-accumulates in integers."""
    rows = report["quantization"].get("float", [])
    kinds = Counter(row["operator"] for row in rows)
    share = 100 * plan.macs_integer / plan.macs_total if plan.macs_total else 100.0
    return f"{share:.1f} %; " + (", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none")


def turned(plan: Plan) -> str:
    """How many operators that only turn axes lie between two convolutions in the plan."""
    behind: set[int] = set()
    for op in plan.ops:
        if op.kind in CONVOLUTIONS or behind.intersection(op.inputs):
            behind.update(op.outputs)
    before: set[int] = set()
    count = 0
    for op in reversed(plan.ops):
        reaches = bool(before.intersection(op.outputs))
        count += op.kind in ("transpose", "layout") and reaches and bool(behind.intersection(op.inputs))
        if op.kind in CONVOLUTIONS or reaches:
            before.update(op.inputs)
    return str(count)


def show(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of titles; all without")
    parser.add_argument("--only", default="keras,recipes,files")
    parser.add_argument("--cache", type=Path)
    asked = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with tempfile.TemporaryDirectory(prefix="edgebuild-matrix-") as folder:
        cache = Cache(asked.cache or Path(folder))
        titles = ("model", "compiles", "difference from its framework", "products in integers; operators in float32")
        show(f"| {' | '.join(titles)} | transposes between convolutions | s |\n|---|---|---|---|---|---|")
        for subject in subjects():
            named = not asked.names or any(name in subject.title for name in asked.names)
            if named and subject.source in asked.only.split(","):
                show(build(subject, cache))


if __name__ == "__main__":
    main()

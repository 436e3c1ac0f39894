"""Measures every model of the project against the other runtimes, and prints README's table in Markdown.

    python tests/benchmarks/suite.py [RECIPE ...] [--threads 1,2] [--against onnxruntime,…] [--runs N] [--json FILE]

Trained weights and real pictures are taken from ../shared/data where they are; other networks are built untrained,
which says nothing of accuracy and nothing else of speed. Nothing else should run meanwhile.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import pytest  # noqa: E402
import shared_data  # noqa: E402

from edgebuild.bench import document, session  # noqa: E402
from edgebuild.bench.case import Asked  # noqa: E402
from edgebuild.bench.engines import OURS  # noqa: E402
from edgebuild.bench.measure import Settings  # noqa: E402
from edgebuild.bench.statistics import geometric_mean  # noqa: E402
from edgebuild.core import keys  # noqa: E402
from edgebuild.core.errors import EdgebuildError  # noqa: E402
from edgebuild.projects import bundled_recipes  # noqa: E402

PEERS = ("onnxruntime", "openvino", "litert", "executorch")
"""Without TVM's own pipeline: it is two orders of magnitude slower, and takes most of the time."""
CALIBRATION = 64


@dataclass(frozen=True)
class Model:
    """A row: a recipe; where ../shared/data has its weights, how to get them, and the real samples that fit them."""

    title: str
    recipe: str
    samples: Callable[[Path], Path] | None = None
    weights: Callable[[str, Path], Path] | None = None


def published(recipe: str, _: Path) -> Path:
    return shared_data.require(shared_data.WEIGHTS[recipe])


MODELS = (
    Model("MobileNetV2", "mobilenetv2", shared_data.imagenet_set),
    Model("MobileNetV3-Large", "mobilenet_v3_large"),
    Model("MobileNetV3-Small", "mobilenet_v3_small"),
    Model("EfficientNet-B0", "efficientnet_b0"),
    Model("EfficientNet-Lite0", "efficientnet_lite0"),
    Model("ResNet-18", "resnet18"),
    Model("ResNet-50", "resnet50"),
    Model("SqueezeNet 1.1", "squeezenet1_1", shared_data.imagenet_set, published),
    Model("YOLOv5n 640", "yolov5n"),
    Model("YOLOv5n 320", "yolov5n_320"),
    Model("MobileNetV1 0.25 224", "mobilenet_v1_025", shared_data.imagenet_set, published),
    Model("MobileNetV1 0.25 96", "mobilenet_v1_025_96", shared_data.people_set, shared_data.keras_weights),
    Model("ResNet-8", "resnet8", shared_data.cifar10_set, shared_data.keras_weights),
    Model("DS-CNN", "ds_cnn", shared_data.keywords_set, shared_data.keras_weights),
    Model("autoencoder", "ad_autoencoder", None, shared_data.keras_weights),
    Model("MiniLM, 128 tokens", "minilm"),
    Model("digits", "digits"),
)


class Progress:
    """Says on standard error what is going on."""

    def says(self, what: str) -> None:
        print(f"  {what}", file=sys.stderr, flush=True)  # noqa: T201

    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


def asked(model: Model, folder: Path) -> Asked:
    """The model with trained weights and real samples where they are at hand, else untrained."""
    try:
        samples = model.samples(folder / "samples") if model.samples else None
        if model.recipe == "mobilenetv2":
            recipe = shared_data.mobilenetv2_recipe(folder / model.recipe)
            return Asked(str(recipe), calibration=samples, samples=CALIBRATION)
        if model.weights is not None:
            weights = model.weights(model.recipe, folder / f"{model.recipe}.safetensors")
            return Asked(model.recipe, weights=weights, calibration=samples, samples=CALIBRATION)
    except pytest.skip.Exception as reason:
        Progress().says(f"untrained: {reason}")
    return Asked(model.recipe, untrained=True)


def measured(models: list[Model], settings: Settings) -> Iterator[tuple[Model, dict[str, Any]]]:
    for model in models:
        with tempfile.TemporaryDirectory(prefix="edgebuild-suite-") as folder:
            Progress().says(model.title)
            try:
                yield (
                    model,
                    session.bench([asked(model, Path(folder))], settings, keys.signing_key(None), Progress())[0],
                )
            except EdgebuildError as error:
                Progress().says(f"left out: {error.message}")


def best(found: dict[str, Any], threads: int, engine: str, variants: tuple[str, ...]) -> dict[str, Any] | None:
    """The fastest row of an engine in one of the variants."""
    rows = [row for row in found["rows"] if row["threads"] == threads and row["engine"] == engine]
    return min((row for row in rows if row["variant"] in variants), key=lambda row: row["min_ms"], default=None)


def table(results: list[tuple[Model, dict[str, Any]]], threads: int, peers: tuple[str, ...]) -> Iterator[str]:
    """Least milliseconds of each engine's fastest form; `*` marks one that is float32."""
    plural = "s" if threads > 1 else ""
    heads = [
        f"{threads} thread{plural}, ms",
        "edgebuild",
        *peers,
        "ONNX Runtime float32",
        "best peer / ours",
        "of peak",
    ]
    yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
    for model, found in results:
        ours = best(found, threads, OURS, ("qdq",))
        assert ours is not None
        part = found["by_threads"][str(threads)]
        cells = [cell(best(found, threads, peer, ("qdq", "own", "float32"))) for peer in peers]
        float32 = cell(best(found, threads, "onnxruntime", ("float32",))).rstrip("*")
        ratio = f"{part['ratio']:.2f}×" if part["ratio"] else "–"
        share = f"{100 * part['peak_share']:.0f} %"
        own = f"**{ours['min_ms']:.3f}**"
        yield f"| {' | '.join([model.title, own, *cells, float32, ratio, share])} |"


def cell(row: dict[str, Any] | None) -> str:
    return "–" if row is None else f"{row['min_ms']:.3f}{'*' if row['variant'] == 'float32' else ''}"


def conclusions(results: list[tuple[Model, dict[str, Any]]], threads: int) -> str:
    documents = [found for _, found in results]
    part = document.summary(documents).get(str(threads))
    if part is None:
        return "no peer ran"
    pairs = [
        (best(found, threads, "onnxruntime", ("float32",)), best(found, threads, OURS, ("qdq",))) for found in documents
    ]
    against_float = [float32["min_ms"] / ours["min_ms"] for float32, ours in pairs if float32 and ours]
    line = f"geometric mean {part['geometric_mean']:.2f}×, worst {part['worst']['model']} {part['worst']['ratio']:.2f}×"
    return line + (f", ONNX Runtime float32 {geometric_mean(against_float):.2f}×" if against_float else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help="default: all of the list that are there")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--against", default=",".join(PEERS))
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", type=Path, help="also write the documents here")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    threads, peers = tuple(map(int, given.threads.split(","))), tuple(given.against.split(","))
    known = bundled_recipes()
    wanted = [model for model in MODELS if model.recipe in known and model.recipe in (given.recipes or known)]
    results: list[tuple[Model, dict[str, Any]]] = []
    for result in measured(wanted, Settings(peers, threads, given.runs)):
        results.append(result)
        if given.json:
            given.json.write_text(json.dumps([found for _, found in results], indent=2))
    for count in threads if results else ():
        print("\n".join(table(results, count, peers)))  # noqa: T201
        print(f"\n{conclusions(results, count)}\n")  # noqa: T201


if __name__ == "__main__":
    main()

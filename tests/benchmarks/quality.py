"""Measures what quantization costs every trained model of ../shared/data, in Markdown.

    python tests/benchmarks/quality.py [MODEL ...] [--fast] [--part drops,quantizers] [--json FILE]

`drops`: each model's metric in float32 and as INT8, with the paired bootstrap interval of the drop. `quantizers`: how
near the outputs stay to float's, beside ONNX Runtime's static quantization and NNCF's, on the same samples. --fast runs
our QDQ graph in ONNX Runtime instead of building and running the bundle; what others gave is kept in
~/.cache/edgebuild-quality ($EDGEBUILD_QUALITY_CACHE), so that only ours is made again.

ONNX Runtime's entropy calibration comes out as min-max: its 128 bins leave it one range to choose from, and
quantize_static has no option for more.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks")]

import numpy as np  # noqa: E402
import onnx  # noqa: E402
import pytest  # noqa: E402
from other_quantizers import QUANTIZERS, Quantizer  # noqa: E402
from subjects import SUBJECTS, Array, Sample, Store, Subject, digest_of_samples  # noqa: E402

from edgebuild import pipeline  # noqa: E402
from edgebuild.core import digest, minisign, ort  # noqa: E402
from edgebuild.core.calibration import load_set  # noqa: E402
from edgebuild.core.errors import EdgebuildError  # noqa: E402
from edgebuild.core.recipe import Recipe  # noqa: E402
from edgebuild.core.target_file import load_target  # noqa: E402
from edgebuild.stages import evaluate  # noqa: E402
from edgebuild.stages.evaluate.fidelity import kl_divergence  # noqa: E402
from edgebuild.stages.ingest.onnx import model_inputs  # noqa: E402
from edgebuild.stages.quantize import quantize  # noqa: E402

OURS = "edgebuild"
WIDTH_OF_BOXES = 4
PARTS = ("drops", "quantizers")
MEAN_DROP, WORST_DROP = 0.4, 0.5
NOT_MEASURED = {"ad_autoencoder": "no recordings of MLPerf Tiny's ToyCar are at hand, and random ones say nothing"}


def says(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)  # noqa: T201


@dataclass(frozen=True)
class Nearness:
    """`kl` in nats, mean over the samples; `sqnr` in dB; `seconds` that quantization took, 0 when kept."""

    kl: float
    sqnr: float
    seconds: float = 0.0


def main_output(model: onnx.ModelProto) -> str:
    """The largest float output: logits, or a detector's head."""
    floats = [value for value in model.graph.output if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    return max(floats, key=lambda v: math.prod(d.dim_value for d in v.type.tensor_type.shape.dim)).name


def outputs(model: onnx.ModelProto, name: str, samples: Sequence[Sample]) -> Array:
    """`name` of every sample, stacked."""
    loaded = ort.session(model)
    return np.stack([loaded.run([name], sample)[0] for sample in samples])


def nearness(wanted: Array, got: Array, seconds: float = 0.0) -> Nearness:
    noise = np.square(wanted.astype(np.float64) - got).sum()
    signal = np.square(wanted.astype(np.float64)).sum()
    kl = float(np.mean([_divergence(p, q) for p, q in zip(wanted, got, strict=True)]))
    return Nearness(kl, 10 * math.log10(signal / noise) if noise else math.inf, seconds)


def _divergence(wanted: Array, got: Array) -> float:
    """Of one vector of scores; of a detector's head [1, N, 4 + …], the mean over N of its independent scores' sum."""
    if sum(side > 1 for side in wanted.shape) == 1:
        return kl_divergence(wanted, got)
    p, q = (np.clip(array[0, :, WIDTH_OF_BOXES:].astype(np.float64), 1e-7, 1 - 1e-7) for array in (wanted, got))
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(axis=1).mean())


def drops(subjects: Sequence[Subject], folder: Path, *, fast: bool) -> Iterator[tuple[Subject, dict[str, Any]]]:
    """Each model's accuracy as a build's report has it."""
    for subject in subjects:
        try:
            recipe = subject.recipe(folder / subject.name)
            found = fast_accuracy(subject, recipe) if fast else built_accuracy(recipe)
        except (pytest.skip.Exception, EdgebuildError) as reason:
            says(f"{subject.name}: left out: {reason}")
            continue
        says(f"{subject.name}: {found['metric']} {found['float']:.2f} → {found['int8']:.2f}, {found['interval']}")
        yield subject, found


def built_accuracy(recipe: Recipe) -> dict[str, Any]:
    """Of the program that ships, in edgebuild-run."""
    job = pipeline.Job(recipe, load_target("host"), recipe.name, recipe.version)
    found: dict[str, Any] = pipeline.build(job, minisign.generate(), Silence()).report["accuracy"]
    return found


def fast_accuracy(subject: Subject, recipe: Recipe) -> dict[str, Any]:
    """Of the QDQ graph in ONNX Runtime's exact mode."""
    model = dataclasses.replace(subject, raw=None).float_model(recipe)
    inputs = model_inputs(model)
    assert recipe.calibration.set is not None
    place, limit = Path(recipe.calibration.set), recipe.calibration.samples
    made = ort.session(quantize(model, lambda: load_set(place).samples(inputs, limit)).model)
    names = [output.name for output in made.get_outputs()]

    def run(samples: list[Sample]) -> list[Sample]:
        return [dict(zip(names, made.run(names, sample), strict=True)) for sample in samples]

    return evaluate.evaluate(model, run, load_set(place, "test").labelled(inputs)).to_json()


class Silence:
    """Hears a build and says nothing."""

    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


def drop_table(results: list[tuple[Subject, dict[str, Any]]], *, fast: bool) -> Iterator[str]:
    """What INT8 costs; the bars: mean drop at most 0.4 points, no interval above 0.5, MLPerf Tiny's gates."""
    engine = "QDQ in ONNX Runtime" if fast else "edgebuild-run"
    yield f"\n| INT8 in {engine} | metric | float | INT8 | drop | 95 % interval | agreement | KL | SQNR dB | gate |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for subject, found in results:
        yield f"| {' | '.join(_drop_cells(subject, found))} |"
    counted = [found for subject, found in results if not subject.drop_says]
    if counted:
        mean = sum(found["drop"] for found in counted) / len(counted)
        above = sum(found["interval"][0] > WORST_DROP for found in counted)
        yield f"\nmean drop {mean:.2f} points over {len(counted)} models, at most {MEAN_DROP} wanted"
        yield f"{above} intervals above {WORST_DROP}, none wanted"
    for name, reason in NOT_MEASURED.items():
        yield f"{name}: not measured: {reason}"


def _drop_cells(subject: Subject, found: dict[str, Any]) -> list[str]:
    shown = {"agreement": "{:.2f} %", "kl": "{:.3g}", "sqnr_db": "{:.1f}"}
    nearness_cells = ["–" if found[key] is None else text.format(found[key]) for key, text in shown.items()]
    gate = f"{subject.gate:g}: {'met' if found['int8'] >= subject.gate else 'MISSED'}" if subject.gate else ""
    name = f"{subject.name} ({found['samples']})"
    if subject.drop_says:
        return [name, found["metric"], "–", "–", "–", f"– ({subject.drop_says})", *nearness_cells, gate]
    low, high = found["interval"]
    figures = [f"{found[key]:.2f}" for key in ("float", "int8", "drop")]
    return [name, found["metric"], *figures, f"{low:.2f} to {high:.2f}", *nearness_cells, gate]


class Comparison:
    """One model, quantized by everyone on the same samples."""

    def __init__(self, subject: Subject, recipe: Recipe, store: Store) -> None:
        self._model = subject.float_model(recipe)
        self._calibration, self._test = subject.frames(recipe, model_inputs(self._model))
        self._store = store
        self._name = main_output(self._model)
        data = (digest_of_samples(self._test), digest.sha256(self._model.SerializeToString(deterministic=True)))
        self._key = (*data, self._name, digest.of_packages(["onnxruntime"]))
        self._float = store.array(("float", *self._key), lambda: outputs(self._model, self._name, self._test))

    def ours(self) -> Nearness:
        start = time.perf_counter()
        made = quantize(self._model, lambda: iter(self._calibration)).model
        seconds = time.perf_counter() - start
        return nearness(self._float, outputs(made, self._name, self._test), seconds)

    def theirs(self, quantizer: Quantizer) -> Nearness:
        code = digest.of_file(Path(__file__).with_name("other_quantizers.py"))
        parts = (quantizer.name, quantizer.version, code, digest_of_samples(self._calibration), *self._key)

        def make() -> Array:
            says(f"  {quantizer.name}: quantizing")
            return outputs(quantizer.quantized(self._model, self._calibration), self._name, self._test)

        return nearness(self._float, self._store.array(parts, make))

    def all(self) -> dict[str, Nearness | str]:
        """By name; what fails says why. Ours comes last: what others gave is kept by then."""
        found: dict[str, Nearness | str] = {}
        for quantizer in QUANTIZERS:
            try:
                found[quantizer.name] = self.theirs(quantizer)
            except Exception as reason:  # whatever other people's code raises
                found[quantizer.name] = f"{type(reason).__name__}: {str(reason).splitlines()[0][:120]}"
                says(f"  {quantizer.name}: {found[quantizer.name]}")
        found[OURS] = self.ours()
        return found


def compared(subjects: Sequence[Subject], folder: Path) -> Iterator[tuple[str, dict[str, Nearness | str]]]:
    store = Store()
    for subject in subjects:
        try:
            recipe = subject.recipe(folder / subject.name)
            comparison = Comparison(subject, recipe, store)
            found = comparison.all()
        except (pytest.skip.Exception, EdgebuildError) as reason:
            says(f"{subject.name}: left out: {reason}")
            continue
        ours = found[OURS]
        assert isinstance(ours, Nearness)
        says(f"{subject.name}: KL {ours.kl:.3g}, SQNR {ours.sqnr:.2f} dB, quantized in {ours.seconds:.1f} s")
        yield subject.name, found


def quantizer_tables(results: dict[str, dict[str, Nearness | str]]) -> Iterator[str]:
    names = [OURS, *(quantizer.name for quantizer in QUANTIZERS)]
    yield from _table("mean KL to float, nats", "kl", names, results, lambda v: f"{v:.3g}")
    yield from _table("SQNR of the outputs, dB", "sqnr", names, results, lambda v: f"{v:.2f}")


def _table(title: str, kind: str, names: list[str], results: dict[str, Any], cell: Any) -> Iterator[str]:
    values = {name: {model: getattr(found[name], kind, math.nan) for model, found in results.items()} for name in names}
    ours = values[OURS]
    yield f"\n| {title} | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}"
    for model in results:
        yield f"| {model} | {' | '.join(_marked(values, name, model, kind, cell) for name in names)} |"
    yield f"| mean | {' | '.join(cell(_mean(values[name])) for name in names)} |"
    ratios, wins = ["–"], ["–"]
    for name in names[1:]:
        pairs = [(ours[m], values[name][m]) for m in results if not math.isnan(values[name][m])]
        better = sum(mine < other if kind == "kl" else mine > other for mine, other in pairs)
        wins.append(f"{better} of {len(pairs)}")
        ratios.append(_ratio(pairs, kind))
    yield f"| {'ours / theirs, geometric mean' if kind == 'kl' else 'ours − theirs, mean'} | {' | '.join(ratios)} |"
    yield f"| ours better | {' | '.join(wins)} |"


def _marked(values: dict[str, dict[str, float]], name: str, model: str, kind: str, cell: Any) -> str:
    """The best of a row in bold."""
    row = [found[model] for found in values.values() if not math.isnan(found[model])]
    value = values[name][model]
    if math.isnan(value):
        return "–"
    return f"**{cell(value)}**" if value == (min(row) if kind == "kl" else max(row)) else str(cell(value))


def _mean(column: dict[str, float]) -> float:
    known = [value for value in column.values() if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _ratio(pairs: list[tuple[float, float]], kind: str) -> str:
    if not pairs:
        return "–"
    if kind == "kl":
        return f"{math.exp(sum(math.log(a / b) for a, b in pairs) / len(pairs)):.2f}×"
    return f"{sum(a - b for a, b in pairs) / len(pairs):+.2f} dB"


def document(results: dict[str, dict[str, Nearness | str]]) -> dict[str, Any]:
    return {
        model: {name: vars(value) if isinstance(value, Nearness) else value for name, value in found.items()}
        for model, found in results.items()
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--fast", action="store_true", help="ONNX Runtime runs our graph; nothing is compiled")
    parser.add_argument("--part", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, help="also write all figures here")
    given = parser.parse_args()
    for name in given.models:
        if name not in SUBJECTS:
            parser.error(f"no model '{name}'; known: {', '.join(SUBJECTS)}")
    return given


def main() -> None:
    given = arguments()
    subjects = [SUBJECTS[name] for name in given.models or SUBJECTS]
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="edgebuild-quality-") as folder:
        if "drops" in given.part:
            found = list(drops(subjects, Path(folder), fast=given.fast))
            print("\n".join(drop_table(found, fast=given.fast)))  # noqa: T201
            figures["drops"] = {subject.name: accuracy for subject, accuracy in found}
        if "quantizers" in given.part:
            results = dict(compared(subjects, Path(folder)))
            print("\n".join(quantizer_tables(results)))  # noqa: T201
            figures["quantizers"] = document(results)
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()

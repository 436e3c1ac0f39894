"""Metrics against values worked out by hand, and intervals that are what they say."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgebuild.core.errors import CalibrationError, RecipeError
from edgebuild.stages.evaluate import Accuracy, bootstrap, detection, evaluate, load_metric
from edgebuild.stages.evaluate.fidelity import Fidelity, kl_divergence
from edgebuild.stages.evaluate.metrics import area

Arrays = dict[str, np.ndarray]


def passing(*ports: tuple[str, str, Sequence[int]]) -> onnx.ModelProto:
    """A float model that gives its inputs `i_NAME` as outputs NAME."""
    kinds = {"float32": onnx.TensorProto.FLOAT, "int64": onnx.TensorProto.INT64}
    nodes = [onnx.helper.make_node("Identity", [f"i_{name}"], [name]) for name, _, _ in ports]
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(prefix + name, kinds[dtype], shape) for name, dtype, shape in ports]
        for prefix in ("i_", "")
    )
    graph = onnx.helper.make_graph(nodes, "g", inputs, outputs)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def measured(of_float: list[Arrays], of_int8: list[Arrays], labels: Iterable[Any], *asked: Any) -> Accuracy:
    """What evaluate makes of two lists of outputs."""
    ports = [(name, array.dtype.name, array.shape) for name, array in of_float[0].items()]
    samples = [{f"i_{name}": array for name, array in outputs.items()} for outputs in of_float]
    rest = iter(of_int8)
    return evaluate(
        passing(*ports), lambda batch: [next(rest) for _ in batch], zip(samples, labels, strict=True), *asked
    )


def logits(*rows: Sequence[float]) -> list[Arrays]:
    return [{"logits": np.array(row, np.float32)} for row in rows]


EYE = [list(row) for row in 5 * np.eye(7)]


def test_top1_counts_labels() -> None:
    found = measured(logits(*EYE[:4]), logits(EYE[0], EYE[1], EYE[2], EYE[5]), [0, 1, 2, 3])
    assert (found.metric, found.of_float, found.of_int8, found.drop, found.samples) == ("top1", 100.0, 75.0, 25.0, 4)
    assert found.interval == (0.0, 75.0)
    assert found.fidelity["agreement"] == 75.0
    assert found.to_json()["unit"] == "%"


def test_a_label_output_says_what_is_predicted() -> None:
    outputs = [{"logits": np.array(EYE[0], np.float32), "label": np.array(k)} for k in (3, 3)]
    found = measured(outputs, outputs, [3, 2])
    assert (found.metric, found.of_float) == ("top1", 50.0)


def test_top5_looks_at_the_best_five() -> None:
    rows = logits([7, 6, 5, 4, 3, 2, 1], [7, 6, 5, 4, 3, 2, 1])
    worse = logits([7, 6, 5, 4, 1, 2, 3], [7, 6, 5, 4, 3, 2, 1])
    found = measured(rows, worse, [4, 5], "top5")
    assert (found.metric, found.of_float, found.of_int8) == ("top5", 50.0, 0.0)


def test_without_labels_agreement_then_cosine() -> None:
    found = measured(logits(*EYE[:2]), logits(EYE[0], EYE[0]), [None, None])
    assert (found.metric, found.of_float, found.of_int8) == ("agreement", 100.0, 50.0)
    pictures = [{"y": np.array([[3.0, 0], [0, 4]], np.float32)}]
    turned = [{"y": np.array([[4.0, 0], [0, 3]], np.float32)}]
    found = measured(pictures, turned, [None])
    assert (found.metric, found.of_int8, found.drop) == ("cosine", 0.96, 0.04)
    assert found.to_json()["unit"] == ""


def test_what_was_asked_for_but_has_no_labels_is_said() -> None:
    found = measured(logits(*EYE[:2]), logits(*EYE[:2]), [None, None], "top5")
    assert (found.metric, found.unmeasured) == ("agreement", "the samples have no labels")
    assert "unmeasured" in found.to_json()


@pytest.mark.parametrize("label", [7, -1])
def test_a_label_that_no_score_stands_for_is_refused(label: int) -> None:
    with pytest.raises(CalibrationError, match=f"label {label}: output 'logits' has the classes 0 to 6"):
        measured(logits(EYE[0]), logits(EYE[0]), [label])


@pytest.mark.parametrize(
    ("metric", "label", "message"),
    [
        ("map", np.zeros((1, 5), np.float32), "map: the outputs are logits; it takes boxes"),
        ("auc", 1, "auc: the outputs are not one score: logits"),
        ("top1", np.zeros((1, 5), np.float32), "is of classes; the labels are boxes"),
    ],
)
def test_a_metric_that_cannot_be_of_these_outputs_is_an_error(metric: str, label: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        measured(logits(EYE[0]), logits(EYE[0]), [label], metric)


def scored(*values: float) -> list[Arrays]:
    return [{"score": np.array(value, np.float32)} for value in values]


def test_auc_by_hand() -> None:
    # Pairs (positive, negative): .8>.1 .8>.5 .5=.5 .5>.1 are 3.5 of 4; INT8: .8>.6 .8>.1 .5<.6 .5>.1 are 3 of 4.
    found = measured(scored(0.1, 0.5, 0.5, 0.8), scored(0.1, 0.6, 0.5, 0.8), [0, 0, 1, 1], "auc")
    assert (found.of_float, found.of_int8, found.drop) == (87.5, 75.0, 12.5)
    assert found.interval is not None
    assert found.interval[0] <= 12.5 <= found.interval[1]


def test_auc_of_resamples_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(0)
    values, labels = np.round(rng.normal(size=40), 1), rng.integers(2, size=40)
    weights = rng.multinomial(40, np.full(40, 1 / 40), size=20).astype(np.float64)
    for row, found in zip(weights, area(values, labels, weights), strict=True):
        drawn = np.repeat(np.arange(40), row.astype(int))
        v, positive = values[drawn], labels[drawn] == 1
        pairs = np.sign(v[positive][:, None] - v[~positive][None]) / 2 + 0.5
        assert found == pytest.approx(pairs.mean())


@pytest.mark.parametrize(("labels", "message"), [([0, 0], "all 2 samples are labelled 0"), ([0, 2], "neither 0 nor 1")])
def test_auc_needs_two_kinds_of_labels(labels: list[int], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        measured(scored(0, 1), scored(0, 1), labels, "auc")


def boxes(*rows: Sequence[float]) -> Arrays:
    """Rows of left, top, right, bottom, score, class; filled up with nothing to 4."""
    table = np.zeros((4, 6), np.float32)
    table[: len(rows)] = rows
    return {"boxes": table[:, :4], "scores": table[:, 4], "labels": table[:, 5].astype(np.int64)}


def truth(*rows: Sequence[float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 5)


def test_map_by_hand() -> None:
    """Class 1 has two true boxes. By score: a hit (IoU 1), a miss, a hit of IoU 0.8 (thresholds .50 to .80).

    Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: 51 points take 1, 50 take 2/3. Above .80 the third is a miss too.
    Class 2: one true box, found by INT8's twin only.
    """
    labels = [truth([1, 0, 0, 10, 10]), truth([1, 0, 0, 10, 10], [2, 50, 50, 60, 60])]
    first = boxes([0, 0, 10, 10, 0.9, 1], [30, 30, 40, 40, 0.8, 1])
    second = boxes([0, 0, 10, 8, 0.7, 1])
    found = measured([first, second], [first, second | {"scores": np.zeros(4, np.float32)}], labels)
    low, high = 51 / 101, (51 + 50 * 2 / 3) / 101
    assert found.metric == "map"
    assert found.of_float == pytest.approx(100 * (7 * high + 3 * low) / 10 / 2, abs=1e-3)
    assert found.of_int8 == pytest.approx(100 * low / 2, abs=1e-3)
    at_50 = {"float": pytest.approx(100 * high / 2, abs=1e-3), "int8": pytest.approx(100 * low / 2, abs=1e-3)}
    assert found.to_json()["map50"] == at_50


def test_a_true_box_counts_once_and_classes_are_apart() -> None:
    twice = boxes([0, 0, 10, 10, 0.9, 1], [0, 0, 10, 10, 0.8, 1])
    other = boxes([0, 0, 10, 10, 0.9, 3])
    hits = detection.match(*twice.values(), truth([1, 0, 0, 10, 10])).hits
    assert hits.all(axis=1).tolist() == [True, False]
    assert not detection.match(*other.values(), truth([1, 0, 0, 10, 10])).hits.any()
    assert not detection.match(*other.values(), truth()).hits.any()


def test_map_of_resamples_is_that_of_repeated_pictures() -> None:
    rng = np.random.default_rng(1)
    truths, precision = [], detection.Precision()
    for _ in range(12):
        true = np.sort(rng.uniform(0, 100, size=(rng.integers(0, 4), 2, 2)), axis=1).reshape(-1, 4)
        kinds = rng.integers(3, size=len(true))
        truths.append(np.concatenate([kinds[:, None], true], axis=1).astype(np.float32))
        near = np.concatenate([true + rng.normal(size=true.shape) * 5, rng.uniform(0, 100, size=(2, 4))])
        guessed = np.concatenate([kinds, rng.integers(3, size=2)])
        precision.found.append(detection.match(near, rng.uniform(size=len(near)), guessed, truths[-1]))
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=10).astype(np.float64)
    found = precision.resampled(truths, lambda count: iter([weights[:, :count]]))
    for row, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(12), row.astype(int))
        again = detection.Precision([precision.found[i] for i in drawn])
        # Of equal scores, repeated pictures count one after the other; together they may do a step at once.
        assert value == pytest.approx(again.mean([truths[i] for i in drawn])[0], abs=0.03)
    assert precision.resampled(truths, lambda count: iter([np.ones((1, count))]))[0] == pytest.approx(
        precision.mean(truths)[0]
    )


def test_intervals_hold_the_true_drop_and_are_seeded() -> None:
    """Of 200 experiments whose true drop is 2 points, about 95 % of the intervals hold it."""
    rng, inside = np.random.default_rng(2), 0
    for _ in range(200):
        differences = 100.0 * rng.choice([-1, 0, 1], p=[0.03, 0.92, 0.05], size=500)
        ends = bootstrap.interval(bootstrap.means(differences))
        assert ends is not None
        inside += ends[0] <= 2.0 <= ends[1]
    assert 180 <= inside <= 200
    assert ends == bootstrap.interval(bootstrap.means(differences))


def test_means_of_many_values_and_of_few_are_alike() -> None:
    few = np.repeat([-1.0, 0.0, 3.0], [10, 150, 40])
    many = few + np.linspace(0, 1e-9, 200)
    ends = bootstrap.interval(bootstrap.means(few)), bootstrap.interval(bootstrap.means(many))
    assert ends[0] == pytest.approx(ends[1], abs=0.03)
    assert len(bootstrap.means(many)) >= 2000


def test_kl_divergence_of_logits_and_of_probabilities() -> None:
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.5, 0.25])
    wanted = 0.5 * np.log(2) + 0.25 * np.log(0.5)
    assert kl_divergence(p, q) == pytest.approx(wanted)
    assert kl_divergence(np.log(p) + 7, np.log(q) - 3) == pytest.approx(wanted)
    assert kl_divergence(p, p) == 0.0


def test_sqnr_sums_energies_over_samples() -> None:
    tally = Fidelity()
    tally.add({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 3.5])})
    tally.add({"y": np.array([0.0, 5.0])}, {"y": np.array([0.0, 5.0])})
    assert tally.sqnr_db() == pytest.approx(10 * np.log10(50 / 0.25), abs=0.01)
    assert tally.to_json()["agreement"] == 100.0


def test_equal_outputs_have_no_noise() -> None:
    found = measured(logits(EYE[0]), logits(EYE[0]), [0]).to_json()
    assert (found["sqnr_db"], found["kl"], found["interval"]) == (None, 0.0, [0.0, 0.0])


OWN = """
import numpy as np

def mean_error(outputs, labels):
    return -float(np.mean([abs(o["y"][0] - label) for o, label in zip(outputs, labels)]))

def broken(outputs, labels):
    return 1 / 0

def nothing(outputs, labels):
    return float("nan")
"""


def test_a_metric_of_the_recipes_own(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text(OWN)
    own = load_metric(tmp_path / "metric.py", "mean_error")
    exact = [{"y": np.array([value, 0], np.float32)} for value in (1, 2, 3)]
    off = [{"y": np.array([value, 0], np.float32)} for value in (1, 2.5, 4)]
    found = measured(exact, off, [1, 2, 3], "metric.py:mean_error", own)
    assert (found.metric, found.of_float, found.drop) == ("metric.py:mean_error", 0.0, 0.5)
    assert found.interval is not None
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.to_json()["resamples"] == bootstrap.RESAMPLES


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", "metric.py:broken: ZeroDivisionError"),
        ("nothing", "metric.py:nothing: gives nan"),
        ("brocken", "has no function 'brocken'"),
    ],
)
def test_a_wrong_metric_of_the_recipes_own(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "metric.py").write_text(OWN)
    outputs = logits(EYE[0])
    with pytest.raises(RecipeError, match=message) as caught:
        measured(outputs, outputs, [0], f"metric.py:{name}", load_metric(tmp_path / "metric.py", name))
    assert caught.value.hint


def test_a_metric_that_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "metric.py").write_text("import nothing_like_this")
    with pytest.raises(RecipeError, match=r"metric\.py: cannot be imported: ModuleNotFoundError"):
        load_metric(tmp_path / "metric.py", "f")

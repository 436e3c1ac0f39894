"""`[accept]`: what a budget is measured with and on, and what is said when it is missed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgebuild import pipeline, views
from edgebuild.budget import Outcome
from edgebuild.core import minisign
from edgebuild.core.cache import Cache
from edgebuild.core.errors import CheckError, RecipeError
from edgebuild.core.recipe import load_recipe
from edgebuild.core.target_file import load_target
from edgebuild.pipeline import fallback

METRIC = """
import numpy as np

def exact(outputs, labels):
    '''Labels are the first value in thousandths.'''
    return -float(np.mean([abs(1000 * output["y"].ravel()[0] - label) for output, label in zip(outputs, labels)]))
"""


class Silence:
    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a dense layer with four outputs, and sets with exact labels, with classes, and without labels."""
    folder = tmp_path_factory.mktemp("home")
    random = np.random.default_rng(0)
    weight = random.normal(size=(16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor("w", TensorProto.FLOAT, weight.shape, weight)],
    )
    recipe = folder / "recipe"
    recipe.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), recipe / "model.onnx")
    (recipe / "metric.py").write_text(METRIC)
    x = random.normal(size=(48, 16)).astype(np.float32)
    y = x @ weight
    np.savez(folder / "exact.npz", x=x, labels=np.round(1000 * y[:, 0]).astype(np.int64))
    np.savez(folder / "classes.npz", x=x, labels=y.argmax(axis=1))
    np.savez(folder / "bare.npz", x=x)
    for name in ("exact", "classes"):
        (folder / name).mkdir()
        (folder / name / "set.toml").write_text(
            f'[set]\nname = "{name}"\nlicence = "own"\nkind = "arrays"\n'
            f'[calibration]\npath = "../bare.npz"\n[test]\npath = "../{name}.npz"\n'
        )
    return folder


def build(home: Path, cache: Cache, data: str, accept: str) -> dict[str, Any]:
    (home / "recipe" / "recipe.toml").write_text(
        f'[recipe]\nname = "dense"\n[model]\nonnx = "model.onnx"\n'
        f'[calibration]\nset = "../{data}"\nsamples = 32\n[accept]\n{accept}\n'
    )
    job = pipeline.Job(load_recipe(home / "recipe"), load_target("host"), "dense", "1.0.0")
    report = pipeline.build(job, minisign.generate(), Silence(), cache).report
    assert report["name"] == "dense"
    return dict(report["accuracy"])


@pytest.mark.parametrize(
    ("data", "accept", "metric", "samples"),
    [
        ("classes", "max_drop = 100", "top1", 48),
        ("classes", 'metric = "top5"\nmax_drop = 0', "top5", 48),
        ("classes", 'metric = "agreement"\nmax_drop = 100', "agreement", 48),
        ("classes", 'metric = "cosine"\nmax_drop = 0.5\ndata = "calibration"', "cosine", 32),
        ("exact", 'metric = "metric.py:exact"\nmax_drop = 100', "metric.py:exact", 48),
        ("bare.npz", 'max_drop = 100\ndata = "../classes"', "top1", 48),
        ("bare.npz", 'max_drop = 100\ndata = "../classes.npz"', "top1", 48),
    ],
)
def test_a_budget_that_is_met(home: Path, cache: Cache, data: str, accept: str, metric: str, samples: int) -> None:
    found = build(home, cache, data, accept)
    assert (found["budget"], found["metric"], found["samples"]) == ("met", metric, samples)
    low, high = found["interval"]
    assert low <= found["drop"] <= high
    assert found["kl"] is not None
    line = views.accuracy_line({"accuracy": found})
    assert metric in line
    assert "SQNR" in line


def test_layers_leave_8_bits_until_the_budget_is_met(home: Path, cache: Cache) -> None:
    assert build(home, cache, "exact", 'metric = "metric.py:exact"\nmax_drop = 100')["drop"] > 0.25
    found = build(home, cache, "exact", 'metric = "metric.py:exact"\nmax_drop = 0.25')
    assert (found["budget"], found["metric"]) == ("met", "metric.py:exact")
    assert found["drop"] <= 0.25


def test_a_budget_that_is_missed_says_by_how_much(home: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other precision helps, as far as the search is told."""
    monkeypatch.setattr(fallback, "fewest", lambda steps, *_: Outcome((), met=False, drop=math.inf))
    spent = build(home, cache, "exact", 'metric = "metric.py:exact"\nmax_drop = 100')["drop"]
    assert spent > 1
    wanted = (
        rf"INT8 loses {spent:.4g} points of metric.py:exact .95 % interval .* to .*, 48 samples.*{spent - 0.5:.4g} too"
    )
    with pytest.raises(CheckError, match=wanted) as caught:
        build(home, cache, "exact", 'metric = "metric.py:exact"\nmax_drop = 0.5')
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "accept", "reason"),
    [
        ("bare.npz", "max_drop = 0", "not judged: the samples have no labels for top1"),
        ("classes.npz", "max_drop = 0", "not judged: the set has no held-out part, and [accept] data is 'test'"),
        ("classes", 'max_drop = 0\ndata = "calibration"', "not judged: the samples have no labels for top1"),
    ],
)
def test_a_budget_that_is_not_judged_says_why(home: Path, cache: Cache, data: str, accept: str, reason: str) -> None:
    found = build(home, cache, data, accept)
    assert found["budget"] == reason
    assert reason in views.accuracy_line({"accuracy": found})


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ('metric = "top2"\nmax_drop = 1', "accept.metric: unknown metric 'top2'"),
        ('metric = "metrics.py:exact"\nmax_drop = 1', "accept.metric: no such file: .*metrics.py"),
        ('metric = "metric.py:exakt"\nmax_drop = 1', "metric.py: has no function 'exakt'"),
        ('metric = "map"\nmax_drop = 1', "metric map: the outputs are y; it takes boxes"),
    ],
)
def test_budgets_that_cannot_be(home: Path, cache: Cache, accept: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(home, cache, "classes", accept)
    assert caught.value.hint

"""The choice between ways to quantize: what is judged, who wins, and what overrides it."""

from typing import Any

import numpy as np
import onnx
import pytest
from quantize.models import model, normal, run, samples

from edgebuild.core.errors import UsageError
from edgebuild.stages.quantize import Settings, calibration, finished, quantize
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Graph
from edgebuild.stages.quantize.search import Candidate, Judge, best, judged_outputs, rules

SHAPE = (1, 3, 12, 12)
BODY = """a = Conv<pads=[1,1,1,1]>(x, k) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, j) d = Relu(c)
          g = GlobalAveragePool(d) f = Flatten(g) s = Gemm<transB=1>(f, w)"""


def network(tail: str = "y = Identity(s)", outputs: str = "float[1,5] y", **constants: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"k": normal(rng, 8, 3, 3, 3, scale=0.3), "j": normal(rng, 8, 8, 3, 3, scale=0.1), "w": normal(rng, 5, 8)}
    return model(f"(float[1,3,12,12] x) => ({outputs}) {{ {BODY} {tail} }}", **weights, **constants)


def stream(count: int = 16, seed: int = 1) -> list[dict[str, np.ndarray]]:
    return samples(np.random.default_rng(seed), SHAPE, count)


def judged(proto: onnx.ModelProto) -> tuple[str, ...]:
    return judged_outputs(Graph(fold(proto)))


def test_logits_are_judged_and_labels_are_not() -> None:
    proto = network("y = Softmax(s) l = ArgMax<axis=1, keepdims=0>(s)", "float[1,5] y, int64[1] l")
    assert judged(proto) == ("y",)


def test_every_gradual_output_is_judged_and_single_numbers_are_not() -> None:
    proto = network("y = Softmax(s) m = ReduceMax<keepdims=0>(s) z = Sigmoid(s)", "float[1,5] y, float m, float[1,5] z")
    assert judged(proto) == ("y", "z")


@pytest.mark.parametrize(
    ("tail", "outputs"),
    [
        ("y = ArgMax<axis=1, keepdims=0>(s)", "int64[1] y"),
        ("y, i = TopK(s, n)", "float[1,2] y, int64[1,2] i"),
        ("t, i = TopK(s, n) y = Softmax(t)", "float[1,2] y, int64[1,2] i"),
    ],
)
def test_where_only_order_comes_out_the_last_layers_are_judged(tail: str, outputs: str) -> None:
    proto = network(tail, outputs, **({"n": np.array([2])} if "TopK" in tail else {}))
    assert judged(proto) == ("s",)
    report = quantize(proto, stream).report
    assert len(report["candidates"]) >= 4
    assert all(np.isfinite(row["sqnr_db"]) for row in report["candidates"])


def test_all_heads_of_a_detector_are_judged() -> None:
    heads = "u = Conv(d, p) v = Conv(d, q) r = Concat<axis=1>(u, v) t = Reshape(r, flat) y, i = TopK(t, n)"
    rng = np.random.default_rng(3)
    proto = network(heads, "float[1,9] y, int64[1,9] i", p=normal(rng, 2, 8, 1, 1), q=normal(rng, 4, 8, 1, 1),
                    flat=np.array([1, -1]), n=np.array([9]))  # fmt: skip
    assert set(judged(proto)) == {"u", "v", "s"} or set(judged(proto)) == {"u", "v"}


class _Errors:
    """A judge that finds what the model says."""

    def error(self, error: float) -> float:
        return error


def won(*errors: tuple[str, float]) -> str:
    candidates = [(Candidate(None, rule, equalized=False), error) for rule, error in errors]  # type: ignore[arg-type]
    return best(candidates, _Errors())[0].rule  # type: ignore[arg-type]


def test_the_least_error_wins_and_of_equal_ones_the_first() -> None:
    assert won(("minmax", 1e-2), ("wide", 1e-3)) == "wide"
    assert won(("minmax", 1e-3), ("wide", 1e-3)) == "minmax"
    assert won(("minmax", np.inf), ("wide", 1.0)) == "wide"
    assert won(("minmax", np.inf)) == "minmax"


def test_a_rule_that_cuts_off_must_win_clearly() -> None:
    for rule in ("mse", "percentile 99.999"):
        assert won(("minmax", 1e-3), (rule, 1e-3 * 10**-0.29)) == "minmax"
        assert won(("minmax", 1e-3), (rule, 1e-3 * 10**-0.31)) == rule


def test_every_candidate_is_in_the_report() -> None:
    _, rows = best([(Candidate(None, "mse", equalized=True), 1e-3)], _Errors())  # type: ignore[arg-type, list-item]
    assert rows == [{"equalized": True, "observer": "mse", "sqnr_db": 30.0}]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_auto_is_never_worse_than_min_max_on_what_was_held_out(seed: int) -> None:
    rows = calibration(network(), lambda: stream(16, seed)).rows
    plain = next(r["sqnr_db"] for r in rows if r["observer"] == "minmax" and not r["equalized"])
    rates = [r["sqnr_db"] - 3 * (r["observer"] not in {"minmax", "wide"}) for r in rows]  # type: ignore[operator]
    assert max(rates) >= plain  # type: ignore[operator]
    found = calibration(network(), lambda: stream(16, seed))
    chosen = [r for r, rate in zip(rows, rates, strict=True) if rate == max(rates)]
    assert found.rule in {r["observer"] for r in chosen}


def test_the_judge_knows_the_float_network() -> None:
    graph = Graph(fold(network()))
    judge = Judge.of(graph, stream(3))
    assert judge.error(graph.to_model()) == 0
    assert judge.error(finished(calibration(network(), stream)).model) < 0.01


def test_a_model_that_gives_nan_is_the_worst() -> None:
    judge = Judge.of(Graph(fold(network())), stream(1))
    broken = network()
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, np.float32), "k"))
    assert judge.error(broken) == np.inf


def test_rules_are_one_for_each_observer_and_several_for_auto() -> None:
    for name in ("minmax", "moving-average", "percentile", "entropy", "mse"):
        assert list(rules(name, 99.9)) == [name]
    assert next(iter(rules("auto", 99.9))) == "minmax"
    assert len(rules("auto", 99.9)) > 2


def scales(settings: Settings) -> dict[str, tuple[float, int]]:
    rows = quantize(network(), lambda: stream(8), settings).report["tensors"]
    return {row["name"]: (row["scale"], row["zero_point"]) for row in rows}


@pytest.mark.parametrize(
    "override", [Settings("minmax", observers={"d": "moving-average"}), Settings("minmax", ranges={"d": (0.0, 0.125)})]
)
def test_an_override_changes_its_tensor_alone(override: Settings) -> None:
    plain = scales(Settings("minmax", equalized=False, words=False))
    found = scales(
        Settings("minmax", observers=override.observers, ranges=override.ranges, equalized=False, words=False)
    )
    assert {name for name in plain if plain[name] != found[name]} == {"d"}
    if override.ranges:
        assert found["d"] == (pytest.approx(0.125 / 255), 0)


def test_an_override_holds_whatever_is_tried() -> None:
    rows = {r["name"]: r for r in quantize(network(), lambda: stream(8)).report["tensors"]}
    high = rows["b"]["max"] * 0.875
    found = quantize(network(), lambda: stream(8), Settings(ranges={"b": (0.0, high)})).report
    row = next(r for r in found["tensors"] if r["name"] == "b")
    assert (row["min"], row["max"]) == (0.0, high)
    assert row["scale"] == pytest.approx(high / 255)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(observers={"nothing": "mse"}), "no quantized tensor 'nothing'"),
        (Settings(ranges={"d": (1.0, 1.0)}), r"range \[1\.0, 1\.0\] of tensor 'd' is empty"),
    ],
)
def test_an_override_that_does_not_fit_is_named(settings: Settings, message: str) -> None:
    scales(Settings(observers={"d": "mse"}))
    with pytest.raises(UsageError, match=message):
        scales(settings)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_samples_do(count: int) -> None:
    result = quantize(network(), lambda: stream(count))
    assert result.report["samples"] == count
    exact = run(network(), stream(1)[0])["y"]
    assert np.abs(run(result.model, stream(1)[0])["y"] - exact).max() < 0.05 * np.abs(exact).max()


def test_samples_that_are_all_the_same_do() -> None:
    sample = stream(1)[0]
    result = quantize(network(), lambda: [sample] * 12)
    exact = run(network(), sample)["y"]
    assert np.abs(run(result.model, sample)["y"] - exact).max() < 0.05 * np.abs(exact).max()
    flat = {"x": np.full(SHAPE, 0.5, np.float32)}
    constant = quantize(network(), lambda: [flat] * 5).model
    np.testing.assert_allclose(run(constant, flat)["y"], run(network(), flat)["y"], atol=0.05)

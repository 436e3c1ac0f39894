"""Rounding by the inputs of a layer: which values are multiplied together, and what is left of the error."""

from typing import Any

import numpy as np
import onnx
import pytest
from quantize.models import model, normal, run

from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Graph, key
from edgebuild.stages.quantize.rounding import Geometry, ScaledMoments, SeenMoments, moments, rounded
from edgebuild.stages.quantize.weights import Weights


def _layer(text: str, **constants: Any) -> tuple[Graph, onnx.ModelProto]:
    proto = fold(model(text, **constants))
    return Graph(proto), proto


@pytest.mark.parametrize("group", [1, 2, 4])
def test_rounding_keeps_the_mean_of_each_output(group: int) -> None:
    rng = np.random.default_rng(group)
    weight = rng.normal(size=(8, 8 // group, 3, 3)).astype(np.float32)
    geometry = Geometry((3, 3), (1, 1), (0, 0, 0, 0), (1, 1), group)
    moments = SeenMoments(geometry, weight[0].size)
    x = (rng.normal(size=(4, 8, 12, 12)) + rng.uniform(0, 5, (8, 1, 1))).astype(np.float32)
    moments.observe(x, 0.0, 0.0)
    w = Weights("w", weight, 0, np.zeros(8, np.float32), np.float32(1e-3), moments)
    mean = np.repeat(moments.mean(), 8 // group, axis=0)
    exact = (weight.reshape(8, -1).astype(np.float64) * mean).sum(axis=1)
    found = (w.q.reshape(8, -1) * w.scale.astype(np.float64)[:, None] * mean).sum(axis=1) + w.bias * w.bias_scale
    assert found == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("group", [1, 8])
def test_rounding_by_the_inputs_leaves_less_error_than_rounding_to_nearest(group: int) -> None:
    rng = np.random.default_rng(group)
    weight = rng.normal(size=(8, 8 // group, 3, 3)).astype(np.float32)
    smooth = np.cumsum(np.cumsum(rng.normal(size=(2, 8, 24, 24)), axis=2), axis=3).astype(np.float32)
    geometry = Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), group)
    moments = SeenMoments(geometry, weight[0].size)
    moments.observe(smooth, 0.0, 0.0)
    rows = geometry.rows(np.cumsum(smooth[:, ::-1], axis=2)[:1].copy())
    errors = []
    for seen in (None, moments):
        w = Weights("w", weight, 0, np.zeros(8, np.float32), np.float32(1e-3), seen)
        error = (w.q * w.scale[:, None, None, None] - weight).reshape(group, 8 // group, -1)
        errors.append(float(np.var(rows @ error.transpose(0, 2, 1), axis=1).mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("samples", [1, 2])
def test_rounding_by_hardly_any_inputs_still_gives_integers(samples: int) -> None:
    rng = np.random.default_rng(0)
    moments = SeenMoments(Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), 300)
    for _ in range(samples):
        moments.observe(np.ones((1, 300), np.float32), 1.0, 1.0)
    weight = rng.normal(size=(5, 300)).astype(np.float32)
    w = Weights("w", weight, 0, None, np.float32(1e-3), moments)
    assert np.abs(w.q * w.scale.astype(np.float64)[:, None] - weight).max() <= 1.5 * w.scale.max()


@pytest.mark.parametrize(
    ("attributes", "out", "group", "kernel"),
    [
        ("", "6,9", 1, (3, 2)),
        ("pads=[1,0,2,1]", "9,10", 1, (3, 2)),
        ("strides=[2,3]", "3,3", 1, (3, 2)),
        ("dilations=[2,3], pads=[1,1,0,2]", "5,10", 1, (3, 2)),
        ("strides=[3,2], dilations=[2,1], pads=[2,1,2,1], group=2", "3,6", 2, (3, 2)),
        ("group=4, pads=[1,1,1,1]", "8,11", 4, (3, 2)),
        ('auto_pad="SAME_UPPER", strides=[2,3]', "4,4", 1, (3, 2)),
        ('auto_pad="SAME_LOWER", strides=[2,1]', "4,10", 1, (3, 2)),
        ("strides=[2,2]", "4,5", 1, (1, 1)),
    ],
)
def test_inputs_of_the_sums_are_those_that_onnx_multiplies(
    attributes: str, out: str, group: int, kernel: tuple[int, int]
) -> None:
    rng = np.random.default_rng(3)
    weight = normal(rng, 8, 4 // group, *kernel)
    text = f"(float[1,4,8,10] x) => (float[1,8,{out}] y) {{ y = Conv{f'<{attributes}>' if attributes else ''}(x, w) }}"
    graph, proto = _layer(text, w=weight)
    found = moments(graph, graph.types(), frozenset({"y"}))["y"]
    x = normal(rng, 1, 4, 8, 10)
    rows = found._geometry.rows(x)
    products = rows @ weight.reshape(group, 8 // group, -1).transpose(0, 2, 1)
    expected = run(proto, {"x": x})["y"].reshape(group, 8 // group, -1).transpose(0, 2, 1)
    np.testing.assert_allclose(products, expected, rtol=1e-4, atol=1e-4)


def test_of_many_positions_some_are_taken_evenly() -> None:
    geometry = Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    x = np.arange(2 * 40 * 50, dtype=np.float32).reshape(2, 1, 40, 50)
    taken = geometry.rows(x)[0, :, 0]
    assert len(taken) == 512
    assert (taken[0], taken[-1]) == (0, x.size - 1)
    assert set(np.diff(taken)) <= {7.0, 8.0}


@pytest.mark.parametrize("shape", [(1, 20), (1, 7, 20)])
def test_moments_are_those_of_all_rows(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    seen = SeenMoments(Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), 20)
    mixing, samples = normal(rng, 20, 20), []
    for _ in range(90):  # several times as many as are multiplied together
        samples.append(normal(rng, *shape) @ mixing + 2)
        seen.observe(samples[-1], 0.0, 0.0)
    rows = np.concatenate([s.reshape(-1, 20) for s in samples]).astype(np.float64)
    exact = np.cov(rows.T, bias=True)
    damped = exact + np.eye(20) * exact.diagonal().mean() * 0.01
    np.testing.assert_allclose(seen.mean()[0], rows.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(seen.covariance()[0], damped, rtol=1e-3, atol=1e-3)  # type: ignore[index]


def test_moments_of_scaled_channels_follow_from_those_that_were_seen() -> None:
    rng = np.random.default_rng(1)
    geometry = Geometry((3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2)
    plain, scaled = SeenMoments(geometry, 18), SeenMoments(geometry, 18)
    factors = rng.uniform(0.1, 9, 4).astype(np.float32)
    x = normal(rng, 1, 4, 12, 12)
    plain.observe(x, 0.0, 0.0)
    scaled.observe(x * factors[:, None, None], 0.0, 0.0)
    derived = ScaledMoments(plain, factors)
    np.testing.assert_allclose(derived.mean(), scaled.mean(), rtol=1e-4, atol=1e-6)
    for found, exact in zip(derived.covariance(), scaled.covariance(), strict=True):  # type: ignore[arg-type]
        off = ~np.eye(18, dtype=bool)  # the damping differs
        np.testing.assert_allclose(found[off], exact[off], rtol=1e-3, atol=1e-2)


def test_sums_of_too_many_products_are_rounded_to_the_nearest() -> None:
    seen = SeenMoments(Geometry((1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1), 5000)
    seen.observe(np.ones((1, 5000), np.float32), 1.0, 1.0)
    assert seen.covariance() is None
    weight = normal(np.random.default_rng(0), 2, 5000)
    w = Weights("w", weight, 0, None, np.float32(1e-3), seen)
    np.testing.assert_array_equal(w.q, np.rint(weight / w.scale[:, None].astype(np.float64)))


@pytest.mark.parametrize("size", [7, 64, 150])
def test_rounding_goes_one_weight_after_the_other(size: int) -> None:
    """Blocks, halves and groups change nothing: the textbook's loop gives the same integers."""
    rng = np.random.default_rng(size)
    mixing = rng.normal(size=(2, size, 3 * size))
    covariance = mixing @ mixing.transpose(0, 2, 1)
    steps = rng.normal(scale=30, size=(2, 4, size))
    found = rounded(steps, covariance)
    for g in range(2):
        order = np.argsort(-np.diag(covariance[g]), kind="stable")
        factor = np.linalg.cholesky(np.linalg.inv(covariance[g][np.ix_(order, order)])).T
        left = steps[g][:, order].copy()
        expected = np.empty_like(left)
        for i in range(size):
            expected[:, i] = np.clip(np.rint(left[:, i]), -127, 127)
            error = (left[:, i] - expected[:, i]) / factor[i, i]
            left[:, i + 1 :] -= error[:, None] * factor[i, i + 1 :]
        np.testing.assert_array_equal(found[g][:, order], expected)


def test_independent_inputs_are_rounded_to_the_nearest() -> None:
    steps = np.random.default_rng(2).uniform(-200, 200, (1, 3, 40))
    np.testing.assert_array_equal(rounded(steps, np.eye(40)[None]), np.clip(np.rint(steps), -127, 127))


def test_a_covariance_of_rank_one_still_gives_integers_in_range() -> None:
    steps = np.random.default_rng(2).uniform(-127, 127, (1, 3, 40))
    found = rounded(steps, np.ones((1, 40, 40)))
    assert np.abs(found).max() <= 127
    np.testing.assert_array_equal(found, np.rint(found))


def test_only_quantized_layers_with_weights_are_watched() -> None:
    text = "(float[1,4,6,6] x) => (float[1,2,4,4] y) { a = Conv(x, k) b = Relu(a) y = Conv(b, j) }"
    rng = np.random.default_rng(0)
    graph, _ = _layer(text, k=normal(rng, 4, 4, 3, 3), j=normal(rng, 2, 4, 1, 1))
    assert set(moments(graph, graph.types(), frozenset({"a", "b"}))) == {"a"}
    assert set(moments(graph, graph.types(), frozenset(map(key, graph.nodes)))) == {"a", "y"}

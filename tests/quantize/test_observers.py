import tracemalloc
from collections.abc import Iterator
from random import Random

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantize.models import model, normal, samples

from edgebuild.core.errors import UsageError
from edgebuild.stages.quantize import Settings, calibrated, calibration
from edgebuild.stages.quantize.observers import (
    OBSERVERS,
    Entropy,
    Histogram,
    MeanSquare,
    MinMax,
    MovingAverage,
    Observer,
    Percentile,
    RangeError,
    observer,
)
from edgebuild.stages.quantize.parameters import activation

floats = st.floats(-1e6, 1e6, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 60), elements=floats)


def observed(watcher: Observer, samples: list[np.ndarray]) -> Observer:
    for sample in samples:
        watcher.observe(sample, float(sample.min()), float(sample.max()))
    return watcher


@given(st.lists(arrays, min_size=1, max_size=6))
def test_min_max_is_the_range_of_everything_seen(samples: list[np.ndarray]) -> None:
    everything = np.concatenate(samples)
    assert observed(MinMax(), samples).range() == (float(everything.min()), float(everything.max()))


@given(st.lists(arrays, min_size=1, max_size=6), st.floats(90, 100))
def test_percentile_stays_within_the_extremes(samples: list[np.ndarray], percentile: float) -> None:
    low, high = observed(Percentile(percentile), samples).range() or (1, 0)
    everything = np.concatenate(samples)
    assert everything.min() <= low <= high <= everything.max()


@given(st.lists(arrays, min_size=2, max_size=6))
def test_percentile_does_not_depend_on_the_order(samples: list[np.ndarray]) -> None:
    assert observed(Percentile(99.0), samples).range() == observed(Percentile(99.0), samples[::-1]).range()


@settings(max_examples=20)
@given(st.integers(0, 2**31), st.sampled_from([95.0, 99.0, 99.9]))
def test_percentile_leaves_out_the_share_that_it_says(seed: int, percentile: float) -> None:
    values = np.random.default_rng(seed).normal(size=(20, 2000)).astype(np.float32)
    low, high = observed(Percentile(percentile), list(values)).range() or (0, 0)
    expected = np.percentile(values, [100 - percentile, percentile])
    assert (low, high) == pytest.approx(expected, abs=0.1)


def test_percentile_100_is_min_max() -> None:
    samples = [np.array([-3, 1, 2], np.float32), np.array([0.5, 700.0], np.float32)]
    assert observed(Percentile(100.0), samples).range() == (-3.0, 700.0)


def test_percentile_drops_a_lone_outlier() -> None:
    values = np.append(np.linspace(0, 1, 100_000), 1e4).astype(np.float32)
    low, high = observed(Percentile(99.99), [values]).range() or (0, 0)
    assert low < 0.01
    assert 0.9 < high < 2


def test_a_tensor_of_zeros_has_an_empty_range() -> None:
    assert observed(Percentile(99.9), [np.zeros(10, np.float32)]).range() == (0.0, 0.0)


def test_zeros_before_the_first_other_value_count() -> None:
    zeros, ones = np.zeros(10_000, np.float32), np.full(10, 1, np.float32)
    _, high = observed(Percentile(99.0), [zeros, ones]).range() or (0, 0)
    assert high < 0.5


@pytest.mark.parametrize("make", [MinMax, lambda: Percentile(99.9)])
def test_memory_does_not_grow_with_the_samples(make: type[MinMax]) -> None:
    rng = np.random.default_rng(0)

    def held(count: int) -> int:
        watcher = observed(make(), [rng.normal(size=1000).astype(np.float32) * (i + 1) for i in range(count)])
        return sum(v.nbytes if isinstance(v, np.ndarray) else 0 for v in vars(watcher).values())

    assert held(300) == held(3)


def test_no_values_no_range() -> None:
    assert observer("minmax", 99.0).range() is None
    assert observer("percentile", 99.0).range() is None


def test_unknown_observer_is_named() -> None:
    with pytest.raises(UsageError, match="unknown observer 'median'") as caught:
        observer("median", 99.0)
    assert "minmax, moving-average, percentile, entropy, mse" in caught.value.hint


def test_percentile_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match=r"percentile 101\.0 is not above 50"):
        observer("percentile", 101.0)


DISTRIBUTIONS = {
    "normal": lambda rng, size: rng.normal(size=size),
    "laplace": lambda rng, size: rng.laplace(size=size),
    "heavy tails": lambda rng, size: rng.standard_t(2, size=size),
    "uniform": lambda rng, size: rng.uniform(-1, 3, size=size),
    "behind relu": lambda rng, size: np.maximum(rng.normal(size=size), 0),
}


def drawn(name: str, seed: int = 0, size: int = 40_000) -> np.ndarray:
    return np.asarray(DISTRIBUTIONS[name](np.random.default_rng(seed), size), np.float32)


def squared_error(values: np.ndarray, low: float, high: float) -> float:
    """What rounding to eight bits does to the values, tried out."""
    found = activation(low, high)
    scale = float(found.scale)
    q = np.clip(np.rint(values.astype(np.float64) / scale) + found.zero_point, 0, 255)
    return float(np.square((q - found.zero_point) * scale - values).mean())


@pytest.mark.parametrize("name", ["heavy tails", "laplace"])
def test_mse_beats_min_max_where_tails_are_long(name: str) -> None:
    errors = {}
    for watcher in (MeanSquare(), MinMax()):
        found = observed(watcher, list(drawn(name).reshape(8, -1))).range() or (0, 0)
        errors[type(watcher)] = squared_error(drawn(name), *found)
    assert errors[MeanSquare] < 0.95 * errors[MinMax]


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_mse_is_near_the_best_range_there_is(name: str) -> None:
    values = drawn(name)
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    best = min(
        squared_error(values, low * a, high * b) for a in np.linspace(0.05, 1, 20) for b in np.linspace(0.05, 1, 20)
    )
    assert squared_error(values, *(observed(MeanSquare(), [values]).range() or (0, 0))) <= 1.1 * best


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("share", [1.0, 0.6, 0.3])
def test_the_expected_error_of_a_range_is_the_one_that_rounding_makes(name: str, share: float) -> None:
    values = drawn(name, size=60_000)
    histogram = Histogram()
    histogram.observe(values, float(values.min()), float(values.max()))
    low, high = min(float(values.min()), 0.0) * share, max(float(values.max()), 0.0) * share
    expected = RangeError(histogram).of(np.array([low]), np.array([high]))[0]
    assert expected == pytest.approx(squared_error(values, low, high), rel=0.1)


def test_moving_average_is_pytorchs() -> None:
    samples = [normal(np.random.default_rng(i), 50) * (i + 1) for i in range(30)]
    low, high = float(samples[0].min()), float(samples[0].max())
    for sample in samples[1:]:
        low = low + 0.01 * (float(sample.min()) - low)
        high = high + 0.01 * (float(sample.max()) - high)
    assert observed(MovingAverage(), samples).range() == pytest.approx((low, high), rel=1e-12)


def test_entropy_keeps_a_uniform_range_and_cuts_a_lone_outlier() -> None:
    rng = np.random.default_rng(0)
    low, high = observed(Entropy(), [rng.uniform(-2, 2, 50_000).astype(np.float32)]).range() or (0, 0)
    assert (low, high) == pytest.approx((-2, 2), rel=0.02)
    far = np.append(rng.normal(size=50_000), 60).astype(np.float32)
    low, high = observed(Entropy(), [far]).range() or (0, 0)
    assert 2.5 < high < 30
    assert low == pytest.approx(far.min(), rel=0.4)


def test_entropy_leaves_the_side_empty_that_no_value_is_on() -> None:
    low, high = observed(Entropy(), [drawn("behind relu")]).range() or (1, 0)
    assert low == 0
    assert high > 2


@given(st.lists(arrays, min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_a_histogram_is_the_same_for_every_order(samples: list[np.ndarray], random: Random) -> None:
    shuffled = list(samples)
    random.shuffle(shuffled)
    one, two = Histogram(), Histogram()
    for histogram, order in ((one, samples), (two, shuffled)):
        for sample in order:
            histogram.observe(sample, float(sample.min()), float(sample.max()))
    assert (one.width, one.zeros, one.extremes.range()) == (two.width, two.zeros, two.extremes.range())
    np.testing.assert_array_equal(one.counts(), two.counts())
    assert one.counts().sum() == sum(s.size for s in samples)


def test_bins_hold_the_values_that_they_say() -> None:
    histogram = Histogram()
    for value in (0.3, -0.7, 5.0, -100.0):
        histogram.observe(np.float32([value]), value, value)
    held = np.flatnonzero(histogram.counts()) - Histogram.BINS
    np.testing.assert_array_equal(held, np.floor(np.array([-100, -0.7, 0.3, 5]) / histogram.width))
    assert histogram.width == 128 / Histogram.BINS


def test_large_samples_are_counted_in_part_and_keep_their_extremes() -> None:
    values = drawn("normal", size=1 << 18)
    values[12345], values[54321] = -77, 99
    histogram = Histogram()
    histogram.observe(values, -77.0, 99.0)
    assert histogram.extremes.range() == (-77.0, 99.0)
    assert histogram.counts().sum() <= (1 << 16) + 2
    assert histogram.counts()[: Histogram.BINS].sum() == pytest.approx(histogram.counts().sum() / 2, rel=0.02)


CNN = """(float[1,1,16,16] x) => (float[1,10] y) {
  a = Conv<pads=[1,1,1,1]>(x, k) b = Relu(a) c = Conv<pads=[1,1,1,1], group=8>(b, d) e = Relu(c)
  f = Conv<strides=[2,2]>(e, p) g = Relu(f) h = GlobalAveragePool(g) i = Flatten(h) y = Gemm<transB=1>(i, w)
}"""


def small_cnn() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"k": (8, 1, 3, 3), "d": (8, 1, 3, 3), "p": (16, 8, 1, 1), "w": (10, 16)}
    return model(CNN, **{name: normal(rng, *shape) for name, shape in weights.items()})


def stream(count: int) -> Iterator[dict[str, np.ndarray]]:
    return (samples(np.random.default_rng(i), (1, 1, 16, 16), 1)[0] for i in range(count))


@pytest.fixture(scope="module")
def warm() -> None:
    """Python keeps freed tuples for later use, up to a number; those are no part of the measurement."""
    calibration(small_cnn(), lambda: stream(400), Settings("minmax"))


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("name", OBSERVERS)
def test_memory_of_a_calibration_does_not_grow_with_the_samples(name: str) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        try:
            calibration(small_cnn(), lambda: stream(count), Settings(name))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(400) <= 1.1 * peak(32)


def test_large_samples_are_held_out_in_small_number(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model(
        "(float[1,4,16,16] x) => (float[1,2,16,16] y) { y = Conv(x, w) }", w=np.ones((2, 4, 1, 1), np.float32)
    )

    def held(count: int) -> int:
        return len(calibration(proto, lambda: samples(np.random.default_rng(0), (1, 4, 16, 16), count)).judge.samples)

    assert (held(32), held(200)) == (8, 32)
    monkeypatch.setattr(calibrated, "_HELD_BYTES", 10 * 6 * 16 * 16 * 4)
    assert (held(32), held(200)) == (8, 10)
    monkeypatch.setattr(calibrated, "_HELD_BYTES", 1)
    assert (held(32), held(200)) == (8, 8)

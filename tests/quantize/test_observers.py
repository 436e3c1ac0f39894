import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgebuild.core.errors import UsageError
from edgebuild.stages.quantize.observers import MinMax, Observer, Percentile, observer

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

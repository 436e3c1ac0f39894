import pytest

from edgebuild.bench.statistics import Timing, geometric_mean


def test_figures_of_a_series() -> None:
    timing = Timing.of([4.0, 1.0, 2.0, 3.0, 100.0])
    assert (timing.runs, timing.min, timing.median, timing.p99) == (5, 1.0, 3.0, 100.0)
    assert timing.mad == 1.0  # of 2, 1, 0, 1, 97
    assert timing.sd == pytest.approx(39.0, abs=0.1)


def test_p99_is_the_nearest_rank() -> None:
    assert Timing.of([float(time) for time in range(1, 201)]).p99 == 198.0


def test_no_times_are_refused() -> None:
    with pytest.raises(ValueError, match="no run times"):
        Timing.of([])


def test_geometric_mean() -> None:
    assert geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert geometric_mean([1.0, 8.0, 27.0]) == pytest.approx(6.0)

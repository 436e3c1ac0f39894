import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgebuild.core.errors import CalibrationError, ModelError
from edgebuild.stages.quantize.parameters import activation, checked_range, largest_bias
from edgebuild.stages.quantize.weights import Weights

bounds = st.floats(-(2.0**127), 2.0**127, width=32)
ranges = st.tuples(bounds, bounds).map(sorted)


@given(ranges)
def test_activation_parameters_are_valid_for_every_range(limits: list[float]) -> None:
    found = activation(*limits)
    scale, zero_point = found.scale, found.zero_point
    assert scale.dtype == np.float32
    assert np.isfinite(scale)
    assert scale > 0
    assert 0 <= zero_point <= 255


@given(st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)).map(sorted), st.floats(0, 1))
def test_every_value_of_the_range_is_within_one_step(limits: list[float], where: float) -> None:
    found = activation(*limits)
    scale, zero_point = found.scale, found.zero_point
    value = limits[0] + where * (limits[1] - limits[0])
    q = np.clip(np.rint(value / float(scale)) + zero_point, 0, 255)
    assert abs((q - zero_point) * float(scale) - value) <= float(scale) * 1.001


@pytest.mark.parametrize(("low", "high", "zero_point"), [(0, 6, 0), (2, 6, 0), (-6, -2, 255), (0, 0, 0), (-1, 2, 85)])
def test_zero_is_a_value(low: float, high: float, zero_point: int) -> None:
    assert activation(low, high).zero_point == zero_point


@pytest.mark.parametrize("found", [None, (0.0, np.inf), (np.nan, 1.0)])
def test_a_range_that_is_not_finite_names_the_tensor(found: tuple[float, float] | None) -> None:
    with pytest.raises(CalibrationError, match="tensor 'conv_7' has values that are not finite"):
        checked_range("conv_7", found)


weights = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-1e6, 1e6, width=32)
)


@given(weights, st.floats(2.0**-20, 2.0**10, width=32), st.floats(-1e9, 1e9, width=32))
def test_weights_fit_their_grid(weight: np.ndarray, input_scale: float, offset: float) -> None:
    bias = np.full(len(weight), offset, np.float32)
    w = Weights("w", weight, 0, bias, np.float32(input_scale))
    assert w.q.min() >= -127
    assert np.isfinite(w.scale).all()
    assert (w.scale > 0).all()
    assert np.abs(w.bias.astype(np.int64)).max() <= largest_bias(weight.shape[1])
    error = np.abs(w.q * w.scale.astype(np.float64)[:, None] - weight)
    assert (error <= 0.5001 * w.scale[:, None] + 1e-30).all()
    assert w.bias_scale == pytest.approx(np.float64(np.float32(input_scale)) * w.scale.astype(np.float64), rel=1e-6)


def test_a_channel_of_zeros_has_a_usable_scale() -> None:
    w = Weights("w", np.array([[0, 0], [1, -2]], np.float32), 0, np.array([0.5, 0], np.float32), np.float32(0.1))
    assert w.scale[0] == w.scale[1]
    assert w.bias[0] * w.bias_scale[0] == pytest.approx(0.5, rel=1e-2)


def test_a_bias_that_would_overflow_widens_its_channel_only() -> None:
    weight = np.full((2, 3), 1e-6, np.float32)
    w = Weights("w", weight, 0, np.array([1e3, 0], np.float32), np.float32(1e-3))
    assert w.bias[0] == pytest.approx(1 << 30, rel=1e-5)
    assert w.scale[0] > w.scale[1] == pytest.approx(1e-6 / 127)


def test_nan_weights_are_named() -> None:
    with pytest.raises(ModelError, match=r"weights 'layer\.weight' hold NaN"):
        Weights("layer.weight", np.array([[np.nan]], np.float32), 0, None, np.float32(1))

"""Which layers leave 8 bits: the order of gain per time, and as few of them as the budget needs."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.budget import Precision, Step, fallback_of, fewest, last_resort, ordered, times


def step(key: str, gain: float, cost_us: float = 1.0, precision: Precision = "int16") -> Step:
    return Step(key, key, "Conv", precision, gain, cost_us)


def keys(steps: list[Step]) -> list[str]:
    return [s.key for s in steps]


def steps_of(count: int) -> list[Step]:
    return [step(f"layer{i}", 0.5) for i in range(count)]


def test_the_most_gain_for_its_time_comes_first() -> None:
    a, b, c = step("a", 0.2, 1.0), step("b", 0.9, 9.0), step("c", 0.5, 2.0)
    assert ordered([a, b, c]) == [c, a, b]


def test_steps_that_cost_nothing_measurable_are_ordered_by_gain() -> None:
    """Differences of times below a tenth of a microsecond are noise, and negative ones are as well."""
    a, b, c = step("a", 0.2, -3.0), step("b", 0.3, 0.0), step("c", 0.1, 1e-9)
    assert ordered([a, b, c]) == [b, a, c]


def test_steps_that_gain_nothing_or_have_no_cost_are_left_out() -> None:
    useless = [step("none", 0.0), step("worse", -0.2), step("nan", math.nan)]
    unknown = [step("unmeasured", 0.9, math.inf), step("odd", 0.9, math.nan)]
    good = step("good", 0.1)
    assert ordered([*useless, *unknown, good]) == [good]
    assert ordered([]) == []


def test_a_layers_later_step_gains_more() -> None:
    words, floats = step("a", 0.3, 1.0), step("a", 0.5, 9.0, "float32")
    assert ordered([floats, words]) == [words, floats]
    assert ordered([step("a", 0.5, 1.0), step("a", 0.5, 9.0, "float32")]) == [step("a", 0.5, 1.0)]
    cheap = step("a", 0.5, 1.0, "float32")
    assert ordered([step("a", 0.3, 1.0), cheap]) == [cheap]


def test_the_last_resort_is_float32_for_all_that_is_left() -> None:
    """Alone some layers gain nothing in float32, or less than in 16 bits; together they leave nothing rounded."""
    a, b, c = step("a", 0.9), step("b", 0.2), step("c", 0.3, 1.0, "float32")
    floats = [step("a", 0.7, 2.0, "float32"), step("b", -0.1, 1.0, "float32"), c]
    endless = [step("d", 0.2, math.inf, "float32"), step("e", -math.inf, 1.0, "float32")]
    taken = ordered([a, b, *floats, *endless])
    assert taken == [a, c, b]
    assert last_resort([a, b, *floats, *endless], taken) == floats[:2]
    assert fallback_of([*taken, *floats[:2]]) == dict.fromkeys("abc", "float32")
    assert last_resort([], []) == []


def test_the_later_step_of_a_layer_counts() -> None:
    found = fallback_of([step("a", 0.3), step("b", 0.2), step("a", 0.5, precision="float32")])
    assert found == {"a": "float32", "b": "int16"}


@st.composite
def drops(draw: st.DrawFn) -> list[float]:
    """The drop after 0, 1, 2 … steps: never more than before."""
    return sorted(draw(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=80)), reverse=True)


@given(drops(), st.floats(0.0, 10.0))
def test_as_few_as_are_enough(after: list[float], most: float) -> None:
    asked: list[int] = []

    def drop(fallback: Mapping[str, Precision]) -> float:
        asked.append(len(fallback))
        return after[len(fallback)]

    steps = steps_of(len(after) - 1)
    found = fewest(steps, drop, most)
    enough = [count for count in range(1, len(after)) if after[count] <= most]
    assert found.met == bool(enough)
    assert found.drop == after[len(found.steps)]
    if enough:
        assert found.steps == tuple(steps[: enough[0]])
    else:
        assert found.drop == after[-1]
    assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(len(after))) + 2


@given(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=40), st.floats(0.0, 10.0))
def test_drops_that_rise_in_between_are_never_said_to_be_within(after: list[float], most: float) -> None:
    measured: list[float] = []

    def drop(fallback: Mapping[str, Precision]) -> float:
        measured.append(after[len(fallback)])
        return measured[-1]

    found = fewest(steps_of(len(after) - 1), drop, most)
    assert found.met == (found.drop <= most)
    assert found.drop == after[len(found.steps)]
    assert found.met or found.drop == min(measured)


def test_the_steps_are_taken_together() -> None:
    told: list[dict[str, Precision]] = []

    def drop(fallback: Mapping[str, Precision]) -> float:
        told.append(dict(fallback))
        return 0.2 if fallback.get("a") == "float32" else 1.0

    steps = [step("a", 0.3), step("b", 0.2), step("a", 0.5, 9.0, "float32"), step("c", 0.1)]
    found = fewest(steps, drop, 0.5)
    assert (set(found.steps), found.drop, found.met) == ({steps[1], steps[2]}, 0.2, True)  # each layer is listed once
    assert found.fallback == {"a": "float32", "b": "int16"}
    assert told[0] == {"a": "int16"}


def test_none_enough_says_how_near_it_came() -> None:
    after = [9.0, 5.0, 3.0, 4.0, 3.5]
    found = fewest(steps_of(4), lambda fallback: after[len(fallback)], 1.0)
    assert (len(found.steps), found.drop, found.met) == (2, 3.0, False)


def test_without_steps_nothing_is_measured() -> None:
    def drop(fallback: Mapping[str, Precision]) -> float:
        raise AssertionError(fallback)

    found = fewest([], drop, 1.0)
    assert (found.steps, found.drop, found.met) == ((), math.inf, False)


def test_a_drop_that_is_no_number_is_not_within() -> None:
    found = fewest(steps_of(3), lambda _: math.nan, 1.0)
    assert not found.met
    after = [9.0, math.nan, 0.5, 0.1]
    found = fewest(steps_of(3), lambda fallback: after[len(fallback)], 1.0)
    assert (len(found.steps), found.met) == (2, True)


def test_times_of_an_operator_that_runs_twice_add_up() -> None:
    lines = [{"op": "a", "latency_us": 1.5}, {"op": "b", "latency_us": 2}, {"op": "a", "latency_us": 0.5}]
    assert times(lines) == {"a": 2.0, "b": 2.0}
    assert times([]) == {}


def test_a_row_of_the_report() -> None:
    row = Step("conv_out", "conv", "Conv", "float32", 0.123456, 1.23456).to_json()
    assert row == {"layer": "conv", "key": "conv_out", "operator": "Conv", "precision": "float32",
                   "gain": 0.1235, "cost_us": 1.23}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_one_step_may_be_enough(count: int) -> None:
    found = fewest(steps_of(count), lambda _: 0.5, 0.5)
    assert (len(found.steps), found.met) == (1, True)

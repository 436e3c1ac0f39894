"""Which layers leave 8 bits: the order of gain per time, and as few of them as the budget needs."""

import dataclasses
import json
import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgebuild.budget import Precision, Profile, Step, alone, fallback_of, fewest, ordered, turns


def step(key: str, gain: float, cost_us: float = 1.0, precision: Precision = "int16") -> Step:
    return Step(tuple(key), key, "Conv", precision, gain, cost_us)


def keys(steps: list[Step]) -> list[str]:
    return ["".join(s.keys) for s in steps]


def steps_of(count: int) -> list[Step]:
    return [step(chr(ord("a") + i), 0.5) for i in range(count)]


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


def test_a_layer_in_float32_needs_no_16_bits() -> None:
    """Unless others read the same."""
    words, floats = step("a", 0.3, 1.0), step("a", 0.5, 9.0, "float32")
    assert ordered([floats, words]) == [words, floats]
    cheap = step("a", 0.5, 1.0, "float32")
    assert ordered([step("a", 0.3, 1.0), cheap]) == [cheap]
    shared = step("ab", 0.3, 1.0)
    assert ordered([shared, cheap]) == [cheap, shared]
    assert fallback_of([cheap, shared]) == {"a": "float32", "b": "int16"}


def test_float32_for_all_that_is_left_comes_last() -> None:
    """Where it seems to gain nothing; together with the others it leaves nothing rounded."""
    a, b, c = step("a", 0.9), step("b", 0.2), step("c", 0.3, 1.0, "float32")
    floats = [step("a", 0.7, 2.0, "float32"), step("b", -0.1, 1.0, "float32")]
    useless, worse = step("d", -0.1), step("e", -0.2, 100.0, "float32")
    endless = [step("f", 0.2, math.inf, "float32"), step("g", -math.inf, 1.0, "float32")]
    found = ordered([a, b, c, *floats, useless, worse, *endless])
    assert found == [a, floats[0], c, b, floats[1], worse]
    assert fallback_of(found) == dict.fromkeys("abce", "float32")


def test_the_highest_precision_of_a_layer_counts() -> None:
    found = fallback_of([step("a", 0.3), step("b", 0.2), step("a", 0.5, precision="float32"), step("ac", 0.1)])
    assert found == {"a": "float32", "b": "int16", "c": "int16"}


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


def profile(*times: tuple[str, float]) -> Profile:
    return Profile([{"op": name, "latency_us": time} for name, time in times])


def test_times_of_an_operator_that_runs_twice_add_up() -> None:
    assert profile(("a", 1.5), ("b", 2), ("a", 0.5)).times == {"a": 2.0, "b": 2.0}
    assert profile().times == {}


def test_what_operators_take_longer() -> None:
    plain, slow = profile(("a", 1), ("relu", 1), ("b", 2)), profile(("a", 4), ("b", 2.5), ("convert", 8))
    assert slow.longer(plain, ["a", "relu"]) == 2
    assert slow.longer(plain, ["convert", "b", "unknown"]) == 8.5
    assert slow.longer(plain, ["unknown"]) == math.inf
    assert slow.longer(plain, []) == math.inf


def test_a_layer_alone_in_float32_takes_its_conversions_along() -> None:
    """What lies between it and its neighbours, and what the one before it writes."""
    plain = profile(("in", 1), ("a", 10), ("pool", 1), ("b", 10), ("c", 10), ("out", 1))
    first, second = turns(plain, ["c", "b", "a", "fused"])
    assert (first, second) == (["a", "c"], ["b"])
    outer = profile(("in", 3), ("a", 20), ("to8", 4), ("pool", 1), ("b", 12), ("c", 25), ("out", 2))
    assert alone(plain, outer, ["a", "b", "c"], first) == {"a": 2 + 10 + 4, "c": 2 + 15 + 1}
    inner = profile(("in", 1), ("a", 11), ("pool", 2), ("b", 30), ("to8", 4), ("c", 10), ("out", 1))
    assert alone(plain, inner, ["a", "b", "c"], second) == {"b": 1 + 1 + 20 + 4}
    assert alone(plain, profile(("a", 1)), ["a", "b", "c"], ["b"]) == {"b": math.inf}


def test_a_row_of_the_report() -> None:
    made = Step(("conv_out", "other"), "conv, other", "Conv", "float32", 0.123456, 1.23456)
    assert made.to_json() == {"layer": "conv, other", "keys": ["conv_out", "other"], "operator": "Conv",
                              "precision": "float32", "gain": 0.1235, "cost_us": 1.23}  # fmt: skip
    assert Step.of(json.loads(json.dumps(dataclasses.asdict(made)))) == made


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_one_step_may_be_enough(count: int) -> None:
    found = fewest(steps_of(count), lambda _: 0.5, 0.5)
    assert (len(found.steps), found.met) == (1, True)

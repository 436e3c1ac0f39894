"""`edgebuild delta`: what each codec is chosen for, and that nothing but the new release ever comes out."""

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from delta.releases import KEY, files, plan, release, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebuild.core import coded, delta
from edgebuild.core.bundle import read_bundle
from edgebuild.core.errors import BundleError
from edgebuild.pipeline.delta import apply_delta, codecs, make_delta
from edgebuild.stages.delta.matches import steps

OLD = release(files(weights()))
TRUST = {KEY.key_id: KEY.public}


def updated(change: Callable[[dict[str, Any]], None], **others: bytes) -> bytes:
    values: dict[str, Any] = weights()
    change(values)
    return release(files(values, **others), 2)


def chosen(new: bytes) -> dict[str, str]:
    made = make_delta(OLD, new)
    assert apply_delta(OLD, made.data) == new
    return {row.path: row.codec for row in made.rows}


def nudge(values: dict[str, Any]) -> None:
    places = np.random.default_rng(5).random(values["w"].shape) < 1 / 7
    values["w"][places] += 1


def test_small_changes_of_weights_are_coded_as_such() -> None:
    new = updated(nudge)
    found = chosen(new)
    assert found.pop("weights.bin") == "weights"
    assert set(found.values()) == {"same"}
    assert len(make_delta(OLD, new).data) < 600


def test_plans_that_a_device_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are coded without them then."""
    monkeypatch.setattr("edgebuild.stages.delta.PLANS_MAX", len(plan()))
    assert chosen(updated(nudge))["weights.bin"] == "weights"
    monkeypatch.setattr("edgebuild.stages.delta.PLANS_MAX", len(plan()) - 1)
    assert chosen(updated(nudge))["weights.bin"] != "weights"


def test_nothing_but_the_manifest() -> None:
    made = make_delta(OLD, release(files(weights()), 2))
    assert {row.codec for row in made.rows} == {"same"}
    assert len(made.data) < 300


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("m", lambda old: (old * np.float32(2.0**0.25)).astype(np.float32)),
        ("m", lambda old: np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-40, 3e38, -1] * 5, np.float32)),
        ("b", lambda old: old + 64 * np.arange(40, dtype=np.int32)),
        ("b", lambda old: np.array([2**31 - 1, -(2**31)] * 20, np.int32)),
        ("z", lambda old: np.array([2**63 - 1, -(2**63), 0], np.int64)),
        ("t", lambda old: 255 - old),
        ("w", lambda old: -old),
        ("w", lambda old: np.full(3000, -128, np.int8)),
    ],
)
def test_every_kind_of_value_comes_back(name: str, change: Callable[[Any], Any]) -> None:
    values: dict[str, Any] = weights()
    values[name] = change(values[name])
    assert chosen(release(files(values), 2))["weights.bin"] in ("weights", "patch", "zstd-old", "zstd", "raw")
    plan, (old, new) = files(values)["plan.bin"], (files(weights())["weights.bin"], files(values)["weights.bin"])
    data = codecs().weights(plan, old, new, 4 * len(new))
    assert data is not None
    assert codecs().decoded(delta.WEIGHTS, "weights.bin", data, len(new), plan, coded.Old(old, plan)) == new
    back = codecs().weights(plan, new, old, 4 * len(new))
    assert back is not None
    assert codecs().decoded(delta.WEIGHTS, "weights.bin", back, len(new), plan, coded.Old(new, plan)) == old


def test_steps_cost_little() -> None:
    """Multipliers and biases that moved in steps are what an update of normalization looks like."""

    def gains(values: dict[str, Any]) -> None:
        values["m"].view(np.int32)[:] += 3 << 16
        values["b"] += 256

    assert len(make_delta(OLD, updated(gains)).data) < 400


def test_a_moved_program_is_patched() -> None:
    program = files(weights())["program.so"]
    moved = b"new" + program[:2000] + b"inserted" + program[2000:]
    assert chosen(updated(nudge, **{"program.so": moved}))["program.so"] == "patch"


def test_a_renamed_file_is_the_same() -> None:
    assert chosen(updated(nudge, **{"function/other.py": b"def f(): ...\n"}))["function/other.py"] == "same"


def test_new_text_is_compressed() -> None:
    found = chosen(updated(nudge, **{"function/new.py": b"x = 1\n" * 100}))
    assert found["function/new.py"] == "zstd"


def test_random_bytes_stay_raw_and_a_delta_is_no_larger_than_the_bundle() -> None:
    noise = np.random.default_rng(1)
    values: dict[str, Any] = weights(1)
    others = {"program.so": noise.bytes(60000), "edgebuild-run": noise.bytes(60000)}
    new = release(files(values, **others), 2)
    made = make_delta(OLD, new)
    assert {row.path: row.codec for row in made.rows}["program.so"] == "raw"
    assert len(made.data) <= 1.01 * len(new)


def test_another_layout_is_no_weights_delta() -> None:
    values = weights()
    found = files(values)
    longer = found["weights.bin"] + bytes(64)
    plan = bytearray(found["plan.bin"])
    plan[40:48] = len(longer).to_bytes(8, "little")
    new = release({**found, "plan.bin": bytes(plan), "weights.bin": longer}, 2)
    assert chosen(new)["weights.bin"] != "weights"


def test_bytes_between_tensors_are_not_lost() -> None:
    """No compiler of ours puts any there; a delta of them is one of another codec."""
    found = files(weights())
    odd = bytearray(found["weights.bin"])
    odd[-1] = 1
    assert chosen(release({**found, "weights.bin": bytes(odd)}, 2))["weights.bin"] != "weights"


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(0, 399), st.integers(0, 5))
def test_any_file_can_be_patched(old: bytes, middle: bytes, at: int, repeats: int) -> None:
    new = old[:at] + middle + old[at:] * repeats
    if not new:
        return
    data = codecs().patch(old, new, steps(old, new), 4 * len(new) + 200)
    assert data is not None
    assert codecs().decoded(delta.PATCH, "x", data, len(new), b"", coded.Old(old)) == new


def test_another_base_is_refused() -> None:
    made = make_delta(OLD, updated(nudge))
    other = release(files(weights()), 3)
    with pytest.raises(BundleError, match="for another base"):
        apply_delta(other, made.data)


@pytest.mark.parametrize(("what", "value"), [("name", "other"), ("target", "jetson")])
def test_releases_of_two_things_have_no_delta(what: str, value: str) -> None:
    with pytest.raises(BundleError, match=f"different {what}s"):
        make_delta(OLD, release(files(weights()), 2, **{what: value}))


def test_damaged_deltas_are_refused() -> None:
    """Bit flips, cuts, and bytes behind the end: refused, here or by the signature, or the new release all the same."""
    new = updated(nudge, **{"function/new.py": b"x = 1\n" * 100, "program.so": b"new" + files(weights())["program.so"]})
    data, dice = make_delta(OLD, new).data, random.Random(0)
    wrong = [data[:-1], data + b"\0", b"", data[:30], b"EBD2" + data[4:]]
    for _ in range(600):
        flipped = bytearray(data)
        flipped[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        wrong.append(bytes(flipped))
    wrong += [data[: dice.randrange(len(data))] for _ in range(100)]
    outcomes = []
    for damaged in wrong:
        try:
            made = apply_delta(OLD, damaged)
            read_bundle(made, TRUST)
            outcomes.append(made == new)
        except BundleError:
            outcomes.append(None)
    assert False not in outcomes
    assert outcomes.count(None) > 0.9 * len(outcomes)


def test_parts_that_do_not_fit_are_refused() -> None:
    new = updated(nudge)
    parsed = delta.parse(make_delta(OLD, new).data)

    def with_part(path: str, part: delta.Part) -> bytes:
        at = list(files(weights())).index(path)
        return delta.serialize(dataclasses.replace(parsed, parts=(*parsed.parts[:at], part, *parsed.parts[at + 1 :])))

    for path, part, message in [
        ("weights.bin", delta.Part(delta.RAW, b"short"), "the size of a raw file"),
        ("weights.bin", delta.Part(delta.WEIGHTS, b""), "the size of a coded file|SHA-256 differs"),
        ("weights.bin", delta.Part(delta.PATCH, b"\xff" * 40), "malformed"),
        ("weights.bin", delta.Part(delta.ZSTD, b"no zstd"), "malformed"),
        ("weights.bin", delta.Part(delta.SAME, b""), "the base, which has no such file"),
        ("program.so", delta.Part(delta.WEIGHTS, b""), "the codec of weights for another file"),
        ("weights.bin", delta.Part(delta.ZSTD, delta.compress(bytes(10))), "a size"),
    ]:
        with pytest.raises(BundleError, match=message):
            apply_delta(OLD, with_part(path, part))


def test_a_zstd_frame_takes_no_more_memory_than_its_file() -> None:
    """One that says of itself that it has a petabyte."""
    frame = bytes.fromhex("28b52ffd e0") + (1 << 50).to_bytes(8, "little") + bytes([1, 0, 0])
    with pytest.raises(BundleError, match="another size than it should"):
        delta.decompress(frame, 100)

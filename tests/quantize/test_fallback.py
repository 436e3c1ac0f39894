"""Layers that leave 8 bits: which tensors change, what it does to the error, and how often the samples are run."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from quantize.models import model, normal, operators, run

from edgebuild.reference import Interpreter
from edgebuild.stages.quantize import Calibrated, Fallback, Settings, calibration, finished, may_fall_back, roundings

CNN = """(float[1,8,8,8] x) => (float[1,10] y) {
  a = Conv<pads=[1,1,1,1]>(x, k1, b1)
  ar = Relu(a)
  b = Conv<pads=[1,1,1,1]>(ar, k2, b2)
  s = Add(ar, b)
  sr = Relu(s)
  f = GlobalAveragePool(sr)
  h = Flatten(f)
  y = Gemm<transB=1>(h, w, c)
}"""


class Counted:
    """Samples with rare large values, which leave few of 256 steps to the others; counts how often they are run."""

    def __init__(self, count: int = 24) -> None:
        rng = np.random.default_rng(2)
        self.samples = [{"x": (rng.normal(size=(1, 8, 8, 8)) ** 5).astype(np.float32)} for _ in range(count)]
        self.passes = 0

    def __call__(self) -> Iterator[dict[str, np.ndarray]]:
        self.passes += 1
        return iter(self.samples)


@pytest.fixture(scope="module")
def cnn() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    return model(
        CNN,
        k1=normal(rng, 16, 8, 3, 3, scale=0.1), b1=normal(rng, 16, scale=0.1),
        k2=normal(rng, 16, 16, 3, 3, scale=0.1), b2=normal(rng, 16, scale=0.1),
        w=normal(rng, 10, 16), c=normal(rng, 10),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(cnn: onnx.ModelProto) -> Calibrated:
    """Without the tensors that get 16 bits anyway."""
    return calibration(cnn, Counted(), Settings(words=False))


def bits(found: Calibrated, fallback: Fallback | None = None) -> dict[str, int]:
    return {row["name"]: row["bits"] for row in finished(found, fallback).report["tensors"]}


def errors(found: Calibrated, tried: list[Fallback]) -> list[float]:
    return [found.error(found.judge, fallback) for fallback in tried]


def stored(proto: onnx.ModelProto, layer: str) -> tuple[int, int]:
    """The types of what a layer reads: its input and its weight."""
    types = {t.name: t.data_type for t in proto.graph.initializer}
    types |= {v.name: v.type.tensor_type.elem_type for v in [*proto.graph.value_info, *proto.graph.input]}
    made = {n.output[0]: n for n in onnx.shape_inference.infer_shapes(proto).graph.node}
    found = []
    for name in made[layer].input[:2]:
        reader = made.get(name)
        rounded = reader is not None and reader.op_type == "DequantizeLinear"
        found.append(types[reader.input[2]] if rounded and reader is not None else TensorProto.FLOAT)
    return found[0], found[1]


def test_the_layers_that_may_fall_back(found: Calibrated) -> None:
    assert may_fall_back(found) == {*("a", "ar", "b", "s", "sr", "f", "h", "y")}


def test_every_rounding_is_measured_alone(found: Calibrated) -> None:
    told: list[tuple[int, int]] = []
    rows = roundings(found, lambda done, total: told.append((done, total)))
    words = {r.keys: r for r in rows if r.precision == "int16"}
    floats = {r.keys: r for r in rows if r.precision == "float32"}
    assert list(words) == [("a",), ("b",), ("s",), ("f",), ("y",)]
    assert list(floats) == [("a",), ("b",), ("y",)]
    assert told == [(i, len(rows)) for i in range(1, len(rows) + 1)]
    assert words["a",].name == "Conv_0"
    assert words["a",].operator == "Conv"
    assert "Conv_0" in words["a",].nodes
    judge = found.judge.first(16)
    everything = dict.fromkeys("by", "float32")
    plain = found.error(judge)
    assert floats["a",].share == pytest.approx(found.error(judge, everything) / plain)
    assert floats["a",].share > words["a",].share > 0.3  # rare large values at the input are what hurts
    assert 0.5 < sum(r.share for r in rows if r.precision == "float32") < 2


def test_layers_that_read_the_same_share_a_step() -> None:
    rng = np.random.default_rng(0)
    forked = model(
        """(float[1,8,8,8] x) => (float[1,16,8,8] y) {
          a = Conv(x, k1)
          r = Relu(a)
          b = Conv(r, k2)
          c = Conv(r, k3)
          y = Concat<axis=1>(b, c)
        }""",
        k1=normal(rng, 8, 8, 1, 1), k2=normal(rng, 8, 8, 1, 1), k3=normal(rng, 8, 8, 1, 1),
    )  # fmt: skip
    rows = roundings(calibration(forked, Counted(), Settings(words=False)))
    shared = next(r for r in rows if r.keys == ("b", "c"))
    assert (shared.precision, shared.name, shared.operator) == ("int16", "Conv_2, Conv_3", "Conv")


def test_int16_widens_the_input_of_that_layer_only(found: Calibrated) -> None:
    plain = bits(found)
    assert set(plain.values()) == {8}
    assert bits(found, {"a": "int16"}) == plain | {"x": 16}
    assert bits(found, {"y": "int16"}) == plain | {
        name: 16 for name in plain if name in ("f", "h")
    }  # one scale on both sides of Flatten
    result = finished(found, {"a": "int16"}).model
    assert stored(result, "a") == (TensorProto.UINT16, TensorProto.INT8)
    assert stored(result, "b") == (TensorProto.UINT8, TensorProto.INT8)
    assert next(o.version for o in result.opset_import if o.domain in ("", "ai.onnx")) >= 21


def test_int16_takes_error_away(found: Calibrated) -> None:
    plain, wide, all_wide = errors(found, [{}, {"a": "int16"}, dict.fromkeys("aby", "int16")])
    assert 0 < all_wide < wide < 0.5 * plain


def test_what_came_out_means_the_same_to_the_interpreter(cnn: onnx.ModelProto, found: Calibrated) -> None:
    result = finished(found, {"a": "int16", "b": "float32"}).model
    judge = Interpreter(result)
    for sample in Counted(4)():
        wanted, ours, theirs = (f(sample)["y"] for f in (lambda s: run(cnn, s), judge.run, lambda s: run(result, s)))
        assert np.linalg.norm(ours - theirs) < 0.03 * np.linalg.norm(wanted)
        assert np.linalg.norm(ours - wanted) < 0.05 * np.linalg.norm(wanted)


def test_float32_leaves_that_layer_as_it_was(found: Calibrated) -> None:
    assert stored(finished(found, {"y": "float32"}).model, "y") == (TensorProto.FLOAT, TensorProto.FLOAT)
    result = finished(found, {"b": "float32"})
    assert stored(result.model, "b") == (TensorProto.UINT8, TensorProto.FLOAT)  # the addition reads its input as well
    assert stored(result.model, "a") == (TensorProto.UINT8, TensorProto.INT8)
    assert {"operator": "Conv", "name": "Conv_2", "reason": "float32 keeps the accuracy"} in result.report["float"]
    assert "Conv_2" not in {row["name"] for row in result.report["quantized"]}
    assert "Conv_0" in {row["name"] for row in result.report["quantized"]}


def test_every_layer_in_float32_rounds_nothing(found: Calibrated) -> None:
    everything: Fallback = {"a": "float32", "b": "float32", "y": "float32"}
    result = finished(found, everything).model
    assert operators(result) == [n.op_type for n in result.graph.node]  # no Q/DQ
    assert errors(found, [everything])[0] < 1e-10


def test_errors_are_those_of_each_model(found: Calibrated) -> None:
    tried: list[Fallback] = [{}, {"a": "int16"}, {"b": "float32"}, {"a": "float32", "y": "int16"}]
    assert errors(found, tried) == [found.judge.error(finished(found, f).model) for f in tried]


def test_the_samples_are_run_at_most_once_more(cnn: onnx.ModelProto) -> None:
    samples = Counted()
    found = calibration(cnn, samples)
    before = samples.passes
    roundings(found)
    assert before <= samples.passes <= before + 1
    after = samples.passes
    for keys in ("a", "by"):
        finished(found, dict.fromkeys(keys, "int16"))
    roundings(found)
    assert samples.passes == after


def test_a_fallback_changes_nothing_for_the_builds_after_it(cnn: onnx.ModelProto) -> None:
    found = calibration(cnn, Counted())
    plain = finished(found).model.SerializeToString(deterministic=True)
    words = finished(found, {"b": "float32", "a": "int16"}).model.SerializeToString(deterministic=True)
    assert finished(found).model.SerializeToString(deterministic=True) == plain
    assert finished(found, {"a": "int16", "b": "float32"}).model.SerializeToString(deterministic=True) == words
    again = calibration(cnn, Counted())
    assert finished(again, {"b": "float32", "a": "int16"}).model.SerializeToString(deterministic=True) == words

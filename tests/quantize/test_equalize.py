"""Equalization leaves the function as it is and makes eight bits serve channels of different sizes."""

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize.models import model, normal, run, samples

from edgebuild.stages.quantize import Settings, quantize
from edgebuild.stages.quantize.calibrate import input_specs, observe
from edgebuild.stages.quantize.channels import find_channels
from edgebuild.stages.quantize.equalize import ChannelStatistics, equalize, growth, watched
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Array, Graph

Samples = list[dict[str, np.ndarray]]
SHAPE = (1, 4, 8, 8)
STEPS = ("relu", "relu6", "leaky", "pointwise", "depthwise", "grouped", "residual", "concat", "split", "slice", "pool",
         "gate", "average")  # fmt: skip


def equalized(proto: onnx.ModelProto, data: Samples) -> tuple[onnx.ModelProto, dict[str, Array], Graph]:
    """The folded network with scaled channels, the factors by tensor, and the folded network as it was."""
    graph = Graph(fold(proto))
    found = find_channels(graph, graph.types())
    seen = {name: ChannelStatistics() for name in watched(graph, found)}
    if not seen:
        return graph.to_model(), {}, graph
    observe(graph.to_model(seen), input_specs(proto), data, {name: [watcher] for name, watcher in seen.items()})
    copy = graph.copy()
    factors = equalize(copy, found, seen)
    return copy.to_model(), factors, graph


class _Network:
    """A network of random steps, whose channels differ in size by orders of magnitude."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.constants: dict[str, Any] = {"lo": np.float32(0), "hi": np.float32(6)}
        self.lines: list[str] = []
        self.count, self.last = 4, "x"
        self.conv(1, pads=1, kernel=3)

    def weight(self, *shape: int) -> str:
        name = f"w{len(self.constants)}"
        sizes = 10 ** self.rng.uniform(-1, 1, (shape[0], *(1,) * (len(shape) - 1)))
        self.constants[name] = (normal(self.rng, *shape) * sizes / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return name

    def line(self, text: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(text.replace("OUT", name))
        return name

    def conv(self, group: int, *, pads: int = 0, kernel: int = 1, out: int = 0) -> None:
        out = out or self.count
        w, b = self.weight(out, self.count // group, kernel, kernel), self.weight(out)
        self.last = self.line(f"OUT = Conv<group={group}, pads=[{pads},{pads},{pads},{pads}]>({self.last}, {w}, {b})")
        self.count = out

    def add(self, step: str) -> None:
        before, count = self.last, self.count
        simple = {
            "relu": f"OUT = Relu({before})",
            "relu6": f"OUT = Clip({before}, lo, hi)",
            "leaky": f"OUT = LeakyRelu<alpha=0.1>({before})",
            "pool": f"OUT = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({before})",
            "average": f"OUT = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({before})",
        }
        convs = {"pointwise": (1, 0, 1), "depthwise": (count, 1, 3), "grouped": (2, 0, 1)}
        if step in simple:
            self.last = self.line(simple[step])
        elif step in convs:
            group, pads, kernel = convs[step]
            self.conv(group, pads=pads, kernel=kernel)
        elif step == "residual":
            self.conv(1, pads=1, kernel=3)
            self.last = self.line(f"OUT = Add({before}, {self.last})")
        elif step == "concat":
            self.conv(1, out=2)
            self.last, self.count = self.line(f"OUT = Concat<axis=1>({before}, {self.last})"), count + 2
        elif step == "gate":
            self.conv(1)
            gate = self.line(f"OUT = Sigmoid({self.last})")
            self.last = self.line(f"OUT = Mul({before}, {gate})")
        elif step == "split":
            name = f"w{len(self.constants)}"
            self.constants[name] = np.array([count // 2, count - count // 2])
            half = f"s{len(self.lines)}"
            first = self.line(f"OUT, {half} = Split<axis=1>({before}, {name})")
            self.last = self.line(f"OUT = Concat<axis=1>({half}, {first})")
        else:
            names = [f"w{len(self.constants) + i}" for i in range(3)]
            self.constants |= dict(zip(names, (np.array([0]), np.array([count // 2 * 2]), np.array([1])), strict=True))
            self.last, self.count = self.line(f"OUT = Slice({before}, {', '.join(names)})"), count // 2 * 2

    def made(self) -> onnx.ModelProto:
        w = self.weight(3, self.count, 1, 1)
        text = f"(float[1,4,8,8] x) => (float[1,3,8,8] y) {{ {' '.join(self.lines)} y = Conv({self.last}, {w}) }}"
        return model(text, **self.constants)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.lists(st.sampled_from(STEPS), min_size=1, max_size=7))
def test_the_function_stays_as_it_is(seed: int, steps: list[str]) -> None:
    network = _Network(seed)
    for step in steps:
        network.add(step)
    proto, data = network.made(), samples(np.random.default_rng(seed), SHAPE, 4)
    found, factors, _ = equalized(proto, data)
    for sample in data:
        expected = run(proto, sample)["y"]
        np.testing.assert_allclose(run(found, sample)["y"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    for factor in factors.values():
        assert np.isfinite(factor).all()
        assert factor.min() >= 1 / 256
        assert factor.max() <= 256


@pytest.mark.parametrize("step", STEPS)
def test_each_step_lets_channels_be_scaled(step: str) -> None:
    network = _Network(5)
    network.add(step)
    data = samples(np.random.default_rng(0), SHAPE, 4)
    _, factors, graph = equalized(network.made(), data)
    assert factors
    assert not factors.keys() & {*graph.inputs, *graph.outputs}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_channels_in_front_of_a_bound_stay_below_it(seed: int) -> None:
    network = _Network(seed)
    network.add("relu6")
    clipped = network.last
    network.add("depthwise")
    data = samples(np.random.default_rng(seed), SHAPE, 6)
    found, factors, graph = equalized(network.made(), data)
    grown = factors[clipped] > 1
    assert grown.any()
    assert factors[clipped].min() >= 1
    for sample in data:
        outputs = Graph(found).to_model([clipped]), graph.to_model([clipped])
        new, old = (run(m, sample)[clipped] for m in outputs)
        assert new[:, grown].max() <= 6 * 0.9999
        np.testing.assert_allclose(new, old * factors[clipped][:, None, None], rtol=1e-4, atol=1e-4)


def _with_a_large_channel(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    first, second = normal(rng, 16, 4, 3, 3, scale=0.3), normal(rng, 8, 16, 3, 3, scale=0.1)
    first[3] *= 100
    second[:, 3] /= 100
    text = """(float[1,4,8,8] x) => (float[1,6,8,8] y) {
        a = Conv<pads=[1,1,1,1]>(x, k) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, j) d = Relu(c) y = Conv(d, w)
    }"""
    return model(text, k=first, j=second, w=normal(rng, 6, 8, 1, 1))


def _decibels(proto: onnx.ModelProto, settings: Settings) -> float:
    found = quantize(proto, lambda: samples(np.random.default_rng(1), SHAPE, 24), settings).model
    error = energy = 0.0
    for sample in samples(np.random.default_rng(2), SHAPE, 8):
        exact = run(proto, sample)["y"]
        error += float(np.square(run(found, sample)["y"] - exact).sum())
        energy += float(np.square(exact).sum())
    return 10 * float(np.log10(energy / error))


def test_a_channel_a_hundred_times_as_large_costs_nothing() -> None:
    proto = _with_a_large_channel()
    plain = _decibels(proto, Settings("minmax", words=False, equalized=False))
    scaled = _decibels(proto, Settings("minmax", words=False, equalized=True))
    chosen = _decibels(proto, Settings("minmax", words=False))
    assert scaled >= plain + 10
    assert chosen >= plain + 10


def test_what_was_scaled_is_reported() -> None:
    report = quantize(_with_a_large_channel(), lambda: samples(np.random.default_rng(1), SHAPE, 24)).report
    rows = {row["tensor"]: row for row in report["equalized"]}
    assert rows["b"]["largest"] / rows["b"]["smallest"] > 30
    assert {row["equalized"] for row in report["candidates"]} == {False, True}
    settled = [row for row in report["candidates"] if "all_sqnr_db" in row]  # on all samples, once the rule is chosen
    assert [row["equalized"] for row in settled] == [False, True]
    assert {row["observer"] for row in settled} == {report["observer"]}
    assert bool(report["equalized"]) == (settled[1]["all_sqnr_db"] > settled[0]["all_sqnr_db"])


def test_dead_channels_and_columns_of_zeros_do_no_harm() -> None:
    rng = np.random.default_rng(4)
    first, second, bias = normal(rng, 8, 4, 3, 3), normal(rng, 5, 8, 1, 1), normal(rng, 8)
    first[2], bias[2] = 0, 0  # always 0
    first[5], bias[5] = 0, -3  # cut off by Relu
    second[:, 6] = 0  # never read
    text = "(float[1,4,8,8] x) => (float[1,5,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, k, o) b = Relu(a) y = Conv(b, w) }"
    proto, data = model(text, k=first, o=bias, w=second), samples(rng, SHAPE, 6)
    found, factors, _ = equalized(proto, data)
    assert np.isfinite(factors["b"]).all()
    np.testing.assert_allclose(run(found, data[0])["y"], run(proto, data[0])["y"], rtol=1e-4, atol=1e-4)
    result = quantize(proto, lambda: data, Settings("minmax", equalized=True)).model
    exact = run(proto, data[0])["y"]
    assert np.abs(run(result, data[0])["y"] - exact).max() < 0.02 * np.abs(exact).max()


def test_a_network_of_zeros_is_left_alone() -> None:
    text = "(float[1,4,8,8] x) => (float[1,4,8,8] y) { a = Conv(x, k) b = Relu(a) y = Conv(b, k2) }"
    zeros = np.zeros((4, 4, 1, 1), np.float32)
    found, _, _ = equalized(model(text, k=zeros, k2=zeros), samples(np.random.default_rng(0), SHAPE, 2))
    assert not run(found, samples(np.random.default_rng(0), SHAPE, 1)[0])["y"].any()


def test_statistics_of_channels_are_those_of_all_samples() -> None:
    rng = np.random.default_rng(0)
    data = [normal(rng, 1, 3, 5, 5) * np.float32([1, 10, 0])[:, None, None] for _ in range(20)]
    seen = ChannelStatistics()
    for values in data:
        seen.observe(values, 0.0, 0.0)
    rows = np.stack(data)[:, 0].reshape(20, 3, -1).astype(np.float64)
    np.testing.assert_allclose(seen.seen, (rows.min(axis=(0, 2)), rows.max(axis=(0, 2))))
    np.testing.assert_allclose(seen.square, (rows**2).mean(axis=(0, 2)), rtol=1e-6)
    np.testing.assert_allclose(seen.high, rows.max(axis=(0, 2)) + 2 * rows.max(axis=2).std(axis=0), rtol=1e-6)
    np.testing.assert_allclose(seen.low, rows.min(axis=(0, 2)) - 2 * rows.min(axis=2).std(axis=0), rtol=1e-6)
    assert growth(seen, np.ones(1)) > 1
    still = ChannelStatistics()
    still.observe(np.zeros((1, 3, 2, 2), np.float32), 0.0, 0.0)
    assert growth(still, np.ones(1)) == 1.0

"""Which channels may be scaled: what brings a factor in, hands it on, takes it out, and what keeps it at 1."""

import numpy as np
import onnx
import pytest
from quantize.models import model, normal

from edgebuild.stages.quantize.channels import Channels, components, find_channels
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Graph

RNG = np.random.default_rng(0)
K = normal(RNG, 4, 4, 3, 3)
P = normal(RNG, 4, 4, 1, 1)
CONV = "Conv<pads=[1,1,1,1]>"


def channels(text: str, out: str = "float[1,4,8,8] y", **constants: object) -> Channels:
    """Of a network whose first layer makes `a` [1, 4, 8, 8]; constants k, j [4, 4, 3, 3], p, q [4, 4, 1, 1]."""
    used = {"k": K, "j": K, "p": P, "q": P} | constants
    proto = model(f"(float[1,4,8,8] x) => ({out}) {{ a = {CONV}(x, k) {text} }}",
                  **{n: v for n, v in used.items() if n == "k" or n in _words(text)})  # fmt: skip
    onnx.checker.check_model(proto, full_check=True)
    graph = Graph(fold(proto))
    return find_channels(graph, graph.types())


def _words(text: str) -> set[str]:
    return set(text.replace("(", " ").replace(")", " ").replace(",", " ").split())


def free(found: Channels, name: str) -> list[bool]:
    """Of each channel of a tensor."""
    return [bool(f) for f in found.free[found.classes[name]]]


GRADUAL = {
    "relu": f"z = Relu(a) y = {CONV}(z, j)",
    "leaky relu": f"z = LeakyRelu(a) y = {CONV}(z, j)",
    "relu6": f"z = Clip(a, lo, hi) y = {CONV}(z, j)",
    "max pool": f"z = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) y = {CONV}(z, j)",
    "average pool": f"z = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) y = {CONV}(z, j)",
    "zero padding": "b = Pad(a, pads) z = Relu(b) y = Conv(z, j)",
    "nearest resize": f"r = Resize(a, none, two) z = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) y = {CONV}(z, j)",
    "gate": f"g = Conv(a, p) s = Sigmoid(g) z = Mul(a, s) y = {CONV}(z, j)",
    "spatial slice": f"c = Slice(a, zero, four, axis) z = MaxPool<kernel_shape=[1,1]>(c) y = {CONV}(z, j)",
}
BOUNDS = {"lo": np.float32(0), "hi": np.float32(6)}
OTHERS = {
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "none": np.zeros(0, np.float32), "two": np.float32([1, 1, 2, 2]),
    "zero": np.array([0]), "four": np.array([4]), "axis": np.array([2]),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADUAL)
def test_what_hands_a_factor_on(name: str) -> None:
    out = "float[1,4,4,8] y" if name == "spatial slice" else "float[1,4,8,8] y"
    found = channels(GRADUAL[name], out, **BOUNDS, **OTHERS)
    assert free(found, "a") == free(found, "z") == [True] * 4
    np.testing.assert_array_equal(found.classes["a"], found.classes["z"])
    assert free(found, "x") == free(found, "y") == [False] * 4
    assert {n.output[0] for n in found.producers} >= {"a"}
    assert {n.input[0] for n in found.consumers} >= {"z"}


FIXED = {
    "graph output": "z = Relu(a) y = Identity(z)",
    "sigmoid": f"z = Sigmoid(a) y = {CONV}(z, j)",
    "silu": f"s = Sigmoid(a) z = Mul(a, s) y = {CONV}(z, j)",
    "hard swish": f"z = HardSwish(a) y = {CONV}(z, j)",
    "clip from below zero": f"z = Clip(a, below, hi) y = {CONV}(z, j)",
    "a constant that is added": f"z = Relu(a) c = Add(z, shift) y = {CONV}(c, j)",
    "padding by another number": "z = Pad(a, pads, one) y = Conv(z, j)",
    "padding by reflection": 'z = Pad<mode="reflect">(a, pads) y = Conv(z, j)',
    "product of two tensors": f"b = {CONV}(a, j) z = Mul(a, b) y = Conv(z, p)",
}


@pytest.mark.parametrize("name", FIXED)
def test_what_keeps_the_factor_at_1(name: str) -> None:
    found = channels(FIXED[name], **BOUNDS, **OTHERS, below=np.float32(-1), shift=np.float32(3), one=np.float32(1))
    assert free(found, "a") == [False] * 4
    assert free(found, "z") == [False] * 4


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    found = channels("b = Relu(a) c = Conv(b, p) d = Relu(c) y = Conv(d, p)")
    for name in ("a", "b", "c", "d"):
        assert free(found, name) == [False] * 4


def test_a_depthwise_layer_separates_the_channels_of_its_input_and_output() -> None:
    found = channels(f"b = Relu(a) c = {CONV}<>(b, d)".replace("]><>", "], group=4>") + " z = Relu(c) y = Conv(z, p)",
                     d=normal(RNG, 4, 1, 3, 3))  # fmt: skip
    assert free(found, "b") == free(found, "z") == [True] * 4
    assert not set(found.classes["b"]) & set(found.classes["z"])


def test_a_grouped_layer_separates_too() -> None:
    found = channels("b = Relu(a) c = Conv<group=2>(b, d) z = Relu(c) y = Conv(z, p)", d=normal(RNG, 4, 2, 1, 1))
    assert free(found, "b") == free(found, "z") == [True] * 4
    assert not set(found.classes["b"]) & set(found.classes["z"])


def test_a_residual_addition_ties_its_operands() -> None:
    found = channels(
        "b = Conv(a, p) c = Relu(b) d = Conv(c, q) z = Add(a, d) y = Conv(z, r)", r=normal(RNG, 4, 4, 1, 1)
    )
    for name in ("d", "z"):
        np.testing.assert_array_equal(found.classes["a"], found.classes[name])
    assert free(found, "a") == free(found, "c") == [True] * 4
    assert not set(found.classes["a"]) & set(found.classes["c"])


def test_a_residual_to_the_input_is_fixed() -> None:
    found = channels("b = Add(a, x) z = Relu(b) y = Conv(z, p)")
    assert free(found, "a") == free(found, "z") == [False] * 4


def test_concatenated_channels_are_those_of_the_parts_also_where_one_is_read_elsewhere() -> None:
    found = channels("b = Conv(a, p) c = Concat<axis=1>(a, b) z = Relu(c) y = Conv(z, w)", w=normal(RNG, 4, 8, 1, 1))
    np.testing.assert_array_equal(found.classes["z"], np.concatenate([found.classes["a"], found.classes["b"]]))
    assert free(found, "z") == [True] * 8


def test_a_fixed_part_of_a_concatenation_fixes_its_channels_only() -> None:
    found = channels("b = Conv(a, p) s = Sigmoid(b) z = Concat<axis=1>(a, s) y = Conv(z, w)",
                     w=normal(RNG, 4, 8, 1, 1))  # fmt: skip
    assert free(found, "z") == [True] * 4 + [False] * 4


def test_a_concatenation_along_an_image_ties_the_parts() -> None:
    found = channels("b = Conv(a, p) c = Relu(b) d = Conv(c, q) z = Concat<axis=2>(a, d) y = Conv(z, r)",
                     "float[1,4,16,8] y", r=normal(RNG, 4, 4, 1, 1))  # fmt: skip
    np.testing.assert_array_equal(found.classes["a"], found.classes["d"])
    np.testing.assert_array_equal(found.classes["a"], found.classes["z"])


def test_parts_of_a_split_are_the_channels_of_the_whole() -> None:
    found = channels("b, c = Split<axis=1>(a, sizes) d = Conv(b, m) e = Conv(c, n) y = Concat<axis=1>(d, e)",
                     sizes=np.array([1, 3]), m=normal(RNG, 2, 1, 1, 1), n=normal(RNG, 2, 3, 1, 1))  # fmt: skip
    np.testing.assert_array_equal(found.classes["a"], np.concatenate([found.classes["b"], found.classes["c"]]))
    assert free(found, "a") == [True] * 4
    assert free(found, "d") == free(found, "e") == [False] * 2


@pytest.mark.parametrize(
    ("start", "end", "step", "kept"), [(1, 3, 1, [1, 2]), (0, 2**62, 2, [0, 2]), (-3, -1, 1, [1, 2])]
)
def test_a_slice_of_channels_keeps_their_classes(start: int, end: int, step: int, kept: list[int]) -> None:
    found = channels("z = Slice(a, s, e, c, t) y = Conv(z, w)", w=normal(RNG, 4, 2, 1, 1), s=np.array([start]),
                     e=np.array([end]), c=np.array([1]), t=np.array([step]))  # fmt: skip
    np.testing.assert_array_equal(found.classes["z"], found.classes["a"][kept])
    assert free(found, "z") == [True] * 2


def test_padded_channels_are_the_middle_ones() -> None:
    """ResNet's shortcut without weights: zeros become channels."""
    found = channels(
        "z = Pad(a, pads) y = Conv(z, w)", pads=np.array([0, 2, 0, 0, 0, 1, 0, 0]), w=normal(RNG, 4, 7, 1, 1)
    )
    np.testing.assert_array_equal(found.classes["z"][2:6], found.classes["a"])
    assert free(found, "a") == [True] * 4


def test_averages_and_flatten_lead_to_a_classifier() -> None:
    found = channels("g = GlobalAveragePool(a) f = Flatten(g) y = Gemm<transB=1>(f, w)", "float[1,5] y",
                     w=normal(RNG, 5, 4))  # fmt: skip
    np.testing.assert_array_equal(found.classes["f"], found.classes["a"])
    assert free(found, "a") == [True] * 4


def test_flattened_positions_are_no_channels() -> None:
    found = channels("f = Flatten(a) y = Gemm<transB=1>(f, w)", "float[1,5] y", w=normal(RNG, 5, 256))
    assert free(found, "a") == [False] * 4


def test_gates_stay_as_they_are_and_what_they_scale_does_not() -> None:
    found = channels("g = GlobalAveragePool(a) f = Conv(g, p) s = HardSigmoid(f) z = Mul(s, a) y = Conv(z, q)")
    assert free(found, "s") == free(found, "f") == [False] * 4
    assert free(found, "z") == free(found, "g") == [True] * 4


def test_a_layer_norm_brings_a_factor_in_and_hands_none_on() -> None:
    norm = "n = LayerNormalization<axis=-1>(a, g, b)"
    proto = model(f"(float[1,8,6] x) => (float[1,8,5] y) {{ a = MatMul(x, v) {norm} y = MatMul(n, w) }}",
                  v=normal(RNG, 6, 6), w=normal(RNG, 6, 5), g=normal(RNG, 6), b=normal(RNG, 6))  # fmt: skip
    graph = Graph(fold(proto))
    found = find_channels(graph, graph.types())
    assert free(found, "n") == [True] * 6
    assert free(found, "a") == [False] * 6
    assert "n" in {node.output[0] for node in found.producers}


def test_bounds_of_clips_are_known() -> None:
    assert channels(f"z = Clip(a, lo, hi) y = {CONV}(z, j)", **BOUNDS).limits == {"z": 6.0}
    assert channels(f"z = Relu(a) y = {CONV}(z, j)").limits == {}


def test_components_of_a_long_chain() -> None:
    size = 5000
    order = np.random.default_rng(1).permutation(size)
    left, right = order[:-2], order[1:-1]
    found = components(size, [left], [right])
    assert len(set(found[order[:-1]])) == 1
    assert found[order[-1]] == order[-1]
    assert found[order[0]] == order[:-1].min()

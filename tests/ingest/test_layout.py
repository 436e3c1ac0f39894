"""Transpose nodes of channels-last graphs: gone between convolutions, with the same values."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebuild.stages.ingest.layout import channels_first
from edgebuild.stages.ingest.onnx import normalize

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class Net:
    """Builds a graph as TensorFlow's converters do: convolutions between Transposes, all else with channels last."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.rng = np.random.default_rng(0)

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], name=f"{kind}{len(self.nodes)}", **attributes))
        return out

    def constant(self, value: object) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(self, x: str, channels: int, outputs: int, size: int = 1) -> str:
        weight = self.rng.normal(0, 0.3, (outputs, channels, size, size)).astype(np.float32)
        pads = [size // 2] * 4
        y = self.op("Conv", self.op("Transpose", x, perm=FIRST), self.constant(weight), pads=pads)
        return self.op("Transpose", y, perm=LAST)

    def model(self, output: str, shape: list[int]) -> onnx.ModelProto:
        ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 10, 4])]
        results = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
        graph = helper.make_graph(self.nodes, "g", ports, results, self.constants)
        return normalize(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def whole() -> onnx.ModelProto:
    net = Net()
    x = net.conv("x", 4, 6, 3)
    x = net.op("Mul", x, net.constant(np.arange(6, dtype=np.float32)))
    x = net.op("Add", net.constant(np.ones((1, 1, 6), np.float32)), x)
    gate = net.op(
        "Clip", net.op("Add", x, net.constant(np.float32(3))), net.constant(np.float32(0)), net.constant(np.float32(6))
    )
    x = net.conv(net.op("Mul", x, gate), 6, 6)
    mean = net.op("ReduceMean", x, net.constant([1, 2]), keepdims=0)
    pixel = net.op("Reshape", mean, net.constant([1, 1, 1, 6]))
    x = net.op("Mul", x, net.op("Sigmoid", net.conv(pixel, 6, 6)))
    x = net.op("Pad", x, net.constant([0, 1, 2, 0, 0, 3, 1, 0]))
    x = net.op("Slice", x, net.constant([1, 0]), net.constant([10, 4]), net.constant([1, -1]))
    x = net.op("Concat", x, net.op("Relu", x), axis=-1)
    x = net.conv(net.op("Softmax", x, axis=3), 8, 5)
    x = net.op("Resize", x, "", "", net.constant([1, 4, 6, 5]), mode="nearest")
    x = net.conv(net.op("ReduceMax", x, net.constant([2]), keepdims=1), 5, 3)
    return net.model(
        net.op("Reshape", net.op("ReduceMean", x, net.constant([1, 2]), keepdims=1), net.constant([3])), [3]
    )


def run(model: onnx.ModelProto) -> np.ndarray:
    value = np.random.default_rng(1).normal(size=(1, 8, 10, 4)).astype(np.float32)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": value})[0]


def test_one_transpose_is_left_at_the_input() -> None:
    before = whole()
    after = channels_first(before, "net")
    np.testing.assert_allclose(run(after), run(before), rtol=1e-6)
    kinds = Counter(node.op_type for node in after.graph.node)
    assert Counter(node.op_type for node in before.graph.node)["Transpose"] >= 10
    assert kinds["Transpose"] == 1
    assert after.graph.node[0].op_type == "Transpose"
    assert kinds["Reshape"] <= 1


def two_branches(second: str) -> onnx.ModelProto:
    net = Net()
    x = net.conv("x", 4, 4)
    other = {"twin": lambda: net.conv("x", 4, 4), "last": lambda: net.op("Neg", "x")}[second]()
    return net.model(net.conv(net.op("Add", x, other), 4, 2), [1, 8, 10, 2])


@pytest.mark.parametrize(("second", "left"), [("twin", 3), ("last", 4)])
def test_a_sum_moves_where_both_operands_do(second: str, left: int) -> None:
    """What has channels last by itself, as an input has, would cost a Transpose of its own. Left are those around."""
    before = two_branches(second)
    after = channels_first(before, "net")
    np.testing.assert_allclose(run(after), run(before), rtol=1e-6)
    assert sum(node.op_type == "Transpose" for node in after.graph.node) == left


def test_a_graph_without_any_stays_as_it_is() -> None:
    net = Net()
    model = net.model(net.op("Relu", "x"), [1, 8, 10, 4])
    assert channels_first(model, "net") is model

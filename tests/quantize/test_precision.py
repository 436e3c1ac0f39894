"""16 bits for what costs next to nothing: by shapes, never by values."""

from typing import Any

import numpy as np
import onnx
import pytest
from quantize.models import model, normal, samples

from edgebuild.stages.quantize import Settings, quantize
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Graph, key
from edgebuild.stages.quantize.network import Network
from edgebuild.stages.quantize.precision import words
from edgebuild.stages.quantize.rounding import moments

CNN = """(float[1,3,48,48] x) => (float[1,10] y) {
  a = Conv<pads=[1,1,1,1]>(x, k) ar = Relu(a)
  b = Conv<pads=[1,1,1,1], strides=[2,2]>(ar, j) br = Relu(b)
  m = GlobalAveragePool(br) n = Conv(m, p) nr = Relu(n) o = Conv(nr, q) s = HardSigmoid(o) t = Mul(br, s)
  c = Conv<pads=[1,1,1,1]>(t, l) cr = Relu(c)
  g = GlobalAveragePool(cr) f = Flatten(g) h = Gemm<transB=1>(f, u) hr = Relu(h) y = Gemm<transB=1>(hr, w)
}"""
SHAPES = {"k": (16, 3, 3, 3), "j": (32, 16, 3, 3), "p": (8, 32, 1, 1), "q": (32, 8, 1, 1), "l": (64, 32, 3, 3),
          "u": (32, 64), "w": (10, 32)}  # fmt: skip


def cnn(seed: int = 0, text: str = CNN, shapes: dict[str, tuple[int, ...]] = SHAPES, **more: Any) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    weights = {n: normal(rng, *s, scale=rng.uniform(0.05, 2) / np.sqrt(np.prod(s[1:]))) for n, s in shapes.items()}
    return model(text, **weights, **more)


def wide(proto: onnx.ModelProto) -> set[str]:
    """The tensors that get 16 bits."""
    graph = Graph(fold(proto))
    network = Network(graph, {}, {}, moments(graph, graph.types(), frozenset(key(n) for n in graph.nodes)), {})
    plan = network.plan()
    groups = words(plan)
    return {t for t, g in plan.boundaries.groups.items() if g in groups}


def test_averages_gates_and_the_classifiers_input_get_16_bits_and_feature_maps_do_not() -> None:
    found = wide(cnn())
    assert {"m", "nr", "s", "g", "f", "hr"} <= found
    assert not found & {"x", "ar", "br", "t", "cr"}


@pytest.mark.parametrize("seed", [1, 2])
def test_values_decide_nothing(seed: int) -> None:
    assert wide(cnn(seed)) == wide(cnn())


def test_the_model_holds_them() -> None:
    data = samples(np.random.default_rng(0), (1, 3, 48, 48), 4)
    result = quantize(cnn(), lambda: data)
    bits = {row["name"]: row["bits"] for row in result.report["tensors"]}
    assert bits["f"] == bits["hr"] == bits["m"] == 16
    assert bits["x"] == bits["ar"] == 8
    types = {t.name: t.data_type for t in result.model.graph.initializer}
    zeros = {n.input[0]: types[n.input[2]] for n in result.model.graph.node if n.op_type == "QuantizeLinear"}
    assert zeros["f"] == onnx.TensorProto.UINT16
    assert zeros["ar"] == onnx.TensorProto.UINT8
    assert max(o.version for o in result.model.opset_import) >= 21


def test_without_them_everything_has_8_bits() -> None:
    data = samples(np.random.default_rng(0), (1, 3, 48, 48), 4)
    result = quantize(cnn(), lambda: data, Settings(words=False))
    assert {row["bits"] for row in result.report["tensors"]} == {8}


def test_what_costs_is_bounded_in_sum() -> None:
    """A hundred small layers behind a small network are no longer next to nothing."""
    layers = [f"r{i} = Gemm<transB=1>(r{i - 1}, v{i}) " for i in range(1, 101)]
    text = f"(float[1,64] r0) => (float[1,64] r100) {{ {''.join(layers)} }}"
    shapes = {f"v{i}": (64, 64) for i in range(1, 101)}
    assert wide(cnn(text=text, shapes=shapes)) == {"r0"}


def test_the_input_gets_16_bits_where_its_layer_is_one_of_many() -> None:
    """Also behind preprocessing, and in no group of the network's own tensors."""
    text = """(float[1,3,32,32] x) => (float[1,16,32,32] y) {
        n = Sub(x, mean) a = Conv<pads=[1,1,1,1]>(n, k) r0 = Relu(a)
        LAYERS
        y = Conv<pads=[1,1,1,1]>(rN, k1)
    }"""

    def found(count: int) -> set[str]:
        layers = [f"c{i} = Conv<pads=[1,1,1,1]>(r{i - 1}, k1) r{i} = Relu(c{i}) " for i in range(1, count + 1)]
        body = text.replace("LAYERS", "".join(layers)).replace("rN", f"r{count}")
        shapes = {"k": (16, 3, 3, 3), "k1": (16, 16, 3, 3), "mean": (1, 3, 1, 1)}
        return wide(cnn(text=body, shapes=shapes))

    assert found(20) == {"n"}
    assert found(5) == set()


def test_an_operator_that_16_bits_would_take_out_of_the_integers_keeps_8() -> None:
    text = """(float[1,8,32] x) => (float[1,8,32] y) {
        a = MatMul(x, v) n = LayerNormalization<axis=-1>(a, g, b) c = MatMul(n, w) d = Relu(c) y = MatMul(d, u)
    }"""
    shapes = {"v": (32, 32), "w": (32, 2048), "u": (2048, 32)}
    rng = np.random.default_rng(1)
    found = wide(cnn(text=text, shapes=shapes, g=normal(rng, 32), b=normal(rng, 32)))
    assert not found & {"a", "n"}

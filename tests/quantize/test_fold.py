"""Folding keeps the float function and leaves the operators that can be quantized."""

import numpy as np
import onnx
import pytest
from quantize.models import model, normal, operators, run

from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Graph

RNG = np.random.default_rng(5)
W3 = normal(RNG, 6, 4, 3, 3, scale=0.2)
W1 = normal(RNG, 4, 6, 1, 1)
LINEAR = normal(RNG, 10, 7)
NORM = {"g": normal(RNG, 6), "b": normal(RNG, 6), "m": normal(RNG, 6), "v": np.abs(normal(RNG, 6)) + 0.1}
IMAGE = "(float[1,4,8,8] x) => (float[1,6,?,?] y)".replace("?", "8")

CASES: dict[str, tuple[onnx.ModelProto, list[str]]] = {
    "norm after conv without bias": (
        model(IMAGE + "{ c = Conv<pads=[1,1,1,1]>(x, w) y = BatchNormalization(c, g, b, m, v) }", w=W3, **NORM),
        ["Conv"],
    ),
    "norm after conv with bias": (
        model(IMAGE + "{ c = Conv<pads=[1,1,1,1]>(x, w, o) y = BatchNormalization<epsilon=0.001>(c, g, b, m, v) }",
              w=W3, o=normal(RNG, 6), **NORM),
        ["Conv"],
    ),
    "scale and shift after conv": (
        model(IMAGE + "{ c = Conv<pads=[1,1,1,1]>(x, w) d = Mul(s, c) e = Sub(t, d) f = Div(e, u) y = Relu(f) }",
              w=W3, s=normal(RNG, 1, 6, 1, 1), t=normal(RNG, 6, 1, 1), u=np.array([0.5])),
        ["Conv", "Relu"],
    ),
    "conv result read twice keeps its norm": (
        model("(float[1,4,8,8] x) => (float[1,6,6,6] y) "
              "{ c = Conv(x, w) n = BatchNormalization(c, g, b, m, v) y = Add(c, n) }",
              w=W3, **NORM),
        ["Conv", "Mul", "Add", "Add"],
    ),
    "norm between additions becomes depthwise": (
        model("(float[1,4,8,8] x) => (float[1,6,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, w) b0 = Relu(a) "
              "c = BatchNormalization(b0, g, b, m, v) d = Conv(c, w1) y = Conv<pads=[1,1,1,1]>(d, w) }",
              w=W3, w1=W1, **NORM),
        ["Conv", "Relu", "Conv", "Conv", "Conv"],
    ),
    "zero padding": (
        model("(float[1,4,8,8] x) => (float[1,6,4,4] y) { p = Pad(x, pads) y = Conv<strides=[2,2]>(p, w) }",
              w=W3, pads=np.array([0, 0, 0, 0, 0, 0, 1, 1])),
        ["Conv"],
    ),
    "other padding stays": (
        model("(float[1,4,8,8] x) => (float[1,6,7,7] y) { p = Pad(x, pads, one) y = Conv(p, w) }",
              w=W3, pads=np.array([0, 0, 0, 0, 0, 0, 1, 1]), one=np.float32(1)),
        ["Pad", "Conv"],
    ),
    "matmul and add": (
        model("(float[3,10] x) => (float[3,7] y) { m = MatMul(x, w) y = Add(b, m) }", w=LINEAR, b=normal(RNG, 7)),
        ["Gemm"],
    ),
    "batched matmul and add": (
        model("(float[2,3,10] x) => (float[2,3,7] y) { m = MatMul(x, w) y = Add(m, b) }", w=LINEAR, b=normal(RNG, 7)),
        ["Reshape", "Gemm", "Reshape"],
    ),
    "gemm with factors": (
        model("(float[3,10] x) => (float[3,7] y) { y = Gemm<alpha=0.5, beta=2.0>(x, w, b) }",
              w=LINEAR, b=normal(RNG, 1, 7)),
        ["Gemm"],
    ),
    "dropout and identity": (
        model("(float[3,10] x) => (float[3,7] y) { i = Identity(x) d = Dropout(i) y = MatMul(d, w) }", w=LINEAR),
        ["Gemm"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_folding_keeps_the_function(name: str) -> None:
    before, expected = CASES[name]
    after = fold(before)
    onnx.checker.check_model(after, full_check=True)
    assert operators(after) == expected
    shape = [d.dim_value for d in before.graph.input[0].type.tensor_type.shape.dim]
    inputs = {"x": normal(np.random.default_rng(1), *shape)}
    np.testing.assert_allclose(run(after, inputs)["y"], run(before, inputs)["y"], rtol=1e-4, atol=1e-4)


def test_every_weighted_operator_gets_a_bias() -> None:
    after = fold(model("(float[3,10] x) => (float[3,7] y) { y = MatMul(x, w) }", w=LINEAR))
    assert len(after.graph.node[0].input) == 3


def test_a_weight_that_two_layers_share_is_folded_for_each() -> None:
    shared = model(
        "(float[1,6,8,8] x) => (float[1,6,8,8] y) { a = Conv(x, w) c = Mul(a, s) d = Conv(c, w) y = Add(d, t) }",
        w=normal(RNG, 6, 6, 1, 1), s=normal(RNG, 6, 1, 1), t=normal(RNG, 6, 1, 1),
    )  # fmt: skip
    inputs = {"x": normal(RNG, 1, 6, 8, 8)}
    np.testing.assert_allclose(run(fold(shared), inputs)["y"], run(shared, inputs)["y"], rtol=1e-4, atol=1e-3)


def test_a_filter_bank_before_the_first_conv_stays_a_matmul() -> None:
    bank = model(
        "(float[1,1,8,10] x) => (float[1,6,6,5] y) { m = MatMul(x, w) y = Conv(m, k) }",
        w=LINEAR, k=normal(RNG, 6, 1, 3, 3),
    )  # fmt: skip
    assert operators(fold(bank)) == ["MatMul", "Conv"]


def _chain(length: int) -> onnx.ModelProto:
    """Layers whose norms, copies and scalars are folded into them, one after the other."""
    steps = (
        f"a{i} = Conv(y{i}, w) n{i} = BatchNormalization(a{i}, g, b, m, v) d{i} = Identity(n{i}) y{i + 1} = Relu(d{i})"
        for i in range(length)
    )
    text = f"(float[1,6,2,2] y0) => (float[1,6,2,2] y) {{ {' '.join(steps)} y = Conv(y{length}, w) }}"
    return model(text, w=normal(RNG, 6, 6, 1, 1, scale=0.4), **NORM)


def test_work_does_not_grow_with_the_number_of_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole-graph work (indexes, shape inference) is done as often for a long network as for a short one."""
    counted = {"reindex": 0, "infer": 0}
    index, infer = Graph.reindex, onnx.shape_inference.infer_shapes

    def reindexed(graph: Graph) -> None:
        counted["reindex"] += 1
        index(graph)

    def inferred(*given: object, **options: object) -> onnx.ModelProto:
        counted["infer"] += 1
        return infer(*given, **options)

    short, long = _chain(3), _chain(60)
    monkeypatch.setattr(Graph, "reindex", reindexed)
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", inferred)
    seen = []
    for proto in (short, long):
        counted.update(reindex=0, infer=0)
        assert set(operators(fold(proto))) == {"Conv", "Relu"}
        seen.append(dict(counted))
    assert seen[0] == seen[1]
    assert seen[0]["reindex"] == 1


def test_edits_leave_the_indexes_as_a_new_graph_has_them() -> None:
    graph = Graph(_chain(4))
    for node in list(graph.nodes):
        if node.op_type == "Identity":
            graph.bypass(node)
        elif node.op_type == "BatchNormalization":
            first = onnx.helper.make_node("Mul", [node.input[0], "g"], [f"{node.name}_m"])
            second = onnx.helper.make_node("Add", [f"{node.name}_m", "b"], [node.output[0]])
            graph.replace([node], [first, second])
        elif node.op_type == "Conv":
            graph.set_input(node, 2, "b")
    names = {name for node in graph.nodes for name in (*node.input, *node.output)}
    edited = {n: (graph.producer(n), {id(r) for r in graph.consumers(n)}) for n in names}
    order = [n.op_type for n in graph.nodes]
    graph.reindex()
    assert edited == {n: (graph.producer(n), {id(r) for r in graph.consumers(n)}) for n in names}
    assert order == ["Conv", "Mul", "Add", "Relu"] * 4 + ["Conv"]

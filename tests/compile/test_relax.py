"""Operators that TVM lowers, and what must not happen with the rest. ONNX's cases: conformance/test_onnx_nodes.py."""

import math

import numpy as np
import onnx
import pytest
from conformance.graphs import Builder
from onnx import helper

from edgebuild.core.errors import ModelError
from edgebuild.core.operators import OPERATORS, THROUGH_TVM
from edgebuild.core.target_file import load_target
from edgebuild.stages.compile import compile_model, foreign, relax
from edgebuild.stages.compile.foreign import Foreign

# The result's shape, or the loops, depend on these inputs: they have to be constants
FIXED = {"axes", "axis", "k", "depth", "size", "values", "pads", "shape"}


def run(node: onnx.NodeProto, opset: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
    given = iter(inputs)
    values = [next(given) if name else None for name in node.input]
    return Foreign()(node, opset, values, [name in FIXED for name in node.input])


def test_an_operator_is_in_one_list() -> None:
    assert not OPERATORS & THROUGH_TVM


def test_what_the_importer_ignores_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    node = helper.make_node("IsInf", ["x"], ["y"], "n", detect_positive=0)
    given = [np.float32([1, np.inf, -np.inf])]
    with pytest.raises(ModelError, match="n: IsInf: with detect_positive=0, which TVM ignores"):
        run(node, 20, given)
    monkeypatch.setattr(relax, "_IGNORED", {})  # also what nobody has listed yet
    with pytest.raises(ModelError, match=r"n: IsInf: TVM's and ONNX Runtime's results for y differ"):
        run(node, 20, given)


def test_what_tvm_cannot_lower_is_refused() -> None:
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], "n")
    with pytest.raises(ModelError, match="n: CumSum: TVM makes of it what no kernel can hold"):
        run(node, 14, [np.ones(3, np.float32), np.array(0, np.int32)])


def test_loops_that_data_could_make_endless_are_refused() -> None:
    node = helper.make_node("RoiAlign", ["x", "rois", "batch"], ["y"], "n", output_height=5, output_width=5)
    rois = np.float32([[0, 0, 4, 4]])
    with pytest.raises(ModelError, match="a loop whose length depends on data"):
        run(node, 16, [np.ones((1, 1, 8, 8), np.float32), rois, np.zeros(1, np.int64)])


def test_more_tensors_than_a_call_takes() -> None:
    names = [f"x{i}" for i in range(17)]
    with pytest.raises(ModelError, match=r"n: Mean: .*: loops over more than 16 tensors"):
        run(helper.make_node("Mean", names, ["y"], "n"), 13, [np.ones(3, np.float32) for _ in names])


def test_what_fails_on_the_samples_is_an_error_of_the_model() -> None:
    node = helper.make_node("GatherElements", ["x", "i"], ["y"], "n")
    with pytest.raises(ModelError, match="n: GatherElements: it does not run on the calibration samples"):
        run(node, 13, [np.ones((2, 2), np.float32), np.full((2, 2), 9, np.int64)])


def test_more_axes_than_a_plan_holds() -> None:
    node = helper.make_node("Einsum", ["x", "y"], ["z"], equation="abcd,efgh->abcdefgh")
    given = [np.ones((1, 2, 1, 2), np.float32), np.ones((2, 1, 2, 1), np.float32)]
    assert run(node, 13, given)[0].shape == (1, 2, 1, 2, 2, 1, 2, 1)
    b = Builder("b", np.random.default_rng(0))
    wide = b.node("Einsum", b.input(1, 2, 1, 2), b.input(2, 1, 2, 1), equation="abcd,efgh->abcdefgh")
    output = helper.make_tensor_value_info(wide, onnx.TensorProto.FLOAT, [1, 2, 1, 2, 2, 1, 2, 1])
    graph = helper.make_graph(b.nodes, "wide", b.inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    with pytest.raises(ModelError, match="has 8 axes; inputs and outputs have at most 6"):
        compile_model(model, load_target("x86_64-avx2"))


@pytest.mark.parametrize("index", [-(2**62), -4, 3, 2**40, 2**62])
def test_indices_stay_inside(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indices are data: whatever they are, nothing outside of the tensors is read or written."""
    monkeypatch.setattr(foreign._Operator, "_compare", lambda *_: None)
    monkeypatch.setattr(foreign, "_reference", lambda _: lambda __: [None])
    data, indices = np.float32([[1, 2], [3, 4], [5, 6]]), np.array([[index]], np.int64)
    (gathered,) = run(helper.make_node("GatherND", ["data", "indices"], ["y"]), 13, [data, indices])
    assert set(gathered.reshape(-1)) <= set(data.reshape(-1))
    updates = np.float32([[-1, -2]])
    for operator in ("ScatterND", "ScatterElements"):
        places = indices if operator == "ScatterND" else np.full((1, 2), index, np.int64)
        node = helper.make_node(operator, ["data", "indices", "updates"], ["y"])
        (scattered,) = run(node, 18, [data, places, updates])
        assert set(scattered.reshape(-1)) <= {*data.reshape(-1), *updates.reshape(-1)}


def test_functions_round_as_their_values_in_double() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 3, 500), rng.uniform(-1, 1, 500), [0, 1e-30, 1e9, -3e38]]).astype(np.float32)
    for operator in ("Sin", "Cos", "Tan", "Sinh", "Cosh", "Asin", "Acos", "Atan", "Asinh", "Acosh", "Atanh"):
        numpys = operator.lower().replace("a", "arc", 1) if operator[0] == "A" else operator.lower()
        (found,) = run(helper.make_node(operator, ["x"], ["y"]), 22, [x])
        with np.errstate(all="ignore"):
            exact = getattr(np, numpys)(x.astype(np.float64))
            wanted = exact.astype(np.float32)
        near = np.nextafter(wanted, np.float32(math.inf)), np.nextafter(wanted, np.float32(-math.inf))
        good = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
        assert good.mean() > 0.999, operator
        assert (good | (found == near[0]) | (found == near[1])).all(), operator

"""Operators that TVM lowers: ONNX's own cases for each, and what must not happen with the rest."""

import math
import warnings
from functools import cache

import numpy as np
import onnx
import pytest
from conformance.graphs import Builder
from onnx import helper
from onnx.backend.test.case.node import collect_testcases

from edgebuild.core.errors import ModelError
from edgebuild.core.operators import OPERATORS, THROUGH_TVM
from edgebuild.core.target_file import load_target
from edgebuild.stages.compile import compile_model, foreign
from edgebuild.stages.compile.foreign import Foreign

TYPES = {"uint8", "int8", "int32", "int64", "float32", "bool"}
# The result's shape, or the loops, depend on these inputs: they have to be constants
FIXED = {"axes", "axis", "k", "depth", "size", "values", "pads", "shape"}
# Cases with what the importer ignores; the comparison with ONNX Runtime finds it
REFUSED = {
    "BatchNormalization": "training_mode",
    "ConvTranspose": "output_shape",
    "IsInf": "test_isinf_",
    "Mod": "fmod_0",
    "RoiAlign": "max",
}


@cache
def cases() -> dict[str, list[tuple[str, onnx.NodeProto, int, list[np.ndarray], list[np.ndarray]]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = collect_testcases(None)
    found: dict[str, list[tuple[str, onnx.NodeProto, int, list[np.ndarray], list[np.ndarray]]]] = {}
    for case in collected:
        if case.model is None or len(case.model.graph.node) != 1:
            continue
        node, (inputs, outputs) = case.model.graph.node[0], case.data_sets[0]
        if node.op_type not in THROUGH_TVM:
            continue
        arrays = [[_float32(np.asarray(a)) for a in part] for part in (inputs, outputs)]
        if any(a.dtype.name not in TYPES or a.size == 0 for part in arrays for a in part):
            continue
        opset = case.model.opset_import[0].version
        found.setdefault(node.op_type, []).append((case.name, node, opset, *arrays))
    return found


def _float32(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array


def run(node: onnx.NodeProto, opset: int, inputs: list[np.ndarray]) -> list[np.ndarray]:
    given = iter(inputs)
    values = [next(given) if name else None for name in node.input]
    return Foreign()(node, opset, values, [name in FIXED for name in node.input])


@pytest.mark.parametrize("operator", sorted(THROUGH_TVM))
def test_onnx_cases(operator: str) -> None:
    passed, refused = 0, []
    for name, node, opset, inputs, expected in cases()[operator]:
        try:
            found = run(node, opset, inputs)
        except ModelError as error:
            refused.append(f"{name}: {error}")
            continue
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == b.dtype, name
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=name)
        passed += 1
    assert passed
    assert all(REFUSED.get(operator, "none") in text for text in refused), refused


def test_an_operator_is_in_one_list() -> None:
    assert not OPERATORS & THROUGH_TVM


def test_what_the_importer_ignores_is_refused() -> None:
    node = helper.make_node("IsInf", ["x"], ["y"], "n", detect_positive=0)
    with pytest.raises(ModelError, match=r"n: IsInf: TVM's and ONNX Runtime's results for y differ"):
        run(node, 20, [np.float32([1, np.inf, -np.inf])])


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

"""Every claimed operator passes ONNX's own cases, or refuses a form of itself; none gives a wrong result."""

import dataclasses
import itertools
import sys

import numpy as np
import onnx
import pytest
from benchmarks import operator_table
from conformance import onnx_nodes
from conformance.onnx_nodes import CLAIMED, Case, Outcome
from onnx import helper

from edgebuild.core.manifest import DTYPES
from edgebuild.core.target_file import load_target


@pytest.fixture(scope="module")
def found() -> list[Outcome]:
    return onnx_nodes.outcomes(load_target("host"), onnx_nodes.cases())


def test_no_case_gives_a_wrong_result(found: list[Outcome]) -> None:
    wrong = [f"{o.case.name}: {o.why}" for o in found if o.kind == "wrong"]
    assert not wrong, "\n".join(wrong)


def test_every_claimed_operator_passes(found: list[Outcome]) -> None:
    counts = onnx_nodes.table(found)
    sys.stdout.write("".join(f"{operator}: {dict(row)}\n" for operator, row in counts.items()))
    assert [operator for operator in CLAIMED if not counts[operator]["passed"]] == []


def test_what_is_refused_names_the_layer_and_a_remedy(found: list[Outcome]) -> None:
    for outcome in found:
        if outcome.kind == "refused":
            message, hint = outcome.why.split(" | ")
            assert message, outcome.case.name
            assert hint, outcome.case.name
            assert "\n" not in message, outcome.case.name


def test_the_table_of_operators_is_up_to_date(found: list[Outcome]) -> None:
    text = operator_table.OPERATORS.read_text(encoding="utf-8")
    assert {line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()} >= CLAIMED
    if f"onnx {onnx.__version__}" in text:  # another version has other cases
        assert text == operator_table.page(found), "run tests/benchmarks/operator_table.py"


def test_a_wrong_result_is_found() -> None:
    (good,) = (case for case in onnx_nodes.cases() if case.name == "test_add")
    bad = dataclasses.replace(good, outputs=(good.outputs[0] + 1,))
    turned = dataclasses.replace(good, outputs=(good.outputs[0].swapaxes(0, 2),))
    assert [o.kind for o in onnx_nodes.outcomes(load_target("host"), [good, bad, turned])] == [
        "passed",
        "wrong",
        "wrong",
    ]


def one(operator: str, inputs: list[np.ndarray], output: np.ndarray, **attributes: object) -> Case:
    """A case that ONNX does not have."""
    names = [f"x{i}" for i in range(len(inputs))]
    values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for name, a in zip((*names, "y"), (*inputs, output), strict=True)]  # fmt: skip
    node = helper.make_node(operator, names, ["y"], "n", **attributes)
    graph = helper.make_graph([node], "case", values[:-1], values[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    name = f"{operator} {[a.dtype.name for a in inputs]} {output.dtype}"
    return Case(name, operator, model, tuple(inputs), (output,), 0, 0)


def check(cases: list[Case]) -> None:
    outcomes = onnx_nodes.outcomes(load_target("host"), cases)
    assert [f"{o.case.name}: {o.why}" for o in outcomes if o.kind != "passed"] == []


def test_casts_between_all_types_of_a_bundle() -> None:
    """ONNX's own cases of Cast are about types that a bundle does not have."""
    x = np.array([0, 1, 2, 3, 100, 127, 5, 77] * 5)
    pairs = [(a, b) for a, b in itertools.product(DTYPES, DTYPES) if a != b]
    to = {b: helper.np_dtype_to_tensor_dtype(np.dtype(b)) for b in DTYPES}
    check([one("Cast", [x.astype(a)], x.astype(a).astype(b), to=to[b]) for a, b in pairs])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
def test_casts_saturate(dtype: str) -> None:
    """SPEC section 8; ONNX leaves what does not fit undefined, and CPUs differ in it."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    x = np.array([-3.7, -0.5, 0.0, 0.99, 2.5, 1e20, -1e20, 126.9, np.inf, -np.inf, np.nan, -127.5] * 5, np.float32)
    whole = [-3, 0, 0, 0, 2, high, low, 126, high, low, 0, -127]
    y = np.array([min(max(n, low), high) for n in whole] * 5, dtype)
    check([one("Cast", [x], y, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
def test_integers_outside_of_onnx_cases(dtype: str) -> None:
    """Arithmetic on integers, with what a CPU traps: a division by 0 counts as one by 1, and wraps."""
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    a = np.array([low, low, high, 7, 9, low, 100, 3] * 9, dtype)
    b = np.array([high, 1, 2, 2, 3, low or 5, 7, 3] * 9, dtype)
    cases = [one("Div", [a, b], np.trunc(a.astype(object) / b.astype(object)).astype(dtype)) if dtype != "int64" else
             one("Div", [a[2:5], b[2:5]], a[2:5] // b[2:5]),
             one("Div", [a, np.zeros_like(a)], a),
             one("Max", [a, b], np.maximum(a, b)), one("Min", [a, b], np.minimum(a, b)),
             one("Clip", [a, np.array(3, dtype), np.array(8, dtype)], np.clip(a, 3, 8)),
             one("ReduceMax", [a], np.array([a.max()])), one("ArgMax", [a], np.array([2]))]  # fmt: skip
    if low:
        cases += [one("Div", [a, np.full_like(a, -1)], np.negative(a)), one("Relu", [a], np.maximum(a, 0)),
                  one("Neg", [a], np.negative(a)), one("Abs", [a], np.abs(a))]  # fmt: skip
    check(cases)

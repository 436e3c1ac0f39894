"""What runs in integers of graphs with 16-bit activations or float32 results of layers, and what is refused."""

import numpy as np
import pytest
from conformance.graphs import CASES, Builder, merged
from onnx import TensorProto

from edgebuild.core.errors import ModelError
from edgebuild.core.plan import Plan, read_plan
from edgebuild.core.target_file import load_target
from edgebuild.stages.compile import compile_model


def planned(case) -> Plan:  # type: ignore[no-untyped-def]
    return read_plan(compile_model(merged({"case": case}), load_target("x86_64-avx2")).plan)


@pytest.mark.parametrize(
    "name",
    [
        "words_pointwise", "words_depthwise", "words_to_bytes_and_to_float", "words_of_bytes", "words_matmul_with_bias",
        "words_depthwise_large", "words_signed", "logits_of_an_integer_layer", "float_heads", "float_depthwise",
    ],
)  # fmt: skip
def test_every_product_is_one_of_integers(name: str) -> None:
    plan = planned(CASES[name])
    assert plan.macs_total > 0
    assert plan.macs_integer == plan.macs_total


def test_16_bits_take_two_bytes() -> None:
    plan = planned(CASES["words_pointwise"])
    assert {op.kind for op in plan.ops} == {"slice", "map", "layout", "conv"}
    convs = [op for op in plan.ops if op.kind == "conv"]
    assert [plan.tensors[op.outputs[0]].dtype for op in convs] == ["int16"] * 3


def test_inputs_of_a_concat_are_made_where_they_belong() -> None:
    plan = planned(CASES["words_joined_in_place"])
    assert "concat" not in {op.kind for op in plan.ops}


def test_the_code_depends_on_no_value() -> None:
    """Other scales, zero points and weights, the same code."""

    def case(scale: float, zero: int):  # type: ignore[no-untyped-def]
        def build(b: Builder) -> str:
            x = b.wide(1, 9, 6, 6, scale=scale, zero=zero)
            y = b.words(b.conv(x, 16, 9, 3, 3, pads=[1, 1, 1, 1]), scale * 3, zero)
            return b.words(b.node("Add", y, b.activation(1, 16, 6, 6, scale=scale * 99)), scale * 4)

        return build

    one, two = (compile_model(merged({"case": case(*v)}), load_target("x86_64-avx2")) for v in ((1e-4, 7), (3e-3, 900)))
    assert one.program_so == two.program_so
    assert one.plan == two.plan
    assert one.weights != two.weights


def _raw(b: Builder) -> str:
    q = b.node("QuantizeLinear", b.input(2, 3), b.constant(0.1), b.constant(7, np.uint16))
    return b.node("Cast", q, to=TensorProto.FLOAT)


def _made(b: Builder) -> str:
    words = b.node("Cast", b.input(2, 3), to=TensorProto.UINT16)
    return b.node("DequantizeLinear", words, b.constant(0.1), b.constant(7, np.uint16))


def _blank(b: Builder) -> str:
    q = b.node("QuantizeLinear", b.input(2, 3), b.constant(0.1), output_dtype=TensorProto.UINT16)
    return b.node("DequantizeLinear", q, b.constant(0.1))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (_raw, "case_node.*: Cast: 16-bit integers other than between QuantizeLinear and DequantizeLinear"),
        (_made, "case_node.*: Cast: 16-bit integers other than between"),
        (_blank, "case_node.*: DequantizeLinear: a tensor of 16 bits needs a zero point of its type"),
    ],
)
def test_other_uses_of_16_bits_are_refused(case, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ModelError, match=message):
        planned(case)

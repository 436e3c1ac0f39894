"""What becomes of kernel calls that others can do."""

import numpy as np
import onnx
from conformance.graphs import CASES, Builder, merged
from onnx import TensorProto, helper

from edgebuild.kernels.elementwise import Binary, binary_kernel, can_overwrite
from edgebuild.kernels.isa import ISAS
from edgebuild.stages.compile.fuse import fuse
from edgebuild.stages.compile.lower import lower
from edgebuild.stages.compile.values import Step


def _sums(model: onnx.ModelProto) -> list[Step]:
    lowered = lower(model, ISAS["avx2"])
    fuse(lowered.emitter, lowered.kept)
    return [step for step in lowered.emitter.steps if step.make is binary_kernel]


def _of(name: str) -> onnx.ModelProto:
    return merged({name: CASES[name]})


def test_a_sum_overwrites_the_operand_that_nobody_reads_again() -> None:
    first, second, third, last = _sums(_of("residual_chain"))
    assert first.option("overwrites") == 0
    assert first.output == first.inputs[0]
    assert second.option("overwrites") == 0, "the convolution's result; the other is read by the third"
    assert third.option("overwrites") == 0, "y; z is read by the last sum"
    assert last.option("overwrites") in (0, 1)


def test_one_tensor_seen_twice_is_not_overwritten() -> None:
    (step,) = _sums(_of("sum_of_one_tensor_seen_twice"))
    assert step.option("overwrites") is None


def test_inputs_of_the_model_stay() -> None:
    b = Builder("add", np.random.default_rng(0))
    parameters = b.constant(0.02), b.constant(3, np.uint8)
    given = [b.input(1, 32, dtype=TensorProto.UINT8) for _ in range(2)]
    total = b.node("Add", *(b.node("DequantizeLinear", name, *parameters) for name in given))
    total = b.node("QuantizeLinear", total, *parameters)
    output = helper.make_tensor_value_info(total, TensorProto.UINT8, [1, 32])
    graph = helper.make_graph(b.nodes, "add", b.inputs, [output], b.initializers)
    (step,) = _sums(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert step.option("overwrites") is None


def test_blocks_that_overlap_cannot_overwrite() -> None:
    isa = ISAS["avx2"]
    assert can_overwrite(Binary("add", 1, 64), isa)
    assert not can_overwrite(Binary("add", 1, 65), isa)
    assert can_overwrite(Binary("mul", 9, 16, broadcast=True), isa)
    assert not can_overwrite(Binary("mul", 9, 20, broadcast=True), isa)

"""Other tools' quantized activations, int8, as the uint8 that SPEC section 9 states: values and zero points + 128.

Scales stay, and so does what every number means. Where the graph's own inputs and outputs are int8 they stay int8, and
a cast with an offset stands between.
"""

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgebuild.core.errors import ModelError

_OFFSET = 128
_MOVES = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice",
    "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""What may stand between a QuantizeLinear and a DequantizeLinear: the order of values matters, the offset does not."""
_Q, _DQ = "QuantizeLinear", "DequantizeLinear"


def with_unsigned_activations(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model`, normalized, with uint8 in place of quantized int8 activations; the same model if it has none.

    Raises ModelError for an operator that works on quantized int8 values themselves.
    """
    signed = _signed(model)
    if not signed:
        return model
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    zeros = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in (_Q, _DQ):
            if node.input[0] in signed or node.output[0] in signed:
                _shift_zero_point(graph, node, zeros)
        elif signed.intersection([*node.input, *node.output]):
            _check_move(node, zeros, name)
    _convert_ports(graph, signed)
    for value in graph.value_info:
        if value.name in signed:
            value.type.tensor_type.elem_type = TensorProto.UINT8
    _drop_unused(graph)
    onnx.checker.check_model(found, full_check=True)
    return found


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _signed(model: onnx.ModelProto) -> set[str]:
    """The int8 values between QuantizeLinear and DequantizeLinear nodes, constants aside."""
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    int8 = {
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.INT8
    } - constants
    quantized = {node.output[0] for node in graph.node if node.op_type == _Q}
    quantized |= {node.input[0] for node in graph.node if node.op_type == _DQ}
    reached = quantized & int8
    while grown := {
        value
        for node in graph.node
        if node.op_type in _MOVES and reached.intersection([*node.input, *node.output])
        for value in (*node.input, *node.output)
        if value in int8 and value not in reached
    }:
        reached |= grown
    return reached


def _shift_zero_point(graph: onnx.GraphProto, node: onnx.NodeProto, constants: dict[str, TensorProto]) -> None:
    given = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    old = np.zeros((), np.int8) if given is None else numpy_helper.to_array(given)
    shifted = f"{node.input[2]}.unsigned" if given is not None else f"{node.input[1]}.unsigned_zero"
    if shifted not in constants:
        tensor = numpy_helper.from_array((old.astype(np.int16) + _OFFSET).astype(np.uint8), shifted)
        graph.initializer.append(tensor)
        constants[shifted] = tensor
    node.input[:] = [*node.input[:2], shifted]
    kept = [attribute for attribute in node.attribute if attribute.name != "output_dtype"]
    del node.attribute[:]
    node.attribute.extend(kept)


def _check_move(node: onnx.NodeProto, constants: dict[str, TensorProto], name: str) -> None:
    if node.op_type not in _MOVES:
        raise ModelError(
            f"{name}: {node.op_type} '{node.name}' works on quantized int8 values without DequantizeLinear",
            "put DequantizeLinear before and QuantizeLinear behind it, or give the float model",
        )
    for place, value in enumerate(node.input):  # what Pad writes, and constants that are joined
        constant = constants.get(value)
        if constant is not None and constant.data_type == TensorProto.INT8 and (node.op_type != "Pad" or place == 2):
            array = numpy_helper.to_array(constant).astype(np.int16) + _OFFSET
            constant.CopyFrom(numpy_helper.from_array(array.astype(np.uint8), value))


def _convert_ports(graph: onnx.GraphProto, signed: set[str]) -> None:
    """Casts behind int8 inputs and before int8 outputs."""
    before: list[onnx.NodeProto] = []
    behind: list[onnx.NodeProto] = []
    for value in graph.input:
        if value.name in signed:
            inner = f"{value.name}.unsigned"
            _rename(graph.node, value.name, inner)
            before += _cast(graph, value.name, inner, to_unsigned=True)
    for value in graph.output:
        if value.name in signed:
            inner = f"{value.name}.unsigned"
            _rename(graph.node, value.name, inner)
            behind += _cast(graph, inner, value.name, to_unsigned=False)
    nodes = [*before, *graph.node, *behind]
    del graph.node[:]
    graph.node.extend(nodes)


def _rename(nodes: Iterable[onnx.NodeProto], old: str, new: str) -> None:
    for node in nodes:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]


def _cast(graph: onnx.GraphProto, source: str, target: str, *, to_unsigned: bool) -> list[onnx.NodeProto]:
    """int8 to uint8 with the offset added, or back. In int32: both are exact, and neither wraps."""
    offset = "unsigned.offset"
    if all(tensor.name != offset for tensor in graph.initializer):
        graph.initializer.append(numpy_helper.from_array(np.array(_OFFSET, np.int32), offset))
    wide, moved = f"{source}.int32", f"{target}.int32"
    kind = TensorProto.UINT8 if to_unsigned else TensorProto.INT8
    return [
        helper.make_node("Cast", [source], [wide], name=f"{wide}.Cast", to=TensorProto.INT32),
        helper.make_node("Add" if to_unsigned else "Sub", [wide, offset], [moved], name=f"{moved}.offset"),
        helper.make_node("Cast", [moved], [target], name=f"{target}.Cast", to=kind),
    ]

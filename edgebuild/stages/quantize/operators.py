"""Which operators have an integer form (SPEC section 7): each function returns what stands against it, or `""`."""

from collections.abc import Callable

from onnx import NodeProto

from edgebuild.stages.quantize.graph import Graph, Types, attributes, integers, optional_input
from edgebuild.stages.quantize.parameters import largest_bias

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
POOLS = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
CLIPS = frozenset({"Clip", "Relu"})
MOVES = frozenset({
    "Expand", "Flatten", "Gather", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
})  # fmt: skip
UNARY = frozenset({
    "Abs", "Celu", "Clip", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
})  # fmt: skip
ROWS = frozenset({"LayerNormalization", "Softmax"})
SCALAR_BINARY = frozenset({"Add", "Div", "Max", "Min", "Mul", "PRelu", "Pow", "Sub"})
_PADDINGS = {b"constant", b"edge", b"reflect"}
_LONGEST_NORM = 32768  # elements of a row whose squares a 32-bit sum holds
_LEAST_BIAS = 1 << 20  # room that the accumulator must leave for a bias


def is_weighted(graph: Graph, node: NodeProto) -> bool:
    """Whether a node is a layer with weights; a MatMul of two activations is an operator like Add."""
    return node.op_type in WEIGHTED and not (node.op_type == "MatMul" and len(graph.data_inputs(node)) == 2)


def weight_problem(graph: Graph, node: NodeProto) -> str:
    """Why a Conv, Gemm or MatMul is not quantized."""
    weight, bias = graph.constant(optional_input(node, 1)), optional_input(node, 2)
    if weight is None or node.input[0] in graph.constants or (bias and graph.constant(bias) is None):
        return "weights or bias are computed at run time"
    if str(weight.dtype) != "float32":
        return f"weights are {weight.dtype}"
    if weight.ndim != (4 if node.op_type == "Conv" else 2):
        return "only two-dimensional convolutions and matrices of weights are quantized"
    if node.op_type == "Gemm" and (attributes(node).get("transA", 0) or not attributes(node).get("transB", 0)):
        return "the matrix product is transposed"
    terms = weight.shape[0] if node.op_type == "MatMul" else weight[0].size
    return "" if largest_bias(terms) >= _LEAST_BIAS else f"a sum of {terms} products may leave int32"


def operator_problem(graph: Graph, types: Types, node: NodeProto) -> str:
    """Why an operator without weights is not quantized."""
    data, outputs = graph.data_inputs(node), [o for o in node.output if o]
    if not data or any(not types.is_float(t) for t in [*data, *outputs]):
        return "not a float32 operator"
    if len(outputs) > 1 and node.op_type != "Split":
        return "has more than one output"
    checks = (check for kinds, check in _CHECKS if node.op_type in kinds)
    check = next(checks, None)
    return "no integer form" if check is None else check(graph, types, node, data)


def _concat_problem(_: Graph, __: Types, node: NodeProto, data: list[str]) -> str:
    return "" if len(data) == len(node.input) else "concatenates constants"


def _unary_problem(_: Graph, __: Types, node: NodeProto, data: list[str]) -> str:
    return "" if data == [node.input[0]] else "its bounds are computed at run time"


def _binary_problem(graph: Graph, types: Types, node: NodeProto, data: list[str]) -> str:
    if len(data) == 1 and len(set(node.input)) == 2:
        other = next(name for name in node.input if name not in data)
        scalar = graph.constants[other].size == 1 and types.same_shape(data[0], node.output[0])
        return "" if scalar else "its constant is not a scalar"
    return "" if node.op_type in {"Add", "Mul"} else "no integer form for two tensors"


def _move_problem(_: Graph, types: Types, node: NodeProto, data: list[str]) -> str:
    given = attributes(node)
    if data != [node.input[0]]:
        return "its shape or indices are computed at run time"
    if node.op_type == "Resize" and given.get("mode", b"nearest") != b"nearest":
        return "linear resizing runs in float32"
    if node.op_type == "Pad" and given.get("mode", b"constant") not in _PADDINGS:
        return "this padding mode has no integer form"
    if node.op_type == "MaxPool" and len(types.shape(data[0]) or ()) != 4:
        return "only two-dimensional pooling is quantized"
    return ""


def _pool_problem(graph: Graph, types: Types, node: NodeProto, _: list[str]) -> str:
    rank = len(types.shape(node.input[0]) or ())
    if rank != 4:
        return "only two-dimensional pooling is quantized"
    if node.op_type != "ReduceMean":
        return ""
    axes = integers(graph, node, 1, "axes")
    spatial = axes is not None and {a % rank for a in axes} == {2, 3}
    return "" if spatial else "averages over other than the spatial axes"


def _product_problem(_: Graph, types: Types, node: NodeProto, data: list[str]) -> str:
    shapes = [types.shape(t) or () for t in node.input]
    if len(data) != 2 or min(map(len, shapes)) < 2:
        return "not a product of two matrices"
    return "" if 255 * 255 * shapes[0][-1] < 2**31 else "its sums may leave int32"


def _rows_problem(_: Graph, types: Types, node: NodeProto, data: list[str]) -> str:
    shape, axis = types.shape(node.input[0]) or (), attributes(node).get("axis", -1)
    if data != [node.input[0]] or not shape:
        return "its scale or offset is computed at run time"
    size = 1
    for n in shape[axis % len(shape) :] if node.op_type == "LayerNormalization" else ():
        size *= n
    return "" if size <= _LONGEST_NORM else "its rows are too long"


_Check = Callable[[Graph, Types, NodeProto, list[str]], str]
_CHECKS: tuple[tuple[frozenset[str], _Check], ...] = (
    (MOVES, _move_problem),
    (POOLS, _pool_problem),
    (frozenset({"Concat"}), _concat_problem),
    (frozenset({"MatMul"}), _product_problem),
    (ROWS, _rows_problem),
    (UNARY, _unary_problem),
    (SCALAR_BINARY, _binary_problem),
)

"""Small QDQ graphs, one for every way that the compiler lowers an operator, merged into one model for each target."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CASES: dict[str, Callable[["Builder"], str]] = {}


def case(build: Callable[["Builder"], str]) -> Callable[["Builder"], str]:
    CASES[build.__name__] = build
    return build


@dataclass
class Builder:
    """Writes one case into a graph; every name starts with the case's."""

    prefix: str
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    _count: int = 0

    def fresh(self, stem: str) -> str:
        self._count += 1
        return f"{self.prefix}_{stem}{self._count}"

    def input(self, *shape: int, dtype: int = TensorProto.FLOAT) -> str:
        name = self.fresh("in")
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, value: object, dtype: object = np.float32) -> str:
        name = self.fresh("c")
        self.initializers.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def node(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> str:
        return self.nodes_of(op, *inputs, outputs=outputs, **attrs)[0]

    def nodes_of(self, op: str, *inputs: str, outputs: int = 1, **attrs: object) -> list[str]:
        names = [self.fresh(op) for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=self.fresh("node"), **attrs))
        return names

    def quantized(self, value: str, scale: float = 0.02, zero: int = 117) -> str:
        """Value → QuantizeLinear → DequantizeLinear."""
        parameters = self.constant(scale), self.constant(zero, np.uint8)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *parameters), *parameters)

    def words(self, value: str, scale: float = 2e-4, zero: int = 30_000, dtype: type = np.uint16) -> str:
        """The same with 16 bits."""
        parameters = self.constant(scale), self.constant(zero, dtype)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", value, *parameters), *parameters)

    def wide(self, *shape: int, scale: float = 2e-4, zero: int = 30_000) -> str:
        return self.words(self.input(*shape), scale, zero)

    def activation(self, *shape: int, scale: float = 0.02, zero: int = 117) -> str:
        return self.quantized(self.input(*shape), scale, zero)

    def weights(self, *shape: int, axis: int = 0) -> str:
        values = self.constant(self.rng.integers(-127, 128, shape), np.int8)
        count = shape[axis]
        scale = self.constant(self.rng.uniform(0.001, 0.01, count))
        return self.node("DequantizeLinear", values, scale, self.constant(np.zeros(count), np.int8), axis=axis)

    def moved(self, x: str, op: str, *inputs: str, **attrs: object) -> str:
        """A move of `x` that keeps its quantization parameters."""
        scale, zero = next(n.input[1:] for n in self.nodes if x in n.output)
        moved = self.node(op, x, *inputs, **attrs)
        return self.node("DequantizeLinear", self.node("QuantizeLinear", moved, scale, zero), scale, zero)

    def conv(self, x: str, *shape: int, bias: bool = True, **attrs: object) -> str:
        operands = [x, self.weights(*shape)]
        if bias:
            operands.append(self.constant(self.rng.normal(0, 0.5, shape[0])))
        return self.node("Conv", *operands, **attrs)


@dataclass
class _Pool:
    """One long input from which every case cuts its own: a bundle has few inputs, the cases have many."""

    name: str
    dtype: int
    size: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def cut(self, value: onnx.ValueInfoProto) -> None:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        start, self.size = self.size, self.size + int(np.prod(shape))
        numbers = {"starts": [start], "ends": [self.size], "shape": shape}
        for part, array in numbers.items():
            self.initializers.append(numpy_helper.from_array(np.array(array, np.int64), f"{value.name}_{part}"))
        cut = [self.name, f"{value.name}_starts", f"{value.name}_ends"]
        self.nodes.append(helper.make_node("Slice", cut, [f"{value.name}_cut"], name=f"{value.name}_cut"))
        shaped = [f"{value.name}_cut", f"{value.name}_shape"]
        self.nodes.append(helper.make_node("Reshape", shaped, [value.name], name=f"{value.name}_reshape"))


def merged(cases: Mapping[str, Callable[[Builder], str]]) -> onnx.ModelProto:
    """One model with an output `NAME` for each case, and the inputs `floats` and `bytes` as far as cases read them."""
    pools = {code: _Pool(name, code) for name, code in (("floats", TensorProto.FLOAT), ("bytes", TensorProto.UINT8))}
    nodes, initializers = [], []
    for index, (name, build) in enumerate(cases.items()):
        builder = Builder(name, np.random.default_rng(index))
        result = build(builder)
        nodes += [*builder.nodes, helper.make_node("Identity", [result], [name], name=f"{name}_result")]
        initializers += builder.initializers
        for value in builder.inputs:
            pools[value.type.tensor_type.elem_type].cut(value)
    used = [pool for pool in pools.values() if pool.size]
    for pool in used:
        nodes, initializers = [*pool.nodes, *nodes], [*pool.initializers, *initializers]
    inputs = [helper.make_tensor_value_info(p.name, p.dtype, [p.size]) for p in used]
    outputs = [helper.make_empty_tensor_value_info(name) for name in cases]
    graph = helper.make_graph(nodes, "cases", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    onnx.checker.check_model(typed)
    return typed


def samples(model: onnx.ModelProto, count: int) -> list[dict[str, np.ndarray]]:
    """Inputs that reach both ends of the quantized ranges."""
    rng = np.random.default_rng(99)

    def sample(value: onnx.ValueInfoProto) -> np.ndarray:
        kind = value.type.tensor_type
        size = kind.shape.dim[0].dim_value
        if kind.elem_type == TensorProto.UINT8:
            return rng.integers(0, 256, size).astype(np.uint8)
        return rng.normal(0.3, 1.5, size).astype(np.float32)

    return [{value.name: sample(value) for value in model.graph.input} for _ in range(count)]


@case
def conv_pointwise(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 24, 9, 7), 40, 24, 1, 1), 0.05)


@case
def conv_odd_channels(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 5, 9, 11), 11, 5, 3, 3, pads=[1, 1, 1, 1]), 0.05, 3)


@case
def conv_few_outputs(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 6, 5, 5), 3, 6, 1, 1, bias=False), 0.05, 250)


@case
def conv_first_layer(b: Builder) -> str:
    x = b.activation(1, 3, 31, 29, zero=0)
    return b.quantized(b.node("Relu", b.conv(x, 16, 3, 3, 3, strides=[2, 2], pads=[0, 0, 1, 1])), 0.03, 0)


@case
def conv_dilated_grouped(b: Builder) -> str:
    x = b.activation(2, 12, 11, 9)
    return b.quantized(b.conv(x, 18, 4, 3, 2, group=3, dilations=[2, 1], pads=[2, 0, 1, 1], strides=[2, 1]), 0.04)


@case
def conv_grouped_pointwise(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 32, 6, 6), 64, 8, 1, 1, group=4), 0.04)


@case
def conv_clip(b: Builder) -> str:
    y = b.conv(b.activation(1, 16, 8, 8), 32, 16, 3, 3, pads=[1, 1, 1, 1])
    return b.quantized(b.node("Clip", y, b.constant(-0.7), b.constant(1.3)), 0.02, 100)


@case
def conv_saturates(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 64, 4, 4, scale=0.1), 16, 64, 3, 3), 1e-4, 128)


@case
def conv_same_upper(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 8, 10, 10), 16, 8, 3, 3, auto_pad="SAME_UPPER", strides=[2, 2]), 0.03)


@case
def conv_one_dimension(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 10, 33), 24, 10, 5, pads=[2, 2]), 0.03)


@case
def depthwise(b: Builder) -> str:
    x = b.activation(1, 40, 13, 9)
    return b.quantized(
        b.node("Clip", b.conv(x, 40, 1, 3, 3, group=40, pads=[1, 1, 1, 1]), b.constant(0), b.constant(6)), 0.03, 0
    )


@case
def depthwise_stride_two(b: Builder) -> str:
    return b.quantized(
        b.conv(b.activation(1, 21, 12, 12), 21, 1, 3, 3, group=21, strides=[2, 2], pads=[0, 0, 1, 1]), 0.02
    )


@case
def depthwise_five(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(2, 3, 5, 6), 3, 1, 5, 5, group=3, pads=[2, 2, 2, 2]), 0.02)


@case
def depthwise_tiny_image(b: Builder) -> str:
    return b.quantized(b.conv(b.activation(1, 8, 2, 2), 8, 1, 3, 3, group=8, pads=[1, 1, 1, 1]), 0.02)


@case
def gemm_transposed(b: Builder) -> str:
    x, bias = b.activation(3, 50), b.constant(b.rng.normal(0, 1, 10))
    return b.quantized(b.node("Gemm", x, b.weights(10, 50), bias, transB=1), 0.05)


@case
def gemm_plain(b: Builder) -> str:
    return b.quantized(b.node("Gemm", b.activation(1, 130), b.weights(130, 33, axis=1)), 0.05)


@case
def matmul_with_bias(b: Builder) -> str:
    y = b.node("MatMul", b.activation(2, 7, 20), b.weights(20, 9, axis=1))
    return b.quantized(b.node("Add", y, b.constant(b.rng.normal(0, 1, 9))), 0.04)


@case
def residual_add(b: Builder) -> str:
    x, y = b.activation(1, 24, 5, 7), b.activation(1, 24, 5, 7, scale=0.003, zero=0)
    return b.quantized(b.node("Add", x, y), 0.021, 110)


@case
def residual_add_relu(b: Builder) -> str:
    x, y = b.activation(1, 3, 1, 5, scale=0.5), b.activation(1, 3, 1, 5)
    return b.quantized(b.node("Relu", b.node("Add", x, y)), 0.1, 0)


@case
def residual_chain(b: Builder) -> str:
    """Sums that may take the place of an operand, and one whose operands are both read again."""
    x = b.quantized(b.conv(b.activation(1, 8, 4, 8), 16, 8, 1, 1), 0.05)
    y = b.quantized(b.node("Add", x, b.quantized(b.conv(x, 16, 16, 3, 3, pads=[1, 1, 1, 1]), 0.04)), 0.06)
    z = b.quantized(b.node("Add", b.quantized(b.conv(y, 16, 16, 1, 1), 0.05, 99), y), 0.07)
    both = b.quantized(b.node("Add", y, z), 0.12)
    return b.quantized(b.node("Add", both, z), 0.6)


@case
def sum_of_one_tensor_seen_twice(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 8, 4, 8), 16, 8, 1, 1), 0.05)
    return b.quantized(b.node("Add", x, b.moved(x, "Reshape", b.constant([1, 16, 4, 8], np.int64))), 0.1)


@case
def add_broadcast(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 6, 4, 5), 9, 6, 1, 1), 0.05)
    return b.quantized(b.node("Add", x, b.activation(1, 9, 1, 1)), 0.06)


@case
def mul(b: Builder) -> str:
    return b.quantized(b.node("Mul", b.activation(1, 7, 4, 4), b.activation(1, 7, 4, 4, zero=3)), 0.03)


@case
def squeeze_excite(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 8, 6, 6), 20, 8, 1, 1), 0.05)
    pooled = b.quantized(b.node("GlobalAveragePool", x), 0.03)
    gate = b.quantized(b.node("HardSigmoid", b.quantized(b.conv(pooled, 20, 20, 1, 1), 0.03)), 1 / 255, 0)
    return b.quantized(b.node("Mul", x, gate), 0.04)


@case
def mul_with_a_spatial_mask(b: Builder) -> str:
    return b.quantized(b.node("Mul", b.activation(1, 8, 5, 6), b.activation(1, 1, 5, 6)), 0.04)


@case
def average_pool(b: Builder) -> str:
    y = b.node("AveragePool", b.activation(1, 10, 9, 8), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    return b.quantized(y, 0.015)


@case
def average_pool_counts_padding(b: Builder) -> str:
    attrs = {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1, "ceil_mode": 1, "strides": [2, 2]}
    return b.quantized(b.node("AveragePool", b.activation(1, 17, 8, 9), **attrs), 0.015)


@case
def mean_over_space(b: Builder) -> str:
    y = b.node("ReduceMean", b.activation(1, 19, 5, 6), b.constant([2, 3], np.int64), keepdims=0)
    return b.quantized(y, 0.01, 128)


@case
def mean_over_one_axis(b: Builder) -> str:
    return b.quantized(b.node("ReduceMean", b.activation(2, 6, 11), b.constant([1], np.int64)), 0.01, 128)


@case
def max_pool(b: Builder) -> str:
    x = b.activation(1, 37, 9, 9)
    return b.quantized(b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1), 0.02, 117)


@case
def max_pool_other_scale(b: Builder) -> str:
    x = b.activation(1, 5, 7, 7)
    return b.quantized(b.node("MaxPool", x, kernel_shape=[2, 2], pads=[1, 1, 0, 0], dilations=[2, 1]), 0.03, 90)


@case
def concat(b: Builder) -> str:
    x, y, z = b.activation(1, 6, 4, 5), b.activation(1, 3, 4, 5, scale=0.03), b.activation(1, 11, 4, 5)
    return b.quantized(b.node("Concat", x, y, z, axis=1), 0.02, 117)


@case
def concat_lines(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 4, 3, 4), 7, 4, 1, 1), 0.05)
    return b.quantized(b.node("Concat", x, b.activation(1, 7, 2, 4), axis=2), 0.05, 117)


@case
def table_silu(b: Builder) -> str:
    x = b.activation(1, 6, 5, 5)
    return b.quantized(b.node("Mul", x, b.node("Sigmoid", x)), 0.015, 20)


@case
def table_hard_swish(b: Builder) -> str:
    return b.quantized(b.node("HardSwish", b.activation(1, 6, 5, 5)), 0.015, 20)


@case
def table_gelu(b: Builder) -> str:
    x = b.activation(1, 33)
    half = b.node("Mul", x, b.constant(0.5))
    erf = b.node("Erf", b.node("Div", x, b.constant(2**0.5)))
    return b.quantized(b.node("Mul", half, b.node("Add", erf, b.constant(1.0))), 0.015, 20)


@case
def requantize(b: Builder) -> str:
    return b.quantized(b.activation(1, 5, 3, 2), 0.03, 4)


@case
def transpose_and_reshape(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 4, 6, 5), 10, 4, 1, 1), 0.05)
    y = b.node("Transpose", x, perm=[0, 2, 3, 1])
    return b.quantized(b.node("Reshape", y, b.constant([1, 30, 10], np.int64)), 0.05)


@case
def channel_shuffle(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 4, 5, 3), 12, 4, 1, 1), 0.05)
    y = b.node("Reshape", x, b.constant([1, 3, 4, 5, 3], np.int64))
    y = b.node("Transpose", y, perm=[0, 2, 1, 3, 4])
    return b.quantized(b.node("Reshape", y, b.constant([1, 12, 5, 3], np.int64)), 0.05)


@case
def flatten_then_dense(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 4, 5, 3), 6, 4, 3, 3, pads=[1, 1, 1, 1]), 0.05)
    return b.quantized(b.node("Gemm", b.moved(x, "Flatten"), b.weights(7, 90), transB=1), 0.05)


@case
def slice_and_pad(b: Builder) -> str:
    x = b.activation(1, 9, 8, 7)
    starts, ends, axes, steps = ([1, 7], [8, -8], [1, 2], [2, -2])
    y = b.node("Slice", x, *(b.constant(v, np.int64) for v in (starts, ends, axes, steps)))
    return b.quantized(b.node("Pad", y, b.constant([0, 1, 2, 0, 0, 0, 1, 3], np.int64), b.constant(0.4)), 0.02)


@case
def upsample_nearest(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 4, 3, 4), 6, 4, 1, 1), 0.05)
    sizes = b.constant([1, 6, 6, 8], np.int64)
    y = b.node(
        "Resize", x, "", "", sizes, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )
    return b.quantized(y, 0.05)


@case
def depth_to_space(b: Builder) -> str:
    return b.quantized(b.node("DepthToSpace", b.activation(1, 12, 3, 4), blocksize=2, mode="CRD"), 0.02)


@case
def split_halves(b: Builder) -> str:
    halves = b.nodes_of("Split", b.activation(1, 8, 3, 3), outputs=2, axis=1, num_outputs=2)
    return b.node("Concat", *(b.quantized(h, 0.02) for h in halves[::-1]), axis=1)


@case
def frame_to_grey(b: Builder) -> str:
    frame = b.node("Cast", b.input(20, 17, 3, dtype=TensorProto.UINT8), to=TensorProto.FLOAT)
    weighted = b.node("Mul", frame, b.constant([0.299, 0.587, 0.114]))
    grey = b.node("ReduceSum", weighted, b.constant([2], np.int64), keepdims=0)
    return b.node("Div", b.node("Sub", grey, b.constant(128.0)), b.constant(64.0))


@case
def normalize_channels(b: Builder) -> str:
    frame = b.node("Transpose", b.input(8, 12, 3, dtype=TensorProto.UINT8), perm=[2, 0, 1])
    x = b.node("Sub", b.node("Cast", frame, to=TensorProto.FLOAT), b.constant([[[104.0]], [[117.0]], [[123.0]]]))
    return b.quantized(b.node("Gather", x, b.constant([2, 1, 0], np.int64), axis=0), 1.0)


@case
def resize_linear(b: Builder) -> str:
    sizes = b.constant([1, 3, 7, 16], np.int64)
    return b.node("Resize", b.input(1, 3, 12, 9), "", "", sizes, mode="linear")


@case
def resize_antialias(b: Builder) -> str:
    sizes = b.constant([1, 1, 8, 8], np.int64)
    return b.node("Resize", b.input(1, 1, 31, 27), "", "", sizes, mode="linear", antialias=1, exclude_outside=1)


@case
def resize_align_corners(b: Builder) -> str:
    attrs = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return b.node("Resize", b.input(1, 2, 5, 6), "", "", b.constant([1, 2, 9, 4], np.int64), **attrs)


@case
def softmax_rows(b: Builder) -> str:
    return b.node("Softmax", b.input(3, 37), axis=-1)


@case
def softmax_channels(b: Builder) -> str:
    return b.node("Softmax", b.input(2, 5, 4), axis=1)


@case
def extremes_of_long_rows(b: Builder) -> str:
    """Rows that fill vectors, with a remainder, and with equal largest elements (a table of few values)."""
    x = b.node("Floor", b.input(5, 83))
    label = b.node("Cast", b.node("ArgMax", x, axis=1, keepdims=0), to=TensorProto.FLOAT)
    axis = b.constant([1], np.int64)
    span = b.node("Sub", b.node("ReduceMax", x, axis, keepdims=0), b.node("ReduceMin", x, axis, keepdims=0))
    return b.node("Add", label, span)


@case
def label_and_score(b: Builder) -> str:
    x = b.input(1, 23)
    label = b.node("ArgMax", x, axis=1, keepdims=0)
    return b.node(
        "Add",
        b.node("Cast", label, to=TensorProto.FLOAT),
        b.node("ReduceMax", x, b.constant([1], np.int64), keepdims=0),
    )


@case
def float_functions(b: Builder) -> str:
    x = b.input(4, 33)
    y = b.node("Add", b.node("Exp", x), b.node("Sigmoid", x))
    y = b.node("Mul", b.node("Tanh", x), b.node("Sqrt", b.node("Abs", y)))
    y = b.node("Max", y, b.node("LeakyRelu", b.node("Neg", x)))
    return b.node("Where", b.node("Less", x, b.constant(0.5)), b.node("HardSwish", y), b.node("Floor", y))


@case
def float_means(b: Builder) -> str:
    x = b.input(2, 7, 9)
    return b.node(
        "Sub", b.node("ReduceMean", x, b.constant([1], np.int64)), b.node("ReduceMin", x, b.constant([1], np.int64))
    )


@case
def float_matmul(b: Builder) -> str:
    return b.node("MatMul", b.input(2, 5, 12), b.node("Transpose", b.input(2, 9, 12), perm=[0, 2, 1]))


@case
def float_gemm(b: Builder) -> str:
    return b.node(
        "Gemm", b.input(3, 14), b.constant(b.rng.normal(0, 1, (6, 14))), b.constant(b.rng.normal(0, 1, 6)), transB=1
    )


@case
def float_conv(b: Builder) -> str:
    w = b.constant(b.rng.normal(0, 1, (10, 3, 3, 3)))
    return b.node(
        "Conv", b.input(1, 6, 7, 8), w, b.constant(b.rng.normal(0, 1, 10)), group=2, pads=[1, 1, 0, 1], strides=[1, 2]
    )


@case
def float_pools(b: Builder) -> str:
    x = b.input(1, 5, 6, 6)
    attrs = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    return b.node("Sub", b.node("MaxPool", x, **attrs), b.node("AveragePool", x, **attrs))


@case
def attention_scores(b: Builder) -> str:
    """Heads as views of one matrix; K = 24 and N = 21 leave remainders on every instruction set."""
    query, key = (_heads(b, b.activation(21, 72, zero=zero), [0, 2, 1, 3]) for zero in (3, 240))
    turned = b.moved(key, "Transpose", perm=[0, 1, 3, 2])
    scores = b.quantized(b.node("MatMul", query, turned), 0.05, 99)
    return b.quantized(b.node("Softmax", scores, axis=-1), 1 / 255, 0)


def _heads(b: Builder, x: str, perm: list[int]) -> str:
    return b.moved(b.moved(x, "Reshape", b.constant([1, 21, 3, 24], np.int64)), "Transpose", perm=perm)


@case
def attention_values(b: Builder) -> str:
    weights, values = b.activation(1, 3, 21, 21, scale=0.004, zero=0), _heads(b, b.activation(21, 72), [0, 2, 1, 3])
    mixed = b.quantized(b.node("MatMul", weights, values), 0.01, 130)
    turned = b.moved(mixed, "Transpose", perm=[0, 2, 1, 3])
    return b.moved(turned, "Reshape", b.constant([21, 72], np.int64))


@case
def product_few_columns(b: Builder) -> str:
    return b.quantized(b.node("MatMul", b.activation(2, 5, 7, 9), b.activation(9, 3, zero=255)), 0.05)


@case
def product_turned_left(b: Builder) -> str:
    turned = b.moved(b.activation(2, 33, 6), "Transpose", perm=[0, 2, 1])
    return b.quantized(b.node("MatMul", turned, b.activation(2, 33, 40)), 0.05)


@case
def softmax_quantized(b: Builder) -> str:
    return b.quantized(b.node("Softmax", b.activation(2, 5, 7, scale=0.05), axis=1), 1 / 255, 0)


@case
def layer_norm_quantized(b: Builder) -> str:
    gain, offset = (b.constant(b.rng.normal(m, 0.3, 45)) for m in (1, 0))
    return b.quantized(b.node("LayerNormalization", b.activation(3, 6, 45), gain, offset, epsilon=1e-6), 0.02, 140)


@case
def layer_norm_two_axes(b: Builder) -> str:
    gain = b.constant(b.rng.normal(1, 0.3, (6, 4)))
    return b.quantized(b.node("LayerNormalization", b.activation(3, 6, 4), gain, axis=1), 0.02, 140)


@case
def embedding(b: Builder) -> str:
    """Indices beyond both ends are clamped."""
    bytes_ = b.node("Cast", b.input(2, 7, dtype=TensorProto.UINT8), to=TensorProto.INT64)
    index = b.node("Sub", bytes_, b.constant(60, np.int64))
    return b.node("Gather", b.constant(b.rng.normal(0, 1, (150, 19))), index, axis=0)


@case
def float_layer_norm(b: Builder) -> str:
    gain, offset = (b.constant(b.rng.normal(m, 0.3, 45)) for m in (1, 0))
    return b.node("LayerNormalization", b.input(3, 6, 45), gain, offset, epsilon=1e-6)


@case
def log_softmax(b: Builder) -> str:
    return b.node("LogSoftmax", b.input(3, 5, 37), axis=1)


@case
def float_activations(b: Builder) -> str:
    x = b.input(5, 29)
    positive = b.node("Abs", x)
    parts = [b.node(op, x) for op in ("Celu", "Elu", "Erf", "Gelu", "Mish", "Selu", "Softplus", "Softsign")]
    parts += [b.node("Gelu", x, approximate="tanh"), b.node("ThresholdedRelu", x, alpha=0.3)]
    parts += [b.node("PRelu", x, b.constant(b.rng.normal(0, 1, 29))), b.node("Log", positive), b.node("Sum", x, x, x)]
    parts += [b.node("Pow", positive, b.constant(e)) for e in (2.0, 3.0, -1.0, 0.5)]
    return b.node("Concat", *parts, axis=1)


@case
def float_layers(b: Builder) -> str:
    """Convolutions of every kind behind each other, with and without an activation of their own."""

    def conv(x: str, *shape: int, bias: bool = True, **attrs: object) -> str:
        operands = [x, b.constant(b.rng.normal(0, 0.1, shape))]
        if bias:
            operands.append(b.constant(b.rng.normal(0, 1, shape[0])))
        return b.node("Conv", *operands, **attrs)

    x = b.node("Relu", conv(b.input(1, 3, 13, 11), 37, 3, 3, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
    x = b.node("Clip", conv(x, 37, 1, 3, 3, group=37, pads=[1, 1, 1, 1]), b.constant(0.0), b.constant(6.0))
    y = conv(x, 37, 37, 1, 1, bias=False)
    y = b.node("Relu", conv(b.node("Add", x, y), 20, 37, 3, 3, pads=[2, 2, 2, 2], dilations=[2, 2]))
    return b.node("MatMul", b.node("Flatten", y), b.constant(b.rng.normal(0, 0.1, (840, 11))))


@case
def float_conv_one_dimension(b: Builder) -> str:
    w = b.constant(b.rng.normal(0, 1, (9, 5, 4)))
    return b.node("Conv", b.input(2, 5, 31), w, pads=[2, 1], strides=[2])


@case
def float_tiny_numbers(b: Builder) -> str:
    """Results below the smallest normal number, and sums that cancel."""
    x = b.node("Mul", b.input(7, 40), b.constant(1e-22))
    product = b.node("MatMul", x, b.constant(b.rng.normal(0, 1e-22, (40, 5))))
    return b.node("Mul", product, b.constant(1e30))


@case
def largest_and_smallest(b: Builder) -> str:
    """Values that occur twice come in the order of their places."""
    x = b.node("Round", b.node("Mul", b.input(3, 5, 19), b.constant(3.0)))
    values, places = b.nodes_of("TopK", x, b.constant([4], np.int64), outputs=2, axis=1)
    _, smallest = b.nodes_of("TopK", x, b.constant([4], np.int64), outputs=2, axis=1, largest=0)
    both = b.node("Cast", b.node("Concat", places, smallest, axis=1), to=TensorProto.FLOAT)
    return b.node("Concat", values, both, axis=1)


@case
def tiled(b: Builder) -> str:
    x = b.quantized(b.conv(b.activation(1, 4, 3, 4), 6, 4, 1, 1), 0.05)
    return b.quantized(b.node("Tile", x, b.constant([1, 2, 1, 3], np.int64)), 0.05)


@case
def mean_over_two_axes(b: Builder) -> str:
    y = b.node("ReduceMean", b.activation(3, 5, 4, 6), b.constant([0, 2], np.int64), keepdims=0)
    return b.quantized(y, 0.01, 128)


@case
def mean_over_everything_in_space(b: Builder) -> str:
    """Three spatial dimensions."""
    return b.quantized(b.node("GlobalAveragePool", b.activation(1, 7, 3, 2, 5)), 0.01, 128)


@case
def global_max_clipped(b: Builder) -> str:
    y = b.node("GlobalMaxPool", b.activation(1, 40, 1, 2))
    return b.quantized(b.node("Clip", y, b.constant(0.4), b.constant(2.2)), 0.012, 9)


@case
def concat_relu(b: Builder) -> str:
    y = b.node("Concat", b.activation(1, 5, 4, 3), b.activation(1, 8, 4, 3, scale=0.03, zero=100), axis=1)
    return b.quantized(b.node("Relu", y), 0.02, 3)


@case
def product_with_itself(b: Builder) -> str:
    """Two DequantizeLinear nodes of one tensor."""
    scale, zero = b.constant(0.02), b.constant(117, np.uint8)
    q = b.node("QuantizeLinear", b.input(3, 40), scale, zero)
    left, right = (b.node("DequantizeLinear", q, scale, zero) for _ in range(2))
    return b.quantized(b.node("Mul", left, right), 0.03, 0)


@case
def activations_in_tables(b: Builder) -> str:
    x = b.activation(2, 300)
    selu = b.node("Mul", b.node("Selu", x), b.node("Softsign", x))
    celu = b.node("Max", b.node("Celu", x, alpha=0.6), b.node("ThresholdedRelu", x, alpha=0.9), b.constant(-0.2))
    slope = b.node("PRelu", x, b.constant([[0.3]]))
    return b.quantized(b.node("Sum", selu, celu, slope), 0.03, 60)


@case
def bias_computed_at_run_time(b: Builder) -> str:
    return b.quantized(b.node("Gemm", b.activation(4, 6), b.weights(9, 6), b.input(9), transB=1), 0.05)


@case
def padded_then_averaged(b: Builder) -> str:
    """A move between a dequantized tensor and a float32 operator pads with the number, not with its quantized level."""
    pads = b.constant([0, 0, 0, 0, 0, 3], np.int64)
    return b.node(
        "ReduceMean", b.node("Pad", b.activation(2, 5, 7), pads, b.constant(0.513)), b.constant([2], np.int64)
    )


@case
def steps_beyond_int32(b: Builder) -> str:
    """Scales so absurd that a step of the result does not fit an int32."""
    x = b.quantized(b.node("Mul", b.input(1, 20, 5, 5), b.constant(3000.0)), 100.0)
    wide = b.conv(x, 40, 20, 1, 1, bias=False)
    few = b.conv(x, 20, 1, 3, 3, group=20, bias=False)
    rows = [b.node("Flatten", b.quantized(y, 1e-7, 100)) for y in (wide, few)]
    return b.node("Concat", *rows, axis=1)


@case
def long_chain_of_scalars(b: Builder) -> str:
    """More operands than one call takes."""
    x = b.input(3, 50)
    for i in range(24):
        x = b.node(("Add", "Mul")[i % 2], x, b.constant(0.9 + i / 100))
    return x


@case
def nested_activations(b: Builder) -> str:
    """Each formula has its input several times: code must not grow with every level."""
    x = b.input(2, 37)
    for i in range(9):
        x = b.node(("HardSwish", "Gelu", "Mish", "Selu")[i % 4], b.node("Mul", x, b.constant(1.3)))
    return x


@case
def logits_of_an_integer_layer(b: Builder) -> str:
    x = b.activation(3, 50, scale=0.03, zero=9)
    return b.node("Gemm", x, b.weights(10, 50), b.constant(b.rng.normal(0, 1, 10)), transB=1)


@case
def float_heads(b: Builder) -> str:
    """A detector's: one tensor goes to a quantized layer and to layers whose results stay float32, with activations."""
    x = b.quantized(b.conv(b.activation(1, 6, 7, 9), 24, 6, 3, 3, pads=[1, 1, 1, 1]), 0.05)
    boxes = b.node("Clip", b.conv(x, 5, 24, 1, 1), b.constant(-0.6), b.constant(2.1))
    scores = b.node("Sigmoid", b.conv(x, 37, 24, 3, 3, pads=[1, 1, 1, 1], bias=False))
    grouped = b.node("Relu", b.conv(x, 36, 8, 1, 1, group=3))
    return b.node("Concat", boxes, scores, grouped, axis=1)


@case
def float_depthwise(b: Builder) -> str:
    x = b.activation(2, 41, 9, 8)
    y = b.conv(x, 41, 1, 3, 3, group=41, pads=[1, 1, 1, 1], strides=[1, 2])
    return b.node("Concat", y, b.conv(x, 41, 1, 1, 2, group=41, dilations=[1, 3], pads=[0, 0, 0, 0]), axis=3)


@case
def result_as_integers_and_as_float(b: Builder) -> str:
    """One layer whose result one reader quantizes and another takes as it is."""
    y = b.node("MatMul", b.activation(2, 7, 20), b.weights(20, 9, axis=1))
    y = b.node("Add", b.constant(b.rng.normal(0, 1, 9)), y)
    return b.node("Sub", b.node("Tanh", y), b.quantized(y, 0.04))


@case
def float_result_of_few_columns(b: Builder) -> str:
    return b.node("MatMul", b.activation(1, 700, zero=255), b.weights(700, 3, axis=1))


@case
def words_pointwise(b: Builder) -> str:
    """A convolution of 16-bit activations whose sums 32 bits hold, and two whose sums they do not."""
    x = b.words(b.conv(b.wide(1, 24, 9, 7), 40, 24, 1, 1), 3e-4)
    y = b.words(b.conv(x, 150, 40, 2, 2), 1e-3, 32_768)
    return b.words(b.conv(y, 37, 150, 1, 1), 4e-3, 65_535)


@case
def words_long_sums(b: Builder) -> str:
    """More products than 32 bits add up, at both ends of the range."""
    x = b.wide(2, 1500, scale=1e-5, zero=0)
    return b.words(b.node("Gemm", x, b.weights(17, 1500), b.constant(b.rng.normal(0, 1, 17)), transB=1), 3e-4)


@case
def words_to_bytes_and_to_float(b: Builder) -> str:
    x = b.wide(1, 33, 6, 5)
    y = b.node("Clip", b.conv(x, 20, 33, 3, 3, pads=[1, 1, 1, 1]), b.constant(-1.1), b.constant(2.3))
    z = b.conv(x, 20, 33, 3, 3, pads=[1, 1, 1, 1])
    return b.node("Concat", b.quantized(y, 0.02), b.node("Relu", z), axis=1)


@case
def words_of_bytes(b: Builder) -> str:
    """8-bit activations, 16-bit results."""
    x = b.activation(1, 19, 6, 5)
    y = b.words(b.node("Relu", b.conv(x, 21, 19, 3, 3, pads=[1, 1, 1, 1])), 2e-4, 0)
    z = b.words(b.conv(x, 19, 1, 3, 3, group=19, pads=[1, 1, 1, 1]), 1e-4, 33_000)
    return b.node("Concat", y, z, axis=1)


@case
def words_first_layer(b: Builder) -> str:
    x = b.wide(1, 3, 31, 29, zero=0)
    return b.words(b.node("Relu", b.conv(x, 16, 3, 3, 3, strides=[2, 2], pads=[0, 0, 1, 1])), 1e-4, 0)


@case
def words_dilated_grouped(b: Builder) -> str:
    x = b.wide(2, 12, 11, 9)
    return b.words(b.conv(x, 18, 4, 3, 2, group=3, dilations=[2, 1], pads=[2, 0, 1, 1], strides=[2, 1]), 3e-4)


@case
def words_depthwise(b: Builder) -> str:
    x = b.wide(1, 83, 9, 8)
    y = b.conv(x, 83, 1, 3, 3, group=83, pads=[1, 1, 1, 1])
    wide = b.words(b.node("Clip", y, b.constant(0), b.constant(6)), 1e-4, 0)
    byte = b.quantized(b.conv(x, 83, 1, 5, 5, group=83, pads=[2, 2, 2, 2]), 0.03)
    return b.node("Concat", wide, byte, b.conv(x, 83, 1, 3, 3, group=83, pads=[1, 1, 1, 1]), axis=1)


@case
def words_depthwise_large(b: Builder) -> str:
    """A window whose sums 32 bits do not hold."""
    return b.words(b.conv(b.wide(1, 5, 14, 13), 5, 1, 13, 11, group=5, pads=[6, 5, 6, 5]), 4e-4)


@case
def words_matmul_with_bias(b: Builder) -> str:
    y = b.node("MatMul", b.wide(2, 7, 201), b.weights(201, 9, axis=1))
    return b.words(b.node("Add", y, b.constant(b.rng.normal(0, 1, 9))), 5e-4)


@case
def words_added(b: Builder) -> str:
    """Sums of 8 and 16 bits, with broadcasting and an activation."""
    x, y = b.wide(1, 24, 5, 7), b.activation(1, 24, 5, 7, scale=0.013, zero=0)
    z = b.words(b.node("Relu", b.node("Add", x, y)), 3e-4, 0)
    z = b.words(b.node("Add", b.wide(1, 24, 1, 1), z), 4e-4, 1000)
    return b.quantized(b.node("Add", z, x), 0.05)


@case
def words_multiplied(b: Builder) -> str:
    x = b.words(b.conv(b.activation(1, 8, 6, 6), 20, 8, 1, 1), 2e-4)
    gate = b.words(b.node("HardSigmoid", b.words(b.node("GlobalAveragePool", x), 1e-4)), 1 / 65535, 0)
    y = b.words(b.node("Mul", x, gate), 1e-4)
    return b.words(b.node("Mul", y, b.activation(1, 20, 6, 6)), 1e-4, 31_000)


@case
def words_signed(b: Builder) -> str:
    """The int16 of other tools."""
    x = b.words(b.input(1, 9, 6, 5), 2e-4, -700, np.int16)
    y = b.words(b.conv(x, 16, 9, 3, 3, pads=[1, 1, 1, 1]), 4e-4, 0, np.int16)
    constant = b.constant(b.rng.integers(-30_000, 30_000, (1, 16, 1, 1)), np.int16)
    scale = b.node("DequantizeLinear", constant, b.constant(5e-5), b.constant(50, np.int16))
    return b.words(b.node("Mul", scale, y), 3e-4)


@case
def words_pooled(b: Builder) -> str:
    x = b.wide(1, 37, 9, 9)
    largest = b.words(b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[1, 1, 1, 1]))
    mean = b.node("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    byte = b.quantized(b.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 0.03)
    whole = b.node("ReduceMean", b.activation(1, 37, 5, 5), b.constant([2, 3], np.int64))
    return b.node("Concat", largest, b.words(mean, 1e-4), byte, b.words(b.node("Add", byte, whole), 3e-4), axis=1)


@case
def words_joined(b: Builder) -> str:
    """Inputs of a Concat in 8 and 16 bits, in parameters of the result and in others."""
    x = b.words(b.conv(b.wide(1, 6, 4, 5), 16, 6, 1, 1), 3e-4)
    parts = [x, b.wide(1, 3, 4, 5), b.activation(1, 11, 4, 5)]
    wide = b.words(b.node("Clip", b.node("Concat", *parts, axis=1), b.constant(-2.0), b.constant(2.5)), 3e-4)
    return b.quantized(b.node("Concat", *parts[::-1], wide, axis=1), 0.02)


@case
def words_joined_in_place(b: Builder) -> str:
    """Each input is made where the Concat wants it."""
    x = b.wide(1, 6, 4, 5)
    parameters = b.constant(3e-4), b.constant(29_000, np.uint16)

    def quantized(value: str) -> str:
        return b.node("DequantizeLinear", b.node("QuantizeLinear", value, *parameters), *parameters)

    whole = quantized(b.node("Concat", quantized(b.conv(x, 16, 6, 1, 1)), quantized(b.conv(x, 7, 6, 1, 1)), axis=1))
    return quantized(b.conv(whole, 5, 23, 1, 1))


@case
def words_moved(b: Builder) -> str:
    x = b.words(b.conv(b.wide(1, 4, 6, 5), 10, 4, 1, 1), 3e-4)
    y = b.moved(b.moved(x, "Transpose", perm=[0, 2, 3, 1]), "Reshape", b.constant([1, 30, 10], np.int64))
    y = b.moved(y, "Pad", b.constant([0, 1, 2, 0, 0, 3], np.int64), b.constant(0.4))
    return b.quantized(b.node("Slice", y, *(b.constant(v, np.int64) for v in ([0], [29], [1], [2]))), 0.03)


@case
def words_in_other_parameters(b: Builder) -> str:
    x = b.wide(1, 5, 3, 22)
    y = b.words(b.node("Clip", x, b.constant(-1.0), b.constant(2.0)), 1e-4, 20_000)
    return b.node("Concat", y, b.quantized(x, 0.03, 4), b.words(b.activation(1, 5, 3, 22), 1e-4, 65_535), axis=1)


@case
def words_in_functions(b: Builder) -> str:
    x = b.wide(1, 6, 5, 5)
    silu = b.words(b.node("Mul", x, b.node("Sigmoid", x)), 1e-4, 3000)
    table = b.words(b.node("HardSwish", b.activation(1, 6, 5, 5)), 1e-4, 3000)
    return b.node("Concat", silu, table, b.quantized(b.node("Gelu", x), 0.02, 9), axis=1)


@case
def words_in_a_transformer(b: Builder) -> str:
    """What has no form for 16 bits runs in float32 between integers."""
    x, y = b.wide(2, 12, 24), b.activation(2, 24, 12)
    scores = b.words(b.node("MatMul", x, y), 2e-3)
    weights = b.words(b.node("Softmax", scores, axis=-1), 1 / 65535, 0)
    gain, offset = (b.constant(b.rng.normal(m, 0.3, 24)) for m in (1, 0))
    turned = b.moved(y, "Transpose", perm=[0, 2, 1])
    normed = b.words(b.node("LayerNormalization", turned, gain, offset), 3e-4)
    mixed = b.node("MatMul", weights, b.quantized(normed, 0.03))
    return b.words(mixed, 3e-4)


@case
def words_averaged_over_many(b: Builder) -> str:
    """More values than 32 bits add up."""
    x = b.words(b.node("Expand", b.wide(1, 2, 1, 5), b.constant([1, 2, 7000, 5], np.int64)))
    return b.words(b.node("GlobalAveragePool", x), 1e-4)


@case
def limits_of_channels(b: Builder) -> str:
    """A clip whose ends are other for each channel, on layers of every kind."""

    def limited(x: str, low: tuple[int, ...], high: tuple[int, ...]) -> str:
        x = b.node("Max", x, b.constant(b.rng.uniform(-1, 0, low)))
        return b.node("Min", b.constant(b.rng.uniform(0.5, 3, high)), x)

    x = b.activation(1, 19, 7, 6)
    y = b.quantized(limited(b.conv(x, 40, 19, 3, 3, pads=[1, 1, 1, 1]), (40, 1, 1), (1, 40, 1, 1)), 0.02, 60)
    z = b.words(limited(b.node("Relu", b.conv(y, 40, 1, 3, 3, group=40, pads=[1, 1, 1, 1])), (), (40, 1, 1)), 1e-4, 9)
    z = b.quantized(limited(b.conv(z, 43, 40, 1, 1), (1,), (43, 1, 1)), 0.02, 3)
    flat = b.moved(z, "Reshape", b.constant([43, 42], np.int64))
    return b.quantized(limited(b.node("MatMul", flat, b.weights(42, 9, axis=1)), (9,), (1, 1)), 0.02, 60)


@case
def limits_and_tables(b: Builder) -> str:
    """Behind the clip a table, and behind that the place in a Concat."""
    parts = []
    for shape, attrs in (((21, 21, 1, 1), {}), ((21, 1, 3, 3), {"group": 21, "pads": [1, 1, 1, 1]})):
        y = b.conv(b.activation(1, 21, 5, 7), *shape, **attrs)
        y = b.quantized(b.node("Min", b.node("Relu", y), b.constant(b.rng.uniform(0.5, 3, (21, 1, 1)))), 0.02, 0)
        parts.append(b.quantized(b.node("Sigmoid", y), 1 / 255, 0))
    return b.quantized(b.node("Concat", *parts, axis=1), 0.005, 10)


@case
def limits_that_are_no_channels(b: Builder) -> str:
    x = b.conv(b.activation(1, 6, 5, 7), 5, 6, 1, 1)
    y = b.node("Relu", b.node("Min", x, b.constant(b.rng.uniform(0.5, 3, (5, 7)))))
    z = b.node("Min", b.node("Add", b.quantized(y, 0.02, 0), b.activation(1, 5, 5, 7)), b.constant(np.ones((5, 1, 1))))
    return b.quantized(b.node("Max", z, b.constant(-0.5)), 0.03)

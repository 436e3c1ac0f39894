"""Which QDQ clusters run in integers: from one QuantizeLinear back to the DequantizeLinear nodes it depends on, and
operators with weights whose result stays float32 (SPEC section 9).
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from edgebuild.stages.compile.graph import ACTIVATIONS, Graph, Node, Quant
from edgebuild.stages.compile.moves import is_move
from edgebuild.stages.compile.tables import unary_source

_WEIGHTED = ("Conv", "Gemm", "MatMul")
_ON_BYTES = ("product", "softmax", "layer_norm")
LONGEST_NORM = 32768  # elements of a row whose squares a 32-bit sum holds
_LARGEST_WEIGHT = 128
_LARGEST_SUM = 2**31


Bound = float | np.ndarray
"""An end of a clip: one number, or behind an operator with weights one for each output channel."""


@dataclass(frozen=True, eq=False)
class Cluster:
    """`kind`: conv, gemm, matmul, product, softmax, layer_norm, add, mul, average, max, concat, moves, table.

    `nodes`: the operator (for moves, the chain in order); `sources`: outputs of the activation DequantizeLinear nodes
    it reads; `end`: the QuantizeLinear, or where the result is float32 the operator, or the Add behind it, itself;
    `bias`: the constant that an Add behind a MatMul adds; `low`, `high`: the clip between operator and QuantizeLinear.
    """

    kind: str
    end: Node
    nodes: tuple[Node, ...]
    sources: tuple[str, ...]
    low: Bound = -math.inf
    high: Bound = math.inf
    bias: str = ""

    @property
    def name(self) -> str:
        """The tensor that it gives."""
        return str(self.end.outputs[0])

    @property
    def limited(self) -> bool:
        """Whether each output channel has bounds of its own."""
        return np.ndim(self.low) > 0 or np.ndim(self.high) > 0

    @property
    def floating(self) -> bool:
        """Whether its result is float32."""
        return str(self.end.op) != "QuantizeLinear"


def match_float(graph: Graph, node: Node) -> Cluster | None:
    """The cluster of an operator with weights whose float32 result is wanted, or None where it runs in float32."""
    operator, bias = _biased(graph, node)
    found = _layer(graph, node, operator, bias)
    return found if found is not None and _sums_fit(graph, found) else None


def match(graph: Graph, quantize: Node) -> Cluster | None:
    """The cluster that ends in a QuantizeLinear, or None when its input is a float32 value."""
    name = quantize.inputs[0]
    layer = _limited_layer(graph, quantize)
    if layer is not None:
        return layer
    low, high, base = _strip_clips(graph, name)
    node = graph.producers.get(base)
    if node is not None:
        found = _operator(graph, quantize, node, low, high)
        if found is not None:
            return found
    moves = _move_chain(graph, name)
    if moves is not None:
        return Cluster("moves", quantize, moves[0], (moves[1],))
    source = unary_source(graph, name)
    tabulated = source is not None and not quant_of(graph, source).wide
    return Cluster("table", quantize, (), (source,)) if source is not None and tabulated else None


def _limited_layer(graph: Graph, quantize: Node) -> Cluster | None:
    """An operator with weights behind which bounds may be a Max or Min, also one for each channel."""
    low, high, base = _strip_clips(graph, quantize.inputs[0], limits=True)
    node = graph.producers.get(base)
    layer = None if node is None else _layer(graph, quantize, *_biased(graph, node))
    if layer is None:
        return None
    shape = graph.shape(base)
    ends = [_by_channel(bound, shape, 1 if layer.kind == "conv" else len(shape) - 1) for bound in (low, high)]
    if ends[0] is None or ends[1] is None:
        return None
    return replace(layer, low=ends[0], high=ends[1])


def _by_channel(bound: Bound, shape: tuple[int, ...], axis: int) -> Bound | None:
    """A constant that broadcasts against a result: a number, or a vector of its channels; None for anything else."""
    if np.ndim(bound) > len(shape):
        return None
    full = (*[1] * (len(shape) - np.ndim(bound)), *np.shape(bound))
    if full[axis] not in (1, shape[axis]) or any(n != 1 for i, n in enumerate(full) if i != axis):
        return None
    flat = np.reshape(bound, -1)
    return flat if full[axis] > 1 else float(flat[0])


def _strip_clips(graph: Graph, name: str, *, limits: bool = False) -> tuple[Bound, Bound, str]:
    """Walk back over Relu and Clip, with `limits` also over a Max or Min with a constant; the bounds compose because
    each clamp is monotone.
    """
    low: Bound = -math.inf
    high: Bound = math.inf
    while (node := graph.producers.get(name)) is not None:
        found = _limit(graph, node) if limits and node.op in ("Max", "Min") else _clip(graph, node)
        if found is None:
            break
        a, b, name = found
        low, high = np.maximum(low, np.minimum(a, high)), np.minimum(high, np.maximum(b, low))
    return low, high, name


def _clip(graph: Graph, node: Node) -> tuple[float, float, str] | None:
    """Bounds and input of a Relu or a Clip with constant bounds."""
    if node.op == "Relu":
        return 0.0, math.inf, node.inputs[0]
    if node.op != "Clip" or any(graph.constant(i) is None for i in node.inputs[1:] if i):
        return None
    low, high = (graph.need_constant(node, i) if node.input(i) else None for i in (1, 2))
    return (
        -math.inf if low is None else float(np.float64(np.reshape(low, ()))),
        math.inf if high is None else float(np.float64(np.reshape(high, ()))),
        node.inputs[0],
    )


def _limit(graph: Graph, node: Node) -> tuple[Bound, Bound, str] | None:
    """Bounds and input of a Max or Min with one constant."""
    constants = [(i, value) for i, name in enumerate(node.inputs) if (value := graph.constant(name)) is not None]
    if len(node.inputs) != 2 or len(constants) != 1 or np.isnan(constants[0][1]).any():
        return None
    place, value = constants[0]
    bound = value.astype(np.float64)
    return (bound, math.inf, node.inputs[1 - place]) if node.op == "Max" else (-math.inf, bound, node.inputs[1 - place])


def _operator(graph: Graph, quantize: Node, node: Node, low: Bound, high: Bound) -> Cluster | None:
    node, _ = _biased(graph, node)
    kind = _attention(graph, node) or _on_activations(graph, node)
    if not kind:
        return None
    read = {"product": 2, "add": 2, "mul": 2, "concat": len(node.inputs)}.get(kind, 1)
    sources = tuple(node.inputs[:read])
    wide = graph.quant(quantize).wide or any(quant_of(graph, source).wide for source in sources)
    if wide and kind in _ON_BYTES:
        return None
    return Cluster(kind, quantize, (node,), sources, low, high)


def _biased(graph: Graph, node: Node) -> tuple[Node, str]:
    """The MatMul in front of an Add that is its bias, and the bias; any other node itself."""
    product, bias = _matmul_and_bias(graph, node) if node.op == "Add" else (None, "")
    return product or node, bias


def _layer(graph: Graph, end: Node, node: Node, bias: str) -> Cluster | None:
    """An operator with weights on a dequantized activation."""
    if node.op not in _WEIGHTED or not is_activation(graph, node.inputs[0]) or not is_weight(graph, node.inputs[1]):
        return None
    fits = _FITS[node.op](graph, node)
    return Cluster(node.op.lower(), end, (node,), (node.inputs[0],), bias=bias) if fits else None


def _sums_fit(graph: Graph, cluster: Cluster) -> bool:
    """SPEC section 7: whether the sums of an operator with weights stay in 32 bits."""
    bias, scale = layer_bias(graph, cluster), layer_scale(graph, cluster)
    quant = quant_of(graph, cluster.sources[0])
    return fits(quant, layer_depth(graph, cluster), integer_bias(bias, scale, 1))


def layer_depth(graph: Graph, cluster: Cluster) -> int:
    """K: products of one sum."""
    node = cluster.nodes[0]
    shape = graph.shape(node.inputs[1])
    if node.op == "Conv":
        return math.prod(shape[1:])
    return shape[1] if node.op == "Gemm" and node.attrs.get("transB", 0) else shape[0]


def layer_bias(graph: Graph, cluster: Cluster) -> np.ndarray | None:
    """As `bias_value`; None where the operator has no bias."""
    name = cluster.bias or cluster.nodes[0].input(2)
    return bias_value(graph, name) if name else None


def layer_scale(graph: Graph, cluster: Cluster) -> np.ndarray:
    """s_x·s_w in float64, one for each output channel or one for all."""
    scale = graph.need_constant(graph.producers[cluster.nodes[0].inputs[1]], 1).astype(np.float64).reshape(-1)
    return np.asarray(quant_of(graph, cluster.sources[0]).scale * scale)


def integer_bias(bias: np.ndarray | None, scale: np.ndarray, count: int) -> np.ndarray:
    """A bias in the accumulator's units, integers in float64."""
    if bias is None:
        return np.zeros(count)
    flat = bias.reshape(-1).astype(np.float64)
    return flat if bias.dtype == np.int32 else np.asarray(np.rint(flat / scale))


def fits(quant: Quant, depth: int, bias: np.ndarray) -> bool:
    """Whether sums of `depth` products and a bias stay in 32 bits (of 16-bit activations in 53), with room to spare."""
    largest = 2 * depth * quant.span * _LARGEST_WEIGHT + float(np.abs(bias).max(initial=0.0))
    return largest < (2**53 if quant.wide else _LARGEST_SUM)


def _on_activations(graph: Graph, node: Node) -> str:
    """The kind of an operator without weights, or an empty string."""
    sources = node.inputs
    if node.op in ("Add", "Mul"):
        binary = len(set(sources)) == 2 and all(is_quantized(graph, s) for s in sources)
        return node.op.lower() if binary and not unary_source(graph, node.outputs[0]) else ""
    if node.op == "Concat":
        return "concat" if all(is_quantized(graph, s) for s in sources) else ""
    if not sources or not is_activation(graph, sources[0]):
        return ""
    rank = len(graph.shape(sources[0]))
    if node.op in ("MaxPool", "GlobalMaxPool"):
        return "max" if sum(map(bool, node.outputs)) == 1 and rank in (3, 4) else ""
    count = _averaged(graph, node)
    return "average" if count and count * quant_of(graph, sources[0]).span < _LARGEST_SUM else ""


def _averaged(graph: Graph, node: Node) -> int:
    """How many values an average adds up at most; 0 for other operators."""
    shape = graph.shape(node.inputs[0])
    if node.op == "AveragePool":
        return math.prod(node.attrs["kernel_shape"]) if len(shape) in (3, 4) else 0
    if node.op == "GlobalAveragePool":
        return math.prod(shape[2:]) if len(shape) > 2 else 0
    axes = reduce_axes(graph, node) if node.op == "ReduceMean" else []
    return math.prod(shape[a] for a in axes) if axes else 0


def _conv_fits(graph: Graph, node: Node) -> bool:
    rank = len(graph.shape(node.outputs[0]))
    return rank in (3, 4) and _weight_axis(graph, node) in (0, None) and _bias_fits(graph, node)


def _gemm_fits(graph: Graph, node: Node) -> bool:
    plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0 and not node.attrs.get("transA")
    axis = 0 if node.attrs.get("transB", 0) else 1
    return plain and _weight_axis(graph, node) in (axis, None) and _bias_fits(graph, node)


def _matmul_fits(graph: Graph, node: Node) -> bool:
    return len(graph.shape(node.inputs[1])) == 2 and _weight_axis(graph, node) in (1, None)


_FITS = {"Conv": _conv_fits, "Gemm": _gemm_fits, "MatMul": _matmul_fits}


def _weight_axis(graph: Graph, node: Node) -> int | None:
    """The axis that the weights' scales belong to; None with a single scale."""
    dq = graph.producers[node.inputs[1]]
    if graph.need_constant(dq, 1).size == 1:
        return None
    return int(dq.attrs.get("axis", 1)) % len(graph.shape(node.inputs[1]))


def _bias_fits(graph: Graph, node: Node) -> bool:
    """Whether a bias is a constant: one value, or one for each output channel."""
    if not node.input(2):
        return True
    value = bias_value(graph, node.input(2))
    channels = graph.shape(node.outputs[0])[1]
    return value is not None and value.size in (1, channels)


def _attention(graph: Graph, node: Node) -> str:
    """The kind of a transformer's operator on activations, or an empty string."""
    if not node.inputs or not is_activation(graph, node.inputs[0]):
        return ""
    if node.op == "MatMul" and is_activation(graph, node.inputs[1]):
        return "product" if all(len(graph.shape(i)) >= 2 for i in node.inputs) else ""
    if node.op == "LayerNormalization" and len(node.outputs) == 1:
        constant = all(graph.constant(i) is not None for i in node.inputs[1:] if i)
        axis = int(node.attrs.get("axis", -1)) % len(graph.shape(node.inputs[0]))
        return "layer_norm" if constant and np.prod(graph.shape(node.inputs[0])[axis:]) <= LONGEST_NORM else ""
    return "softmax" if node.op == "Softmax" else ""


def _matmul_and_bias(graph: Graph, add: Node) -> tuple[Node | None, str]:
    """An Add that only adds a constant to a MatMul with constant weights."""
    for product, bias in (add.inputs, add.inputs[::-1]):
        node = graph.producers.get(product)
        if node is None or node.op != "MatMul" or not is_weight(graph, node.inputs[1]):
            continue
        value = bias_value(graph, bias)
        alone = len(graph.consumers[product]) == 1 and product not in graph.outputs
        columns = graph.shape(product)[-1]
        fitting = value is not None and value.size == columns and value.shape[-1:] == (columns,)
        if fitting and alone and len(graph.shape(add.outputs[0])) == len(graph.shape(product)):
            return node, bias
    return None, ""


def bias_value(graph: Graph, name: str) -> np.ndarray | None:
    """A bias: float32, or the int32 integers behind a DequantizeLinear."""
    value = graph.constant(name)
    node = graph.producers.get(name)
    if value is None and node is not None and node.op == "DequantizeLinear":
        integers = graph.constant(node.inputs[0])
        return integers if integers is not None and integers.dtype == np.int32 else None
    return value


def is_activation(graph: Graph, name: str) -> bool:
    """Whether a value is the DequantizeLinear of a tensor that changes."""
    node = graph.producers.get(name)
    return node is not None and node.op == "DequantizeLinear" and graph.constant(node.inputs[0]) is None


def is_quantized(graph: Graph, name: str) -> bool:
    """An activation, or a constant that is quantized like one."""
    node = graph.producers.get(name)
    if node is None or node.op != "DequantizeLinear":
        return False
    constant = graph.constant(node.inputs[0])
    return constant is None or constant.dtype in ACTIVATIONS


def is_weight(graph: Graph, name: str) -> bool:
    node = graph.producers.get(name)
    if node is None or node.op != "DequantizeLinear":
        return False
    constant = graph.constant(node.inputs[0])
    return constant is not None and constant.dtype == np.int8


def reduce_axes(graph: Graph, node: Node) -> list[int]:
    """Axes of a Reduce node, as attribute (old opsets) or input, sorted."""
    rank = len(graph.shape(node.inputs[0]))
    axes = node.attrs.get("axes")
    if axes is None and node.input(1):
        axes = graph.need_constant(node, 1).reshape(-1).tolist()
    if not axes:
        return [] if node.attrs.get("noop_with_empty_axes") else list(range(rank))
    return sorted(int(a) % rank for a in axes)


def _move_chain(graph: Graph, name: str) -> tuple[tuple[Node, ...], str] | None:
    """(nodes in order, DequantizeLinear output) of a chain that only moves data, of any length including zero."""
    nodes: list[Node] = []
    while (node := graph.producers.get(name)) is not None and node.op != "DequantizeLinear":
        if not is_move(node) or (node.op == "Gather" and graph.constant(node.inputs[1]) is None):
            return None
        nodes.append(node)
        name = node.inputs[0]
    return (tuple(reversed(nodes)), name) if is_activation(graph, name) else None


def quant_of(graph: Graph, name: str) -> Quant:
    """Parameters behind a DequantizeLinear's output."""
    return graph.quant(graph.producers[name])

"""Which QDQ clusters run in integers: from one QuantizeLinear back to the DequantizeLinear nodes it depends on (SPEC
section 9).
"""

import math
from dataclasses import dataclass

import numpy as np

from edgebuild.stages.compile.graph import Graph, Node, Quant
from edgebuild.stages.compile.moves import is_move
from edgebuild.stages.compile.tables import unary_source

_WEIGHTED = ("Conv", "Gemm", "MatMul")
LONGEST_NORM = 32768  # elements of a row whose squares a 32-bit sum holds


@dataclass(frozen=True)
class Cluster:
    """`kind`: conv, gemm, matmul, product, softmax, layer_norm, add, mul, average, max, concat, moves, table.

    `nodes`: the operator (for moves, the chain in order); `sources`: outputs of the activation DequantizeLinear nodes
    it reads;
    `bias`: the constant that an Add behind a MatMul adds; `low`, `high`: the clip between operator and QuantizeLinear.
    """

    kind: str
    quantize: Node
    nodes: tuple[Node, ...]
    sources: tuple[str, ...]
    low: float = -math.inf
    high: float = math.inf
    bias: str = ""


def match(graph: Graph, quantize: Node) -> Cluster | None:
    """The cluster that ends in a QuantizeLinear, or None when its input is a float32 value."""
    name = quantize.inputs[0]
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
    return Cluster("table", quantize, (), (source,)) if source is not None else None


def _strip_clips(graph: Graph, name: str) -> tuple[float, float, str]:
    """Walk back over Relu and Clip; the bounds compose because each clamp is monotone."""
    low, high = -math.inf, math.inf
    while (node := graph.producers.get(name)) is not None and node.op in ("Relu", "Clip"):
        if any(graph.constant(i) is None for i in node.inputs[1:] if i):
            break
        a, b = _bounds(graph, node)
        if low == -math.inf and high == math.inf:
            low, high = a, b
        else:
            low, high = max(low, min(a, high)), min(high, max(b, low))
        name = node.inputs[0]
    return low, high, name


def _bounds(graph: Graph, node: Node) -> tuple[float, float]:
    if node.op == "Relu":
        return 0.0, math.inf
    low = graph.need_constant(node, 1) if node.input(1) else np.float32(-math.inf)
    high = graph.need_constant(node, 2) if node.input(2) else np.float32(math.inf)
    return float(np.float64(np.reshape(low, ()))), float(np.float64(np.reshape(high, ())))


def _operator(graph: Graph, quantize: Node, node: Node, low: float, high: float) -> Cluster | None:
    bias = ""
    if node.op == "Add":
        product, bias = _matmul_and_bias(graph, node)
        node = product or node
    sources = tuple(node.inputs)
    if node.op in _WEIGHTED and is_activation(graph, sources[0]) and is_weight(graph, sources[1]):
        fits = _FITS[node.op](graph, node)
        return Cluster(node.op.lower(), quantize, (node,), sources[:1], low, high, bias) if fits else None
    kind = _attention(graph, node) or _on_activations(graph, node)
    if not kind:
        return None
    read = {"product": 2, "add": 2, "mul": 2, "concat": len(sources)}.get(kind, 1)
    return Cluster(kind, quantize, (node,), sources[:read], low, high)


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
    if node.op == "AveragePool":
        return "average" if rank in (3, 4) else ""
    if node.op == "GlobalAveragePool":
        return "average" if rank > 2 else ""
    return "average" if node.op == "ReduceMean" and reduce_axes(graph, node) else ""


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
        if value is not None and alone and value.size == columns and value.shape[-1:] == (columns,):
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
    """An activation, or a constant in uint8."""
    node = graph.producers.get(name)
    if node is None or node.op != "DequantizeLinear":
        return False
    constant = graph.constant(node.inputs[0])
    return constant is None or constant.dtype == np.uint8


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

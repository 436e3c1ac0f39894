"""Which operators are quantized. It depends on structure, types and shapes, never on values.

* Weighted operators (Conv, Gemm, MatMul with constant weights) are quantized, unless they are preprocessing: a MatMul
  before the first Conv, or a weight of at most 16 values before any other weighted operator (a colour matrix).
* Other operators of SPEC section 7 are quantized when their inputs come from quantized operators, and, for unary
  functions, Mul, Concat, averages, Softmax and LayerNormalization, when a weighted operator or an addition still
  follows. What lies before the first weighted operator and after the last one (Softmax, ArgMax, box decoding ...)
  stays float32. So does a last average: rounding it to 256 steps makes ties among 1000 classes (SqueezeNet loses 2
  points of top-1 by it).
"""

from dataclasses import dataclass

from onnx import NodeProto

from edgebuild.stages.quantize.graph import Graph, Types, key, reach
from edgebuild.stages.quantize.operators import (
    CLIPS,
    MOVES,
    POOLS,
    ROWS,
    SCALAR_BINARY,
    UNARY,
    WEIGHTED,
    is_weighted,
    operator_problem,
    weight_problem,
)

_ANCHORS = WEIGHTED | CLIPS | {"Add", "MaxPool"}
_NEEDS_ANCHOR = (UNARY - CLIPS) | (SCALAR_BINARY - {"Add"}) | POOLS | ROWS | {"Concat"}
_MIXES = frozenset({"Add", "Concat", "MatMul", "Mul"})
_SMALL_WEIGHT = 16


@dataclass(frozen=True)
class Selection:
    """Keys (first outputs) of the quantized nodes, and for the others why they stay float32."""

    quantized: frozenset[str]
    reasons: dict[str, str]


def select(graph: Graph, types: Types, floating: frozenset[str] = frozenset()) -> Selection:
    """Decides for every operator of a folded float graph; those with the keys `floating` stay float32."""
    reasons = dict.fromkeys(sorted(floating), "float32 keeps the accuracy")
    weighted = _weighted(graph, reasons)
    after, before = reach(graph, weighted), reach(graph, weighted, forward=False)
    for node in graph.nodes:
        known = key(node) in weighted or key(node) in reasons
        if not known and (problem := _problem(graph, types, node, after)):
            reasons[key(node)] = problem
    quantized = _grow(graph, weighted, before, reasons)
    return Selection(frozenset(_without_last_moves(graph, quantized, reasons)), reasons)


def _problem(graph: Graph, types: Types, node: NodeProto, after: set[str]) -> str:
    if key(node) not in after:
        return "before the first layer with weights"
    return operator_problem(graph, types, node)


def _weighted(graph: Graph, reasons: dict[str, str]) -> set[str]:
    weighted = set()
    for node in graph.nodes:
        if is_weighted(graph, node) and key(node) not in reasons:
            if problem := weight_problem(graph, node):
                reasons[key(node)] = problem
            else:
                weighted.add(key(node))
    return _without_preprocessing(graph, weighted, reasons)


def _without_preprocessing(graph: Graph, weighted: set[str], reasons: dict[str, str]) -> set[str]:
    nodes = [n for n in graph.nodes if key(n) in weighted]
    before_conv = reach(graph, {key(n) for n in nodes if n.op_type == "Conv"}, forward=False)
    small = {
        key(n)
        for n in nodes
        if graph.constants[n.input[1]].size <= _SMALL_WEIGHT or (n.op_type == "MatMul" and key(n) in before_conv)
    }
    kept: set[str] = set()
    behind: set[str] = set()
    for node in graph.nodes:
        near = {key(p) for t in node.input if (p := graph.producer(t)) is not None}
        if near & kept or near & behind:
            behind.add(key(node))
        if key(node) in weighted and (key(node) in behind or key(node) not in small):
            kept.add(key(node))
    reasons.update(dict.fromkeys(sorted(weighted - kept), "part of the preprocessing"))
    return kept


def _grow(graph: Graph, weighted: set[str], before: set[str], reasons: dict[str, str]) -> set[str]:
    """Adds operators that follow quantized ones, and drops those whose result no quantized operator needs."""
    while True:
        quantized = set(weighted)
        for node in graph.nodes:
            if key(node) not in reasons and _follows(graph, node, quantized, before):
                quantized.add(key(node))
        loose = _loose(graph, quantized)
        if not loose:
            return quantized
        reasons.update(dict.fromkeys(loose, "no quantized operator needs its result"))


def _follows(graph: Graph, node: NodeProto, quantized: set[str], before: set[str]) -> bool:
    producers = [graph.producer(name) for name in graph.data_inputs(node)]
    fed = [p is not None and key(p) in quantized for p in producers]
    if node.op_type in _MIXES and len(fed) > 1 and key(node) in before and not _masks(graph, node):
        return any(fed)
    return all(fed)


def _masks(graph: Graph, node: NodeProto) -> bool:
    """Whether an Add makes scores for a Softmax: the other operand may be a mask of huge negative numbers, whose range
    would leave no step for the scores.
    """
    return node.op_type == "Add" and any(n.op_type == "Softmax" for n in graph.consumers(node.output[0]))


def _without_last_moves(graph: Graph, quantized: set[str], reasons: dict[str, str]) -> set[str]:
    """A layer's sums that only moves bring to float32 operators and outputs go there as float32."""
    found = set(quantized)
    for node in reversed(graph.nodes):
        readers = {key(n) for name in node.output for n in graph.consumers(name)}
        last = key(node) in found and node.op_type in MOVES - {"MaxPool"} and not readers & found
        if last and _is_layers(graph, node):
            found.discard(key(node))
            reasons[key(node)] = "behind the last layer"
    return found


def _is_layers(graph: Graph, node: NodeProto | None) -> bool:
    """Whether a chain of moves starts at a layer with weights."""
    while node is not None and node.op_type in MOVES - {"MaxPool"}:
        node = graph.producer(node.input[0])
    return node is not None and is_weighted(graph, node)


def _loose(graph: Graph, quantized: set[str]) -> set[str]:
    anchored: set[str] = set()
    for node in reversed(graph.nodes):
        readers = {key(n) for name in node.output for n in graph.consumers(name)}
        if key(node) in quantized and (node.op_type in _ANCHORS or readers & anchored):
            anchored.add(key(node))
    loose = quantized - anchored
    return {key(n) for n in graph.nodes if key(n) in loose and n.op_type in _NEEDS_ANCHOR}

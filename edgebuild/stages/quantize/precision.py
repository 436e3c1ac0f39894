"""Which activations get 16 bits: those that cost next to nothing.

After a global average, in squeeze-and-excitation branches and before a classifier there are a few hundred values, and
the layers that read them do a thousandth of a network's work. Rounding them to 256 steps can cost as much accuracy as
all the rest (one sample in a thousand that uses the whole range is enough). So can the input: its own grid (pixels of
8 bits, normalized by channel) is not the tensor's, and every layer behind it works with what that rounding left. The
choice depends on shapes only: two trainings of a network become the same program.
"""

import math

from onnx import NodeProto

from edgebuild.stages.quantize.graph import Graph, Types, key, reach
from edgebuild.stages.quantize.network import Plan
from edgebuild.stages.quantize.operators import MOVES, ROWS, SCALAR_BINARY, UNARY, is_weighted

ROOM = 4.0
"""How much wider than what was calibrated a range of 16 bits is: it can afford to lose two of them."""
_BUDGET = 0.01
"""What 16 bits may cost in all, as a share of the network's time in 8 bits."""
_EACH = 1e-3
"""The same for one tensor."""
_INPUT = 0.015
"""The same for what the network is given, as it is or preprocessed; apart from the rest."""
_ELEMENT = 16.0
"""The time to read and write an element, in multiply-accumulates: a moved byte takes as long as 8 to 32 of them."""
_SLOWER = 1.0
"""What a multiply-accumulate of 16 bits costs on top of one of 8, in the time of that: it takes twice as long."""
_FUNCTION = 64.0
"""The same for a function of an element in float32, which a table gives in 8 bits."""


def words(plan: Plan) -> frozenset[str]:
    """The groups of tensors that get 16 bits, the cheapest first."""
    graph = plan.network.graph
    types = graph.types()
    total = sum(_work(graph, types, node) for node in graph.nodes) or 1.0
    costs = {group: _cost(plan, graph, types, group) / total for group in plan.boundaries.sources}
    found = {group for group in _given(plan) if costs[group] <= _INPUT}
    spent = 0.0
    for group, cost in sorted(costs.items(), key=lambda item: item[1]):
        spent += cost
        if cost <= _EACH and spent <= _BUDGET:
            found.add(group)
    return frozenset(found)


def _cost(plan: Plan, graph: Graph, types: Types, group: str) -> float:
    """In multiply-accumulates; infinite where 16 bits would take an operator out of the integers."""
    tensors = plan.boundaries.members[group]
    readers = list(plan.readers(group))
    makers = [p for t in tensors if (p := graph.producer(t)) is not None]
    if any(_leaves(graph, n) for n in (*readers, *makers)):
        return math.inf
    elements = sum(math.prod(types.shape(t) or ()) for t in tensors)
    functions = sum(n.op_type in UNARY | SCALAR_BINARY and len(graph.data_inputs(n)) == 1 for n in readers)
    layers = sum(_macs(graph, types, n) for n in readers) * _SLOWER
    return elements * (_ELEMENT + functions * _FUNCTION) + layers


def _given(plan: Plan) -> set[str]:
    """The groups whose tensors no layer has made."""
    graph, quantized = plan.network.graph, set(plan.selection.quantized)
    behind = quantized | reach(graph, quantized)
    makers = {g: [graph.producer(t) for t in sources] for g, sources in plan.boundaries.sources.items()}
    return {g for g, made in makers.items() if all(m is None or key(m) not in behind for m in made)}


def _leaves(graph: Graph, node: NodeProto) -> bool:
    return node.op_type in ROWS or (node.op_type == "MatMul" and not is_weighted(graph, node))


def _work(graph: Graph, types: Types, node: NodeProto) -> float:
    """What an operator takes, in multiply-accumulates."""
    if node.op_type in MOVES - {"MaxPool"}:
        return 0.0
    elements = sum(math.prod(types.shape(o) or ()) for o in node.output if o)
    return elements * _ELEMENT / 2 + _macs(graph, types, node)


def _macs(graph: Graph, types: Types, node: NodeProto) -> float:
    if not is_weighted(graph, node):
        return 0.0
    weight = graph.constants.get(node.input[1])
    if weight is None:
        return 0.0
    terms = weight.shape[0] if node.op_type == "MatMul" else weight[0].size
    return float(math.prod(types.shape(node.output[0]) or ()) * terms)

"""Which tensors get Q/DQ, and which of them share one scale and zero point.

* A Relu or Clip that alone reads an arithmetic operator is part of that operator: no Q/DQ between them.
* Unary operators between two quantized tensors form one function of one tensor, also where the chain forks and joins
  again (x · sigmoid(x)): no Q/DQ inside, so that the whole becomes one table.
* What a weighted operator gives to float32 operators and graph outputs only is float32: its sums are not rounded.
* Operators that only move data share parameters between input and output. A Concat shares its output's with every input
  that nothing else reads, and requantizes the others.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from onnx import NodeProto

from edgebuild.stages.quantize.graph import Graph, Types, key, optional_input
from edgebuild.stages.quantize.operators import CLIPS, MOVES, POOLS, SCALAR_BINARY, UNARY, WEIGHTED, is_weighted


@dataclass(frozen=True)
class Boundaries:
    """The tensors with Q/DQ.

    `groups`: each tensor, in topological order, to the first tensor that has the same parameters, which names them.
    `sources`: for each of these names the tensors to observe. `pads`: constants that Pad writes into the group.
    """

    groups: dict[str, str]
    sources: dict[str, tuple[str, ...]]
    pads: dict[str, tuple[float, ...]]

    @cached_property
    def members(self) -> dict[str, tuple[str, ...]]:
        """The tensors of each group, in topological order."""
        found: dict[str, list[str]] = {}
        for tensor, group in self.groups.items():
            found.setdefault(group, []).append(tensor)
        return {group: tuple(tensors) for group, tensors in found.items()}


def find_boundaries(graph: Graph, types: Types, quantized: frozenset[str]) -> Boundaries:
    """Boundaries of the quantized nodes (by key)."""
    tensors = _Tensors(graph, types, quantized).find()
    nodes = [n for n in graph.nodes if key(n) in quantized]
    groups = _groups(graph, nodes, tensors)
    return Boundaries(groups, _sources(graph, quantized, groups), _pads(graph, nodes, groups))


class _Tensors:
    """The tensors between the operators that remain when clips and unary chains are seen as one."""

    def __init__(self, graph: Graph, types: Types, quantized: frozenset[str]) -> None:
        self.graph, self.types, self.quantized = graph, types, quantized
        self.fused = {key(n) for n in graph.nodes if self._is_fused(n)}

    def find(self) -> list[str]:
        """In topological order. A new boundary can split a chain, so this repeats until there is none."""
        found: set[str] = set()
        while not (new := self._given(found)) <= found:
            found |= new
        return [t for t in [*self.graph.inputs, *(o for n in self.graph.nodes for o in n.output)] if t in found]

    def _is_fused(self, node: NodeProto) -> bool:
        producer = self.graph.producer(node.input[0]) if node.op_type in CLIPS else None
        if producer is None or not {key(node), key(producer)} <= self.quantized:
            return False
        two = len(set(self.graph.data_inputs(producer))) == 2
        arithmetic = producer.op_type in WEIGHTED | POOLS or (producer.op_type in {"Add", "Mul"} and two)
        return arithmetic and self.graph.only_consumer(node.input[0]) is node

    def _given(self, boundaries: set[str]) -> set[str]:
        roots: dict[str, str] = {}
        found: set[str] = set()
        for node in self.graph.nodes:
            if key(node) not in self.quantized:
                continue
            root = self._common_root(node, roots, boundaries)
            if root is None:
                found.update(() if key(node) in self.fused else self.graph.data_inputs(node))
                found.update(o for o in node.output if o and not self._feeds_fused(o) and not self._ends(node))
            else:
                roots[node.output[0]] = root
                found.add(root)
                found.update(() if self._stays_inside(node.output[0]) else node.output)
        return found

    def _common_root(self, node: NodeProto, roots: dict[str, str], boundaries: set[str]) -> str | None:
        """The tensor that an elementwise node is a function of, if it is only one."""
        data = self.graph.data_inputs(node)
        of = {t if t in boundaries else roots.get(t, t) for t in data}
        shapes = all(self.types.same_shape(t, node.output[0]) for t in data)
        return of.pop() if self._is_elementwise(node) and len(of) == 1 and shapes else None

    def _is_elementwise(self, node: NodeProto) -> bool:
        inside = key(node) in self.quantized and key(node) not in self.fused
        return inside and (node.op_type in UNARY or node.op_type in SCALAR_BINARY)

    def _stays_inside(self, tensor: str) -> bool:
        readers = self.graph.consumers(tensor)
        return tensor not in self.graph.outputs and bool(readers) and all(self._is_elementwise(n) for n in readers)

    def _ends(self, node: NodeProto) -> bool:
        """Whether a layer's sums are read as float32 only: they need not be rounded to a byte."""
        readers = self.graph.consumers(node.output[0])
        return is_weighted(self.graph, node) and not any(key(n) in self.quantized for n in readers)

    def _feeds_fused(self, tensor: str) -> bool:
        return any(key(n) in self.fused for n in self.graph.consumers(tensor))


def _groups(graph: Graph, nodes: list[NodeProto], tensors: list[str]) -> dict[str, str]:
    sets = _Sets(tensors)
    moves = [n for n in nodes if n.op_type in MOVES]
    for node in moves:
        for output in filter(None, node.output):
            sets.join(node.input[0], output)
    for node in nodes:
        if node.op_type == "Concat":
            for tensor in node.input:
                if _only_feeds(graph, sets.members(tensor), [node, *moves]):
                    sets.join(tensor, node.output[0])
    return sets.firsts()


def _only_feeds(graph: Graph, tensors: Iterable[str], readers: list[NodeProto]) -> bool:
    allowed = {id(n) for n in readers}
    return all(
        t not in graph.outputs and all(id(n) in allowed for n in graph.consumers(t)) and graph.consumers(t)
        for t in tensors
    )


def _sources(graph: Graph, quantized: frozenset[str], groups: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """The tensors that bound a group: those that are not moved or joined from other members."""
    sources: dict[str, list[str]] = {}
    for tensor, first in groups.items():
        producer = graph.producer(tensor)
        if producer is None or key(producer) not in quantized or not _is_derived(producer, groups):
            sources.setdefault(first, []).append(tensor)
    return {first: tuple(found) for first, found in sources.items()}


def _is_derived(producer: NodeProto, groups: dict[str, str]) -> bool:
    joined = producer.op_type == "Concat" and all(groups[t] == groups[producer.output[0]] for t in producer.input)
    return producer.op_type in MOVES or joined


def _pads(graph: Graph, nodes: list[NodeProto], groups: dict[str, str]) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for node in nodes:
        value = graph.constant(optional_input(node, 2)) if node.op_type == "Pad" else None
        if value is not None and value.size:
            group = groups[node.output[0]]
            found[group] = (*found.get(group, ()), float(value.reshape(-1)[0]))
    return found


class _Sets:
    """Disjoint sets of tensors; each set is named by its first tensor in topological order."""

    def __init__(self, tensors: list[str]) -> None:
        self._order = tensors
        self._members = {t: [t] for t in tensors}

    def members(self, tensor: str) -> list[str]:
        return self._members[tensor]

    def firsts(self) -> dict[str, str]:
        """The name of each tensor's set."""
        found: dict[str, str] = {}
        for tensor in self._order:
            if tensor not in found:
                found |= dict.fromkeys(self._members[tensor], tensor)
        return {tensor: found[tensor] for tensor in self._order}

    def join(self, a: str, b: str) -> None:
        one, two = sorted((self._members[a], self._members[b]), key=len, reverse=True)
        if one is not two:
            one.extend(two)
            for tensor in two:
                self._members[tensor] = one

"""What rounding costs at the outputs, tensor by tensor and layer by layer.

One of a hundred roundings is one per cent of the error, and roundings correlate: without it, a network that rounds
everything else may even come out worse. So each is measured alone, a tensor in 8 bits while all others have 16, a layer
in integers while all others are float32; energies measured so nearly add up.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from onnx import NodeProto

from edgebuild.stages.quantize.calibrated import Calibrated, Fallback, floating_of
from edgebuild.stages.quantize.graph import Graph, key
from edgebuild.stages.quantize.network import Plan
from edgebuild.stages.quantize.operators import CLIPS, MOVES, SCALAR_BINARY, UNARY, is_weighted

_JUDGES = 16
"""Held-out samples that an error is measured on: there are many of them, and each is measured alone."""


@dataclass(frozen=True)
class Rounding:
    """Layers that read the same tensors in 8 bits ("int16": these tensors get 16), or one layer ("float32").

    `keys`: the layers, as a fallback names them; `name` and `operator` as people do; `nodes`: the names of the
    operators whose time changes; `share`: of the error of the network in 8 bits, about what is gone without it.
    """

    keys: tuple[str, ...]
    name: str
    operator: str
    precision: Literal["int16", "float32"]
    nodes: tuple[str, ...]
    share: float


def roundings(found: Calibrated, progress: Callable[[int, int], None] | None = None) -> list[Rounding]:
    """Every rounding that may be left out. `progress` gets how many are measured, of how many."""
    plan = found.plan()
    graph = found.network.graph
    shared = _shared(found, plan)
    layers = [n for n in graph.nodes if key(n) in plan.selection.quantized and is_weighted(graph, n)]
    every = frozenset(plan.boundaries.sources)
    without: list[Fallback] = [{key(o): "float32" for o in layers if o is not n} for n in layers]
    found.watch([found.network.plan(floating_of(fallback)) for fallback in without])
    judge = found.judge.first(_JUDGES)
    total = found.error(judge, {}) or 1.0
    rest = found.error(judge, {}, every)
    rows, count = [], len(shared) + len(layers)
    for groups, nodes in shared.items():
        share = (found.error(judge, {}, every - groups) - rest) / total
        rows.append(_rounding(nodes, "int16", _timed(graph, nodes, groups), share))
        _tell(progress, len(rows), count)
    for node, fallback in zip(layers, without, strict=True):
        share = found.error(judge, fallback) / total
        rows.append(_rounding([node], "float32", _timed(graph, [node], ()), share))
        _tell(progress, len(rows), count)
    return rows


def _shared(found: Calibrated, plan: Plan) -> dict[frozenset[str], list[NodeProto]]:
    """The quantized operators that read the same groups of tensors in 8 bits, by these groups."""
    graph, groups = found.network.graph, plan.boundaries.groups
    narrow = {g for g, chosen in found.choose(plan)[1].items() if chosen.bits == 8}
    shared: dict[frozenset[str], list[NodeProto]] = {}
    for node in graph.nodes:
        if key(node) not in plan.selection.quantized or node.op_type in MOVES:
            continue
        read = frozenset(groups[t] for t in graph.data_inputs(node) if t in groups) & narrow
        if read:
            shared.setdefault(read, []).append(node)
    return shared


def _rounding(
    nodes: list[NodeProto], precision: Literal["int16", "float32"], timed: tuple[str, ...], share: float
) -> Rounding:
    names = [n.name or key(n) for n in nodes]
    kinds = list(dict.fromkeys(n.op_type for n in nodes))
    return Rounding(tuple(map(key, nodes)), ", ".join(names), ", ".join(kinds), precision, timed, share)


def _timed(graph: Graph, nodes: Iterable[NodeProto], groups: Iterable[str]) -> tuple[str, ...]:
    """The operators that take another time: these, what makes the tensors, and elementwise ones behind either."""
    makers = [p for g in groups if (p := graph.producer(g)) is not None and not is_weighted(graph, p)]
    pending, names = [*nodes, *makers], dict[str, None]()
    while pending:
        node = pending.pop()
        if node.name not in names:
            names[node.name] = None
            behind = (n for o in node.output if o for n in graph.consumers(o))
            pending += [n for n in behind if n.op_type in UNARY | CLIPS | SCALAR_BINARY]
    return tuple(names)


def _tell(progress: Callable[[int, int], None] | None, done: int, total: int) -> None:
    if progress:
        progress(done, total)

"""Finds what the compiler cannot lower, before samples are run through the model."""

from onnx import NodeProto

from edgebuild.core.errors import ModelError
from edgebuild.core.operators import OPERATORS, THROUGH_TVM
from edgebuild.stages.quantize.graph import Graph

_LISTED = 5


def check_operators(graph: Graph) -> None:
    """ModelError naming the operators that a program cannot hold; what no output needs does not count."""
    unknown = [n for n in _needed(graph) if n.op_type not in OPERATORS | THROUGH_TVM or n.domain not in ("", "ai.onnx")]
    if not unknown:
        return
    kinds = list(dict.fromkeys(n.op_type for n in unknown))
    listed = ", ".join(f"{n.op_type} ({n.name!r})" for n in unknown[:_LISTED])
    more = f" and {len(unknown) - _LISTED} more" if len(unknown) > _LISTED else ""
    raise ModelError(
        f"not supported: {listed}{more}",
        f"replace the layers, or the parts of the handler, that {', '.join(kinds)} come from by supported operators",
    )


def _needed(graph: Graph) -> list[NodeProto]:
    """The nodes that the outputs depend on, in order; operators that only feed constants were folded before."""
    wanted, found = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.output) and node.op_type != "Constant":
            wanted.update(node.input)
            found.append(node)
    return found[::-1]

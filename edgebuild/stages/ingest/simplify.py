"""Rewrites to operators that later stages do better, with the same meaning.

* x² is a product and √x has an operator of its own, where the exponent stands in the graph as a constant (an exponent
  that is a weight stays one: structure never depends on weights' values); Sum becomes Add.
* One-dimensional convolutions and pools become two-dimensional ones of height 1, and what lies between them as well.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

Rule = Callable[[ir.Graph, ir.Node], bool]

_HEIGHT = 2
"""The axis that a one-dimensional layer's values get."""

_BROUGHT_ALONG = frozenset({
    "BatchNormalization", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh",
})  # fmt: skip
_JOINED = frozenset({"Add", "Mul"})


def spell_out(model: ir.Model) -> None:
    """Pow and Sum. To be done while constants of the code are still nodes, which weights never are."""
    _apply(model.graph, (_square, _sum))


def widen(model: ir.Model) -> None:
    """One-dimensional layers. Needs inferred shapes."""
    _apply(model.graph, (_layer, _unary, _joined, _mean, _cancel))


def _apply(graph: ir.Graph, rules: Sequence[Rule]) -> None:
    """Each rule at each node, until none applies."""
    while sum(_sweep(graph, rule) for rule in rules):
        pass


def _sweep(graph: ir.Graph, rule: Rule) -> int:
    """How often the rule applied."""
    return sum(rule(graph, node) for node in list(graph) if node.graph is graph and not node.domain)


def _replace(graph: ir.Graph, node: ir.Node, new: Sequence[ir.Node]) -> bool:
    """`new` instead of `node`; its last node gives the node's only output. They belong to the same layer."""
    for part in new:
        part.metadata_props.update(node.metadata_props)
    old, made = node.outputs[0], new[-1].outputs[0]
    made.type, made.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, [old], [made])
    return True


def _square(graph: ir.Graph, node: ir.Node) -> bool:
    exponent = node.inputs[1] if node.op_type == "Pow" else None
    maker = None if exponent is None else exponent.producer()
    if exponent is None or maker is None or maker.op_type != "Constant" or node.inputs[0] is None:
        return False
    value, base = ir.convenience.get_const_tensor(exponent), node.inputs[0]
    if value is None or value.size != 1:
        return False
    power = float(value.numpy().reshape(-1)[0])
    if power == 2:
        return _replace(graph, node, [ir.node("Mul", [base, base])])
    return power == 0.5 and _replace(graph, node, [ir.node("Sqrt", [base])])


def _sum(graph: ir.Graph, node: ir.Node) -> bool:
    terms = list(node.inputs)
    if node.op_type != "Sum" or len(terms) < 2:
        return False
    new: list[ir.Node] = []
    total = terms[0]
    for term in terms[1:]:
        new.append(ir.node("Add", [total, term]))
        total = new[-1].outputs[0]
    return _replace(graph, node, new)


def _layer(graph: ir.Graph, node: ir.Node) -> bool:
    """A convolution or pool along one axis, between Unsqueeze and Squeeze."""
    source = node.inputs[0] if node.op_type in {"Conv", "MaxPool", "AveragePool"} else None
    if source is None or source.shape is None or len(source.shape) != 3 or len(node.outputs) != 1:
        return False
    weight = node.inputs[1] if node.op_type == "Conv" else None
    if weight is not None:
        flat = ir.convenience.get_const_tensor(weight)
        if flat is None or len(weight.uses()) > 1:
            return False
        weight = _constant(graph, f"{weight.name}_wide", np.expand_dims(flat.numpy(), _HEIGHT))
    raised = _moved(graph, "Unsqueeze", source)
    inputs = [raised.outputs[0], *([weight, *node.inputs[2:]] if weight is not None else ())]
    wide = ir.Node("", node.op_type, inputs, [_widened(item) for item in node.attributes.values()], name=node.name)
    return _replace(graph, node, [raised, wide, _moved(graph, "Squeeze", wide.outputs[0])])


_WIDENING = {"kernel_shape": 1, "strides": 1, "dilations": 1}


def _widened(attribute: ir.Attr) -> ir.Attr:
    """An attribute of a one-dimensional layer for one of height 1."""
    if attribute.name in _WIDENING:
        return ir.AttrInt64s(attribute.name, [_WIDENING[attribute.name], *attribute.as_ints()])
    if attribute.name == "pads":
        before, after = attribute.as_ints()
        return ir.AttrInt64s("pads", [0, before, 0, after])
    return attribute


def _unary(graph: ir.Graph, node: ir.Node) -> bool:
    """An operator behind Squeeze that takes any shape comes before it."""
    wide = _squeezed(node.inputs[0]) if node.op_type in _BROUGHT_ALONG else None
    return wide is not None and _before_squeeze(graph, node, [wide, *node.inputs[1:]])


def _joined(graph: ir.Graph, node: ir.Node) -> bool:
    """Two squeezed values are joined as they were before."""
    wide = [_squeezed(value) for value in node.inputs] if node.op_type in _JOINED else []
    return bool(wide) and None not in wide and _before_squeeze(graph, node, wide)


def _before_squeeze(graph: ir.Graph, node: ir.Node, inputs: Sequence[ir.Value | None]) -> bool:
    new = ir.Node("", node.op_type, inputs, node.attributes.values(), name=node.name)
    return _replace(graph, node, [new, _moved(graph, "Squeeze", new.outputs[0])])


def _mean(graph: ir.Graph, node: ir.Node) -> bool:
    """A mean over the length of a squeezed value is one over height and width."""
    wide = _squeezed(node.inputs[0]) if node.op_type == "ReduceMean" and len(node.inputs) > 1 else None
    axes = ir.convenience.get_const_tensor(node.inputs[1]) if wide is not None and node.inputs[1] is not None else None
    if wide is None or axes is None or axes.numpy().tolist() not in ([2], [-1]):
        return False
    both = _constant(graph, f"{node.outputs[0].name}_axes", np.array([_HEIGHT, _HEIGHT + 1]))
    new = ir.Node("", "ReduceMean", [wide, both], node.attributes.values(), name=node.name)
    kept = node.attributes.get("keepdims")
    if kept is not None and not kept.as_int():
        return _replace(graph, node, [new])
    return _replace(graph, node, [new, _moved(graph, "Squeeze", new.outputs[0])])


def _cancel(graph: ir.Graph, node: ir.Node) -> bool:
    """Unsqueeze behind Squeeze, of the axis that this module adds."""
    wide = _squeezed(node.inputs[0]) if node.op_type == "Unsqueeze" and _is_height(node.inputs[1]) else None
    if wide is None or node.outputs[0].is_graph_output():
        return False
    ir.convenience.replace_all_uses_with(node.outputs[0], wide)
    graph.remove(node, safe=True)
    return True


def _moved(graph: ir.Graph, kind: str, value: ir.Value) -> ir.Node:
    return ir.node(kind, [value, _constant(graph, "height_axis", np.array([_HEIGHT]))])


def _constant(
    graph: ir.Graph, name: str, value: "np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.int64]]"
) -> ir.Value:
    """The graph's constant of that name, made where it is missing."""
    if name not in graph.initializers:
        tensor = ir.tensor(value, name=name)
        kind = ir.TensorType(tensor.dtype)
        graph.register_initializer(ir.Value(name=name, shape=ir.Shape(value.shape), type=kind, const_value=tensor))
    return graph.initializers[name]


def _squeezed(value: ir.Value | None) -> ir.Value | None:
    """The value of rank 4 that a Squeeze of this module made `value` of."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "Squeeze" or len(node.inputs) < 2 or not _is_height(node.inputs[1]):
        return None
    return node.inputs[0]


def _is_height(axes: ir.Value | None) -> bool:
    return axes is not None and axes.name == "height_axis"

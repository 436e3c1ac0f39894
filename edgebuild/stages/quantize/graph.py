"""A float ONNX graph as the quantizer edits it: nodes in topological order, constants as arrays, indexes by tensor.

An edit costs what it changes, not what the graph holds: networks of tens of thousands of nodes are folded as well.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

Array = npt.NDArray[Any]
_SHAPE_LIKE = 1024
"""Constants of at most so many elements can say what shape a tensor has; larger ones are weights."""


class Graph:
    """Nodes and constants of one model; edits go through the methods, which keep the indexes right."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._frame = _frame(model)
        self._order: list[NodeProto] | None = None
        self.constants: dict[str, Array] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.inputs = [i.name for i in model.graph.input if i.name not in self.constants]
        self.outputs = [o.name for o in model.graph.output]
        self.nodes = [_copy(n) for n in model.graph.node]

    @property
    def nodes(self) -> list[NodeProto]:
        """In topological order; assign a list to change it."""
        if self._order is None:
            self._order = [node for place in self._places for node in place]
        return self._order

    @nodes.setter
    def nodes(self, nodes: Iterable[NodeProto]) -> None:
        self._order = list(nodes)
        self.reindex()

    @property
    def opset(self) -> int:
        """The version of the standard domain."""
        return int(max(o.version for o in self._frame.opset_import if o.domain in {"", "ai.onnx"}))

    def float_outputs(self) -> list[str]:
        """The graph outputs that are float32."""
        return [o.name for o in self._frame.graph.output if o.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]

    @property
    def sizes(self) -> dict[str, int]:
        """How many elements each graph output has."""
        shapes = {o.name: [d.dim_value for d in o.type.tensor_type.shape.dim] for o in self._frame.graph.output}
        return {name: int(np.prod(shape)) for name, shape in shapes.items()}

    def copy(self) -> "Graph":
        """Another graph of the same nodes; the constants' values are shared."""
        found = Graph(self._frame)
        found.constants = dict(self.constants)
        found.inputs, found.outputs = list(self.inputs), list(self.outputs)
        found.nodes = [_copy(n) for n in self.nodes]
        return found

    def reindex(self) -> None:
        """Brings the indexes up to date after nodes were edited in place."""
        nodes = self.nodes
        self._places = [[node] for node in nodes]
        self._place = {id(node): i for i, node in enumerate(nodes)}
        self._producers: dict[str, NodeProto] = {}
        self._consumers: dict[str, dict[int, NodeProto]] = {}
        self._read: dict[int, tuple[str, ...]] = {}
        self._written: dict[int, tuple[str, ...]] = {}
        for node in nodes:
            self._index(node)
        self._types: Types | None = None

    def _index(self, node: NodeProto) -> None:
        number = id(node)
        self._read[number], self._written[number] = tuple(dict.fromkeys(node.input)), tuple(filter(None, node.output))
        for name in self._written[number]:
            self._producers[name] = node
        for name in self._read[number]:
            self._consumers.setdefault(name, {})[number] = node

    def _forget(self, node: NodeProto) -> None:
        """Takes a node out of the indexes, under the names that it had when it came in."""
        number = id(node)
        for name in self._written.pop(number):
            if self._producers.get(name) is node:
                del self._producers[name]
        for name in self._read.pop(number):
            del self._consumers[name][number]

    def _reread(self, node: NodeProto) -> None:
        self._forget(node)
        self._index(node)

    def producer(self, name: str) -> NodeProto | None:
        """The node that writes the tensor; None for inputs and constants."""
        return self._producers.get(name)

    def consumers(self, name: str) -> list[NodeProto]:
        """The nodes that read the tensor, each once, in order; those that were edited come last."""
        return list(self._consumers.get(name, {}).values())

    def only_consumer(self, name: str) -> NodeProto | None:
        """The node that alone reads the tensor, unless the tensor is a graph output too."""
        readers = self._consumers.get(name, {})
        return next(iter(readers.values())) if len(readers) == 1 and name not in self.outputs else None

    def constant(self, name: str) -> Array | None:
        """The value of a constant tensor."""
        return self.constants.get(name)

    def data_inputs(self, node: NodeProto) -> list[str]:
        """The inputs that are computed at run time."""
        return [name for name in node.input if name and name not in self.constants]

    def add_constant(self, name: str, value: Array) -> str:
        """Adds a constant under `name` or, when that is taken, under `name` and the first free number."""
        free, number = name, 1
        while free in self.constants or free in self._producers or free in self.inputs:
            free, number = f"{name}_{number}", number + 1
        self.constants[free] = value
        return free

    def replace(self, old: Iterable[NodeProto], new: Iterable[NodeProto]) -> None:
        """Puts the nodes `new` where the last of `old` stood and removes `old`."""
        removed, added = list(old), list(new)
        last = max(self._place[id(n)] for n in removed)
        place = self._places[last]
        behind = 1 + max(i for i, n in enumerate(place) if any(n is o for o in removed))
        place[behind:behind] = added
        for node in removed:
            self._take_out(node)
        for node in added:
            self._place[id(node)] = last
            self._index(node)

    def remove(self, node: NodeProto) -> None:
        """Removes a node that nothing reads, or whose output became a constant."""
        self._take_out(node)

    def _take_out(self, node: NodeProto) -> None:
        place = self._places[self._place.pop(id(node))]
        del place[next(i for i, n in enumerate(place) if n is node)]
        self._forget(node)
        self._order = None
        self._types = None

    def set_input(self, node: NodeProto, position: int, name: str) -> None:
        """Lets a node read another tensor; inputs that are left out before it are absent."""
        while len(node.input) <= position:
            node.input.append("")
        node.input[position] = name
        self._reread(node)
        self._types = None

    def bypass(self, node: NodeProto) -> None:
        """Removes a node that passes its first input on; its output must not be a graph output."""
        for reader in self.consumers(node.output[0]):
            for i, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[i] = node.input[0]
            self._reread(reader)
        self._take_out(node)

    def types(self) -> "Types":
        """Types and shapes as they are now; an in-place edit of a node shows after `reindex`."""
        if self._types is None:
            self._types = Types(self.inferred())
        return self._types

    def inferred(self) -> onnx.ModelProto:
        """The nodes with the types and shapes of all tensors; of weights nothing else."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self._frame)
        proto.graph.node.extend(self.nodes)
        used = {n: v for n, v in self.constants.items() if self._consumers.get(n) or n in self.outputs}
        for name, value in used.items():
            if value.size <= _SHAPE_LIKE:
                proto.graph.initializer.append(numpy_helper.from_array(value, name))
            else:
                kind = helper.np_dtype_to_tensor_dtype(value.dtype)
                proto.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
        return onnx.shape_inference.infer_shapes(proto, data_prop=True)

    def to_model(self, extra_outputs: Iterable[str] = (), opset: int = 0) -> onnx.ModelProto:
        """The model with these nodes, the constants that they read, and inferred shapes; of `opset` at least.

        `extra_outputs` are float32 tensors that become outputs too; they need no shape.
        """
        used = {name for node in self.nodes for name in node.input} | set(self.outputs)
        proto = onnx.ModelProto()
        proto.CopyFrom(self._frame)
        for domain in proto.opset_import:
            domain.version = max(domain.version, opset) if domain.domain in {"", "ai.onnx"} else domain.version
        proto.graph.node.extend(self.nodes)
        proto.graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(v) if v.ndim else v, n)
            for n, v in self.constants.items()
            if n in used
        )
        proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        known = set(self.outputs)
        for name in extra_outputs:
            if name not in known:
                proto.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
        return proto


class Types:
    """Element type and shape of every tensor of a model with static shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._known: dict[str, tuple[int, tuple[int, ...] | None]] = {}
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
            tensor = value.type.tensor_type
            dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
            self._known[value.name] = (tensor.elem_type, dims if tensor.HasField("shape") and -1 not in dims else None)
        for t in model.graph.initializer:
            self._known[t.name] = (t.data_type, tuple(t.dims))

    def is_float(self, name: str) -> bool:
        """Whether the tensor is float32."""
        return self._known.get(name, (0, None))[0] == onnx.TensorProto.FLOAT

    def same_shape(self, a: str, b: str) -> bool:
        """Whether both shapes are known and equal."""
        return self.shape(a) is not None and self.shape(a) == self.shape(b)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The static shape, None where inference did not find one."""
        return self._known.get(name, (0, None))[1]


def key(node: NodeProto) -> str:
    """What a node is known by: its first output."""
    return str(node.output[0]) if node.output else ""


def reach(graph: Graph, start: set[str], *, forward: bool = True) -> set[str]:
    """Keys of the nodes that lie strictly after (or before) the nodes with keys `start`."""
    found: set[str] = set()
    for node in graph.nodes if forward else reversed(graph.nodes):
        near = [p for t in node.input if (p := graph.producer(t))] if forward else _readers(graph, node)
        if any(key(n) in start or key(n) in found for n in near):
            found.add(key(node))
    return found


def _readers(graph: Graph, node: NodeProto) -> list[NodeProto]:
    return [reader for t in node.output for reader in graph.consumers(t)]


def attributes(node: NodeProto) -> dict[str, Any]:
    """Attributes as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Sets or replaces one attribute."""
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def optional_input(node: NodeProto, position: int) -> str:
    """The name of an input, empty when it is absent."""
    return node.input[position] if position < len(node.input) else ""


def integers(graph: Graph, node: NodeProto, position: int, attribute: str) -> list[int] | None:
    """Integers that newer opsets pass as a constant input, older ones as an attribute; None if absent or computed."""
    value = graph.constant(optional_input(node, position))
    if value is not None:
        return [int(v) for v in value.reshape(-1)]
    given = attributes(node).get(attribute)
    return None if given is None else [int(v) for v in given]


def _frame(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model without what a Graph holds apart: nodes, constants and what is inferred of them."""
    found = onnx.ModelProto()
    kept = ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string")
    for field in kept:
        if model.HasField(field):
            setattr(found, field, getattr(model, field))
    found.opset_import.extend(model.opset_import)
    found.metadata_props.extend(model.metadata_props)
    found.functions.extend(model.functions)
    found.graph.name = model.graph.name
    found.graph.input.extend(model.graph.input)
    found.graph.output.extend(model.graph.output)
    return found


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy

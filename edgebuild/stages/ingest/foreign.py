"""Networks that are no torch module (ONNX, TFLite, Keras …) beneath handlers that torch traces.

While torch traces the handler, a call of the network is one operator of ours; in the exported graph the network's own
ONNX graph takes its place. Run eagerly, the call runs the network in the framework it comes from.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import onnx
import onnxscript
import torch
from onnx import helper, version_converter
from torch import nn

from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import Tensor
from edgebuild.stages.ingest.onnx import model_inputs, model_outputs
from edgebuild.stages.ingest.parity import Array, answers

_DOMAIN, _OPERATOR = "edgebuild", "Network"
_PREFIX = "network."


class Source(Protocol):
    """A network in another framework."""

    def graph(self, inputs: Sequence[Tensor]) -> onnx.ModelProto:
        """The network for these inputs, in the order of a call, in the form that `normalize` gives."""

    def run(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """The outputs, in the graph's order."""


class Foreign(nn.Module):
    """A network as a handler calls it: inputs by position, a tensor out, or a dict of tensors where it has several."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.graphs: list[onnx.ModelProto] = []
        """One for every kind of inputs that the network was called with."""

    def forward(self, *inputs: torch.Tensor) -> Any:
        specs = [Tensor("", str(value.dtype).removeprefix("torch."), tuple(value.shape)) for value in inputs]
        call = self._call(specs)
        names = [output.name for output in model_outputs(self.graphs[call])]
        if torch.compiler.is_exporting():
            found = [torch.ops.edgebuild.network(list(inputs), call, i) for i in range(len(names))]
        else:
            # not .numpy(), which gives traced arrays while a NumPy handler is traced
            arrays = [np.from_dlpack(value.detach().contiguous()) for value in inputs]
            found = [torch.utils.dlpack.from_dlpack(np.array(value)) for value in self.source.run(arrays)]
        return found[0] if len(found) == 1 else dict(zip(names, found, strict=True))

    def _call(self, specs: Sequence[Tensor]) -> int:
        """The place in `graphs` of the graph that takes such inputs."""
        for call, graph in enumerate(self.graphs):
            if same_inputs(model_inputs(graph), specs):
                return call
        self.graphs.append(self.source.graph(specs))
        return len(self.graphs) - 1


def same_inputs(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two lists of inputs are alike but for their names."""
    return [(item.dtype, item.shape) for item in first] == [(item.dtype, item.shape) for item in second]


def check_inputs(name: str, wanted: Sequence[Tensor], given: Sequence[Tensor]) -> None:
    """ModelError if a handler calls the network with other inputs than the ones it takes."""
    if not same_inputs(wanted, given):
        shown = [", ".join(f"{item.dtype}{list(item.shape)}" for item in items) for items in (wanted, given)]
        raise ModelError(
            f"{name}: takes {shown[0]}; the handler calls it with {shown[1]}",
            "give the model one sample as it was trained: add the batch axis, convert the dtype",
        )


class Calls:
    """The calls of one network in one trace."""

    def __init__(self, network: Foreign | None) -> None:
        self._network = network

    @property
    def translations(self) -> dict[Any, Callable[..., Any]] | None:
        """What torch's exporter writes for a call."""
        return None if self._network is None else {torch.ops.edgebuild.network.default: _translate}

    def inlined(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """`model` with the network's graph in place of each call."""
        if self._network is None:
            return model
        graphs = self._network.graphs
        opset = max(map(_opset, [model, *graphs]))
        model, graphs = _converted(model, opset), [_converted(graph, opset) for graph in graphs]
        nodes: list[onnx.NodeProto] = []
        calls = [node for node in model.graph.node if node.op_type == _OPERATOR]
        done: list[tuple[str, ...]] = []
        for node in model.graph.node:
            if node.op_type != _OPERATOR:
                nodes.append(node)
            elif _key(node) not in done:
                done.append(_key(node))
                outputs = {_integer(same, "output"): same.output[0] for same in calls if _key(same) == _key(node)}
                graph, prefix = (
                    graphs[_integer(node, "call")].graph,
                    _PREFIX if len(done) == 1 else f"{_PREFIX}{len(done)}.",
                )
                names = dict(zip([value.name for value in graph.input], node.input, strict=True))
                names |= {graph.output[i].name: name for i, name in outputs.items()}
                nodes += _spliced(graph, names, prefix)
                model.graph.initializer.extend(_renamed(graph.initializer, prefix))
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        kept = [opset for opset in model.opset_import if opset.domain != _DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(kept)
        return model


@contextmanager
def calls(network: nn.Module) -> Iterator[Calls]:
    """Inside, torch traces calls of `network`, if it is a foreign one, as operators."""
    _ACTIVE.append(network if isinstance(network, Foreign) else None)
    try:
        yield Calls(_ACTIVE[-1])
    finally:
        _ACTIVE.pop()


_ACTIVE: list[Foreign | None] = []
"""The network that is traced; torch's operators have no other way to know it."""


@torch.library.custom_op("edgebuild::network", mutates_args=())
def _network(inputs: list[torch.Tensor], call: int, output: int) -> torch.Tensor:
    raise NotImplementedError  # eagerly, Foreign runs the network itself


@_network.register_fake
def _(inputs: list[torch.Tensor], call: int, output: int) -> torch.Tensor:  # noqa: ARG001
    network = _ACTIVE[-1]
    assert network is not None
    spec = model_outputs(network.graphs[call])[output]
    return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))


def _translate(inputs: Sequence[Any], call: int, output: int) -> Any:
    return _ONNX(*inputs, call=call, output=output)


def _onnx_operator() -> Any:
    schema = onnx.defs.OpSchema
    formal, kinds = (
        schema.FormalParameter,
        [f"tensor({kind})" for kind in ("float", "uint8", "int8", "int32", "int64", "bool")],
    )
    return onnxscript.values.Op(
        onnxscript.values.Opset(_DOMAIN, 1),
        _OPERATOR,
        schema(
            _OPERATOR,
            _DOMAIN,
            1,
            inputs=[formal("inputs", "T", param_option=schema.FormalParameterOption.Variadic, is_homogeneous=False)],
            outputs=[formal("result", "U")],
            type_constraints=[("T", kinds, ""), ("U", kinds, "")],
            attributes=[schema.Attribute(name, schema.AttrType.INT, required=True) for name in ("call", "output")],
        ),
    )


_ONNX = _onnx_operator()


def _key(node: onnx.NodeProto) -> tuple[str, ...]:
    """What calls of one run of the network have in common."""
    return (str(_integer(node, "call")), *node.input)


def _integer(node: onnx.NodeProto, name: str) -> int:
    return int(next(attribute.i for attribute in node.attribute if attribute.name == name))


def _opset(model: onnx.ModelProto) -> int:
    return int(next(opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")))


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    return model if _opset(model) == opset else version_converter.convert_version(model, opset)


def _spliced(graph: onnx.GraphProto, names: dict[str, str], prefix: str) -> list[onnx.NodeProto]:
    """The graph's nodes with `names` for the values that it shares with the graph around it."""
    nodes = []
    made = {output for node in graph.node for output in node.output}
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{prefix}{node.name}"
        copy.input[:] = [names.get(name, name and f"{prefix}{name}") for name in node.input]
        copy.output[:] = [names.get(name, name and f"{prefix}{name}") for name in node.output]
        nodes.append(copy)
    handed_on = [value.name for value in graph.output if value.name not in made and value.name in names]
    return nodes + [helper.make_node("Identity", [f"{prefix}{name}"], [names[name]]) for name in handed_on]


def _renamed(constants: Sequence[onnx.TensorProto], prefix: str) -> list[onnx.TensorProto]:
    renamed = []
    for constant in constants:
        copy = onnx.TensorProto()
        copy.CopyFrom(constant)
        copy.name = f"{prefix}{constant.name}"
        renamed.append(copy)
    return renamed


class OnnxFile:
    """A normalized ONNX model as a `Source`; ONNX Runtime is its framework."""

    def __init__(self, model: onnx.ModelProto, where: str) -> None:
        self.model = model
        self._where = where

    def graph(self, inputs: Sequence[Tensor]) -> onnx.ModelProto:
        check_inputs(self._where, model_inputs(self.model), inputs)
        return self.model

    def run(self, arrays: Sequence[Array]) -> Sequence[Array]:
        names = [spec.name for spec in model_inputs(self.model)]
        return answers(self.model, [dict(zip(names, arrays, strict=True))], self._where)[0]

"""One graph that runs the float network, the integers, and anything between: every rounding behind a switch.

Each Q/DQ pair's result becomes Where(switch, what went in, what came out); a layer's weights and bias are exact or
dequantized constants, and each choice of them is a session of its own, because ONNX Runtime convolves with constants
several times as fast. So tensors are compared one by one, and a single rounding can be undone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgebuild.core import ort
from edgebuild.core.errors import ModelError
from edgebuild.stages.diagnose.graph import WEIGHTED, Array, Graph, attribute

_RELU6 = 6.0
_UNDER_ONE_PER_CENT = 0.01
_CLIPPING = frozenset({"Clip", "Relu", "Sigmoid", "HardSigmoid", "Softmax"})

Sample = dict[str, Array]


@dataclass(frozen=True)
class Activation:
    """A quantized tensor. `tensor` names its float side, `result` the dequantized one, `group` its scale: tensors of a
    group share parameters. `read_scale` and `read_zero` are DequantizeLinear's, the same in a sound graph.
    """

    tensor: str
    result: str
    group: str
    scale: float
    zero_point: int
    lowest: int
    highest: int
    read_scale: float
    read_zero: int
    switch: str

    @property
    def range(self) -> tuple[float, float]:
        """What the codes can represent."""
        return (self.lowest - self.zero_point) * self.scale, (self.highest - self.zero_point) * self.scale

    def rounded(self, values: Array) -> Array:
        """What the tensor's own quantization makes of float values."""
        steps = np.rint(values * np.float32(1.0 / self.scale)) + np.float32(self.zero_point)
        np.clip(steps, self.lowest, self.highest, out=steps)
        return np.asarray((steps - np.float32(self.read_zero)) * np.float32(self.read_scale))


@dataclass(frozen=True)
class Weights:
    """A layer's weights, output channels first: `exact` as float (None when only the integers are known)."""

    layer: NodeProto
    name: str
    exact: Array | None
    stored: Array
    codes: Array
    scale: Array
    bias_scale: Array | None
    switch: str


class Switched:
    """The graph and its session. `floating` may be None: then the weights' integers are all that is known."""

    def __init__(self, qdq: onnx.ModelProto, floating: onnx.ModelProto | None) -> None:
        self.graph = Graph(qdq)
        self._exact = Graph(floating) if floating is not None else None
        self.activations: list[Activation] = []
        self.weights: list[Weights] = []
        self._new: list[onnx.TensorProto] = []
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, list[tuple[NodeProto, int, Array]]] = {}
        self._build()
        self._sessions: dict[frozenset[str], Any] = {}

    @property
    def switches(self) -> list[str]:
        """All of them: activations, then weights."""
        names = [a.switch for a in self.activations] + [w.switch for w in self.weights]
        return [name for name in names if name]

    def probes(self) -> list[str]:
        """The tensors on which the whole network is judged: float outputs of four elements or more, else what the last
        layers make.
        """
        graph = self.graph
        large = [o for o in graph.outputs if graph.is_float(o) and graph.elements(o) >= 4]
        if large:
            return large
        layers = [n for n in graph.nodes if n.op_type in WEIGHTED]
        feeding: set[str] = set()
        for node in layers:
            feeding |= graph.ancestors(node.input[0])
        return [n.output[0] for n in layers if n.output[0] not in feeding] or list(graph.outputs)

    def run(self, sample: Sample, exact: Iterable[str], outputs: Sequence[str]) -> list[Array]:
        """`outputs` with the switches `exact` at float and all others at integers."""
        on = frozenset(exact)
        flags = {a.switch: np.asarray(a.switch in on) for a in self.activations}
        return ran(self._session(on.intersection(self._constants)), outputs, {**sample, **flags})

    def _session(self, exact: frozenset[str]) -> Any:
        """The session with these weights in float. All and none of them are asked for again and again, others once."""
        if exact not in self._sessions:
            once = {key for key in self._sessions if 0 < len(key) < len(self._constants)}
            self._sessions = {key: value for key, value in self._sessions.items() if key not in once}
            self._sessions[exact] = session(self._model(exact))
        return self._sessions[exact]

    def _build(self) -> None:
        pairs = {n.output[0]: n for n in self.graph.nodes if n.op_type == "QuantizeLinear"}
        weights: dict[str, NodeProto] = {}
        for node in self.graph.nodes:
            copied = NodeProto()
            copied.CopyFrom(node)
            if node.op_type == "DequantizeLinear" and node.input[0] in self.graph.constants:
                weights[node.output[0]] = node
            elif node.op_type == "DequantizeLinear" and node.input[0] in pairs:
                self._pair(pairs[node.input[0]], copied)
                continue
            elif node.op_type in WEIGHTED and any(name in weights for name in node.input[1:2]):
                self._layer(copied, weights)
            self._nodes.append(copied)

    def _pair(self, quantize: NodeProto, dequantize: NodeProto) -> None:
        scale, zero = (self._constant(quantize, i) for i in (1, 2))
        if scale is None or scale.size != 1:
            self._nodes.append(dequantize)
            return
        kind = np.dtype(np.uint8) if zero is None else zero.dtype
        limits = np.iinfo(kind)
        result, switch = dequantize.output[0], f"switch:{len(self.activations)}:{dequantize.output[0]}"
        found = Activation(
            quantize.input[0], result, quantize.input[1], float(scale.reshape(-1)[0]),
            _scalar(zero), limits.min, limits.max, *self._read(dequantize), switch,
        )  # fmt: skip
        self.activations.append(found)
        dequantize.output[0] = f"{result}:integer"
        self._nodes.append(dequantize)
        source = found.tensor if self._exact is not None else self._as_clipped(found)
        self._nodes.append(helper.make_node("Where", [switch, source, dequantize.output[0]], [result]))

    def _read(self, dequantize: NodeProto) -> tuple[float, int]:
        scale, zero = (self._constant(dequantize, i) for i in (1, 2))
        return (1.0 if scale is None else float(scale.reshape(-1)[0])), _scalar(zero)

    def _as_clipped(self, found: Activation) -> str:
        """Quantizers leave out a Relu or Relu6 that the range of the codes does as well: in float it is needed."""
        producer = self.graph.producer(found.tensor)
        low, high = found.range
        if low != 0 or producer is None or producer.op_type in _CLIPPING:
            return found.tensor
        relu6 = abs(high - _RELU6) < _UNDER_ONE_PER_CENT * _RELU6
        bounds = [0.0, _RELU6] if relu6 else [0.0]
        names = [f"{found.result}:bound{i}" for i in range(len(bounds))]
        self._new += [numpy_helper.from_array(np.asarray(b, np.float32), n) for b, n in zip(bounds, names, strict=True)]
        self._nodes.append(helper.make_node("Clip", [found.tensor, *names], [f"{found.result}:clipped"]))
        return f"{found.result}:clipped"

    def _layer(self, node: NodeProto, dequantized: dict[str, NodeProto]) -> None:
        store = dequantized[node.input[1]]
        codes = self.graph.constants[store.input[0]]
        scale = self.graph.constants[store.input[1]]
        bias = dequantized.get(node.input[2]) if len(node.input) > 2 else None
        stored = _dequantized(codes, scale, self._constant(store, 2), attribute(store, "axis", 1))
        twin = self._twin(node)
        exact = None if twin is None or self._exact is None else self._exact.constants.get(twin.input[1])
        switch = ""
        if exact is not None and exact.shape == stored.shape:
            switch = f"switch:w:{node.output[0]}"
            self._switch_constant(node, 1, exact, switch)
            if twin is not None and self._exact is not None and len(twin.input) > 2 and bias is not None:
                self._switch_constant(node, 2, self._exact.constants[twin.input[2]], switch)
        else:
            exact = None
        self.weights.append(
            Weights(
                node,
                store.input[0],
                _first(node, exact),
                _first_known(node, stored),
                _first_known(node, codes),
                scale,
                None if bias is None else self.graph.constants[bias.input[1]],
                switch,
            )
        )

    def _twin(self, node: NodeProto) -> NodeProto | None:
        """The same layer in the float network: there a graph output has its own name."""
        if self._exact is None:
            return None
        names = (node.output[0], node.output[0].removesuffix("_float"))
        found = next((n for name in names if (n := self._exact.producer(name)) is not None), None)
        if found is not None and found.op_type == node.op_type:
            return found
        return next((n for n in self._exact.nodes if n.name and n.name == node.name), None)

    def _switch_constant(self, node: NodeProto, position: int, exact: Array, switch: str) -> None:
        self._constants.setdefault(switch, []).append((node, position, np.ascontiguousarray(exact, np.float32)))

    def _constant(self, node: NodeProto, position: int) -> Array | None:
        return self.graph.constants.get(node.input[position]) if len(node.input) > position else None

    def _model(self, exact: frozenset[str]) -> onnx.ModelProto:
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        for field in ("node", "value_info", "initializer"):
            model.graph.ClearField(field)
        model.graph.node.extend([n for n in self.graph.model.graph.node if n.op_type == "Constant"])
        model.graph.initializer.extend([*self._new, *self._replace_constants(exact, model)])
        used = {name for node in model.graph.node for name in node.input} | set(self.graph.outputs)
        model.graph.initializer.extend(t for t in self.graph.model.graph.initializer if t.name in used)
        model.graph.input.extend(
            helper.make_tensor_value_info(a.switch, TensorProto.BOOL, []) for a in self.activations
        )
        wanted = [*(a.result for a in self.activations), *self.probes()]
        return with_outputs(model, wanted)

    def _replace_constants(self, exact: frozenset[str], model: onnx.ModelProto) -> list[onnx.TensorProto]:
        """Adds the nodes; those with exact weights read constants of their own."""
        own: dict[tuple[int, int], str] = {}
        tensors = []
        for switch in exact:
            for node, position, value in self._constants[switch]:
                own[id(node), position] = f"{node.output[0]}:exact{position}"
                tensors.append(numpy_helper.from_array(value, own[id(node), position]))
        for node in self._nodes:
            copied = NodeProto()
            copied.CopyFrom(node)
            for position in range(len(node.input)):
                copied.input[position] = own.get((id(node), position), node.input[position])
            model.graph.node.append(copied)
        return tensors


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The model with these float32 tensors as outputs too."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    known = {o.name for o in result.graph.output}
    for name in dict.fromkeys(names):
        if name not in known:
            result.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return result


def session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime without its own handling of Q/DQ: every rounding is done as written."""
    return ort.session(model, "the graph for the report", "check the model", integers=False)


def _scalar(zero: Array | None) -> int:
    return 0 if zero is None else int(zero.reshape(-1)[0])


def ran(runner: Any, names: Sequence[str], values: Sample) -> list[Array]:
    """What a session gives; no name at all gives nothing. Raises ModelError."""
    try:
        found: list[Array] = runner.run(list(names), values) if names else []
    except Exception as problem:  # classes of ONNX Runtime's own
        raise ModelError(f"ONNX Runtime cannot run the graph for the report: {problem}", "check the model") from problem
    return found


def _dequantized(codes: Array, scale: Array, zero: Array | None, axis: int) -> Array:
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[axis] = -1
    factor = scale.astype(np.float64).reshape(shape if scale.size > 1 else ())
    offset = 0.0 if zero is None else zero.astype(np.float64).reshape(shape if zero.size > 1 else ())
    return np.asarray((codes.astype(np.float64) - offset) * factor, np.float32)


def _first(node: NodeProto, value: Array | None) -> Array | None:
    return None if value is None else _first_known(node, value)


def _first_known(node: NodeProto, value: Array) -> Array:
    """Output channels first."""
    if node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0)):
        return np.swapaxes(value, -1, 0)
    return np.swapaxes(value, 0, 1) if node.op_type == "ConvTranspose" else value

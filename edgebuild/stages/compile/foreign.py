"""Operators that TVM lowers, run on this machine: the interpreter takes their results from here (SPEC section 8.5).

The interpreter knows no formula for them, so each result is held against ONNX Runtime's: TVM's importer ignores some
attributes without a word.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgebuild.core import ort
from edgebuild.core.errors import ModelError
from edgebuild.core.target_file import host_features, load_target
from edgebuild.kernels.isa import ISAS
from edgebuild.kernels.nest import nest_kernel
from edgebuild.stages.compile.graph import Graph
from edgebuild.stages.compile.native import Program, aligned
from edgebuild.stages.compile.relax import Tensor, imported

Array = np.ndarray[Any, Any]

_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # of an element, and of the largest
_MOST_WRONG = 0.01  # of the elements: where a function jumps, a rounding error decides


class Foreign:
    """Compiles each operator once; called with a node, its opset, its inputs (None where one is absent), and whether
    each is a constant. Raises ModelError where TVM gives another result than ONNX Runtime.
    """

    def __init__(self) -> None:
        self._operators: dict[object, _Operator] = {}

    def __call__(
        self, node: onnx.NodeProto, opset: int, inputs: Sequence[Array | None], constant: Sequence[bool]
    ) -> list[Array]:
        shapes = tuple(None if array is None else (array.shape, array.dtype.str) for array in inputs)
        key = (node.SerializeToString(), shapes)
        if key not in self._operators:
            self._operators[key] = _Operator(_model(node, opset, inputs, constant))
        return self._operators[key](dict(zip(node.input, inputs, strict=True)))


def _model(
    node: onnx.NodeProto, opset: int, inputs: Sequence[Array | None], constant: Sequence[bool]
) -> onnx.ModelProto:
    """The node alone; shape inference finds its outputs."""
    given = {name: (array, fixed) for name, array, fixed in zip(node.input, inputs, constant, strict=True)
             if name and array is not None}  # fmt: skip
    values = [helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
              for name, (array, fixed) in given.items() if not fixed]  # fmt: skip
    fixed = [numpy_helper.from_array(array, name) for name, (array, is_fixed) in given.items() if is_fixed]
    outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
    graph = helper.make_graph([node], "node", values, outputs, fixed)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    try:
        return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise _failed(node, error) from error


class _Operator:
    """One operator on inputs of one shape."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = Graph(model)
        (self._node,) = graph.nodes
        self._made = imported(graph, self._node)
        self._names = [name for name in self._node.outputs if name]
        target = load_target(f"{host_features()[0]}-generic")
        kernels = [nest_kernel(nest, ISAS[target.isa]) for nest, _ in self._made.calls]
        self._program = Program(kernels, target)
        self._reference = _reference(model)

    def __call__(self, inputs: dict[str, Array | None]) -> list[Array]:
        given = [tensor.data if tensor.data is not None else inputs.get(tensor.source) for tensor in self._made.tensors]
        buffers = [aligned(_unwritten(tensor) if array is None else array)
                   for tensor, array in zip(self._made.tensors, given, strict=True)]  # fmt: skip
        for i, (_, order) in enumerate(self._made.calls):
            self._program.run(i, [buffers[number] for number in order], [(0, self._program.kernels[i].work)])
        outputs = [buffers[i].reshape(self._made.tensors[i].shape) for i in self._made.outputs]
        try:
            wanted = self._reference(inputs)
        except Exception as error:
            raise _failed(self._node.proto, error) from error
        for name, got, right in zip(self._names, outputs, wanted, strict=True):
            self._compare(name, got, right)
        return outputs

    def _compare(self, name: str, got: Array, right: Array) -> None:
        if got.shape == right.shape and got.dtype == right.dtype and _wrong(got, right) <= _MOST_WRONG:
            return
        found = f"{got.dtype} {list(got.shape)}, ONNX Runtime {right.dtype} {list(right.shape)}"
        differ = "differ" if got.shape == right.shape else f"are {found}"
        raise ModelError(
            f"{self._node.name}: {self._node.op}: TVM's and ONNX Runtime's results for {name} {differ}",
            "TVM ignores an attribute of this operator; replace the layer by supported operators",
        )


def _failed(node: onnx.NodeProto, error: Exception) -> ModelError:
    said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return ModelError(
        f"{node.name}: {node.op_type}: it does not run on the calibration samples: {said}", "check its inputs"
    )


def _unwritten(tensor: Tensor) -> Array:
    """Bytes that show in the result where no loop writes."""
    return np.full(tensor.shape, 1 if tensor.dtype == "bool" else 0x5A, tensor.dtype)


def _wrong(got: Array, right: Array) -> float:
    """Which part of the elements is not close."""
    if got.dtype.kind != "f":
        return float(np.mean(got != right))
    finite = np.abs(right[np.isfinite(right)])
    close = np.isclose(got, right, rtol=_RELATIVE, atol=_ABSOLUTE * float(finite.max(initial=0.0)), equal_nan=True)
    return 1.0 - float(np.mean(close)) if close.size else 0.0


def _reference(model: onnx.ModelProto) -> Any:
    """ONNX Runtime, or ONNX's own evaluator where that one lacks the operator."""
    names = [value.name for value in model.graph.input]
    try:
        session = ort.session(model)
    except ModelError:
        session = ReferenceEvaluator(model)
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})

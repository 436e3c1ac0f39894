"""Operators that TVM lowers, run on this machine: the interpreter takes their results from here (SPEC section 8.5).

The interpreter knows no formula for them, so each result is held against ONNX Runtime's: TVM's importer ignores some
attributes without a word.
"""

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgebuild.core.errors import ModelError
from edgebuild.core.plan import ALIGNMENT
from edgebuild.core.target_file import host_features, load_target
from edgebuild.kernels.isa import ISAS
from edgebuild.kernels.nest import nest_kernel
from edgebuild.stages.compile.codegen import build_program
from edgebuild.stages.compile.graph import Graph, Node
from edgebuild.stages.compile.relax import Tensor, imported

Array = np.ndarray[Any, Any]

_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # of an element, and of the largest
_MOST_WRONG = 0.01  # of the elements: where a function jumps, a rounding error decides
_TABLE_OFFSET = 24
_ENTRY = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32)


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
        self._kernels = [nest_kernel(nest, ISAS[target.isa]) for nest, _ in self._made.calls]
        with tempfile.TemporaryDirectory(prefix="edgebuild-") as folder:
            path = Path(folder) / "program.so"
            path.write_bytes(build_program(self._kernels, target))
            self._library = ctypes.CDLL(str(path))
        table = ctypes.addressof(ctypes.c_char.in_dll(self._library, "eb_program")) + _TABLE_OFFSET
        pointers = (ctypes.c_void_p * len(self._kernels)).from_address(table)
        self._entries = [_ENTRY(pointer or 0) for pointer in pointers]
        self._reference = _reference(model)

    def __call__(self, inputs: dict[str, Array | None]) -> list[Array]:
        buffers = []
        for tensor in self._made.tensors:
            given = tensor.data if tensor.data is not None else inputs.get(tensor.source)
            buffers.append(_aligned(_unwritten(tensor) if given is None else given))
        scratch = _aligned(np.zeros(ALIGNMENT, np.uint8))
        for entry, kernel, (_, order) in zip(self._entries, self._kernels, self._made.calls, strict=True):
            pointers = (ctypes.c_void_p * len(order))(*[buffers[i].ctypes.data for i in order])
            entry(ctypes.addressof(pointers), scratch.ctypes.data, 0, kernel.work)
        outputs = [buffers[i].reshape(self._made.tensors[i].shape) for i in self._made.outputs]
        try:
            wanted = self._reference(inputs)
        except Exception as error:
            raise _failed(self._node, error) from error
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


def _failed(node: onnx.NodeProto | Node, error: Exception) -> ModelError:
    op = node.op_type if isinstance(node, onnx.NodeProto) else node.op
    said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return ModelError(f"{node.name}: {op}: it does not run on the calibration samples: {said}", "check its inputs")


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
    import onnxruntime  # noqa: PLC0415 - only where an operator needs it

    names = [value.name for value in model.graph.input]
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:
        session = ReferenceEvaluator(model)
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})


def _aligned(array: Array) -> Array:
    """A flat copy on a 64-byte boundary, of one element at least."""
    raw = np.zeros(max(array.nbytes, 1) + 2 * ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype)
    copy[...] = array.reshape(-1)
    return copy

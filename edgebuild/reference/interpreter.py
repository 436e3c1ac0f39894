"""Evaluates a QDQ graph by SPEC sections 7 to 9."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import TYPE_CHECKING

import numpy as np

from edgebuild.core.errors import ModelError
from edgebuild.core.operators import THROUGH_TVM
from edgebuild.reference import float32, integer
from edgebuild.reference.geometry import window
from edgebuild.reference.model import Model, Node, read
from edgebuild.reference.moves import is_move, move, pad
from edgebuild.reference.tables import BINARY, UNARY, table
from edgebuild.reference.values import (
    ACTIVATIONS,
    Array,
    Bound,
    Bytes,
    Chain,
    Dense,
    Function,
    Moved,
    Params,
    Pending,
    Value,
    View,
    Weight,
)

if TYPE_CHECKING:
    import onnx

Inputs = list[Value | None]
Fallback = Callable[[], Array]
Foreign = Callable[["onnx.NodeProto", int, list[Array | None], list[bool]], list[Array]]
_FLOAT_ONLY = (Dense, Weight)
_LONGEST_NORM = 32768  # section 7: longer rows are normalized in float32


class Interpreter:
    """Runs one model on one set of inputs at a time.

    `run` takes one array per graph input (dtype and shape as declared) and returns one per graph output.
    `foreign` runs the operators of THROUGH_TVM (SPEC section 8.5): it gets a node, the opset, the inputs (None where
    one is absent), and whether each is a constant. Raises ModelError for an operator that the SPEC does not define and
    for inputs that do not fit.
    """

    def __init__(self, model: "onnx.ModelProto", foreign: Foreign | None = None) -> None:
        self._model: Model = read(model)
        self._foreign = foreign
        values: dict[str, Value] = {name: Dense(array, constant=True) for name, array in self._model.constants.items()}
        self._nodes = []
        for node in self._model.nodes:
            if node.inputs and all(not name or name in values for name in node.inputs):
                values.update({name: _lasting(value) for name, value in self._evaluate(node, values).items()})
            elif node.op == "Constant":
                values[node.outputs[0]] = Dense(_constant(node), constant=True)
            else:
                self._nodes.append(node)
        self._constants = values
        readers = Counter(name for node in self._nodes for name in node.inputs)
        self._readers = readers + Counter(self._model.outputs)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name, in the graph's types."""
        values: dict[str, Value] = dict(self._constants)
        values.update(self._checked(inputs))
        left = Counter(self._readers)
        for node in self._nodes:
            values.update({name: self._alone(name, value) for name, value in self._evaluate(node, values).items()})
            for name in node.inputs:
                left[name] -= 1
                if name in values and left[name] == 0 and name not in self._constants:
                    del values[name]
        return {name: values[name].array() for name in self._model.outputs}

    def _evaluate(self, node: Node, values: Mapping[str, Value]) -> dict[str, Value]:
        if self._foreign is None or node.proto is None or node.op not in THROUGH_TVM:
            return _evaluate(node, values)
        inputs = [values[name] if name else None for name in node.inputs]
        arrays = [None if value is None else value.array() for value in inputs]
        outputs = self._foreign(node.proto, self._model.opset, arrays, [_is_constant(value) for value in inputs])
        return {name: Dense(array) for name, array in zip(filter(None, node.outputs), outputs, strict=True)}

    def _alone(self, name: str, value: Value) -> Value:
        """A bias belongs to the operator before it only where nothing else reads that one's result."""
        if isinstance(value, Pending) and value.biased is not None and self._readers[name] != 1:
            return replace(value, biased=None)
        return value

    def _checked(self, inputs: Mapping[str, Array]) -> dict[str, Value]:
        if set(inputs) != set(self._model.inputs):
            expected, found = ", ".join(self._model.inputs), ", ".join(inputs)
            raise ModelError(f"inputs are {found}; the model has {expected}", "give one array for each input")
        for name, (dtype, shape) in self._model.inputs.items():
            array = inputs[name]
            if array.dtype != dtype or array.shape != shape:
                found = f"{array.dtype} {list(array.shape)}"
                raise ModelError(f"input {name!r} is {found}; the model has {dtype} {list(shape)}", "convert the array")
        return {name: Dense(np.asarray(array)) for name, array in inputs.items()}


def _lasting(value: Value) -> Value:
    """What an operator makes of constants."""
    return replace(value, constant=True) if isinstance(value, Dense) else value


def _is_constant(value: Value | None) -> bool:
    """Whether an input is absent or does not change."""
    return value is None or (isinstance(value, Dense) and value.constant)


def _constant(node: Node) -> Array:
    for key, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if key in node.attributes:
            return np.asarray(node.attributes[key], dtype)
    if "value" not in node.attributes:
        raise ModelError(f"Constant ({node.name!r}) has a value that is not a tensor", "export the model again")
    return np.asarray(node.attributes["value"])


def _evaluate(node: Node, values: Mapping[str, Value]) -> dict[str, Value]:
    inputs: Inputs = [values[name] if name else None for name in node.inputs]
    if node.op == "QuantizeLinear":
        return {node.outputs[0]: Dense(_quantize(node, inputs))}
    if node.op == "DequantizeLinear":
        return {node.outputs[0]: _dequantize(node, inputs)}
    outputs = _quantized(node, inputs)
    if outputs is None:
        outputs = [Dense(array) for array in _float(node, inputs)]
    return dict(zip(node.outputs, outputs, strict=False))


def _float(node: Node, inputs: Inputs) -> list[Array]:
    return float32.run(node, [None if v is None else v.array() for v in inputs])


def _output(node: Node, inputs: Inputs, place: int) -> Array:
    return _float(node, inputs)[place]


def _parameters(node: Node, inputs: Inputs) -> tuple[Array, Array]:
    scale = inputs[1] if len(inputs) > 1 else None
    zero = inputs[2] if len(inputs) > 2 else None
    if not isinstance(scale, Dense) or not (zero is None or isinstance(zero, Dense)):
        raise ModelError(f"{node.op} ({node.name!r}): scale and zero point are not constants", "quantize statically")
    source = inputs[0].data.dtype if isinstance(inputs[0], Dense) else np.dtype(np.uint8)
    default = np.zeros(scale.data.shape, source if node.op == "DequantizeLinear" else np.uint8)
    return scale.data, default if zero is None else zero.data


def _activation_params(node: Node, scale: Array, zero: Array) -> Params:
    if zero.dtype not in ACTIVATIONS or scale.size != 1 or zero.size != 1:
        found = f"{zero.dtype}, {scale.size} scale(s)"
        raise ModelError(
            f"{node.op} ({node.name!r}): activations are uint8, uint16 or int16 with one scale, found {found}",
            "quantize to uint8",
        )
    if not np.isfinite(scale).all() or scale.reshape(-1)[0] <= 0:
        raise ModelError(
            f"{node.op} ({node.name!r}): the scale {scale.reshape(-1)[0]} is not a positive number", "calibrate again"
        )
    return Params(np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), zero.dtype)


def _dequantize(node: Node, inputs: Inputs) -> Value:
    source = inputs[0]
    if not isinstance(source, Dense):
        raise ModelError(f"DequantizeLinear ({node.name!r}) does not read a quantized tensor", "export the model again")
    scale, zero = _parameters(node, inputs)
    if source.data.dtype in ACTIVATIONS:
        params = _activation_params(node, scale, zero)
        if params.dtype != source.data.dtype:
            raise ModelError(
                f"{node.op} ({node.name!r}): the zero point of a tensor of {source.data.dtype} is {params.dtype}",
                "quantize again",
            )
        return View(source.data, params)
    if source.data.dtype in {np.dtype(np.int8), np.dtype(np.int32)} and not zero.any():
        return Weight(source.data, scale.astype(np.float32), node.attributes.get("axis", 1))
    raise ModelError(
        f"DequantizeLinear ({node.name!r}): {source.data.dtype} with this zero point is not supported",
        "activations are uint8, uint16 or int16; weights are int8 and symmetric",
    )


def _quantize(node: Node, inputs: Inputs) -> Bytes:
    value = inputs[0]
    params = _activation_params(node, *_parameters(node, inputs))
    match value:
        case View() | Moved():
            view = value.view if isinstance(value, Moved) else value
            return _requantized(view, params)
        case Chain():
            return table(value.function, value.source.params, params)[value.source.q]
        case Pending():
            made = value.finish(params, value.low, value.high)
            return integer.quantize(value.array(), params) if made is None else made
        case None:
            raise ModelError(f"QuantizeLinear ({node.name!r}) has no input", "export the model again")
        case _:
            return integer.quantize(value.array(), params)


def _requantized(view: View, y: Params, low: Bound = -np.inf, high: Bound = np.inf) -> Bytes:
    """The bytes in other parameters, clipped: themselves where nothing changes."""
    if np.all(low == -np.inf) and np.all(high == np.inf) and view.params == y:
        return view.q
    if view.params.wide:
        return integer.requantized(view, y, low, high)
    return table(lambda x: np.minimum(np.maximum(x, low), high), view.params, y)[view.q]


def _quantized(node: Node, inputs: Inputs) -> list[Value] | None:
    """The operator as section 7 sees it, or None where it is a float32 operator of section 8."""
    data = inputs[0] if inputs else None
    if node.op in {"Max", "Min"} and isinstance(inputs[-1], Pending):
        data = inputs[-1]
    if data is None or all(v is None or isinstance(v, _FLOAT_ONLY) for v in inputs):
        return None

    fallback = partial(_output, node, inputs, 0)
    if isinstance(data, Pending) and node.op in {"Relu", "Clip"}:
        return _clipped(node, data, inputs, fallback)
    if isinstance(data, Pending) and node.op in {"Max", "Min"}:
        return _limited(node, data, inputs, fallback)
    if node.op == "Add" and (finish := _with_bias(inputs)) is not None:
        return [_pending(finish, fallback)]
    if node.op == "MatMul" and (biased := _matmul_with_bias(node, inputs)) is not None:
        finish = _matmul(node, inputs)
        return None if finish is None else [replace(_pending(finish, fallback), biased=biased)]
    if node.op in _CLUSTERS and (finish := _CLUSTERS[node.op](node, inputs)):
        return [_pending(finish, fallback)]
    if isinstance(data, View | Moved):
        view = data.view if isinstance(data, Moved) else data
        moved = _moved(node, view, inputs)
        if moved is not None:
            return [Moved(View(q, view.params), partial(_output, node, inputs, i)) for i, q in enumerate(moved)]
    return _unary(node, inputs, fallback)


def _pending(finish: "Finish", fallback: Fallback) -> Pending:
    """An operator with weights sums integers also where its result is float32."""
    return Pending(finish, finish.real if isinstance(finish, _Layer) and finish.fits() else fallback)


def _arrays(inputs: Inputs) -> list[Array | None]:
    return [v.data if isinstance(v, Dense) else None for v in inputs]


def _clipped(node: Node, data: Pending, inputs: Inputs, fallback: Fallback) -> list[Value] | None:
    if not all(map(_is_constant, inputs[1:])):
        return None
    low, high = float32.clip_bounds(node, _arrays(inputs))
    return [_narrowed(data, -np.inf if low is None else low, np.inf if high is None else high, fallback)]


def _narrowed(data: Pending, low: Bound, high: Bound, fallback: Fallback) -> Pending:
    """A later clip acts on the earlier clip's bounds as well."""
    lowest, highest = (np.minimum(np.maximum(bound, low), high) for bound in (data.low, data.high))
    return Pending(data.finish, fallback, lowest, highest)


def _limited(node: Node, data: Pending, inputs: Inputs, fallback: Fallback) -> list[Value] | None:
    """Max or Min with a constant behind an operator with weights: one number, or one for each output channel."""
    layer, others = data.finish, [v for v in inputs if v is not data]
    if not isinstance(layer, _Layer) or len(inputs) != 2 or len(others) != 1:
        return None
    bound = others[0].data.astype(np.float64) if isinstance(others[0], Dense) and others[0].constant else None
    if bound is None or np.isnan(bound).any() or not layer.takes(bound.shape):
        return None
    low, high = (bound, np.inf) if node.op == "Max" else (-np.inf, bound)
    return [_narrowed(data, low, high, fallback)]


def _moved(node: Node, data: View, inputs: Inputs) -> list[Bytes] | None:
    if not all(map(_is_constant, inputs[1:])):
        return None
    constants = _arrays(inputs)
    if is_move(node):
        return move(node, data.q, constants)
    if node.op == "Pad":
        value = constants[2] if len(constants) > 2 and constants[2] is not None else 0.0
        level = np.clip(integer.quantized(float(value), data.params), data.params.least, data.params.most)
        return [pad(node, data.q, constants, int(level))]
    return None


def _unary(node: Node, inputs: Inputs, fallback: Fallback) -> list[Value] | None:
    found = [_function(v) for v in inputs if isinstance(v, View | Chain)]
    if not found or any(isinstance(v, Pending | Weight | Moved) for v in inputs):
        return None
    source = found[0][0]
    if source.params.wide or any(not _same(source, other) for other, _ in found[1:]):
        return None
    functions = iter([f for _, f in found])
    arguments = [next(functions) if isinstance(v, View | Chain) else _scalar(v, source) for v in inputs]
    function = _composed(node, arguments, _arrays(inputs))
    return None if function is None else [Chain(source, function, fallback)]


def _function(value: View | Chain) -> tuple[View, Function]:
    return (value, lambda x: x) if isinstance(value, View) else (value.source, value.function)


def _same(a: View, b: View) -> bool:
    return a is b or (a.q is b.q and a.params == b.params)


def _scalar(value: Value | None, source: View) -> Function | None:
    """A constant of one element as a function; None when it is absent or would change the shape."""
    if not isinstance(value, Dense) or not value.constant or value.data.size != 1:
        return None
    if value.data.ndim > source.q.ndim:
        return None
    number = float(value.data.reshape(-1)[0])
    return lambda x: np.full_like(x, number)


def _composed(node: Node, arguments: list[Function | None], constants: list[Array | None]) -> Function | None:
    first = arguments[0]
    if first is None:
        return None
    if node.op in UNARY and len(arguments) == 1:
        return lambda x: UNARY[node.op](first(x), node.attributes)
    if node.op == "Clip" and all(a is not None or c is None for a, c in zip(arguments, constants, strict=True)):
        low, high = float32.clip_bounds(node, constants)
        bounds = -np.inf if low is None else low, np.inf if high is None else high
        return lambda x: np.minimum(np.maximum(first(x), bounds[0]), bounds[1])
    others = [a for a in arguments[1:] if a is not None]
    if node.op in BINARY and len(others) == len(arguments) - 1:
        return lambda x: reduce(BINARY[node.op], (other(x) for other in others), first(x))
    return None


Finish = Callable[[Params, Bound, Bound], Bytes | None]
Cluster = Callable[[Node, Inputs], Finish | None]


def _bias(node: Node, value: Value | None, x: View, weight: Weight, channels: int) -> Array | None:
    """Integers, one value or one a channel; None for what is computed at run time, or is no vector of the channels."""
    if value is None:
        return np.zeros(1, np.int32)
    if isinstance(value, Weight) and value.q.dtype == np.int32 and value.q.size in {1, channels}:
        expected = (x.params.s * weight.scale.astype(np.float64)).astype(np.float32)
        if not np.allclose(value.scale, expected, rtol=1e-6, atol=0):
            raise ModelError(
                f"{node.op} ({node.name!r}): the bias scale is not input scale x weight scale", "quantize again"
            )
        return value.q.reshape(-1)
    if isinstance(value, Dense) and value.constant and value.data.size in {1, channels}:
        return integer.bias(value.data.reshape(-1), x.params, weight.scale)
    return None


@dataclass(frozen=True, eq=False)
class _Layer:
    """An operator with weights, per output channel: what it sums (once it is wanted), and its bias.

    `shape` broadcasts one value a channel against the sums, which have `rank` axes; `depth`: products in one of them.
    """

    x: Params
    weight: Weight
    bias: Array
    sums: Callable[[], Array]
    depth: int
    rank: int
    channels: int
    shape: tuple[int, ...] = (-1,)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether a constant of this shape is one number, or one for each channel."""
        if len(shape) > self.rank:
            return False
        axis = self.rank - len(self.shape)
        full = (*[1] * (self.rank - len(shape)), *shape)
        return full[axis] in (1, self.channels) and all(n == 1 for i, n in enumerate(full) if i != axis)

    def __call__(self, y: Params, low: Bound, high: Bound) -> Bytes:
        m = integer.weight_multiplier(self.x, self.weight.scale, y)
        return integer.requantize(self._total(), m.reshape(self.shape), y, low, high)

    def fits(self) -> bool:
        return integer.fits(self.x, self.depth, self.bias)

    def real(self) -> Array:
        """The result as float32: one product behind the sum."""
        m = integer.weight_scale(self.x, self.weight.scale)
        return np.asarray(self._total().astype(np.float32) * m.reshape(self.shape))

    def _total(self) -> Array:
        return self.sums().astype(np.int64) + self.bias.astype(np.int64).reshape(self.shape)


def _weighted(inputs: Inputs) -> tuple[View, Weight] | None:
    x, weight = inputs[0], inputs[1]
    if isinstance(x, View) and isinstance(weight, Weight) and weight.q.dtype == np.int8:
        return x, weight
    return None


def _conv(node: Node, inputs: Inputs) -> Finish | None:
    found = _weighted(inputs)
    if found is None or (found[1].axis != 0 and found[1].scale.size > 1):
        return None
    x, weight = found
    q = weight.q
    bias = _bias(node, inputs[2] if len(inputs) > 2 else None, x, weight, len(q))
    if bias is None:
        return None

    def sums() -> Array:
        w = window(node.attributes, q.shape[2:], x.q.shape[2:])
        return integer.conv(x, q, w, node.attributes.get("group", 1))

    return _Layer(x.params, weight, bias, sums, int(np.prod(q.shape[1:])), q.ndim, len(q), (-1, *(1,) * (q.ndim - 2)))


def _gemm(node: Node, inputs: Inputs) -> Finish | None:
    found = _weighted(inputs)
    a = node.attributes
    if found is None or a.get("transA", 0) or a.get("alpha", 1.0) != 1.0 or a.get("beta", 1.0) != 1.0:
        return None
    x, weight = found
    transposed = bool(a.get("transB", 0))
    if weight.scale.size > 1 and weight.axis != (0 if transposed else 1):
        return None
    matrix = weight.q.T if transposed else weight.q
    bias = _bias(node, inputs[2] if len(inputs) > 2 else None, x, weight, matrix.shape[1])
    if bias is None:
        return None

    return _Layer(x.params, weight, bias, lambda: integer.matmul(x, matrix), len(matrix), 2, matrix.shape[1])


def _matmul(_: Node, inputs: Inputs) -> Finish | None:
    a, b = inputs
    if isinstance(a, View) and isinstance(b, View):
        if min(a.q.ndim, b.q.ndim) < 2 or a.params.wide or b.params.wide:
            return None
        return lambda y, low, high: None if y.wide else integer.product(a, b, y, low, high)
    found = _weighted(inputs)
    if found is None or found[1].q.ndim != 2 or (found[1].scale.size > 1 and found[1].axis % 2 != 1):
        return None
    x, weight = found
    return _matrix_layer(x, weight, np.zeros(1))


def _matrix_layer(x: View, weight: Weight, bias: Array) -> _Layer:
    depth, columns = weight.q.shape
    return _Layer(x.params, weight, bias, lambda: integer.matmul(x, weight.q), depth, x.q.ndim, columns)


def _matmul_with_bias(node: Node, inputs: Inputs) -> Callable[[Value], Finish | None] | None:
    """SPEC section 9: an Add of one constant a column behind a MatMul with constant weights is its bias."""
    found = _weighted(inputs)
    if found is None or found[1].q.ndim != 2:
        return None
    x, weight = found

    def biased(value: Value) -> Finish | None:
        data = value.data if isinstance(value, Dense) else value.q if isinstance(value, Weight) else np.zeros(())
        columns = weight.q.shape[1]
        fits = data.size == columns and data.shape[-1:] == (columns,) and data.ndim <= x.q.ndim
        bias = _bias(node, value, x, weight, columns) if fits else None
        if bias is None:
            return None
        return _matrix_layer(x, weight, bias)

    return biased


def _with_bias(inputs: Inputs) -> Finish | None:
    for pending, value in (inputs, inputs[::-1]):
        if isinstance(pending, Pending) and pending.biased is not None and value is not None:
            return None if pending.clipped else pending.biased(value)
    return None


def _two(function: Callable[[View, View, Params, Bound, Bound], Bytes]) -> Cluster:
    def cluster(_: Node, inputs: Inputs) -> Finish | None:
        a, b = inputs
        if not isinstance(a, View) or not isinstance(b, View) or _same(a, b):
            return None
        return lambda y, low, high: function(a, b, y, low, high)

    return cluster


def _average_pool(node: Node, inputs: Inputs) -> Finish | None:
    x = inputs[0]
    if not isinstance(x, View):
        return None
    whole = node.op == "GlobalAveragePool"
    image = x.q.shape[2:]
    w = window({} if whole else node.attributes, image if whole else tuple(node.attributes["kernel_shape"]), image)
    include = bool(node.attributes.get("count_include_pad", 0))
    if not _adds_up(x, int(np.prod(w.kernel))):
        return None
    return lambda y, low, high: integer.average_pool(x, w, y, low, high, include_pad=include)


def _max_pool(node: Node, inputs: Inputs) -> Finish | None:
    x = inputs[0]
    if not isinstance(x, View):
        return None
    return lambda y, low, high: _requantized(View(float32.max_pool_node(node, x.q), x.params), y, low, high)


def _reduce_mean(node: Node, inputs: Inputs) -> Finish | None:
    x = inputs[0]
    if not isinstance(x, View):
        return None
    axes = float32.reduced_axes(node, _arrays(inputs), x.q.ndim)
    keep = bool(node.attributes.get("keepdims", 1))
    if not axes or not _adds_up(x, int(np.prod([x.q.shape[a] for a in axes]))):
        return None
    return lambda y, low, high: integer.mean(x, axes, y, low, high, keepdims=keep)


def _adds_up(x: View, count: int) -> bool:
    """Whether 32 bits hold the sum of `count` values."""
    return count * x.params.span < 2**31


def _softmax(node: Node, inputs: Inputs) -> Finish | None:
    x = inputs[0]
    if not isinstance(x, View) or x.params.wide:
        return None
    axis = node.attributes.get("axis", -1) % x.q.ndim
    return lambda y, low, high: None if y.wide else integer.softmax(x, axis, y, low, high)


def _layer_norm(node: Node, inputs: Inputs) -> Finish | None:
    x, *rest = inputs
    if not isinstance(x, View) or x.params.wide or not all(map(_is_constant, rest)) or len(node.outputs) > 1:
        return None
    axis = node.attributes.get("axis", -1) % x.q.ndim
    if np.prod(x.q.shape[axis:]) > _LONGEST_NORM:
        return None
    gain, *offset = [v.data for v in rest if isinstance(v, Dense)]
    epsilon = node.attributes.get("epsilon", 1e-5)
    shift = offset[0] if offset else None
    return lambda y, low, high: None if y.wide else integer.layer_norm(x, axis, gain, shift, epsilon, y, low, high)


def _concat(node: Node, inputs: Inputs) -> Finish | None:
    views = [v for v in inputs if isinstance(v, View)]
    if len(views) != len(inputs):
        return None

    def finish(y: Params, low: Bound, high: Bound) -> Bytes:
        parts = [_requantized(v, y, low, high) for v in views]
        return np.concatenate(parts, axis=node.attributes["axis"])

    return finish


_CLUSTERS: dict[str, Cluster] = {
    "Add": _two(integer.add),
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _conv,
    "Gemm": _gemm,
    "GlobalAveragePool": _average_pool,
    "GlobalMaxPool": _max_pool,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "Mul": _two(integer.mul),
    "ReduceMean": _reduce_mean,
    "Softmax": _softmax,
}

"""Section 8: float32 operators. Every operation rounds on its own; sums run in the order that the SPEC states."""

import math
from collections.abc import Callable

import numpy as np

from edgebuild.core.errors import ModelError
from edgebuild.reference import resize
from edgebuild.reference.fused import fma_chain
from edgebuild.reference.geometry import counts, padded, tap, taps, window
from edgebuild.reference.integer import max_pool
from edgebuild.reference.model import Node
from edgebuild.reference.moves import Inputs, ints, is_move, move, pad
from edgebuild.reference.values import Array

Operator = Callable[[Node, Inputs], Array]

_TYPES: dict[int, type[np.generic]] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_,
    10: np.float16, 11: np.float64, 12: np.uint32, 13: np.uint64,
}  # fmt: skip


def run(node: Node, inputs: Inputs) -> list[Array]:
    """The outputs of one operator; ModelError when section 8 does not define it."""
    if node.op == "TopK":
        return _top_k(node, inputs)
    if node.op == "LayerNormalization":
        return [_layer_norm(node, inputs), *_deviation(node, inputs)][: len(node.outputs)]
    if is_move(node):
        return move(node, _first(node, inputs), inputs)
    operator = OPERATORS.get(node.op)
    if operator is None:
        raise unsupported(node)
    with np.errstate(all="ignore"):
        return [np.asarray(operator(node, inputs))]


def unsupported(node: Node) -> ModelError:
    """The error for an operator that is not defined as float32."""
    return ModelError(
        f"operator {node.op} ({node.name!r}) is not supported",
        "replace it by supported operators, or keep it inside the quantized part of the network if it is an activation",
    )


def _first(node: Node, inputs: Inputs) -> Array:
    return _at(node, inputs, 0)


def _at(node: Node, inputs: Inputs, position: int) -> Array:
    value = inputs[position] if position < len(inputs) else None
    if value is None:
        raise ModelError(f"{node.op} ({node.name!r}): input {position} is missing", "export the model again")
    return value


def exp(x: Array) -> Array:
    """Section 8.2."""
    f = np.float32
    x = np.minimum(np.maximum(x, f(-87)), f(88))
    n = np.rint(x * f(1.44269502))
    r = (x - n * f(0.693359375)) - n * f(-2.12194440e-4)
    p = np.full_like(r, f(1.98756912e-4))
    for c in (1.39819994e-3, 8.33345205e-3, 4.16657962e-2, 1.66666657e-1, 0.5):
        p = p * r + f(c)
    p = (p * (r * r)) + r
    p = p + f(1)
    return np.ldexp(p, n.astype(np.int32))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    one = np.float32(1)
    return one / (one + exp(-x))


def tanh(x: Array) -> Array:
    """2 / (1 + exp(-2·x)) - 1."""
    one, two = np.float32(1), np.float32(2)
    return two / (one + exp(np.float32(-2) * x)) - one


def ordered_sum(x: Array, axes: tuple[int, ...], *, keepdims: bool) -> Array:
    """Sums as s = x_0; s = s + x_i in row-major order of the reduced axes."""
    kept = [a for a in range(x.ndim) if a not in axes]
    shape = [x.shape[a] for a in kept]
    rows = np.transpose(x, [*axes, *kept]).reshape(-1, *shape)
    total = np.add.accumulate(rows, axis=0)[-1]
    return np.expand_dims(total, tuple(axes)) if keepdims else total


def reduced_axes(node: Node, inputs: Inputs, rank: int) -> tuple[int, ...]:
    axes = ints(node, inputs, 1, "axes")
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(a % rank for a in axes))


def _reduce(function: Callable[[Array, tuple[int, ...], bool], Array]) -> Operator:
    def apply(node: Node, inputs: Inputs) -> Array:
        x = _first(node, inputs)
        axes = reduced_axes(node, inputs, x.ndim)
        return function(x, axes, bool(node.attributes.get("keepdims", 1))) if axes else x

    return apply


def _mean(x: Array, axes: tuple[int, ...], keep: bool) -> Array:
    return np.asarray(ordered_sum(x, axes, keepdims=keep) / x.dtype.type(np.prod([x.shape[a] for a in axes])))


def _arg_max(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    axis = node.attributes.get("axis", 0) % x.ndim
    if node.attributes.get("select_last_index", 0):
        found = x.shape[axis] - 1 - np.argmax(np.flip(x, axis), axis=axis)
    else:
        found = np.argmax(x, axis=axis)
    return np.expand_dims(found, axis) if node.attributes.get("keepdims", 1) else found


def _top_k(node: Node, inputs: Inputs) -> list[Array]:
    x, count = _first(node, inputs), int(_at(node, inputs, 1).reshape(-1)[0])
    axis = node.attributes.get("axis", -1) % x.ndim
    keys = -x if node.attributes.get("largest", 1) else x
    order = np.take(np.argsort(keys, axis=axis, kind="stable"), range(count), axis=axis)
    return [np.take_along_axis(x, order, axis=axis), order.astype(np.int64)]


def parted_sum(x: Array) -> Array:
    """Sums over the last axis: element i joins partial sum i mod 16; the sixteen are added in halves. [..., 1]."""
    size = x.shape[-1]
    padded_size = -(-size // 16) * 16
    rows = np.zeros((*x.shape[:-1], padded_size), np.float32)
    rows[..., :size] = x
    parts: Array = np.zeros((*x.shape[:-1], 16), np.float32)
    for start in range(0, padded_size, 16):
        parts = parts + rows[..., start : start + 16]
    while parts.shape[-1] > 1:
        half = parts.shape[-1] // 2
        parts = parts[..., :half] + parts[..., half:]
    return parts


def _softmax(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    axis = node.attributes.get("axis", -1) % x.ndim
    rows = np.moveaxis(x, axis, -1)
    shifted = rows - np.max(rows, axis=-1, keepdims=True)
    e = exp(shifted)
    total = parted_sum(e)
    result = shifted - log(total) if node.op == "LogSoftmax" else e / total
    return np.moveaxis(result, -1, axis)


def _layer_norm(node: Node, inputs: Inputs) -> Array:
    x, gain = _first(node, inputs), _at(node, inputs, 1)
    axis = node.attributes.get("axis", -1) % x.ndim
    shape = x.shape[axis:]
    size = np.float32(np.prod(shape))
    rows = x.reshape(*x.shape[:axis], -1)
    centred = rows - parted_sum(rows) / size
    variance = parted_sum(centred * centred) / size + np.float32(node.attributes.get("epsilon", 1e-5))
    scaled = (centred * (np.float32(1) / np.sqrt(variance))) * np.broadcast_to(gain, shape).reshape(-1)
    offset = inputs[2] if len(inputs) > 2 else None
    total = scaled + (np.float32(0) if offset is None else np.broadcast_to(offset, shape).reshape(-1))
    return np.asarray(total).reshape(x.shape)


def _deviation(node: Node, inputs: Inputs) -> list[Array]:
    """Mean, and 1 / deviation, which a layer normalization can give as well."""
    x = _first(node, inputs)
    axes = tuple(range(node.attributes.get("axis", -1) % x.ndim, x.ndim))
    mean = _mean(x, axes, keep=True)
    centred = x - mean
    variance = _mean(centred * centred, axes, keep=True) + np.float32(node.attributes.get("epsilon", 1e-5))
    return [mean, np.asarray(np.float32(1) / np.sqrt(variance))]


def log(x: Array) -> Array:
    """Section 8.3."""
    f = np.float32
    pattern = np.maximum(x, f(2.0**-126)).view(np.int32)
    exponent = (pattern - np.int32(0x3F3504F3)) >> 23
    m = (pattern - (exponent << 23)).view(np.float32) - f(1)
    n, z = exponent.astype(np.float32), m * m
    p = np.full_like(m, f(7.0376836292e-2))
    for c in (-1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
              2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1):  # fmt: skip
        p = p * m + f(c)
    p = (p * m) * z + n * f(-2.12194440e-4)
    p = p - z * f(0.5)
    result = (m + p) + n * f(0.693359375)
    return np.where(x > 0, result, np.where(x == 0, f(-np.inf), f(np.nan)))


def erf(x: Array) -> Array:
    """Section 8.4."""
    f = np.float32
    a = np.abs(x)
    t = f(1) / (a * f(0.3275911) + f(1))
    p = np.full_like(t, f(1.061405429))
    for c in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = p * t + f(c)
    value: Array = f(1) - (p * t) * exp(-(a * a))
    return np.where(x < 0, -value, value)


def _softplus(x: Array) -> Array:
    return np.maximum(x, np.float32(0)) + log(np.float32(1) + exp(-np.abs(x)))


def _expm1(x: Array) -> Array:
    return exp(x) - np.float32(1)


def _alpha(node: Node, default: float) -> np.float32:
    return np.float32(node.attributes.get("alpha", default))


def _elu(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    return np.where(x < 0, _alpha(node, 1.0) * _expm1(x), x)


def _selu(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    inner = np.where(x < 0, _alpha(node, 1.67326319217681884765625) * _expm1(x), x)
    return np.asarray(np.float32(node.attributes.get("gamma", 1.05070102214813232421875)) * inner)


def _celu(node: Node, inputs: Inputs) -> Array:
    x, alpha = _first(node, inputs), _alpha(node, 1.0)
    return np.where(x < 0, alpha * _expm1(x / alpha), x)


def _gelu(node: Node, inputs: Inputs) -> Array:
    x, f = _first(node, inputs), np.float32
    if node.attributes.get("approximate", b"none") == b"tanh":
        bend = tanh((x + ((x * x) * x) * f(0.044715)) * f(0.7978845608))
    else:
        bend = erf(x * f(0.7071067812))
    return np.asarray((x * f(0.5)) * (bend + f(1)))


def _pow(node: Node, inputs: Inputs) -> Array:
    x, exponent = _first(node, inputs), _at(node, inputs, 1)
    e = float(exponent.reshape(-1)[0])
    if exponent.size != 1 or abs(e) not in {0.5, 1.0, 2.0, 3.0}:
        raise ModelError(f"Pow ({node.name!r}): exponent {e:g} is not supported", "use ±0.5, ±1, ±2 or ±3")
    power = np.sqrt(x) if abs(e) == 0.5 else x
    for _ in range(int(abs(e)) - 1):
        power = power * x
    return np.asarray(power if e > 0 else np.float32(1) / power)


def matmul(a: Array, b: Array) -> Array:
    """Sums as s = 0; s = fma(a_k, b_k, s): [..., M, K] x [..., K, N]."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    row, column = a.ndim == 1, b.ndim == 1
    a, b = a[None] if row else a, b[:, None] if column else b
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left = np.broadcast_to(a, (*lead, *a.shape[-2:])).reshape(-1, *a.shape[-2:])
    right = np.broadcast_to(b, (*lead, *b.shape[-2:])).reshape(-1, *b.shape[-2:])
    start = np.zeros((a.shape[-2], b.shape[-1]), np.float32)
    total = np.stack([fma_chain(x.T, y, start) for x, y in zip(left, right, strict=True)])
    total = total.reshape(*lead, *start.shape)
    if column:
        total = total[..., 0]
    return total[..., 0, :] if row and not column else total[..., 0] if row else total


def _matmul(node: Node, inputs: Inputs) -> Array:
    return matmul(_first(node, inputs), _at(node, inputs, 1))


def _gemm(node: Node, inputs: Inputs) -> Array:
    a, b = _first(node, inputs), _at(node, inputs, 1)
    a, b = a.T if node.attributes.get("transA") else a, b.T if node.attributes.get("transB") else b
    alpha, beta = (np.float32(node.attributes.get(k, 1.0)) for k in ("alpha", "beta"))
    c = inputs[2] if len(inputs) > 2 else None
    start = np.zeros((a.shape[0], b.shape[1]), np.float32)
    if alpha == 1 and (c is None or (beta == 1 and c.size == math.prod(c.shape[-1:]))):
        return fma_chain(a.T, b, start if c is None else start + c)
    product = fma_chain(a.T, b, start)
    scaled = product if alpha == 1 else product * alpha
    if c is None:
        return scaled
    return np.asarray(scaled + (c if beta == 1 else c * beta))


def _conv(node: Node, inputs: Inputs) -> Array:
    x, weight = _first(node, inputs), _at(node, inputs, 1)
    group = node.attributes.get("group", 1)
    w = window(node.attributes, weight.shape[2:], x.shape[2:])
    image, inner, outputs = padded(x, w, 0.0), weight.shape[1], weight.shape[0] // group
    views = [tap(image, w, position) for position in taps(w)]
    bias = inputs[2] if len(inputs) > 2 else None
    start = np.zeros(len(weight), np.float32) if bias is None else bias + np.float32(0)
    result = np.empty((x.shape[0], weight.shape[0], *w.output), np.float32)
    for n in range(x.shape[0]):
        for g in range(group):
            mine = slice(g * outputs, (g + 1) * outputs)
            pixels = np.concatenate([v[n, g * inner : (g + 1) * inner].reshape(inner, -1) for v in views])
            columns = weight[mine].reshape(outputs, inner, -1).transpose(2, 1, 0).reshape(-1, outputs)
            begin = np.repeat(start[mine, None], pixels.shape[1], axis=1)
            result[n, mine] = fma_chain(columns, pixels, begin).reshape(outputs, *w.output)
    return result


def _average_pool(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    whole = node.op == "GlobalAveragePool"
    w = window(
        {} if whole else node.attributes, x.shape[2:] if whole else tuple(node.attributes["kernel_shape"]), x.shape[2:]
    )
    image = padded(x, w, 0.0)
    positions = taps(w)
    total = tap(image, w, positions[0])
    for position in positions[1:]:
        total = total + tap(image, w, position)
    n = counts(w, x.shape[2:], include_pad=bool(node.attributes.get("count_include_pad", 0)))
    return np.asarray(total / n.astype(np.float32))


def max_pool_node(node: Node, x: Array) -> Array:
    """MaxPool or GlobalMaxPool on any dtype."""
    if node.op == "GlobalMaxPool":
        return np.asarray(np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True))
    if len(node.outputs) > 1 and node.outputs[1]:
        raise ModelError(f"MaxPool ({node.name!r}): the indices output is not supported", "use the pooled values only")
    return max_pool(x, window(node.attributes, tuple(node.attributes["kernel_shape"]), x.shape[2:]))


def _resize(node: Node, inputs: Inputs) -> Array:
    mode = node.attributes.get("mode", b"nearest")
    if mode not in {b"linear", b"cubic"}:
        raise ModelError(f"Resize ({node.name!r}): mode {mode.decode()} is not supported", "use nearest or linear")
    return resize.smooth(node, _first(node, inputs), inputs)


def _cast(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    to = _TYPES.get(node.attributes["to"])
    if to is None:
        raise ModelError(f"Cast ({node.name!r}): target type is not supported", "cast to float32 or an integer type")
    if x.dtype.kind == "f" and np.dtype(to).kind in "iu":
        return _float_to_integer(x, np.dtype(to))
    return x.astype(to)


def _float_to_integer(x: Array, to: np.dtype[np.generic]) -> Array:
    limits = np.iinfo(to)  # type: ignore[type-var]
    whole = np.trunc(np.nan_to_num(x.astype(np.float64)))
    low, high = whole <= float(limits.min), whole >= float(limits.max)
    inside = np.where(low | high, 0, whole).astype(to)
    return np.where(low, limits.min, np.where(high, limits.max, inside)).astype(to)


def _clip(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    low, high = clip_bounds(node, inputs)
    if low is not None:
        x = np.maximum(x, x.dtype.type(low))
    return x if high is None else np.minimum(x, x.dtype.type(high))


def clip_bounds(node: Node, inputs: Inputs) -> tuple[float | None, float | None]:
    """The bounds of Clip or Relu as numbers; None where absent."""
    if node.op == "Relu":
        return 0.0, None
    low = inputs[1] if len(inputs) > 1 else node.attributes.get("min")
    high = inputs[2] if len(inputs) > 2 else node.attributes.get("max")
    return (None if low is None else float(low)), (None if high is None else float(high))


def _div(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    divisor = np.where(b == 0, 1, b).astype(a.dtype)  # as a division by 1
    if a.dtype.kind == "u":
        return np.asarray(a // divisor)
    opposite = divisor == -1
    divisor = np.where(opposite, 1, divisor)
    return np.where(opposite, np.negative(a), (a - np.fmod(a, divisor)) // divisor).astype(a.dtype)


def _leaky_relu(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    return np.where(x < 0, x * np.float32(node.attributes.get("alpha", 0.01)), x)


def _hard_sigmoid(node: Node, inputs: Inputs) -> Array:
    alpha, beta = np.float32(node.attributes.get("alpha", 0.2)), np.float32(node.attributes.get("beta", 0.5))
    return np.asarray(np.minimum(np.maximum(_first(node, inputs) * alpha + beta, np.float32(0)), np.float32(1)))


def _hard_swish(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    inner = x * np.float32(1 / 6) + np.float32(0.5)
    return np.asarray(x * np.minimum(np.maximum(inner, np.float32(0)), np.float32(1)))


def _pad(node: Node, inputs: Inputs) -> Array:
    x = _first(node, inputs)
    value = inputs[2] if len(inputs) > 2 else None
    return pad(node, x, inputs, x.dtype.type(0) if value is None else x.dtype.type(value))


def _concat(node: Node, inputs: Inputs) -> Array:
    return np.concatenate([_at(node, inputs, i) for i in range(len(inputs))], axis=node.attributes["axis"])


def _unary(function: Callable[[Array], Array]) -> Operator:
    return lambda node, inputs: function(_first(node, inputs))


def _binary(function: Callable[[Array, Array], Array]) -> Operator:
    return lambda node, inputs: function(_first(node, inputs), _at(node, inputs, 1))


def _variadic(function: Callable[[Array, Array], Array]) -> Operator:
    def apply(node: Node, inputs: Inputs) -> Array:
        total = _first(node, inputs)
        for position in range(1, len(inputs)):
            total = function(total, _at(node, inputs, position))
        return total

    return apply


OPERATORS: dict[str, Operator] = {
    "ThresholdedRelu": lambda node, inputs: _thresholded(node, _first(node, inputs)),
    "Softsign": _unary(lambda x: x / (np.abs(x) + np.float32(1))),
    "Softplus": _unary(_softplus),
    "Selu": _selu,
    "Pow": _pow,
    "Mish": _unary(lambda x: x * tanh(_softplus(x))),
    "LogSoftmax": _softmax,
    "Log": _unary(log),
    "Gelu": _gelu,
    "Erf": _unary(erf),
    "Elu": _elu,
    "Celu": _celu,
    "Abs": _unary(np.abs),
    "Add": _binary(np.add),
    "And": _binary(np.logical_and),
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "Cast": _cast,
    "Ceil": _unary(np.ceil),
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _binary(_div),
    "Equal": _binary(np.equal),
    "Exp": _unary(exp),
    "Floor": _unary(np.floor),
    "Gemm": _gemm,
    "GlobalAveragePool": _average_pool,
    "GlobalMaxPool": lambda node, inputs: max_pool_node(node, _first(node, inputs)),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "MatMul": _matmul,
    "Max": _variadic(np.maximum),
    "MaxPool": lambda node, inputs: max_pool_node(node, _first(node, inputs)),
    "Min": _variadic(np.minimum),
    "Mul": _binary(np.multiply),
    "Neg": _unary(np.negative),
    "Not": _unary(np.logical_not),
    "Or": _binary(np.logical_or),
    "PRelu": _binary(lambda x, slope: np.where(x < 0, x * slope, x)),
    "Pad": _pad,
    "Reciprocal": _unary(lambda x: x.dtype.type(1) / x),
    "ReduceMax": _reduce(lambda x, axes, keep: np.max(x, axis=axes, keepdims=keep)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(lambda x, axes, keep: np.min(x, axis=axes, keepdims=keep)),
    "ReduceSum": _reduce(lambda x, axes, keep: ordered_sum(x, axes, keepdims=keep)),
    "Relu": _clip,
    "Resize": _resize,
    "Round": _unary(np.rint),
    "Sigmoid": _unary(sigmoid),
    "Softmax": _softmax,
    "Sqrt": _unary(np.sqrt),
    "Sub": _binary(np.subtract),
    "Sum": _variadic(np.add),
    "Swish": lambda node, inputs: _swish(node, _first(node, inputs)),
    "Tanh": _unary(tanh),
    "Where": lambda node, inputs: np.where(_first(node, inputs), _at(node, inputs, 1), _at(node, inputs, 2)),
    "Xor": _binary(np.logical_xor),
}


def _thresholded(node: Node, x: Array) -> Array:
    return np.where(x > _alpha(node, 1.0), x, np.float32(0))


def _swish(node: Node, x: Array) -> Array:
    alpha = np.float32(node.attributes.get("alpha", 1.0))
    return x * sigmoid(x * alpha)

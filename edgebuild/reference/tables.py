"""Section 7, `table`: chains of unary functions from one DequantizeLinear to one QuantizeLinear, in float64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edgebuild.reference.values import Array, Bytes, Function, Params

Attributes = dict[str, Any]


def table(function: Function, x: Params, y: Params) -> Bytes:
    """T[q] = min(max(rne(f(s_x·(q - z_x)) / s_y) + z_y, lo), hi) for q = 0..255 (lo and hi are the ends of y's type);
    z_y where f is not a number.
    """
    inputs = x.s * (np.arange(256, dtype=np.float64) - x.zero_point)
    with np.errstate(all="ignore"):
        outputs = function(inputs) / y.s
    outputs = np.where(np.isnan(outputs), 0.0, outputs)
    return np.asarray(np.minimum(np.maximum(np.rint(outputs) + y.zero_point, y.least), y.most), y.dtype)


def _float(attributes: Attributes, name: str, default: float) -> float:
    """An attribute, which ONNX stores as float32; so are its defaults."""
    return float(np.float32(attributes.get(name, default)))


def _pointwise(function: Callable[[float], float]) -> Function:
    def apply(x: Array) -> Array:
        return np.array([function(float(v)) for v in x.reshape(-1)], np.float64).reshape(x.shape)

    return apply


_erf = _pointwise(math.erf)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _gelu(x: Array, a: Attributes) -> Array:
    if a.get("approximate", b"none") == b"tanh":
        return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x < 0, alpha * np.expm1(x), x)


def _selu(x: Array, a: Attributes) -> Array:
    alpha, gamma = _float(a, "alpha", 1.67326319217681884765625), _float(a, "gamma", 1.05070102214813232421875)
    return np.asarray(gamma * _elu(x, alpha))


def _celu(x: Array, a: Attributes) -> Array:
    alpha = _float(a, "alpha", 1.0)
    return np.asarray(np.maximum(x, 0.0) + np.minimum(0.0, alpha * np.expm1(x / alpha)))


def _hard_sigmoid(x: Array, a: Attributes) -> Array:
    return np.asarray(np.clip(_float(a, "alpha", 0.2) * x + _float(a, "beta", 0.5), 0.0, 1.0))


UNARY: dict[str, Callable[[Array, Attributes], Array]] = {
    "Abs": lambda x, _: np.abs(x),
    "Ceil": lambda x, _: np.ceil(x),
    "Celu": _celu,
    "Elu": lambda x, a: _elu(x, _float(a, "alpha", 1.0)),
    "Erf": lambda x, _: _erf(x),
    "Exp": lambda x, _: np.exp(x),
    "Floor": lambda x, _: np.floor(x),
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda x, _: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "Identity": lambda x, _: x,
    "LeakyRelu": lambda x, a: np.where(x < 0, _float(a, "alpha", 0.01) * x, x),
    "Log": lambda x, _: np.log(x),
    "Mish": lambda x, _: x * np.tanh(_softplus(x)),
    "Neg": lambda x, _: -x,
    "Reciprocal": lambda x, _: 1.0 / x,
    "Relu": lambda x, _: np.maximum(x, 0.0),
    "Round": lambda x, _: np.rint(x),
    "Selu": _selu,
    "Sigmoid": lambda x, _: _sigmoid(x),
    "Softplus": lambda x, _: _softplus(x),
    "Softsign": lambda x, _: x / (1.0 + np.abs(x)),
    "Sqrt": lambda x, _: np.sqrt(x),
    "Swish": lambda x, a: x * _sigmoid(_float(a, "alpha", 1.0) * x),
    "Tanh": lambda x, _: np.tanh(x),
    "ThresholdedRelu": lambda x, a: np.where(x > _float(a, "alpha", 1.0), x, 0.0),
}

BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "Add": lambda a, b: a + b,
    "Div": lambda a, b: a / b,
    "Max": np.maximum,
    "Min": np.minimum,
    "Mul": lambda a, b: a * b,
    "PRelu": lambda a, b: np.where(a < 0, a * b, a),
    "Pow": np.power,
    "Sub": lambda a, b: a - b,
    "Sum": lambda a, b: a + b,
}

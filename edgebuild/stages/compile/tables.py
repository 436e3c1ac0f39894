"""Unary functions between one DequantizeLinear and one QuantizeLinear, as tables of 256 bytes (SPEC section 7,
table).
"""

import math
from collections.abc import Callable

import numpy as np

from edgebuild.stages.compile.graph import Graph, Node, Quant

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def _gelu(node: Node, x: np.ndarray) -> np.ndarray:
    if node.text("approximate", "none") == "tanh":
        return np.asarray(0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.asarray(np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0))


def _elu(alpha: float, x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x)


def _celu(alpha: float, x: np.ndarray) -> np.ndarray:
    return np.where(x < 0, alpha * np.expm1(x / alpha), x)


def _attr(node: Node, name: str, default: float) -> float:
    return float(np.float32(node.attrs.get(name, default)))


_UNARY: dict[str, Callable[[Node, np.ndarray], np.ndarray]] = {
    "Relu": lambda _, x: np.maximum(x, 0.0),
    "Sigmoid": lambda _, x: _sigmoid(x),
    "HardSigmoid": lambda n, x: np.clip(_attr(n, "alpha", 0.2) * x + _attr(n, "beta", 0.5), 0.0, 1.0),
    "HardSwish": lambda _, x: x * np.clip(x / 6.0 + 0.5, 0.0, 1.0),
    "Tanh": lambda _, x: np.tanh(x),
    "LeakyRelu": lambda n, x: np.where(x < 0, _attr(n, "alpha", 0.01) * x, x),
    "Elu": lambda n, x: _elu(_attr(n, "alpha", 1.0), x),
    "Softplus": lambda _, x: _softplus(x),
    "Mish": lambda _, x: x * np.tanh(_softplus(x)),
    "Gelu": _gelu,
    "Swish": lambda n, x: x * _sigmoid(_attr(n, "alpha", 1.0) * x),
    "Erf": lambda _, x: _erf(x),
    "Exp": lambda _, x: np.exp(x),
    "Sqrt": lambda _, x: np.sqrt(x),
    "Abs": lambda _, x: np.abs(x),
    "Celu": lambda n, x: _celu(_attr(n, "alpha", 1.0), x),
    "Log": lambda _, x: np.log(x),
    "Selu": lambda n, x: (
        _attr(n, "gamma", 1.05070102214813232421875) * _elu(_attr(n, "alpha", 1.67326319217681884765625), x)
    ),
    "Softsign": lambda _, x: x / (1.0 + np.abs(x)),
    "ThresholdedRelu": lambda n, x: np.where(x > _attr(n, "alpha", 1.0), x, 0.0),
    "Neg": lambda _, x: -x,
    "Floor": lambda _, x: np.floor(x),
    "Ceil": lambda _, x: np.ceil(x),
    "Round": lambda _, x: np.rint(x),
    "Reciprocal": lambda _, x: 1.0 / x,
    "Identity": lambda _, x: x,
}
_BINARY: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Pow": np.power,
    "Min": np.minimum,
    "Max": np.maximum,
    "Sum": lambda a, b: a + b,
    "PRelu": lambda a, b: np.where(a < 0, a * b, a),
}


def unary_source(graph: Graph, name: str) -> str | None:
    """Output of the one activation DequantizeLinear that `name` is an elementwise function of, or None."""
    found: set[str] = set()
    if not _walk(graph, name, found, set()) or len(found) != 1:
        return None
    source = found.pop()
    return source if graph.shape(source) == graph.shape(name) else None


def _walk(graph: Graph, name: str, found: set[str], seen: set[str]) -> bool:
    if name in seen:
        return True
    seen.add(name)
    constant = graph.constant(name)
    if constant is not None:
        return constant.size == 1
    node = graph.producers.get(name)
    if node is None:
        return False
    if node.op == "DequantizeLinear":
        found.add(name)
        return graph.constant(node.inputs[0]) is None and len(found) == 1
    if node.op not in _UNARY and node.op not in _BINARY and node.op != "Clip":
        return False
    return all(_walk(graph, i, found, seen) for i in node.inputs if i)


def unary_table(graph: Graph, name: str, source: str, quant_in: Quant, quant_out: Quant) -> np.ndarray:
    """T[q] for q in 0..255, [256] in the output's dtype."""
    x = quant_in.scale * (np.arange(256, dtype=np.float64) - quant_in.zero)
    with np.errstate(all="ignore"):
        y = _evaluate(graph, name, source, x, {})
        q = np.rint(y / quant_out.scale) + quant_out.zero
    level = np.clip(np.nan_to_num(q, nan=quant_out.zero), quant_out.least, quant_out.most)
    return np.asarray(level.astype(quant_out.dtype))


def _evaluate(graph: Graph, name: str, source: str, x: np.ndarray, memo: dict[str, np.ndarray]) -> np.ndarray:
    if name == source:
        return x
    if name in memo:
        return memo[name]
    constant = graph.constant(name)
    if constant is not None:
        return np.asarray(constant.astype(np.float64).reshape(()))
    node = graph.producers[name]
    args = [_evaluate(graph, i, source, x, memo) if i else None for i in node.inputs]
    memo[name] = _apply(node, args)
    return memo[name]


def _apply(node: Node, args: list[np.ndarray | None]) -> np.ndarray:
    first = args[0]
    assert first is not None
    if node.op == "Clip":
        low = args[1] if len(args) > 1 and args[1] is not None else -np.inf
        high = args[2] if len(args) > 2 and args[2] is not None else np.inf
        return np.asarray(np.minimum(np.maximum(first, low), high))
    if node.op in _UNARY:
        return np.asarray(_UNARY[node.op](node, first))
    result = first
    for other in args[1:]:
        assert other is not None
        result = _BINARY[node.op](result, other)
    return np.asarray(np.broadcast_to(result, (256,)) if np.ndim(result) == 0 else result)

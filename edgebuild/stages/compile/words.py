"""Sums, products and changes of parameters where anything has 16 bits: float32 maps (SPEC section 7)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgebuild.kernels.floats import Map, Tree, collapse, map_kernel
from edgebuild.stages.compile.graph import Quant
from edgebuild.stages.compile.values import Emitter, Value, row_major

_F32 = "float32"


@dataclass(frozen=True)
class Target:
    """The tensor to be made, and the levels [low, high] that an activation behind it leaves."""

    name: str
    shape: tuple[int, ...]
    quant: Quant
    low: int
    high: int


def combined(emit: Emitter, kind: str, label: str, operands: Sequence[tuple[Value, Quant]], target: Target) -> Value:
    """`kind`: add and mul of two operands, requantize of one; they broadcast."""
    values = [value for value, _ in operands]
    y = target.quant

    def number(value: float, dtype: str = _F32) -> Tree:
        name = f"{target.name}:{len(values)}"
        values.append(emit.constant(name, np.array([value]).astype(dtype)))
        return ("load", len(values) - 1, dtype)

    centred: list[Tree] = [
        ("sub", _F32, ("cast", _F32, ("load", i, value.dtype)), number(quant.zero))
        for i, (value, quant) in enumerate(operands)
    ]
    if kind == "mul":
        factor = operands[0][1].scale * operands[1][1].scale / y.scale
        steps: Tree = ("mul", _F32, ("mul", _F32, *centred), number(factor))
    else:
        terms: list[Tree] = [
            ("mul", _F32, tree, number(quant.scale / y.scale))
            for tree, (_, quant) in zip(centred, operands, strict=True)
        ]
        steps = ("add", _F32, *terms) if len(terms) > 1 else terms[0]
    bounds = (number(level - y.zero) for level in (target.low, target.high))
    tree = ("requantize", y.dtype, steps, *bounds, number(y.zero, "int32"))
    return _mapped(emit, kind, label, tree, values, target)


def _mapped(emit: Emitter, kind: str, label: str, tree: Tree, values: Sequence[Value], target: Target) -> Value:
    """In the memory order of the first operand that is not broadcast."""
    order = next((v.order for v in values if v.shape == target.shape), row_major(len(target.shape)))
    out = emit.tensor(target.name, target.quant.dtype, target.shape, order)
    walks = [_strides(v, target.shape, order) for v in values]
    dims, strides = collapse(out.memory_shape, [*walks, [out.strides[a] for a in order]])
    spec = Map(dims, out.dtype, tuple((v.dtype, s) for v, s in zip(values, strides, strict=False)), tree)
    emit.call(kind, label, map_kernel, spec, values, out, integer=True)
    return out


def _strides(value: Value, shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """Strides along the output's memory dimensions, 0 where the value is broadcast."""
    lead = len(shape) - len(value.shape)
    logical = [0] * lead + [0 if n == 1 else s for n, s in zip(value.shape, value.strides, strict=True)]
    return [logical[axis] for axis in order]

"""float32 maps from one uint8 tensor to uint8 as tables: the normalization of a frame and its first quantization.

Each of the 256 bytes goes through the same float32 operations that the map would do, so the result is the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edgebuild.kernels.copy import Table, table_kernel
from edgebuild.kernels.floats import Map, Tree
from edgebuild.stages.compile.values import Emitter, Step, Value

_LEAST_SIZE = 1024  # below that a table of 256 entries is not worth its memory
_MOST_TABLES = 16
_F32 = np.float32
_CASTS = {"float32": 0, "uint8": 255, "int8": 127, "int32": 2147483520}
"""The types that a cast may have, and the largest value that float32 becomes in them."""


def composed(first: Step, second: Step) -> Step | None:
    """The map `second` with `first`, which makes its one large operand, put in its place."""
    inner, outer = first.spec, second.spec
    assert isinstance(inner, Map)
    assert isinstance(outer, Map)
    place = second.inputs.index(first.output)
    others = [(s, pair) for i, (s, pair) in enumerate(zip(second.inputs, outer.operands, strict=True)) if i != place]
    if second.inputs.count(first.output) > 1 or not _dense(outer, place) or any(any(p[1]) for _, p in others):
        return None
    scalars = tuple((dtype, (0,) * len(inner.dims)) for _, (dtype, _) in others)
    places = [len(inner.operands) + i for i in range(len(others))]
    places.insert(place, -1)
    tree = _substituted(outer.tree, places, inner.tree)
    spec = replace(inner, dtype=outer.dtype, operands=inner.operands + scalars, tree=tree)
    return replace(second, spec=spec, inputs=(*first.inputs, *(s for s, _ in others)))


def _substituted(tree: Tree, places: Sequence[int], inner: Tree) -> Tree:
    if tree[0] == "load":
        return inner if places[tree[1]] < 0 else ("load", places[tree[1]], tree[2])
    return (*tree[:2], *(_substituted(child, places, inner) for child in tree[2:]))


def as_table(emitter: Emitter, step: Step) -> Step | None:
    """The table that does what a map does, if it has one uint8 operand that varies, and constants otherwise."""
    spec = step.spec
    assert isinstance(spec, Map)
    data = [emitter.storages[s].data for s in step.inputs]
    varying = [i for i, d in enumerate(data) if d is None]
    size = int(np.prod(spec.dims))
    if len(varying) != 1 or spec.dtype != "uint8" or size < _LEAST_SIZE or not _known(spec.tree):
        return None
    if spec.operands[varying[0]][0] != "uint8" or not _dense(spec, varying[0]):
        return None
    period = spec.period or spec.dims[-1]
    constants = {i: _column(d, spec.operands[i][1], period) for i, d in enumerate(data) if d is not None}
    if any(c is None for c in constants.values()):
        return None
    if all(c.shape[0] == 1 for c in constants.values() if c is not None):
        period = 1
    if period > _MOST_TABLES:
        return None
    loads = [constants.get(i, np.arange(256, dtype=np.uint8)[None]) for i in range(len(data))]
    with np.errstate(all="ignore"):
        tables = np.broadcast_to(_evaluate(spec.tree, loads), (period, 256))
    constant: Value = emitter.constant(f"{step.name}:tables", np.ascontiguousarray(tables, np.uint8))
    inputs = (step.inputs[varying[0]], constant.storage)
    return replace(step, kind="table", make=table_kernel, spec=Table(size, period), inputs=inputs, integer=True)


def _dense(spec: Map, operand: int) -> bool:
    """Whether an operand is read in the order in which the result is written."""
    strides, step = [], 1
    for size in reversed(spec.dims):
        strides.append(step)
        step *= size
    found = zip(spec.operands[operand][1], reversed(strides), spec.dims, strict=True)
    return all(a == b for a, b, size in found if size > 1)


def _column(data: np.ndarray, strides: tuple[int, ...], period: int) -> np.ndarray | None:
    """A constant as [1, 1], or [period, 1] where it changes along the innermost dimension only."""
    if not any(strides):
        return data.reshape(-1)[:1, None]
    if any(strides[:-1]) or strides[-1] != 1:
        return None
    return data.reshape(-1)[:period, None]


def _known(tree: Tree) -> bool:
    if tree[0] == "load":
        return True
    fits = tree[1] in _CASTS if tree[0] == "cast" else tree[0] != "div" or tree[1] == "float32"
    return fits and tree[0] in _OPERATORS and all(_known(child) for child in tree[2:])


def _evaluate(tree: Tree, loads: Sequence[np.ndarray | None]) -> np.ndarray:
    if tree[0] == "load":
        found = loads[tree[1]]
        assert found is not None
        return found
    children = [_evaluate(child, loads) for child in tree[2:]]
    return np.asarray(_OPERATORS[tree[0]](*children) if tree[0] != "cast" else _cast(children[0], tree[1]))


def _cast(value: np.ndarray, dtype: str) -> np.ndarray:
    """Float to integer truncates and saturates."""
    if value.dtype == _F32 and dtype != "float32":
        value = np.clip(np.trunc(value).astype(np.float64), np.iinfo(dtype).min, _CASTS[dtype])
    return np.asarray(value.astype(dtype))


def _quantize(value: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    shift = zero.astype(np.int32)
    level = np.clip(value / scale, _F32(0) - shift.astype(_F32), _F32(255) - shift.astype(_F32))
    return np.asarray((np.rint(level).astype(np.int32) + shift).astype(np.uint8))


def _dequantize(value: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return np.asarray((value.astype(np.int32) - zero.astype(np.int32)).astype(_F32) * scale)


_OPERATORS: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "min": np.minimum,
    "max": np.maximum,
    "cast": _cast,
    "quantize": _quantize,
    "dequantize": _dequantize,
}
"""IEEE operations that NumPy rounds as the kernels do."""

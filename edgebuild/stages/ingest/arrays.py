"""NumPy handlers, traced: arrays that look like NumPy's and compute with torch tensors.

`torch._numpy` is the layer that torch.compile traces NumPy with: NumPy's functions, written in torch's. What NumPy
computes in float64 is computed in float32 here, as devices do; the comparison with the handler on real arrays says
whether that matters. What needs an array's values while tracing raises Untraceable.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from edgebuild.function import Function

tnp: Any = importlib.import_module("torch._numpy")  # untyped
Values = dict[str, Any]
_NARROWED = {torch.float64: torch.float32}
_ON_DEVICES = {"float64": np.float32, "uint64": np.int64}
_REDUCTIONS = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min"}
_COMPARISONS = frozenset({"equal", "greater", "greater_equal", "less", "less_equal", "not_equal"})
_PYTHON_TYPES = {float: "float32", int: "int64", bool: "bool"}


class Untraceable(Exception):
    """An operation that has no place in a graph."""


class Traced(np.lib.mixins.NDArrayOperatorsMixin):
    """A NumPy array whose values are a torch tensor's, known or not."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor.to(_NARROWED.get(tensor.dtype, tensor.dtype))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: tuple[Any, ...] = (), **named: Any) -> Any:
        name = f"numpy.{ufunc.__name__}"
        if method == "reduce" and ufunc.__name__ in _REDUCTIONS:
            named = {key: value for key, value in named.items() if value is not None and key != "initial"}
            return _call(_REDUCTIONS[ufunc.__name__], f"{name}.reduce", inputs, {"axis": 0} | named)
        if method != "__call__":
            raise Untraceable(f"{name}.{method} cannot be traced")
        result = _call(ufunc.__name__, name, _aligned(inputs, scalars=ufunc.__name__ in _COMPARISONS), named)
        return result if not out else _written(out[0], result, name)

    def __array_function__(self, func: Any, types: Any, args: tuple[Any, ...], named: Values) -> Any:
        name = f"{func.__module__}.{func.__name__}"
        out = named.pop("out", None)
        result = _EXTRA[name](*args, **named) if name in _EXTRA else _call(func.__name__, name, args, named)
        return result if out is None else _written(out, result, name)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise Untraceable("a library outside NumPy, or a function that was imported by its name, asks for values")

    def __getattr__(self, name: str) -> Any:
        """Methods and properties of `numpy.ndarray`."""
        if name.startswith("__") or not hasattr(np.ndarray, name):
            raise AttributeError(f"'numpy.ndarray' object has no attribute '{name}'")
        if name in {"item", "tolist", "tobytes", "dump", "dumps", "tofile", "data"} or not hasattr(tnp.ndarray, name):
            raise Untraceable(f"ndarray.{name} cannot be traced")
        found = getattr(tnp.ndarray(self.tensor), name)
        if not callable(found):
            return _wrapped(found)
        return lambda *args, **named: _called(found, f"ndarray.{name}", args, named)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def ndim(self) -> int:
        return self.tensor.ndim

    @property
    def size(self) -> int:
        return self.tensor.numel()

    @property
    def dtype(self) -> "np.dtype[Any]":
        return np.dtype(str(self.tensor.dtype).removeprefix("torch."))

    @property
    def T(self) -> "Traced":  # noqa: N802 - NumPy's name
        return Traced(self.tensor.permute(*reversed(range(self.tensor.ndim))))

    def astype(self, dtype: Any, *_: Any, **__: Any) -> "Traced":
        return Traced(tnp.ndarray(self.tensor).astype(_dtype(dtype)).tensor)

    def argsort(self, axis: Any = -1, **named: Any) -> Any:
        return np.argsort(self, axis=axis, **named)

    def max(self, axis: Any = None, **named: Any) -> Any:
        return np.max(self, axis=axis, **named)

    def min(self, axis: Any = None, **named: Any) -> Any:
        return np.min(self, axis=axis, **named)

    def copy(self, *_: Any) -> "Traced":
        return Traced(self.tensor.clone())

    def __getitem__(self, index: Any) -> Any:
        tensor, forward = _forward(self.tensor, index)
        return _called(tnp.ndarray(tensor).__getitem__, "an index", (forward,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        if any(isinstance(part, slice) and (part.step or 1) < 0 for part in _parts(index)):
            raise Untraceable("an assignment to a slice with a negative step cannot be traced: assign numpy.flip(…)")
        _called(tnp.ndarray(self.tensor).__setitem__, "an assignment", (index, value), {})

    def __len__(self) -> int:
        return int(self.tensor.shape[0])

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        raise Untraceable("a branch, `and`, `or` or `not` depends on an array's value: write numpy.where(…)")

    def __int__(self) -> int:
        raise Untraceable("int() needs an array's value: keep the array, .astype('int64')")

    def __float__(self) -> float:
        raise Untraceable("float() needs an array's value: keep the array, .astype('float32')")

    def __index__(self) -> int:
        raise Untraceable("an index, size or loop length depends on an array's value")

    __hash__ = None  # type: ignore[assignment]


def eager(function: Function, arrays: Values, network: nn.Module) -> Any:
    """The handler on real arrays."""
    return function(**{name: np.array(value) for name, value in arrays.items()}, model=_Model(network))


def traced(function: Function, tensors: dict[str, torch.Tensor], network: nn.Module) -> Any:
    """The handler on traced arrays; arrays that it returns become tensors."""
    with _dispatched():
        result = function(**{name: Traced(value.clone()) for name, value in tensors.items()}, model=_Model(network))
    return _mapped(result, lambda value: value.tensor if isinstance(value, Traced) else value)


def as_array(value: Any) -> Any:
    """What a NumPy handler returned, as a device gives it: an array, of a dtype that devices have."""
    if isinstance(value, torch.Tensor):
        value = value.detach().numpy()
    array = np.asarray(value)
    return array.astype(_ON_DEVICES.get(array.dtype.name, array.dtype), copy=False)


class _Model:
    """The network as a NumPy handler calls it: arrays in, arrays out; tensors in, tensors out."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        given = (*inputs, *named.values())
        with torch.no_grad():
            result = self._network(*map(_tensor, inputs), **{key: _tensor(value) for key, value in named.items()})
        if any(isinstance(value, torch.Tensor) for value in given):
            return result
        wrap = Traced if any(isinstance(value, Traced) for value in given) else _array
        return _mapped(result, lambda value: wrap(value) if isinstance(value, torch.Tensor) else value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


def _array(tensor: torch.Tensor) -> Any:
    return tensor.detach().numpy()


def _tensor(value: Any) -> Any:
    """An argument of the network: float64 becomes float32, which networks are made of."""
    if isinstance(value, Traced):
        return value.tensor
    return torch.from_numpy(as_array(value).copy()) if isinstance(value, np.ndarray | np.generic) else value


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_mapped(item, change) for item in value)
    return change(value)


def _aligned(inputs: tuple[Any, ...], *, scalars: bool) -> tuple[Any, ...]:
    """Operands of one dtype, as ONNX wants them; an integer that meets float32 becomes float32, not float64.

    `scalars`: Python's numbers as well; else they leave the dtype of the array that they meet.
    """
    arrays = [_plain(value) if isinstance(value, Traced | np.ndarray | np.generic) else value for value in inputs]
    tensors = [value.tensor for value in arrays if isinstance(value, tnp.ndarray)]
    if len(arrays) != 2 or not tensors:
        return inputs
    dtype = tensors[0].dtype
    for other in tensors[1:]:
        dtype = torch.promote_types(dtype, other.dtype)
    if scalars:
        for number in arrays:
            dtype = torch.result_type(torch.empty(1, dtype=dtype), number) if isinstance(number, int | float) else dtype
        arrays = [tnp.ndarray(torch.full((), v)) if isinstance(v, int | float) else v for v in arrays]
    return tuple(Traced(value.tensor.to(dtype)) if isinstance(value, tnp.ndarray) else value for value in arrays)


def _call(function: str, name: str, args: tuple[Any, ...], named: Values) -> Any:
    found = getattr(tnp, function, None)
    if found is None or name.startswith(("numpy.linalg", "numpy.fft")):
        raise Untraceable(f"{name} cannot be traced")
    return _called(found, name, args, named)


def _called(found: Callable[..., Any], name: str, args: tuple[Any, ...], named: Values) -> Any:
    try:
        return _wrapped(found(*map(_plain, args), **{key: _plain(value) for key, value in named.items()}))
    except NotImplementedError as reason:
        raise Untraceable(f"{name} cannot be traced with these arguments: {reason}") from reason


def _plain(value: Any) -> Any:
    """An argument for torch._numpy."""
    if isinstance(value, Traced):
        return tnp.ndarray(value.tensor)
    if isinstance(value, np.ndarray | np.generic):
        return tnp.ndarray(torch.from_numpy(np.array(as_array(value))))
    if isinstance(value, torch.Tensor):
        return tnp.ndarray(value)
    if isinstance(value, np.dtype | type):
        return _dtype(value)
    return type(value)(map(_plain, value)) if isinstance(value, tuple | list) else value


def _wrapped(value: Any) -> Any:
    if isinstance(value, tnp.ndarray):
        return Traced(value.tensor)
    return type(value)(map(_wrapped, value)) if isinstance(value, tuple | list) else value


def _forward(tensor: torch.Tensor, index: Any) -> tuple[torch.Tensor, Any]:
    """Tensor and index without steps below zero, which torch has not: those axes are turned round."""
    parts, axis, forward = _parts(index), 0, []
    taken = sum(_axes_taken(part) for part in parts if part is not Ellipsis)
    for part in parts:
        if isinstance(part, slice) and (part.step or 1) < 0:
            places = range(*part.indices(tensor.shape[axis]))
            whole = len(places) == tensor.shape[axis]
            tensor = torch.flip(tensor, [axis]) if whole else tensor.index_select(axis, torch.tensor(list(places)))
            part = slice(None)  # noqa: PLW2901
        forward.append(part)
        axis += tensor.ndim - taken if part is Ellipsis else _axes_taken(part)
    return tensor, tuple(forward) if isinstance(index, tuple) else forward[0]


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _axes_taken(part: Any) -> int:
    """How many of an array's axes a part of an index stands for."""
    if part is None:
        return 0
    is_mask = isinstance(part, Traced | np.ndarray) and part.dtype == np.bool_
    return part.ndim if is_mask else 1


def _dtype(dtype: Any) -> Any:
    name = _PYTHON_TYPES.get(dtype) or np.dtype(dtype).name
    return "float32" if name == "float64" else name


def _written(out: Any, result: Any, name: str) -> Any:
    target = out[0] if isinstance(out, tuple) else out
    if not isinstance(target, Traced):
        raise Untraceable(f"{name} writes into an array that is no result of the handler's inputs")
    target.tensor.copy_(result.tensor)
    return target


def _norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:  # noqa: A002 - NumPy's name
    if ord not in (None, 2, "fro"):
        raise Untraceable(f"numpy.linalg.norm with ord={ord!r} cannot be traced")
    return np.sqrt(np.sum(x * x, axis=axis, keepdims=keepdims))


def _flip(m: Traced, axis: Any = None) -> Traced:
    axes = range(m.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return Traced(torch.flip(m.tensor, list(axes)))


def _extreme(reduce: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """The largest or smallest; ONNX's exporter wants the axes by name, also where they are all."""

    def found(a: Traced, axis: Any = None, keepdims: bool = False) -> Traced:
        axes = tuple(range(a.ndim)) if axis is None else axis
        return Traced(reduce(a.tensor, dim=axes, keepdim=bool(keepdims)) if a.ndim else a.tensor)

    return found


def _sorted(place: int) -> Callable[..., Any]:
    """Values (0) or places (1) in rising order; ONNX sorts by TopK."""

    def found(a: Traced, axis: Any = -1, kind: Any = None, order: Any = None, **_: Any) -> Traced:  # noqa: ARG001
        tensor, axis = (a.tensor.reshape(-1), 0) if axis is None else (a.tensor, axis)
        return Traced(torch.topk(tensor, tensor.shape[axis], dim=axis, largest=False)[place])

    return found


def _ptp(a: Traced, axis: Any = None, keepdims: bool = False) -> Any:
    return np.max(a, axis=axis, keepdims=keepdims) - np.min(a, axis=axis, keepdims=keepdims)


_MAX, _MIN = _extreme(torch.amax), _extreme(torch.amin)
_EXTRA: dict[str, Callable[..., Any]] = {
    "numpy.linalg.norm": _norm,
    "numpy.flip": _flip,
    "numpy.ptp": _ptp,
    "numpy.sort": _sorted(0),
    "numpy.argsort": _sorted(1),
    **{f"numpy.{name}": _MAX for name in ("max", "amax")},
    **{f"numpy.{name}": _MIN for name in ("min", "amin")},
}


@contextmanager
def _dispatched() -> Iterator[None]:
    """Inside, the functions that NumPy and torch do not dispatch know traced arrays."""
    with ExitStack() as stack:
        for name in ("array", "asarray", "asanyarray", "ascontiguousarray"):
            stack.enter_context(_replaced(np, name, _constructor(getattr(np, name))))
        for name in ("from_numpy", "as_tensor", "tensor"):
            stack.enter_context(_replaced(torch, name, _to_torch(getattr(torch, name))))
        stack.enter_context(_replaced(torch.Tensor, "numpy", lambda tensor, **_: Traced(tensor)))
        tnp.set_default_dtype(fp_dtype="pytorch", int_dtype="numpy")
        try:
            yield
        finally:
            tnp.set_default_dtype(fp_dtype="numpy", int_dtype="numpy")


@contextmanager
def _replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _constructor(original: Callable[..., Any]) -> Callable[..., Any]:
    def construct(value: Any, dtype: Any = None, *args: Any, **named: Any) -> Any:
        if isinstance(value, Traced):
            return value if dtype is None else value.astype(dtype)
        if isinstance(value, tuple | list) and any(isinstance(item, Traced) for item in value):
            stacked: Any = np.stack([item if isinstance(item, Traced) else original(item) for item in value])
            return stacked if dtype is None else stacked.astype(dtype)
        return original(value, *(() if dtype is None and not args else (dtype,)), *args, **named)

    return construct


def _to_torch(original: Callable[..., Any]) -> Callable[..., Any]:
    def convert(value: Any, *args: Any, **named: Any) -> Any:
        if not isinstance(value, Traced):
            return original(value, *args, **named)
        dtype = named.get("dtype")
        return value.tensor if dtype is None else value.tensor.to(dtype)

    return convert

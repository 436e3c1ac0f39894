"""Kernels from loop nests that TVM made, for operators that have no template here.

A nest is built again, statement by statement, in the form of our kernels: raw pointers, the outermost loop split
between threads. Two things change on the way, so that every CPU gives the same bits: products are fenced (LLVM would
fuse them with additions where the CPU can), and functions such as sin become calls of functions.c instead of libm's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import ir, tirx

from edgebuild.kernels.builder import Body, Expr, Flat, Kernel, T, cast, either, fence, intrinsic, kernel, loop, when
from edgebuild.kernels.isa import Isa

_LARGEST = 1 << 31
_GRAIN = 16384  # stores or products that are worth handing to another thread
_MATH = frozenset({
    "acos", "acosh", "asin", "asinh", "atan", "atanh", "cos", "cosh", "exp", "fmod", "log", "pow", "sin", "sinh", "tan",
})  # fmt: skip
"""What functions.c holds."""
_EXACT = {"sqrt": "llvm.sqrt", "floor": "llvm.floor", "ceil": "llvm.ceil", "trunc": "llvm.trunc", "fabs": "llvm.fabs",
          "nearbyint": "llvm.nearbyint", "round": "llvm.nearbyint"}  # fmt: skip
_BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "Add": lambda a, b: a + b, "Sub": lambda a, b: a - b, "Mul": lambda a, b: a * b, "Div": tirx.Div, "Mod": tirx.Mod,
    "FloorDiv": tirx.FloorDiv, "FloorMod": tirx.FloorMod, "Min": tirx.Min, "Max": tirx.Max, "EQ": tirx.EQ,
    "NE": tirx.NE, "LT": tirx.LT, "LE": tirx.LE, "GT": tirx.GT, "GE": tirx.GE, "And": tirx.And, "Or": tirx.Or,
    "BitwiseAnd": tirx.bitwise_and, "BitwiseOr": tirx.bitwise_or, "BitwiseXor": tirx.bitwise_xor,
}  # fmt: skip
_REACH = {
    "uint8": (0.0, 255.0), "int8": (-128.0, 127.0), "int32": (-(2.0**31), 2.0**31 - 128),
    "int64": (-(2.0**63), 2.0**63 - 2.0**39),
}  # fmt: skip
"""The float32 numbers that a cast to integers keeps; beyond them, and for NaN, CPUs differ."""
_DIVISIONS = frozenset({"Div", "Mod", "FloorDiv", "FloorMod"})


class UnsupportedNestError(Exception):
    """A nest holds something that has no counterpart in a kernel; the text says what."""


@dataclass(frozen=True)
class Nest:
    """One loop nest over flat buffers. `key` says the same as `loops`, in a form that can be compared.

    `buffers`: (dtype, elements) of the `read` ones that it reads, then of those that it writes; `places`: which of them
    each of TVM's variables is; `zeros`: variables that are 0, offsets of buffers.
    """

    key: str
    buffers: tuple[tuple[str, int], ...]
    read: int
    loops: Any = field(compare=False, repr=False)
    places: Mapping[Any, int] = field(compare=False, repr=False)
    zeros: tuple[Any, ...] = field(compare=False, repr=False)


def nest_kernel(nest: Nest, _isa: Isa) -> Kernel:
    """Arguments: the nest's buffers. A unit is one turn of a parallel outermost loop, or all of the nest."""
    args = [(f"b{i}", dtype, size) for i, (dtype, size) in enumerate(nest.buffers)]
    outer = nest.loops if _is_parallel(nest.loops) else None
    units = 1 if outer is None else int(outer.extent)

    def emit(body: Body) -> None:
        sizes = {name: nest.buffers[place][1] for name, place in nest.places.items()}
        zeros = {variable: T.int64(0) for variable in nest.zeros}
        writer = _Writer({name: body.buffers[place] for name, place in nest.places.items()}, sizes, zeros)
        if outer is None:
            with loop(body.begin, body.end):
                writer.statement(nest.loops)
            return
        with loop(body.begin, body.end) as i:
            writer.inside(outer, i)

    work = max(nest.buffers[-1][1], products(nest.loops)) // units
    grain = max(1, min(units, _GRAIN // max(work, 1)))
    return Kernel(kernel(args, emit), tuple(dtype for _, dtype, _ in args), units, grain, functions=True)


def _is_parallel(statement: Any) -> bool:
    """Whether the turns of a loop may run at once."""
    return type(statement).__name__ == "For" and int(statement.kind) == tirx.ForKind.PARALLEL


def touched(loops: Any) -> tuple[list[Any], list[Any]]:
    """The variables of the buffers that a nest reads, and of those that it writes."""
    parts = list(_parts(loops))
    read = [part.source for part in parts if type(part).__name__ == "TensorLoad"]
    return read, [part.buffer for part in parts if type(part).__name__ == "BufferStore"]


def products(loops: Any, turns: int = 1) -> int:
    """How many products of float32 a nest adds to something: its multiply-accumulates."""
    kind = type(loops).__name__
    if kind == "For" and isinstance(loops.extent, tirx.IntImm):
        return products(loops.body, turns * int(loops.extent))
    if kind == "SeqStmt":
        return sum(products(part, turns) for part in loops.seq)
    sums = (part for part in _parts(loops) if type(part).__name__ == "Add" and _dtype(part) == "float32")
    return turns * sum(type(side).__name__ == "Mul" for part in sums for side in (part.a, part.b))


_CHILDREN = (
    "seq", "body", "min", "extent", "condition", "then_case", "else_case", "value", "indices", "a", "b", "true_value",
    "false_value", "args",
)  # fmt: skip


def _parts(node: Any) -> Iterator[Any]:
    """A statement or expression and all that it consists of."""
    yield node
    for name in _CHILDREN:
        child = getattr(node, name, None)
        for part in child if isinstance(child, Sequence) else [child]:
            if isinstance(part, tirx.Stmt | ir.Expr):
                yield from _parts(part)


@dataclass
class _Writer:
    """Writes statements and expressions again; `buffers` and their `sizes`, `scalars` by TVM's variable."""

    buffers: dict[Any, Flat]
    sizes: dict[Any, int]
    scalars: dict[Any, Expr]
    computed: set[Any] = field(default_factory=set)

    def statement(self, s: Any) -> None:
        kind = type(s).__name__
        if kind not in _STATEMENTS:
            raise UnsupportedNestError(f"the statement {kind}")
        _STATEMENTS[kind](self, s)

    def inside(self, s: Any, index: Expr) -> None:
        """The body of a loop for one value of its variable."""
        self.scalars[s.loop_var] = cast(str(s.loop_var.ty.dtype), index + int(s.min))
        self.statement(s.body)

    def _for(self, s: Any) -> None:
        if not all(isinstance(bound, tirx.IntImm) for bound in (s.min, s.extent)):
            raise UnsupportedNestError("a loop whose length depends on data")
        if int(s.extent) >= _LARGEST:
            raise UnsupportedNestError("a loop of more than 2^31 turns")
        with loop(0, int(s.extent)) as i:
            self.inside(s, i)

    def _sequence(self, s: Any) -> None:
        for part in s.seq:
            self.statement(part)

    def _store(self, s: Any) -> None:
        value = self.expression(s.value)
        self._buffer(s.buffer).store(self._index(s.buffer, s.indices), value)

    def _if(self, s: Any) -> None:
        condition = self.expression(s.condition)
        if s.else_case is None:
            with when(condition):
                self.statement(s.then_case)
            return
        either(condition, lambda: self.statement(s.then_case), lambda: self.statement(s.else_case))

    def _bind(self, s: Any) -> None:
        self.scalars[s.var] = T.bind(self.expression(s.value))
        self.computed.add(s.var)

    def _evaluate(self, s: Any) -> None:
        if not isinstance(s.value, tirx.IntImm):
            raise UnsupportedNestError("a call for its effect")

    def _declare(self, s: Any) -> None:
        """Another name for the same memory."""
        name = s.data.args[0]
        self.buffers[s.buffer], self.sizes[s.buffer] = self._buffer(name), self.sizes[name]

    def _buffer(self, name: Any) -> Flat:
        if name not in self.buffers:
            raise UnsupportedNestError(f"memory of its own ({name})")
        return self.buffers[name]

    def _index(self, name: Any, indices: Any) -> Expr:
        """A place in a buffer. One that depends on data is kept inside, whatever the data."""
        if len(indices) != 1:
            raise UnsupportedNestError("a buffer that is not flat")
        place = self.expression(indices[0])
        if not any(
            type(part).__name__ in ("TensorLoad", "Call") or part in self.computed for part in _parts(indices[0])
        ):
            return place
        return tirx.Max(tirx.Min(cast("int64", place), T.int64(self.sizes[name] - 1)), T.int64(0))

    def _depends_on_data(self, part: Any) -> bool:
        return type(part).__name__ in ("TensorLoad", "Call") or part in self.computed

    def expression(self, e: Any) -> Expr:
        kind = type(e).__name__
        if kind in ("IntImm", "FloatImm"):
            return e
        if kind == "Var":
            if e not in self.scalars:
                raise UnsupportedNestError(f"the variable {e}")
            return self.scalars[e]
        if kind in _BINARY:
            return self._binary(kind, e)
        if kind not in _EXPRESSIONS:
            raise UnsupportedNestError(f"the expression {kind}")
        return _EXPRESSIONS[kind](self, e)

    def _binary(self, kind: str, e: Any) -> Expr:
        parts = [self.expression(side) for side in (e.a, e.b)]
        if kind in _DIVISIONS and not isinstance(e.b, tirx.IntImm):
            found = _divided(kind, _dtype(e), *parts)
        else:
            found = _BINARY[kind](*parts)
        # A quotient by a constant may become a product, and any product part of a fused addition
        return fence(found) if kind in ("Mul", "Div") and _dtype(e) == "float32" else found

    def _load(self, e: Any) -> Expr:
        return self._buffer(e.source).load(self._index(e.source, e.indices))

    def _cast(self, e: Any) -> Expr:
        value, dtype = self.expression(e.value), _dtype(e)
        if _dtype(e.value) == "float32" and dtype in _REACH:
            low, high = _REACH[dtype]
            inside = tirx.Max(tirx.Min(value, T.float32(high)), T.float32(low))
            value = tirx.Select(tirx.EQ(value, value), inside, T.float32(0))
        return tirx.Cast(dtype, value)

    def _not(self, e: Any) -> Expr:
        return tirx.Not(self.expression(e.a))

    def _select(self, e: Any) -> Expr:
        return tirx.Select(*(self.expression(part) for part in (e.condition, e.true_value, e.false_value)))

    def _call(self, e: Any) -> Expr:
        name = e.op.name.rpartition(".")[2]
        dtype = _dtype(e)
        args = [self.expression(argument) for argument in e.args]
        if name == "if_then_else":
            return tirx.if_then_else(*args)
        if name in _EXACT and dtype == "float32":
            return intrinsic(_EXACT[name], dtype, *args)
        if name in _MATH and dtype == "float32":
            return T.call_pure_extern(dtype, f"eb_{name}", *args)
        if name == "rsqrt" and dtype == "float32":
            return tirx.Div(T.float32(1), intrinsic("llvm.sqrt", dtype, *args))
        if name == "isnan":
            return tirx.isnan(*args)
        raise UnsupportedNestError(f"the function {name} of {dtype}")


_STATEMENTS: Mapping[str, Callable[[_Writer, Any], None]] = {
    "For": _Writer._for, "SeqStmt": _Writer._sequence, "BufferStore": _Writer._store, "IfThenElse": _Writer._if,
    "Bind": _Writer._bind, "DeclBuffer": _Writer._declare,
    "AttrStmt": lambda w, s: w.statement(s.body), "Evaluate": _Writer._evaluate,
}  # fmt: skip
_EXPRESSIONS: Mapping[str, Callable[[_Writer, Any], Expr]] = {
    "TensorLoad": _Writer._load, "Cast": _Writer._cast, "Not": _Writer._not, "Select": _Writer._select,
    "Call": _Writer._call, "BitwiseNot": lambda w, e: tirx.bitwise_not(w.expression(e.a)),
}  # fmt: skip


def _divided(kind: str, dtype: str, a: Expr, b: Expr) -> Expr:
    """A division by what is no constant. One of integers by 0 or −1 could trap; by 0 it gives what 1 would give."""
    if dtype.startswith("float"):
        return T.call_pure_extern(dtype, "eb_fmod", a, b) if kind == "Mod" else _BINARY[kind](a, b)
    zero, one = tirx.IntImm(dtype, 0), tirx.IntImm(dtype, 1)
    if dtype.startswith("uint"):
        return _BINARY[kind](a, tirx.Select(b == zero, one, b))
    opposite = b == zero - one
    found = _BINARY[kind](a, tirx.Select(tirx.Or(b == zero, opposite), one, b))
    return tirx.Select(opposite, zero - a if kind in ("Div", "FloorDiv") else zero, found)


def _dtype(e: Any) -> str:
    return str(e.ty.dtype)

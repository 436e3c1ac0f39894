"""Residual add and mul of two quantized tensors (SPEC section 7)."""

from dataclasses import dataclass

from edgebuild.kernels.builder import (
    Body,
    Expr,
    Flat,
    Kernel,
    T,
    bits,
    cast,
    kernel,
    loop,
    requantize,
    splat,
)
from edgebuild.kernels.isa import Isa

PARAMS = 9  # lo − z_y and hi − z_y as float32 bits, z_y, multiplier as float32 bits, A, B, constant, z_a, z_b
CHUNK = 4096


@dataclass(frozen=True)
class Binary:
    """`rows` × `inner` elements; with `broadcast`, the second operand has one row for all."""

    kind: str
    rows: int
    inner: int
    broadcast: bool = False


def binary_kernel(binary: Binary, isa: Isa) -> Kernel:
    """Arguments: a, b, params [9], output. add: acc = A·a + B·b + constant; mul: acc = (a − z_a)·(b − z_b)."""
    if not binary.broadcast:
        return _flat_kernel(binary, isa)
    size = binary.rows * binary.inner
    lanes = _lanes(isa, binary.inner)

    def emit(body: Body) -> None:
        a, b, params, y = body.buffers
        with loop(body.begin, body.end) as row, loop(0, -(-binary.inner // lanes)) as i:
            place = T.bind(T.min(i * lanes, binary.inner - lanes))
            _step(binary.kind, (a, row * binary.inner + place), (b, place), params, y, lanes)

    func = kernel(_arguments(size, binary.inner), emit)
    return Kernel(
        func, ("uint8", "uint8", "int32", "uint8"), binary.rows, max(1, min(binary.rows, 16384 // binary.inner))
    )


def _flat_kernel(binary: Binary, isa: Isa) -> Kernel:
    size = binary.rows * binary.inner
    lanes = _lanes(isa, size)
    steps = -(-size // lanes)
    per_unit = max(1, CHUNK // lanes)
    units = -(-steps // per_unit)

    def emit(body: Body) -> None:
        a, b, params, y = body.buffers
        with loop(body.begin * per_unit, T.min(body.end * per_unit, steps)) as i:
            place = T.bind(T.min(i * lanes, size - lanes))
            _step(binary.kind, (a, place), (b, place), params, y, lanes)

    return Kernel(kernel(_arguments(size, size), emit), ("uint8", "uint8", "int32", "uint8"), units, min(units, 4))


def _lanes(isa: Isa, size: int) -> int:
    return min(isa.wide, 1 << (size.bit_length() - 1))


def _arguments(size: int, second: int) -> list[tuple[str, str, int]]:
    return [("a", "uint8", size), ("b", "uint8", second), ("params", "int32", PARAMS), ("y", "uint8", size)]


def _step(kind: str, left: tuple[Flat, Expr], right: tuple[Flat, Expr], params: Flat, y: Flat, lanes: int) -> None:
    def param(i: int, dtype: str = "int32") -> Expr:
        value = params.load(i)
        return splat(value if dtype == "int32" else bits(dtype, value), lanes)

    a, b = (cast("int32", buffer.load(place, lanes), lanes) for buffer, place in (left, right))
    acc = a * param(4) + b * param(5) + param(6) if kind == "add" else (a - param(7)) * (b - param(8))
    value = requantize(acc, param(3, "float32"), param(0, "float32"), param(1, "float32"), param(2), lanes)
    y.store(left[1], cast("uint8", value, lanes), lanes)

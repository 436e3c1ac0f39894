"""Kernels on bytes against NumPy, over random shapes: tables, add and mul, pooling, gathers, and where results go."""

import numpy as np
import pytest
from kernels.native import Native, runnable

from edgebuild.kernels.copy import Gather, Into, Table, gather_kernel, table_kernel
from edgebuild.kernels.elementwise import Binary, binary_kernel
from edgebuild.kernels.isa import ISAS
from edgebuild.kernels.pool import Pool, average_pool_kernel, max_pool_kernel

TARGETS = ("x86_64-generic", "x86_64-avx2", "x86_64-avx512vnni", "x86_64-avx512vbmi")
TABLES = [Table(1), Table(15), Table(16), Table(100), Table(4096 + 7), Table(3 * 700, 3), Table(48, 3), Table(999, 3)]
BINARIES = [
    Binary(kind, rows, inner, broadcast)
    for kind in ("add", "mul")
    for rows, inner, broadcast in ((1, 5, False), (1, 16, False), (1, 9001, False), (7, 24, False), (6, 3, True),
                                   (5, 70, True), (9, 129, True))
]  # fmt: skip
POOLS = [
    Pool(1, 9, 7, 40, 5, 4, (3, 3), (2, 2), (1, 1)),
    Pool(2, 6, 6, 3, 3, 3, (2, 2), (2, 2)),
    Pool(1, 5, 11, 17, 5, 7, (1, 5), (1, 1), (0, 0), (1, 1)),
    Pool(1, 8, 8, 64, 1, 1, (8, 8)),
]
GATHERS = [Gather("uint8", 3, 4, 7, 24), Gather("uint8", 1, 9, 5, 100)]


@pytest.fixture(scope="module", params=TARGETS)
def isa_and_run(request):
    """The instruction set, and `run(name, args, output)` for the kernels by name."""
    target = runnable(request.param)
    isa = ISAS[target.isa]
    made = {("table", spec): table_kernel(spec, isa) for spec in TABLES}
    made |= {("binary", spec): binary_kernel(spec, isa) for spec in BINARIES}
    made |= {("placed", spec): binary_kernel(spec, isa, into=_place(spec)) for spec in BINARIES}
    if isa.lookup is not None:
        made |= {("through", spec): binary_kernel(spec, isa, table=True) for spec in BINARIES}
    made |= {("max", spec): max_pool_kernel(spec, isa) for spec in POOLS}
    made |= {("average", spec): average_pool_kernel(spec, isa) for spec in POOLS}
    made |= {("gather", spec): gather_kernel(spec, isa, into=_gather_place(spec)) for spec in GATHERS}
    native = Native(list(made.values()), target)
    places = {key: index for index, key in enumerate(made)}
    return isa, lambda kind, spec, args, output: native(places[(kind, spec)], args, output)


def _place(spec: Binary) -> Into:
    """Lines of `inner` elements with a gap of five behind each, from element 11 on."""
    return Into(spec.inner, spec.inner + 5, 11, 11 + spec.rows * (spec.inner + 5))


def _gather_place(spec: Gather) -> Into:
    return Into(spec.inner, spec.inner + 9, 4, 4 + spec.outer * spec.count * (spec.inner + 9))


def _bytes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("spec", TABLES, ids=str)
def test_table(isa_and_run, spec: Table) -> None:
    _, run = isa_and_run
    rng = np.random.default_rng(spec.size)
    x, tables = _bytes(rng, spec.size), _bytes(rng, spec.period, 256)
    wanted = tables[np.arange(spec.size) % spec.period, x]
    assert np.array_equal(run("table", spec, [x, tables], np.zeros_like(wanted)), wanted)


@pytest.mark.parametrize("spec", BINARIES, ids=str)
def test_binary(isa_and_run, spec: Binary) -> None:
    isa, run = isa_and_run
    rng = np.random.default_rng(spec.inner)
    a, b = _bytes(rng, spec.rows, spec.inner), _bytes(rng, 1 if spec.broadcast else spec.rows, spec.inner)
    low, high, zero = 3, 240, 100
    factor_a, factor_b, zero_a, zero_b = (700000, 350000, 7, 250)
    if spec.kind == "add":
        constant, multiplier = -(factor_a * zero_a + factor_b * zero_b), np.float32(2.0**-20)
        acc = factor_a * a.astype(np.int64) + factor_b * b.astype(np.int64) + constant
    else:
        constant, multiplier = 0, np.float32(0.0123)
        acc = (a.astype(np.int64) - zero_a) * (b.astype(np.int64) - zero_b)
    wanted = _requantized(acc, multiplier, zero, low, high)
    assert np.ptp(wanted) > 50
    head = [_bits(high - zero), zero, low, high, 0]
    params = np.array([*head, _bits(multiplier), factor_a, factor_b, constant, zero_a, zero_b], np.int32)
    assert np.array_equal(run("binary", spec, [a, b, params], np.zeros_like(wanted)), wanted)
    if isa.lookup is not None:
        table = _bytes(rng, 256)
        assert np.array_equal(run("through", spec, [a, b, params, table], np.zeros_like(wanted)), table[wanted])
    placed = np.full(_place(spec).size, 77, np.uint8)
    expected = placed.copy()
    expected[11:].reshape(spec.rows, -1)[:, : spec.inner] = wanted
    assert np.array_equal(run("placed", spec, [a, b, params], placed), expected)


@pytest.mark.parametrize("spec", POOLS, ids=str)
def test_pools(isa_and_run, spec: Pool) -> None:
    _, run = isa_and_run
    rng = np.random.default_rng(spec.channels)
    x = _bytes(rng, spec.batch, spec.height, spec.width, spec.channels)
    zero_x, zero_y, low, high = 20, 90, 0, 255
    shape = (spec.batch, spec.out_height, spec.out_width, spec.channels)
    largest, sums = np.zeros(shape, np.uint8), np.zeros(shape, np.int64)
    counts = np.zeros(shape[1:3])
    for row in range(spec.out_height):
        for column in range(spec.out_width):
            window = _window(spec, x, row, column)
            largest[:, row, column], counts[row, column] = window.max(axis=1), window.shape[1]
            sums[:, row, column] = (window.astype(np.int64) - zero_x).sum(axis=1)
    scale = (1.7 / counts).astype(np.float32)
    wanted = _requantized(sums, scale[None, :, :, None], zero_y, low, high)
    quant = np.array([_bits(high - zero_y), zero_y, low, high, zero_x], np.int32)
    assert np.array_equal(run("max", spec, [x], np.zeros_like(largest)), largest)
    assert np.array_equal(run("average", spec, [x, scale, quant], np.zeros_like(wanted)), wanted)


def _window(spec: Pool, x: np.ndarray, row: int, column: int) -> np.ndarray:
    """The pixels of one output that lie inside the image, [batch, pixels, channels]."""
    rows = [row * spec.stride[0] - spec.pad[0] + i * spec.dilation[0] for i in range(spec.kernel[0])]
    columns = [column * spec.stride[1] - spec.pad[1] + i * spec.dilation[1] for i in range(spec.kernel[1])]
    inside = [(r, c) for r in rows for c in columns if 0 <= r < spec.height and 0 <= c < spec.width]
    return np.stack([x[:, r, c] for r, c in inside], axis=1)


@pytest.mark.parametrize("spec", GATHERS, ids=str)
def test_gather(isa_and_run, spec: Gather) -> None:
    _, run = isa_and_run
    rng = np.random.default_rng(spec.inner)
    x, index = _bytes(rng, spec.outer, spec.size, spec.inner), rng.integers(0, spec.size, spec.count).astype(np.int32)
    place = _gather_place(spec)
    target = np.full(place.size, 9, np.uint8)
    expected = target.copy()
    lines = expected[place.offset :].reshape(-1, place.stride)
    lines[:, : spec.inner] = x[:, index].reshape(-1, spec.inner)
    assert np.array_equal(run("gather", spec, [x, index], target), expected)


def _requantized(acc: np.ndarray, multiplier: np.ndarray, zero: int, low: int, high: int) -> np.ndarray:
    """SPEC section 7's Requantize."""
    scaled = acc.astype(np.int32).astype(np.float32) * multiplier
    return (np.rint(np.clip(scaled, np.float32(low - zero), np.float32(high - zero))) + zero).astype(np.uint8)


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))

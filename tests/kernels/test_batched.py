"""Products of two activations against int64 NumPy, over random shapes, strides and zero points at the extremes."""

import numpy as np
import pytest
from kernels.native import Native, runnable

from edgebuild.kernels.batched import Batched, batched_kernel
from edgebuild.kernels.isa import ISAS

SHAPES = 30


@pytest.fixture(scope="module", params=["x86_64-generic", "x86_64-avx2", "x86_64-avx512vnni"])
def native(request):
    target = runnable(request.param)
    rng = np.random.default_rng(6)
    specs = [_random_product(rng) for _ in range(SHAPES)]
    kernels = [batched_kernel(s, ISAS[target.isa]) for s in specs]
    return specs, Native(kernels, target)


def _random_product(rng: np.random.Generator) -> Batched:
    """Each matrix row-major or turned, inside wider lines; the right one may serve the whole batch."""

    def pick(*values: int) -> int:
        return int(rng.choice(values))

    count, rows, depth, columns = pick(1, 2, 5), pick(1, 3, 7, 20, 33), pick(1, 2, 5, 32, 67), pick(1, 3, 8, 17, 40)
    a, a_row, a_depth = _strides(rows, depth, pick(0, 1), pick(0, 5))
    b, b_depth, b_column = _strides(depth, columns, pick(0, 1), pick(0, 5))
    y_row = columns + pick(0, 4)
    b_batch = (pick(0, b),) if count > 1 else (b,)
    return Batched(
        (count,), rows, depth, columns, (a,), a_row, a_depth, b_batch, b_depth, b_column, (rows * y_row,), y_row
    )


def _strides(rows: int, columns: int, turned: int, gap: int) -> tuple[int, int, int]:
    """(elements of a matrix, stride of its rows, stride of its columns)."""
    if turned:
        return columns * (rows + gap), 1, rows + gap
    return rows * (columns + gap), columns + gap, 1


def _view(flat: np.ndarray, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    return np.lib.stride_tricks.as_strided(flat, shape, strides)


@pytest.mark.parametrize("index", range(SHAPES))
def test_random_product(native, index: int) -> None:
    specs, run = native
    spec = specs[index]
    rng = np.random.default_rng(index)
    flat = [rng.integers(0, 256, 40_000).astype(np.uint8) for _ in range(2)]
    zero_a, zero_b, zero_y = (int(rng.choice([0, 3, 128, 255])) for _ in range(3))
    low, high = sorted(rng.integers(0, 256, 2).tolist())
    m = np.float32(rng.uniform(0.5, 2) / (spec.depth**0.5 * 60))
    a = _view(flat[0], (*spec.batch, spec.rows, spec.depth), (*spec.a_batch, spec.a_row, spec.a_depth))
    b = _view(flat[1], (*spec.batch, spec.depth, spec.columns), (*spec.b_batch, spec.b_depth, spec.b_column))
    acc = (a.astype(np.int64) - zero_a) @ (b.astype(np.int64) - zero_b)
    steps = np.clip(acc.astype(np.float32) * m, np.float32(low - zero_y), np.float32(high - zero_y))
    wanted = (np.rint(steps) + zero_y).astype(np.uint8)
    top = int(np.float32(high - zero_y).view(np.int32))
    params = np.array([top, zero_y, low, high, zero_a, zero_b, int(m.view(np.int32))], np.int32)
    size = spec.matrices * spec.rows * spec.y_row
    got = run(index, [*flat, params], np.full(size, 77, np.uint8)).reshape(*spec.batch, spec.rows, spec.y_row)
    assert np.array_equal(got[..., : spec.columns], wanted)
    assert (got[..., spec.columns :] == 77).all()

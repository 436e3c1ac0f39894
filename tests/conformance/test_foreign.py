"""Operators that TVM lowers give the same bits on every CPU, alone and among quantized ones."""

from pathlib import Path

import numpy as np
import pytest
from conformance.graphs import Builder, merged, samples
from programs import misses, trial_of

from edgebuild.core.target_file import load_target
from edgebuild.reference import Interpreter
from edgebuild.stages.compile import foreign
from edgebuild.stages.compile.foreign import Foreign

TARGETS = ("x86_64-generic", "x86_64-avx2", "x86_64-avx512vbmi", "aarch64-generic", "riscv64-generic")


def waves(b: Builder) -> str:
    x = b.input(1, 6, 50)
    for operator in ("Sin", "Cosh", "Atan", "Tan", "Asinh", "Cos"):
        x = b.node(operator, x)
    return x


def einsum(b: Builder) -> str:
    return b.node("Einsum", b.input(2, 5, 12), b.input(2, 12, 7), equation="bij,bjk->bki")


def upsampled(b: Builder) -> str:
    """A transposed convolution between quantized ones."""
    x = b.quantized(b.conv(b.activation(1, 4, 6, 6), 8, 4, 3, 3, pads=[1, 1, 1, 1]))
    weights = b.constant(b.rng.normal(0, 0.2, (8, 3, 3, 3)))
    x = b.quantized(b.node("ConvTranspose", x, weights, strides=[2, 2], output_padding=[1, 1], pads=[1, 1, 1, 1]), 0.05)
    return b.quantized(b.conv(x, 5, 3, 1, 1), 0.03)


def normalized(b: Builder) -> str:
    scale, offset = b.constant(b.rng.uniform(0.5, 2, 8)), b.constant(b.rng.normal(0, 1, 8))
    return b.node("LRN", b.node("InstanceNormalization", b.input(1, 8, 5, 5), scale, offset), size=3)


def sampled(b: Builder) -> str:
    return b.node("GridSample", b.input(1, 2, 9, 9), b.node("Tan", b.input(1, 5, 6, 2)), mode="linear")


def sampled_nowhere(b: Builder) -> str:
    """Coordinates that are no numbers, or beyond any integer."""
    grid = b.node("Log", b.node("Mul", b.input(1, 5, 6, 2), b.constant(1e38)))
    grid = b.node("Mul", grid, b.node("Exp", b.node("Mul", b.input(1, 5, 6, 2), b.constant(60.0))))
    return b.node("GridSample", b.input(1, 2, 9, 9), grid, mode="nearest")


def remainders(b: Builder) -> str:
    """The same loops over other tensors."""
    x = b.node("Add", b.node("ArgMax", b.input(3, 4, 5), axis=2, keepdims=0), b.constant(1, np.int64))
    c = b.constant(b.rng.integers(1, 7, (3, 4)), np.int64)
    return b.node("Concat", b.node("Mod", x, c), b.node("Mod", c, x), axis=0)


def shared(b: Builder) -> str:
    """Two readers of one tensor, each with a DequantizeLinear of its own."""
    parameters = b.constant(0.02), b.constant(7, np.uint8)
    q = b.node("QuantizeLinear", b.input(2, 30), *parameters)
    return b.node("Add", *(b.node(op, b.node("DequantizeLinear", q, *parameters)) for op in ("Sin", "Cos")))


def many(b: Builder) -> str:
    return b.node("Mean", *(b.input(2, 9) for _ in range(15)))


def scattered(b: Builder) -> str:
    x = b.quantized(b.input(6, 4), 0.03)
    places = b.constant([[0], [4]], np.int64)
    return b.quantized(b.node("ScatterND", x, places, b.input(2, 4)), 0.03)


def picked(b: Builder) -> str:
    least = b.node("ArgMin", b.input(3, 8), axis=1)
    return b.node("GatherElements", b.input(3, 8), least, axis=1)


def norms(b: Builder) -> str:
    x = b.input(3, 40, 8)
    return b.node("Mean", *(b.node(op, x, keepdims=1) for op in ("ReduceL2", "ReduceLogSumExp", "ReduceSumSquare")))


CASES = (
    waves, einsum, upsampled, normalized, sampled, remainders, shared, many, scattered, picked, norms,
)  # fmt: skip


@pytest.fixture(scope="module")
def expected():
    model = merged({case.__name__: case for case in CASES})
    interpreter = Interpreter(model, Foreign())
    return model, [(sample, interpreter.run(sample)) for sample in samples(model, 3)]


@pytest.mark.parametrize("name", TARGETS)
def test_the_same_bits(name: str, expected, tmp_path: Path) -> None:
    model, pairs = expected
    trial = trial_of(model, load_target(name), pairs, tmp_path)
    assert not misses(trial, pairs, tmp_path)


@pytest.mark.parametrize("name", ["x86_64-avx2", "aarch64-generic", "riscv64-generic"])
def test_casts_of_what_is_no_integer(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's results are the build machine's, so they do not count here."""
    monkeypatch.setattr(foreign._Operator, "_compare", lambda *_: None)
    model = merged({"nowhere": sampled_nowhere})
    interpreter = Interpreter(model, Foreign())
    pairs = [(sample, interpreter.run(sample)) for sample in samples(model, 2)]
    trial = trial_of(model, load_target(name), pairs, tmp_path)
    assert not misses(trial, pairs, tmp_path)


def test_results_vary(expected) -> None:
    _, pairs = expected
    for name in pairs[0][1]:
        assert len(np.unique([made[name] for _, made in pairs])) > 1, name

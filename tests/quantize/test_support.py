"""What cannot be lowered is found before any sample is seen."""

from collections.abc import Iterator

import numpy as np
import pytest
from quantize.models import model, normal, operators, run, samples

from edgebuild.core.errors import ModelError
from edgebuild.core.operators import OPERATORS
from edgebuild.stages.quantize import keep_float, quantize


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


_NET = """(float[1, 4] x) => (float[1, 3] y) {{
    h = Gemm<transB = 1>(x, w)
    y = {op}(h)
}}"""


def _never() -> Iterator[dict[str, np.ndarray]]:
    pytest.fail("samples were asked for")


def test_an_unknown_operator_is_named_before_calibration(rng: np.random.Generator) -> None:
    weights = normal(rng, 3, 4)
    quantize(model(_NET.format(op="Sigmoid"), w=weights), lambda: samples(rng, (1, 4)))
    with pytest.raises(ModelError, match=r"not supported: LpNormalization \('LpNormalization_1'\)") as found:
        quantize(model(_NET.format(op="LpNormalization"), w=weights), _never)
    assert "LpNormalization" in found.value.hint


def test_what_no_output_needs_does_not_count(rng: np.random.Generator) -> None:
    text = """(float[1, 4] x) => (float[1, 3] y) {
        unused = LpNormalization(x)
        y = Gemm<transB = 1>(x, w)
    }"""
    quantize(model(text, w=normal(rng, 3, 4)), lambda: samples(rng, (1, 4)))


def test_the_list_is_what_the_lowering_knows() -> None:
    from edgebuild.stages.compile.floats import _HANDLERS, _SEVERAL, ELEMENTWISE
    from edgebuild.stages.compile.moves import _MOVES

    assert ELEMENTWISE | set(_HANDLERS) | set(_MOVES) | set(_SEVERAL) == OPERATORS


def test_float_models_are_folded_only(rng: np.random.Generator) -> None:
    text = """(float[1, 2, 5, 5] x) => (float[1, 3, 3, 3] y) {
        c = Conv(x, w)
        n = BatchNormalization(c, s, b, m, v)
        y = Relu(n)
    }"""
    vectors = {name: normal(rng, 3) for name in ("s", "b", "m")}
    proto = model(text, w=normal(rng, 3, 2, 3, 3), v=np.abs(normal(rng, 3)) + 0.5, **vectors)
    kept = keep_float(proto)
    assert operators(kept.model) == ["Conv", "Relu"]
    assert {row["reason"] for row in kept.report["float"]} == {"compiled in float32"}
    sample = {"x": normal(rng, 1, 2, 5, 5)}
    assert np.allclose(run(kept.model, sample)["y"], run(proto, sample)["y"], atol=1e-5)

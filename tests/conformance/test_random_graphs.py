"""Compiler and interpreter agree on graphs that neither was written for."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from conformance.graphs import Builder, merged, samples
from conformance.random_graphs import random_graph
from programs import Arrays, misses, trial_of

from edgebuild.core.target_file import load_target
from edgebuild.reference.interpreter import Interpreter

SEEDS = range(48)
TARGETS = ("x86_64-avx2", "x86_64-avx512vbmi", "aarch64-generic")


@pytest.fixture(scope="module")
def expected() -> tuple[onnx.ModelProto, list[tuple[Arrays, Arrays]]]:
    model = merged({f"graph{seed}": random_graph for seed in SEEDS})
    interpreter = Interpreter(model)
    return model, [(sample, interpreter.run(sample)) for sample in samples(model, 2)]


@pytest.mark.parametrize("name", TARGETS)
def test_programs_reproduce_the_interpreter(name: str, expected, tmp_path: Path) -> None:
    model, pairs = expected
    trial = trial_of(model, load_target(name), pairs, tmp_path)
    assert not misses(trial, pairs, tmp_path)


def test_graphs_hold_operators_of_both_kinds(expected) -> None:
    model, _ = expected
    held = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "Conv", "Gemm", "MatMul", "Concat", "MaxPool", "ReduceMean", "Softmax", "Pad"} <= held


def test_a_seed_gives_one_graph() -> None:
    one, two = (Builder("g", np.random.default_rng(3)) for _ in range(2))
    assert random_graph(one) == random_graph(two)
    assert [n.SerializeToString() for n in one.nodes] == [n.SerializeToString() for n in two.nodes]

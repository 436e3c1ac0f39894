"""Known-bad models: each gives one error that names the file, the layer and its operator, and what to do about it."""

import re
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from ingest.bad_models import BAD, Bad, changed_bytes, good, quantized, save
from onnx import ModelProto, TensorProto, helper

from edgebuild.core.errors import EdgebuildError, ModelError
from edgebuild.core.target_file import load_target
from edgebuild.stages.compile import compile_model
from edgebuild.stages.ingest.onnx import ingest
from edgebuild.stages.quantize import input_specs, keep_float, quantize

LONGEST_SECONDS, MOST_MEMORY = 10.0, 1 << 30
LONGEST_MESSAGE = 600
BY_COMMAND = ("cycle", "LSTM", "name with control characters", "external data outside of the folder")


def samples(model: ModelProto) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{name: rng.normal(size=spec.shape).astype(spec.dtype) for name, spec in input_specs(model).items()}
            for _ in range(2)]  # fmt: skip


def stages(path: Path) -> Iterator[str]:
    """Each stage, before it is begun."""
    yield "ingest"
    model = ingest(path).model
    yield "quantize"
    made = quantize(model, lambda: samples(model)).model
    yield "compile"
    compile_model(made, load_target("host"))


@pytest.mark.parametrize("make", [good, quantized])
def test_the_good_models_are_taken(make, tmp_path: Path) -> None:
    save(make(), tmp_path / "net.onnx")
    assert list(stages(tmp_path / "net.onnx")) == ["ingest", "quantize", "compile"]


def test_there_are_many_and_each_has_a_name() -> None:
    assert len({bad.name for bad in BAD}) == len(BAD) >= 45


def written(bad: Bad, tmp_path: Path) -> Path:
    path = tmp_path / "in" / "net.onnx"
    path.parent.mkdir()
    bad.write(path)
    return path


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_known_bad(bad: Bad, tmp_path: Path) -> None:
    path = written(bad, tmp_path)
    begun, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reached: list[str] = []
    with pytest.raises(EdgebuildError) as caught:
        reached.extend(stage for stage in stages(path))
    error = caught.value
    assert isinstance(error, ModelError)
    assert time.monotonic() - begun < LONGEST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < MOST_MEMORY
    assert bad.stage in ("any", reached[-1])
    assert error.message.startswith(f"{path}: ") or reached[-1] != "ingest"
    for part in bad.says:
        assert re.search(part, error.message), error.message
    assert error.hint
    assert re.search(bad.hint, error.hint), error.hint
    assert error.message.isprintable()
    assert error.hint.isprintable()
    assert len(error.message) < LONGEST_MESSAGE + len(str(path))


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad.name in BY_COMMAND], ids=lambda bad: bad.name)
def test_by_the_command_line(bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its exit code, in two lines, whatever the stage; nothing is written."""
    path = written(bad, tmp_path)
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32))
    monkeypatch.setenv("EDGEBUILD_CACHE", str(tmp_path / "cache"))
    command = [sys.executable, "-m", "edgebuild", "compile", str(path), "--calibration", str(tmp_path / "c.npz")]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (4, "")
    assert "Traceback" not in done.stderr
    error, hint = done.stderr[done.stderr.index("error: ") :].strip().split("\n")
    assert error.startswith(f"error: {path}: ")
    assert all(re.search(part, error) for part in bad.says), error
    assert hint.startswith("hint: ")
    assert not list(tmp_path.rglob("*.ebundle"))


# Models that are large or odd, and good


def chain(operator: str, count: int) -> ModelProto:
    """The good model with `count` nodes more behind its `relu`."""
    model = good()
    nodes = list(model.graph.node)
    more = [helper.make_node(operator, [f"i{i - 1}" if i else "r"], [f"i{i}"], name=f"n{i}") for i in range(count)]
    nodes[2].input[0] = more[-1].output[0]
    model.graph.ClearField("node")
    model.graph.node.extend([*nodes[:2], *more, *nodes[2:]])
    return model


def test_60_000_identities_take_seconds(tmp_path: Path) -> None:
    save(chain("Identity", 60_000), tmp_path / "net.onnx")
    begun = time.process_time()
    assert len(ingest(tmp_path / "net.onnx").model.graph.node) == 4
    assert time.process_time() - begun < LONGEST_SECONDS


def test_more_nodes_than_anybody_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(chain("Abs", 100), tmp_path / "net.onnx")
    ingest(tmp_path / "net.onnx")
    monkeypatch.setattr("edgebuild.stages.ingest.onnx._MOST_NODES", 100)
    with pytest.raises(ModelError, match=r"net.onnx: the graph has 104 nodes; the most is 100"):
        ingest(tmp_path / "net.onnx")


def test_a_long_chain_is_compiled(tmp_path: Path) -> None:
    """Nodes that wait for their reader are walked by recursion, which has an end."""
    save(chain("Neg", 1500), tmp_path / "net.onnx")
    compile_model(keep_float(ingest(tmp_path / "net.onnx").model).model, load_target("host"))


def test_an_output_without_a_shape_is_taken(tmp_path: Path) -> None:
    model = good()
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, None))
    save(model, tmp_path / "net.onnx")
    (output,) = ingest(tmp_path / "net.onnx").model.graph.output
    assert [dim.dim_value for dim in output.type.tensor_type.shape.dim] == [1, 5]


# Mutations of good models


@pytest.mark.parametrize(("make", "seed"), [(good, 1), (quantized, 2)])
def test_mutations(make, seed: int, tmp_path: Path) -> None:
    """Flipped, cut, repeated and swapped bytes: an error of ours, or a model that goes through."""
    rng, path = np.random.default_rng(seed), tmp_path / "net.onnx"
    data = make().SerializeToString()
    outcomes = []
    for _ in range(80):
        path.write_bytes(changed_bytes(data, rng))
        begun = time.monotonic()
        try:
            model = ingest(path).model
            quantize(model, lambda model=model: samples(model))
        except EdgebuildError as error:
            outcomes.append(error.message)
        else:
            outcomes.append("taken")
        assert outcomes[-1].isprintable()
        assert time.monotonic() - begun < LONGEST_SECONDS
    assert len(set(outcomes)) > 1


def test_a_mutation_changes_the_file() -> None:
    data, rng = good().SerializeToString(), np.random.default_rng(0)
    made = [changed_bytes(data, rng) for _ in range(20)]
    assert data not in made
    assert len(set(made)) == 20
    assert onnx.load_from_string(data) == good()

"""Exported programs of torch (`.pt2`): bare, and beneath a handler."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ingest.recipes import write_recipe
from torch import nn

from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import Tensor
from edgebuild.core.recipe import load_recipe
from edgebuild.projects import Overrides, resolve
from edgebuild.stages.ingest import FloatModel
from edgebuild.stages.ingest.adapters import ingest
from edgebuild.stages.ingest.onnx import model_inputs, model_outputs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor, gain: torch.Tensor | None = None) -> Any:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return y if gain is None else {"scaled": y * gain, "plain": y}


def save(path: Path, *inputs: torch.Tensor, dynamic: bool = False, **named: torch.Tensor) -> Path:
    torch.manual_seed(0)
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(Net().eval(), inputs, named or None, dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


def samples(folder: Path, **more: np.ndarray) -> Path:
    pictures = np.random.default_rng(0).uniform(0, 1, (4, 3, 16, 20)).astype(np.float32)
    np.savez(folder / "s.npz", x=pictures[:, None], **more)
    return folder / "s.npz"


def ingested(path: Path, calibration: Path) -> FloatModel:
    return ingest(resolve(str(path), Overrides(calibration=calibration)))


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_program(tmp_path: Path, dynamic: bool) -> None:
    shape = (2 if dynamic else 1, 3, 16, 20)
    found = ingested(save(tmp_path / "net.pt2", torch.rand(shape), dynamic=dynamic), samples(tmp_path))
    assert model_inputs(found.model) == (Tensor("x", "float32", (1, 3, 16, 20)),)
    assert model_outputs(found.model) == (Tensor("output", "float32", (1, 4)),)
    assert found.quality == "trained"
    assert found.entry.name == "net"
    assert found.parity is not None
    assert found.parity["samples"] == 4
    assert any(node.name.startswith("conv.") for node in found.model.graph.node)


def test_named_inputs_and_outputs(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pt2", torch.rand(1, 3, 16, 20), gain=torch.rand(4))
    found = ingested(path, samples(tmp_path, gain=np.ones((4, 4), np.float32)))
    assert [item.name for item in model_inputs(found.model)] == ["x", "gain"]
    assert [item.name for item in model_outputs(found.model)] == ["scaled", "plain"]


@pytest.mark.parametrize("content", [b"", b"text", None])
def test_damaged(tmp_path: Path, content: bytes | None) -> None:
    path = save(tmp_path / "net.pt2", torch.rand(1, 3, 16, 20))
    assert ingested(path, samples(tmp_path)).parity is not None
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(ModelError, match=r"net\.pt2: is cut off, or no exported program of this torch") as caught:
        ingested(path, samples(tmp_path))
    assert "torch.export.save" in caught.value.hint


def test_beneath_a_handler(tmp_path: Path) -> None:
    save(tmp_path / "net.pt2", torch.rand(1, 3, 16, 20))
    write_recipe(tmp_path, model='pt2 = "net.pt2"')
    (tmp_path / "function.py").write_text(
        "import edgebuild as eb\n\n\n"
        '@eb.function(trigger=eb.camera("front", fps=15, size=(20, 16)))\n'
        "def run(frame, model):\n"
        '    return {"y": model(frame.float().permute(2, 0, 1)[None] / 255)}\n'
    )
    found = ingest(load_recipe(tmp_path))
    assert model_inputs(found.model) == (Tensor("frame", "uint8", (16, 20, 3)),)
    assert model_outputs(found.model) == (Tensor("y", "float32", (1, 4)),)
    assert found.quality == "trained"

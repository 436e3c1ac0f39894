"""Handlers made of NumPy operations: traced, and compared with NumPy on real samples."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from ingest.recipes import CALIBRATION, write_recipe

from edgebuild.core.errors import ModelError
from edgebuild.core.recipe import load_recipe
from edgebuild.stages.ingest import FloatModel
from edgebuild.stages.ingest.adapters import ingest

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x):
        return torch.relu(self.conv(x)).mean((2, 3))


def build():
    return Net()
"""

FUNCTION = """
import numpy as np
import torch
import edgebuild as eb
from helpers import scaled

MEAN = np.array([0.485, 0.456, 0.406])


@eb.function(trigger=eb.camera("front", fps=15, size=(20, 16)))
def run(frame, model):
    x = frame.astype(np.float32) / 255.0
    {body}
"""
BODY_LINE = 13
HELPERS = """
import numpy as np


def scaled(x):
    return (x - x.min()) / (np.ptp(x) + 1e-3)
"""
PLANES = "x.transpose(2, 0, 1)[None]"
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def write(body: str, model: str = "") -> Path:
        write_recipe(tmp_path, model, calibration=f"{CALIBRATION}\nsamples = 4")
        (tmp_path / "model.py").write_text(MODEL)
        (tmp_path / "helpers.py").write_text(HELPERS)
        (tmp_path / "function.py").write_text(FUNCTION.format(body=body.replace("; ", "\n    ")))
        return tmp_path

    return write


def ingested(folder: Path) -> FloatModel:
    return ingest(load_recipe(folder), untrained=True)


def outputs(found: FloatModel) -> dict[str, tuple[str, list[int]]]:
    kinds = onnx.TensorProto.DataType.Name
    return {
        value.name: (kinds(value.type.tensor_type.elem_type), [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in found.model.graph.output
    }


@pytest.mark.parametrize(
    "body",
    [
        "x = x[..., ::-1][3::-1]; return model(np.ascontiguousarray(x).transpose(2, 0, 1)[None])",
        "return model(np.expand_dims(np.transpose((x - MEAN) / np.float32(0.25), (2, 0, 1)), 0))",
        f"y = model({PLANES})[0]; e = np.exp(y - np.max(y)); p = e / e.sum(); return {{'p': p, 'best': np.argmax(p)}}",
        "x = np.clip(np.stack([x[..., 2], x[..., 1], x[..., 0]]), 0.1, 0.9); return model(x[np.newaxis])",
        "x -= x.mean(axis=(0, 1), keepdims=True); return model(np.ascontiguousarray(x.transpose(2, 0, 1))[None])",
        "x = np.pad(x, ((1, 1), (2, 2), (0, 0)), mode='constant'); return model(np.moveaxis(x, -1, 0)[None])",
        f"y = model({PLANES}); return y / np.linalg.norm(y, axis=-1, keepdims=True)",
        f"x = scaled(x); return np.concatenate([model({PLANES}), model(np.flip({PLANES}, 3))], axis=1)",
        f"y = model({PLANES})[0]; i = np.argsort(y)[::-1][:2]; return {{'best': y[i], 'hot': np.where(y > 0.1, y, 0)}}",
        f"x[..., 0] = 0; x[:, :4] *= 0.5; x = np.asarray(x, dtype=np.float64) - 1.0; return model({PLANES})",
        f"y = model(torch.from_numpy({PLANES})).numpy(); return {{'y': y, 'z': np.tanh(y).round(2)}}",
        f"y = model({PLANES}); z = np.add.reduce(np.maximum(y, 0.0), axis=1)[0]; return np.array([y.max(), z])",
        f"return {{'mean': frame.mean(), 'count': np.sum(frame > 128), 'y': model({PLANES})}}",
    ],
)  # fmt: skip
def test_traced(make: Make, body: str) -> None:
    """The graph does what NumPy does on real pictures; ingest refuses more than 1e-4 of difference."""
    found = ingested(make(body))
    assert found.parity is not None
    assert found.parity["samples"] == 4
    assert not found.parity["decided_by_rounding"]
    assert {dtype for dtype, _ in outputs(found).values()} <= {"FLOAT", "INT64"}


def test_float64_becomes_float32(make: Make) -> None:
    found = ingested(make(f"return {{'y': model({PLANES}) * MEAN[0], 'mean': np.float64(1) * np.mean(x)}}"))
    assert outputs(found) == {"y": ("FLOAT", [1, 4]), "mean": ("FLOAT", [])}


def test_a_handler_without_a_module_name(make: Make) -> None:
    """Nothing but methods: what the frame is, running it decides."""
    folder = make(f"return model({PLANES})")
    text = (folder / "function.py").read_text().replace("np.float32", "'float32'")
    (folder / "function.py").write_text(text)
    assert outputs(ingested(folder)) == {"output": ("FLOAT", [1, 4])}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"return model({PLANES}) if x.mean() > 0.5 else model(-{PLANES})", "a branch.*depends on an array's value"),
        (f"return model({PLANES})[:, : int(x.sum())]", r"int\(\) needs an array's value"),
        (f"return model({PLANES}) * x.mean().item()", r"ndarray.item cannot be traced"),
        (f"return model({PLANES}) * float(x.mean())", r"float\(\) needs an array's value"),
        (f"return np.linalg.svd(model({PLANES}))[1]", r"numpy\.linalg\.svd cannot be traced"),
    ],
)
def test_what_cannot_be_traced_is_named_with_its_line(make: Make, body: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        ingested(make(body))
    line = BODY_LINE + body.count("; ")
    assert f"function.py:{line}: the handler" in caught.value.message
    assert "\n" not in caught.value.message
    assert "straight torch code, NumPy" in caught.value.hint


def test_another_library_is_named_by_its_line(make: Make) -> None:
    pytest.importorskip("PIL")
    body = f"from PIL import Image; s = Image.fromarray(frame); return model({PLANES}) * s.size[0]"
    with pytest.raises(ModelError, match=rf"function\.py:{BODY_LINE + 1}: the handler cannot be traced in `s = Image"):
        ingested(make(body))


def test_the_frame_of_the_caller_stays_as_it_is(make: Make) -> None:
    found = ingested(make(f"frame[:] = 0; return model({PLANES}) + frame.sum()"))
    sample = {"frame": np.full((16, 20, 3), 7, np.uint8)}
    import onnxruntime

    session = onnxruntime.InferenceSession(found.model.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, sample)
    assert (sample["frame"] == 7).all()


def test_an_onnx_file_under_a_handler(make: Make) -> None:
    """Also twice, for inputs of two kinds of meaning: the file's graph takes the place of each call."""
    folder = make(f"return model({PLANES})")
    inner = ingested(folder).model
    onnx.save(inner, folder / "inner.onnx")
    body = "a = model(frame); b = model(255 - frame); return {'twice': a + b}"
    found = ingested(make(body, 'onnx = "inner.onnx"'))
    assert outputs(found) == {"twice": ("FLOAT", [1, 4])}
    assert [node.op_type for node in found.model.graph.node].count("Conv") == 2
    assert found.quality == "trained"


def test_an_onnx_file_called_wrongly(make: Make) -> None:
    folder = make(f"return model({PLANES})")
    onnx.save(ingested(folder).model, folder / "inner.onnx")
    with pytest.raises(ModelError, match=r"takes uint8\[16, 20, 3\]; the handler calls it with float32\[16, 20, 3\]"):
        ingested(make("return model(x)", 'onnx = "inner.onnx"'))

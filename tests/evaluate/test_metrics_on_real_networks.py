"""The networks of tests/benchmarks/recipes are the published ones: their weights give what their files say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime
import pytest
import shared_data

from edgebuild.core.calibration import load_set
from edgebuild.core.manifest import Tensor

torch = pytest.importorskip("torch")

RECIPES = Path(__file__).resolve().parents[1] / "benchmarks" / "recipes"


def module(name: str, file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_{file}", RECIPES / name / f"{file}.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def network(name: str) -> "torch.nn.Module":
    from safetensors.torch import load_file

    built = module(name, "model").build()
    built.load_state_dict(load_file(shared_data.require(shared_data.BENCHMARK_WEIGHTS[name])))
    return built.eval()


def test_yolox_is_the_onnx_file_and_finds_what_is_there(tmp_path: Path) -> None:
    """The file leaves boxes undecoded: centres in cells of the grid, the logarithm of the sides."""
    file = shared_data.require(shared_data.ONNX / "yolox_nano_416_coco.onnx")
    frame = Tensor("frame", "uint8", (416, 416, 3))
    sample, truth = next(load_set(shared_data.coco_set(tmp_path), "test").labelled([frame], 1))
    x = np.ascontiguousarray(sample["frame"][..., ::-1].transpose(2, 0, 1)[None], np.float32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (raw,) = session.run(None, {session.get_inputs()[0].name: x})
    with torch.no_grad():
        boxes, objects, classes = (part.numpy() for part in network("yolox_nano")(torch.from_numpy(x)))
    np.testing.assert_allclose(objects, raw[..., 4], atol=1e-4)
    np.testing.assert_allclose(classes, raw[..., 5:], atol=1e-4)
    strides = np.repeat([8, 16, 32], [52 * 52, 26 * 26, 13 * 13])[None, :, None]
    np.testing.assert_allclose(boxes[..., 2:] - boxes[..., :2], np.exp(raw[..., 2:4]) * strides, rtol=1e-3, atol=1e-2)
    best = int((objects[0] * classes[0].max(-1)).argmax())
    left, top, right, bottom = boxes[0, best]
    assert isinstance(truth, np.ndarray)
    kinds, corners = truth[:, 0], truth[:, 1:]
    near = np.abs(corners - [left, top, right, bottom]).max(axis=1) < 20
    assert classes[0, best].argmax() in kinds[near]


def test_resnet20_names_what_it_is_said_to_name(tmp_path: Path) -> None:
    frame = Tensor("frame", "uint8", (32, 32, 3))
    pairs = list(load_set(shared_data.cifar10_set(tmp_path), "test").labelled([frame]))
    function = module("resnet20_cifar10", "function")
    x = torch.from_numpy(np.stack([sample["frame"] for sample, _ in pairs])).float()
    x = (x / 255 - torch.tensor(function.MEAN)) / torch.tensor(function.STD)
    with torch.no_grad():
        found = network("resnet20_cifar10")(x.permute(0, 3, 1, 2)).argmax(1).numpy()
    assert 100 * np.mean(found == [label for _, label in pairs]) == pytest.approx(91.5, abs=0.11)

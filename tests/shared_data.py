"""Real models and pictures outside the repository, at ../shared/data. A test skips where they are missing."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from edgebuild.core.resources import resource

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"
PYTORCH = ROOT / "models" / "pytorch"
REFERENCE = ROOT / "models" / "tflite-reference"

WEIGHTS = {
    "squeezenet1_1": PYTORCH / "squeezenet1_1_imagenet_caffe_fp16.safetensors",
    "mobilenet_v1_025": PYTORCH / "mobilenet_v1_025_224_imagenet.safetensors",
}
"""Weights of the recipes that need a file."""

EXPANSION_ONE = 1
"""The block of MobileNetV2 that does not expand."""


def require(path: Path) -> Path:
    """`path`, or the test skips."""
    if not path.exists():
        pytest.skip(f"{path} is not on this machine")
    return path


def imagenet_set(folder: Path) -> Path:
    """A calibration set in `folder`: 500 pictures to calibrate on, 650 with labels to test on."""
    calibration, test = require(ROOT / "imagenet-sample-500"), require(ROOT / "imagenet-val-650")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "set.toml").write_text(
        f"""[set]
name = "imagenet"
licence = "ImageNet terms: for measurement only"
kind = "images"

[calibration]
path = "{calibration / "images"}"

[test]
path = "{test / "images"}"
labels = "{test / "labels.csv"}"
resize = "stretch"
""",
        encoding="utf-8",
    )
    return folder


def mobilenetv2_recipe(folder: Path) -> Path:
    """A copy of the recipe mobilenetv2 in `folder`, with working weights: a published INT8 file, dequantized.

    They lie on an INT8 grid already: good for speed and activations, never for MobileNetV2's accuracy drop.
    """
    shutil.copytree(resource("recipes") / "mobilenetv2", folder, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "recipe.toml"
    text = path.read_text(encoding="utf-8")
    for old, new in (
        ('padding = "symmetric"', 'padding = "same"'),
        ("mean = [0.485, 0.456, 0.406]", "mean = [0.5, 0.5, 0.5]"),
        ("std = [0.229, 0.224, 0.225]", "std = [0.5, 0.5, 0.5]"),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    mobilenetv2_weights(folder / "mobilenetv2.safetensors")
    return folder


def mobilenetv2_weights(target: Path) -> Path:
    """Writes the dequantized MobileNetV2 as the recipe's state_dict (1000 classes, without the background)."""
    from safetensors.numpy import save_file

    layers = _tflite_layers(require(REFERENCE / "tf2_mobilenet_v2_1.0_224_ptq.tflite"))
    state: dict[str, np.ndarray] = {}
    *convolutions, (weight, bias) = layers
    for name, norm, (kernel, offset) in zip(*zip(*_mobilenetv2_names(), strict=True), convolutions, strict=True):
        state[f"{name}.weight"] = kernel
        state |= _norm_that_adds(norm, offset)
    state["classifier.1.weight"], state["classifier.1.bias"] = weight.reshape(weight.shape[0], -1)[1:], bias[1:]
    save_file({name: np.ascontiguousarray(value, np.float32) for name, value in state.items()}, target)
    return target


def _mobilenetv2_names() -> list[tuple[str, str]]:
    """Convolutions and their BatchNorm layers in torchvision's names, in the order they run."""
    names = [("features.0.0", "features.0.1")]
    for block in range(1, 18):
        conv = f"features.{block}.conv"
        depthwise = 0 if block == EXPANSION_ONE else 1
        names += [(f"{conv}.{i}.0", f"{conv}.{i}.1") for i in range(depthwise + 1)]
        names.append((f"{conv}.{depthwise + 1}", f"{conv}.{depthwise + 2}"))
    return [*names, ("features.18.0", "features.18.1")]


def _norm_that_adds(name: str, bias: np.ndarray) -> dict[str, np.ndarray]:
    """A BatchNorm (epsilon 1e-5) that only adds `bias`."""
    ones = np.ones_like(bias)
    return {
        f"{name}.weight": ones,
        f"{name}.bias": bias,
        f"{name}.running_mean": 0 * bias,
        f"{name}.running_var": ones - np.float32(1e-5),
    }


def _tflite_layers(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights (in PyTorch's layout) and biases of the convolutions and dense layers of an INT8 .tflite file."""
    import tflite

    graph = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    operators, tensors = graph.Subgraphs(0), graph.Subgraphs(0)
    layers = []
    for index in range(operators.OperatorsLength()):
        operator = operators.Operators(index)
        code = graph.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind not in (
            tflite.BuiltinOperator.CONV_2D,
            tflite.BuiltinOperator.DEPTHWISE_CONV_2D,
            tflite.BuiltinOperator.FULLY_CONNECTED,
        ):
            continue
        weight = _dequantized(graph, tensors.Tensors(operator.Inputs(1)), np.int8)
        bias = _dequantized(graph, tensors.Tensors(operator.Inputs(2)), np.int32)
        if kind == tflite.BuiltinOperator.CONV_2D:
            weight = weight.transpose(0, 3, 1, 2)  # OHWI
        elif kind == tflite.BuiltinOperator.DEPTHWISE_CONV_2D:
            weight = weight.transpose(3, 0, 1, 2)  # 1HWO
        layers.append((weight, bias))
    return layers


def _dequantized(graph: "object", tensor: "object", dtype: type) -> np.ndarray:
    data = graph.Buffers(tensor.Buffer()).DataAsNumpy().view(dtype).reshape(tensor.ShapeAsNumpy())
    quantization = tensor.Quantization()
    scale = quantization.ScaleAsNumpy()
    axis = quantization.QuantizedDimension() if len(scale) > 1 else 0
    shape = [1] * data.ndim
    shape[axis] = len(scale)
    return (data.astype(np.float64) * scale.reshape(shape).astype(np.float64)).astype(np.float32)

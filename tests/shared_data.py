"""Real models and pictures outside the repository, at ../shared/data. A test skips where they are missing."""

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgebuild.core.resources import resource

ROOT = Path(__file__).resolve().parents[2] / "shared" / "data"
ONNX = ROOT / "models" / "onnx"
PYTORCH = ROOT / "models" / "pytorch"
KERAS = ROOT / "models" / "tensorflow"
REFERENCE = ROOT / "models" / "tflite-reference"

WEIGHTS = {
    "squeezenet1_1": PYTORCH / "squeezenet1_1_imagenet_caffe_fp16.safetensors",
    "mobilenet_v1_025": PYTORCH / "mobilenet_v1_025_224_imagenet.safetensors",
}
"""Weights of the recipes that need a file."""

BENCHMARK_WEIGHTS = {
    "resnet20_cifar10": PYTORCH / "resnet20_cifar10.safetensors",
    "yolox_nano": PYTORCH / "yolox_nano_416_coco_fused.safetensors",
}
"""Weights of the recipes in tests/benchmarks/recipes."""

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
    labels = test / "labels.csv"
    return _picture_set(folder, "imagenet", "ImageNet terms: for measurement only", calibration, test, labels)


def cifar10_set(folder: Path) -> Path:
    """A calibration set in `folder`: 1,000 training pictures 32x32 to calibrate on, 1,000 with labels to test on."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, file in (("train", "cifar10_train_first1000_calib.npz"), ("test", "cifar10_test_first1000.npz")):
        data = np.load(require(ROOT / "cifar10" / file))
        np.savez(folder / f"{part}.npz", frame=data["images"], labels=data["labels"].astype(np.int64).reshape(-1))
    return _npz_set(folder, "cifar10", "for measurement only: cite Krizhevsky 2009")


def keywords_set(folder: Path) -> Path:
    """A calibration set in `folder`: MFCC features of MLPerf Tiny's keyword test; the first 100 calibrate."""
    data = np.load(require(ROOT / "kws01" / "kws01_mfcc_int8.npz"))
    features = (data["features"].astype(np.float32) - 83) * np.float32(0.5847029089927673)
    labels = data["labels"].astype(np.int64).reshape(-1)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "train.npz", features=features[:100], labels=labels[:100])
    np.savez(folder / "test.npz", features=features, labels=labels)
    return _npz_set(folder, "keywords", "for measurement only")


def _npz_set(folder: Path, name: str, licence: str) -> Path:
    (folder / "set.toml").write_text(
        f'''[set]
name = "{name}"
licence = "{licence}"
kind = "npz"

[calibration]
path = "train.npz"

[test]
path = "test.npz"
''',
        encoding="utf-8",
    )
    return folder


def people_set(folder: Path) -> Path:
    """A calibration set in `folder`: COCO pictures, labelled 1 where a person covers over 0.5 % of the picture."""
    calibration, test = require(ROOT / "coco-train2017-64"), require(ROOT / "coco-val2017-64")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{path.name},{int(_shows_person(test / 'labels' / f'{path.stem}.txt'))}" for path in _pictures(test)]
    (folder / "labels.csv").write_text("\n".join(["file,label", *rows]), encoding="utf-8")
    licence = "pictures: Flickr's terms, annotations: CC BY 4.0; for measurement only"
    return _picture_set(folder, "people", licence, calibration, test, Path("labels.csv"))


def coco_set(folder: Path) -> Path:
    """A calibration set in `folder`: COCO pictures with their boxes, scaled to fit as YOLOX was trained."""
    calibration, test = require(ROOT / "coco-train2017-64"), require(ROOT / "coco-val2017-64")
    folder.mkdir(parents=True, exist_ok=True)
    licence = "pictures: Flickr's terms, annotations: CC BY 4.0; for measurement only"
    return _picture_set(folder, "coco", licence, calibration, test, test / "labels", "letterbox", "letterbox")


def _picture_set(
    folder: Path,
    name: str,
    licence: str,
    calibration: Path,
    test: Path,
    labels: Path,
    cut: str = "center-crop",
    cut_test: str = "stretch",
) -> Path:
    (folder / "set.toml").write_text(
        f'''[set]
name = "{name}"
licence = "{licence}"
kind = "images"

[calibration]
path = "{calibration / "images"}"
resize = "{cut}"

[test]
path = "{test / "images"}"
labels = "{labels}"
resize = "{cut_test}"
''',
        encoding="utf-8",
    )
    return folder


def _pictures(folder: Path) -> list[Path]:
    return sorted((folder / "images").glob("*.jpg"))


def _shows_person(labels: Path) -> bool:
    rows = [line.split() for line in labels.read_text(encoding="utf-8").splitlines()] if labels.exists() else []
    return any(int(row[0]) == 0 and float(row[3]) * float(row[4]) > 0.005 for row in rows)


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

    layers = tflite_layers(require(REFERENCE / "tf2_mobilenet_v2_1.0_224_ptq.tflite"))
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


Layer = dict[str, np.ndarray]
"""A Keras layer's variables: `kernel` in PyTorch's layout, `bias`; or `gamma`, `beta`, `mean`, `variance`."""

_VARIABLES = {
    "Conv2D": ("kernel", "bias"),
    "DepthwiseConv2D": ("kernel", "bias"),
    "Dense": ("kernel", "bias"),
    "BatchNormalization": ("gamma", "beta", "mean", "variance"),
}
_TO_PYTORCH = {"Conv2D": (3, 2, 0, 1), "DepthwiseConv2D": (2, 3, 0, 1), "Dense": (1, 0)}


def keras_weights(name: str, target: Path) -> Path:
    """Writes the weights of MLPerf Tiny's Keras model that the recipe `name` stands for, as the recipe's state_dict.

    The test skips where the file or h5py is missing.
    """
    from safetensors.numpy import save_file

    file, convert = _CONVERTERS[name]
    state = convert(_keras_layers(require(KERAS / file)))
    save_file({key: np.ascontiguousarray(value, np.float32) for key, value in state.items()}, target)
    return target


def _keras_layers(path: Path) -> list[Layer]:
    """The layers of a .keras file that have variables, in the model's order."""
    h5py = pytest.importorskip("h5py")
    found: list[Layer] = []
    seen: dict[str, int] = {}
    with zipfile.ZipFile(path) as archive:
        layers = json.loads(archive.read("config.json"))["config"]["layers"]
        file = h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    for kind in (layer["class_name"] for layer in layers):
        if kind not in _VARIABLES:
            continue
        stored = _snake_case(kind) + (f"_{seen[kind]}" if kind in seen else "")
        seen[kind] = seen.get(kind, 0) + 1
        variables = file[f"layers/{stored}/vars"]
        layer = {key: np.array(variables[str(i)]) for i, key in enumerate(_VARIABLES[kind])}
        if kind in _TO_PYTORCH:
            layer["kernel"] = layer["kernel"].transpose(_TO_PYTORCH[kind])
        found.append(layer)
    return found


def _snake_case(kind: str) -> str:
    """The name that Keras stores the layers of a class under; numbered from the second on."""
    return {"BatchNormalization": "batch_normalization", "DepthwiseConv2D": "depthwise_conv2d"}.get(kind, kind.lower())


def _normalized(conv: str, norm: str, weighted: Layer, statistics: Layer, *, bias: bool = False) -> Layer:
    """A layer and the BatchNorm behind it; without a bias of its own, the mean takes it."""
    mean = statistics["mean"] if bias else statistics["mean"] - weighted["bias"]
    state = {
        f"{conv}.weight": weighted["kernel"],
        f"{norm}.weight": statistics["gamma"],
        f"{norm}.bias": statistics["beta"],
        f"{norm}.running_mean": mean,
        f"{norm}.running_var": statistics["variance"],
    }
    return state | ({f"{conv}.bias": weighted["bias"]} if bias else {})


def _plain(name: str, weighted: Layer) -> Layer:
    return {f"{name}.weight": weighted["kernel"], f"{name}.bias": weighted["bias"]}


def _resnet8(layers: list[Layer]) -> Layer:
    """In Keras's order the shortcut's convolution stands between a block's last convolution and its BatchNorm."""
    first, dense = _normalized("conv1", "bn1", *layers[:2]), _plain("fc", layers[-1])
    state, rest = first | dense, iter(layers[2:-1])
    for block in range(3):
        name = f"blocks.{block}"
        state |= _normalized(f"{name}.conv1", f"{name}.bn1", next(rest), next(rest))
        conv = next(rest)
        state |= _plain(f"{name}.shortcut", next(rest)) if block else {}
        state |= _normalized(f"{name}.conv2", f"{name}.bn2", conv, next(rest))
    return state


def _separable(layers: list[Layer]) -> Layer:
    """A first convolution, then pairs of depthwise and pointwise ones, and a dense layer: MobileNetV1 and DS-CNN."""
    pairs = list(zip(layers[:-1:2], layers[1:-1:2], strict=True))
    state = _normalized("conv1", "bn1", *pairs[0])
    for index, pair in enumerate(pairs[1:]):
        kind = ("dw", "pw")[index % 2]
        state |= _normalized(f"{kind}.{index // 2}", f"{kind}_bn.{index // 2}", *pair)
    return state | _plain("fc", layers[-1])


def _mobilenet_v1(layers: list[Layer]) -> Layer:
    """Its last layer is a 1x1 convolution in the recipe."""
    state = _separable(layers)
    return state | {"fc.weight": state["fc.weight"][:, :, None, None]}


def _autoencoder(layers: list[Layer]) -> Layer:
    state = _plain("fc.9", layers[-1])
    for index, (dense, norm) in enumerate(zip(layers[:-1:2], layers[1:-1:2], strict=True)):
        state |= _normalized(f"fc.{index}", f"bn.{index}", dense, norm, bias=True)
    return state


_CONVERTERS: dict[str, tuple[str, Callable[[list[Layer]], Layer]]] = {
    "resnet8": ("resnet8_cifar10.keras", _resnet8),
    "ds_cnn": ("kws_ds_cnn.keras", _separable),
    "mobilenet_v1_025_96": ("mobilenet_v1_025_96_vww.keras", _mobilenet_v1),
    "ad_autoencoder": ("ad01_toycar_autoencoder.keras", _autoencoder),
}
"""By recipe: the file in KERAS, and what turns its layers into the recipe's state_dict."""


def tflite_layers(path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
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

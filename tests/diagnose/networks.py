"""Small networks trained here on scikit-learn's digits, as an exporter writes them: with their preprocessing, and with
or without BatchNormalization.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

from edgebuild.stages.quantize import Quantized, quantize

Sample = dict[str, np.ndarray]
STEPS, BATCH = 90, 128


@dataclass(frozen=True)
class Trained:
    """A float graph with real frames, and what quantization makes of it."""

    model: onnx.ModelProto
    samples: list[Sample]
    quantized: Quantized


@functools.cache
def trained(name: str) -> Trained:
    """One of NETWORKS: trained, exported, quantized."""
    images, labels = load_digits(return_X_y=True)
    frames = np.repeat(np.repeat((images.reshape(-1, 8, 8) * 15.9375).astype(np.uint8), 2, 1), 2, 2)
    network = NETWORKS[name]()
    _train(network, torch.from_numpy(frames.astype(np.float32) / 127.5 - 1)[:, None], torch.from_numpy(labels))
    model = exported(network.eval())
    samples = [{"frame": frame} for frame in frames[:24]]
    return Trained(model, samples, quantize(model, lambda: iter(samples)))


def with_norms() -> nn.Sequential:
    """ReLU6 and BatchNormalization, a depthwise layer in the middle."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.BatchNorm2d(16), nn.ReLU6(),
        nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU6(),
        nn.Conv2d(24, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU6(),
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def plain() -> nn.Sequential:
    """ReLU only, no BatchNormalization."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 16, 3, 1, 1), nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


def gated() -> nn.Sequential:
    """Tanh and Sigmoid inside."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1), nn.Tanh(), nn.Conv2d(12, 16, 3, 2, 1), nn.Sigmoid(),
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {"with_norms": with_norms, "plain": plain, "gated": gated}


def _train(network: nn.Sequential, images: torch.Tensor, labels: torch.Tensor) -> None:
    torch.manual_seed(0)
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(STEPS):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH) % len(images)
        loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def coloured(lean: float = 20.0, channels: int = 16, *, bgr: bool = False) -> onnx.ModelProto:
    """A network whose BatchNormalization remembers coloured `pictures`, and whose other weights are random; `bgr`: its
    first layer reads them in that order, which the graph sees to.
    """
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels, momentum=None), nn.ReLU(),
        nn.Conv2d(channels, 16, 3, 2, 1), nn.BatchNorm2d(16, momentum=None), nn.ReLU(),
        nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    seen = torch.from_numpy(pictures(400, lean, seed=1).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        network.train()(seen.flip(1) if bgr else seen)
    return exported(network.eval(), (16, 16, 3), bgr=bgr)


def pictures(count: int, lean: float = 20.0, seed: int = 0) -> np.ndarray:
    """Pictures uint8 [count, 16, 16, 3], smooth, each in a light of its own; on average red lies above blue by twice
    `lean`.
    """
    chance = np.random.default_rng(seed)
    patches = np.repeat(np.repeat(chance.normal(0, 25, (count, 4, 4, 3)), 4, 1), 4, 2)
    brightness = chance.normal(120, 40, (count, 1, 1, 1)) + np.repeat(np.repeat(
        chance.normal(0, 40, (count, 4, 4, 1)), 4, 1), 4, 2)  # fmt: skip
    warmth = (lean + chance.normal(0, 1.5 * abs(lean), (count, 1, 1, 1))) * np.array([1.0, 0.0, -1.0])
    return np.clip(patches + brightness + warmth, 0, 255).astype(np.uint8)


def exported(network: nn.Sequential, shape: tuple[int, ...] = (16, 16), *, bgr: bool = False) -> onnx.ModelProto:
    """A graph: frame uint8 [16, 16] or [16, 16, 3] → /127.5 − 1 → the network → logits."""
    graph = _Writer()
    value = "frame"
    if bgr:
        value = graph.add("Gather", [value, graph.constant(np.array([2, 1, 0]))], name="to_bgr", axis=2)
    value = graph.add("Cast", [value], to=1)
    if len(shape) > 2:
        value = graph.add("Transpose", [value], perm=[2, 0, 1])
    axes = [0] if len(shape) > 2 else [0, 1]
    value = graph.add("Unsqueeze", [value, graph.constant(np.array(axes))])
    value = graph.add("Div", [value, graph.constant(np.float32(127.5))], name="normalize_div")
    value = graph.add("Sub", [value, graph.constant(np.float32(1))], name="normalize_sub")
    for number, layer in enumerate(network):
        value = graph.layer(value, layer, f"layer{number}")
    return graph.model(value, shape)


class _Writer:
    """An ONNX graph, node by node."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray | torch.Tensor | np.generic, name: str = "") -> str:
        array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
        self.tensors.append(numpy_helper.from_array(array, name or f"constant{len(self.tensors)}"))
        return self.tensors[-1].name

    def add(self, kind: str, inputs: list[str], name: str = "", **attributes: object) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def layer(self, value: str, layer: nn.Module, name: str) -> str:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            inputs = [value, self.constant(layer.weight, f"{name}.weight"), self.constant(layer.bias, f"{name}.bias")]
            if isinstance(layer, nn.Linear):
                return self.add("Gemm", inputs, name, transB=1)
            pads = [int(layer.padding[0])] * 4
            return self.add("Conv", inputs, name, strides=list(layer.stride), pads=pads, group=layer.groups)
        if isinstance(layer, nn.BatchNorm2d):
            parts = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
            names = [self.constant(v, f"{name}.{i}") for i, v in enumerate(parts) if v is not None]
            return self.add("BatchNormalization", [value, *names], name, epsilon=layer.eps)
        if isinstance(layer, nn.ReLU6):
            bounds = [self.constant(np.float32(v)) for v in (0, 6)]
            return self.add("Clip", [value, *bounds], name)
        if isinstance(layer, nn.AvgPool2d):
            return self.add("GlobalAveragePool", [value], name)
        kinds = {nn.ReLU: "Relu", nn.Tanh: "Tanh", nn.Sigmoid: "Sigmoid", nn.Flatten: "Flatten"}
        return self.add(kinds[type(layer)], [value], name)

    def model(self, output: str, shape: tuple[int, ...]) -> onnx.ModelProto:
        frame = helper.make_tensor_value_info("frame", onnx.TensorProto.UINT8, shape)
        logits = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, [1, 10])
        graph = helper.make_graph(self.nodes, "digits", [frame], [logits], self.tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        return onnx.shape_inference.infer_shapes(model, data_prop=True)

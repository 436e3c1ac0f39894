"""Does the network see the data that it was trained on?

Four witnesses. The graph: the arithmetic between the frame and the first layer must not hold the same step twice. The
weights: BatchNormalization keeps mean and variance of what it saw in training. The values: pictures reach a network in
0..1, −1..1, 0..255, or with about zero mean and unit variance. And where none of these objects, the order of colours
(`colours`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto

from edgebuild.stages.diagnose.colours import colours
from edgebuild.stages.diagnose.findings import HIGH, MEDIUM, PREPROCESSING, Finding
from edgebuild.stages.diagnose.floats import Network
from edgebuild.stages.diagnose.graph import AFFINE, Array, Graph, title
from edgebuild.stages.diagnose.measure import Moments

_BYTE = (1 / 255, 1 / 256, 1 / 127.5, 1 / 128, 1 / 127)
_SAME = 0.02
# BatchNormalization: log2 of the variance's ratio, and standard deviations by which the mean moved. Healthy networks
# on other pictures than in training show at most 0.6 and 0.2.
_FAR, _OFF, _NOTABLE = 5.0, 2.0, 1.5
_MOVED, _SHIFTED = 0.6, 1.0
_NARROWEST, _WIDEST, _RAW = 0.2, 8.0, 60.0  # widths of the range of a picture's values
_STILL = 0.05  # standard deviation by root mean square of an input that hardly varies


@dataclass(frozen=True)
class Step:
    """One addition or multiplication by a constant on the way to the first layer."""

    kind: str  # "add" or "mul"
    value: tuple[float, ...]
    text: str

    def same(self, other: "Step") -> bool:
        """Whether both do the same, whatever the constants' shapes."""
        if self.kind != other.kind or len(self.value) != len(other.value):
            return False
        return bool(np.allclose(self.value, other.value, rtol=1e-3, atol=1e-6))


def preprocessing(network: Network, pictures: Iterable[Mapping[str, Array]]) -> tuple[list[Finding], dict[str, Any]]:
    """What is wrong with the network's input, and what was looked at. `pictures`: what may be read to judge colours."""
    seen: dict[str, Any] = {"inputs": [], "normalization": []}
    found, sound = [], []
    for layer in network.first_layers():
        steps = _steps(network.graph, layer.input[0])
        moments = network.moments.get(layer.input[0])
        norm = _first_norm(network, layer)
        looked = _looked(layer, steps, moments)
        seen["inputs"].append(looked)
        if norm is not None:
            seen["normalization"].append(norm)
        if finding := _judged(network, layer, steps, moments, norm):
            found.append(finding)
        else:
            sound.append(layer)
    swapped, seen["colours"] = colours(network, sound, pictures)
    return [*found, *swapped], seen


def _judged(
    network: Network, layer: NodeProto, steps: list[Step], moments: Moments | None, norm: dict[str, Any] | None
) -> Finding | None:
    twice = _twice(steps)
    picture = _is_picture(network.graph, layer.input[0])
    unusual = _unusual(moments) if moments is not None and picture else ""
    off, weight = _norm_says(norm, moments, unusual=bool(unusual))
    says = [text for text in (twice, unusual, off) if text]
    strong = bool(twice) or (bool(unusual) and weight > 0) or weight >= 2 or _hardly_varies(moments) or _tiny(unusual)
    if not says:
        return None
    evidence: dict[str, Any] = {"steps": [s.text for s in steps], "batch_normalization": norm}
    if moments is not None:
        evidence["input"] = _range_of(moments)
    return Finding(
        PREPROCESSING, HIGH if strong else MEDIUM, title(layer, ""), layer.input[0], layer.op_type,
        "The network sees other data than it was trained on. " + " ".join(says),
        60.0 if strong else 12.0, -1, frozenset(), evidence,
    )  # fmt: skip


def _steps(graph: Graph, name: str) -> list[Step]:
    """From the graph's input to the first layer; other operators on the way change no values' scale."""
    found = [step for node in graph.chain(name) if (step := _step(graph, node)) is not None]
    return found[::-1]


def _step(graph: Graph, node: NodeProto) -> Step | None:
    data = graph.data_inputs(node)
    if node.op_type not in AFFINE or len(data) != 1 or len(node.input) != 2:
        return None
    first = node.input[0] == data[0]
    constant = graph.constants[node.input[1 if first else 0]].astype(np.float64).reshape(-1)
    if not constant.size or constant.size > 4096 or (node.op_type == "Div" and (not first or not constant.all())):
        return None
    value = {"Add": constant, "Sub": -constant, "Mul": constant, "Div": 1 / constant if constant.all() else constant}
    kind = "add" if node.op_type in {"Add", "Sub"} else "mul"
    short = constant[:1] if np.ptp(constant) == 0 else constant
    chosen = value[node.op_type][:1] if np.ptp(constant) == 0 else value[node.op_type]
    if np.allclose(chosen, 0 if kind == "add" else 1):
        return None
    shown = ", ".join(f"{v:.4g}" for v in short[:4]) + (" …" if len(short) > 4 else "")
    sign = {"Add": "+", "Sub": "−", "Mul": "×", "Div": "/"}[node.op_type]
    return Step(kind, tuple(float(v) for v in chosen), f"{sign} {shown}" if first else f"{shown} {sign} x")


def _twice(steps: list[Step]) -> str:
    """What is done twice between the frame and the first layer."""
    for size in range(len(steps) // 2, 0, -1):
        for start in range(len(steps) - 2 * size + 1):
            block, again = steps[start : start + size], steps[start + size : start + 2 * size]
            if all(a.same(b) for a, b in zip(block, again, strict=True)):
                return (
                    f"The graph normalizes twice: ({', '.join(s.text for s in block)}) is applied two times in a row."
                )
    bytes_ = [s for s in steps if s.kind == "mul" and _is_byte(s.value)]
    if len(bytes_) > 1:
        return f"The graph scales bytes twice: {' and '.join(s.text for s in bytes_)}."
    products = [a * b for a in _BYTE for b in _BYTE]
    both = [s for s in steps if s.kind == "mul" and any(_close(abs(v), p) for v in s.value for p in products)]
    return f"The graph scales by {both[0].text}, as much as two normalizations of bytes in one." if both else ""


def _is_byte(values: tuple[float, ...]) -> bool:
    return all(any(_close(abs(v), b) for b in _BYTE) for v in values)


def _close(value: float, wanted: float) -> bool:
    return abs(value - wanted) <= _SAME * wanted


def _is_picture(graph: Graph, name: str) -> bool:
    """Whether a tensor comes from bytes, or is a feature map of one, three or four channels that is a graph input."""
    names = graph.ancestors(name)
    if any(graph.is_bytes(n) for n in graph.inputs if n in names):
        return True
    return any(_channels(graph, n) in {1, 3, 4} for n in graph.inputs if n in names)


def _channels(graph: Graph, name: str) -> int:
    value = next((i for i in graph.model.graph.input if i.name == name), None)
    dims = [] if value is None else [d.dim_value for d in value.type.tensor_type.shape.dim]
    square = len(dims) == 4 and min(dims[2:]) >= 8 and dims[2] == dims[3]
    return dims[1] if square else 0


def _range_of(moments: Moments) -> dict[str, float]:
    low, high = float(moments.low.min()), float(moments.high.max())
    mean = float(moments.mean.mean())
    power = float(moments.squares.sum()) / (moments.count * len(moments.low))
    spread = float(np.sqrt(max(power - mean**2, 0.0)))
    return {"min": _short(low), "max": _short(high), "mean": _short(mean), "std": _short(spread)}


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _unusual(moments: Moments) -> str:
    seen = _range_of(moments)
    low, high = seen["min"], seen["max"]
    width = high - low
    if width < _NARROWEST:
        return (
            f"The first layer's input spans only {low:g} to {high:g}; pictures come in 0..1, −1..1, 0..255 or with "
            "about unit variance."
        )
    if _WIDEST < width < _RAW and low < -width / 4:
        return f"The first layer's input spans {low:g} to {high:g}, wider than any usual normalization of pictures."
    return ""


def _tiny(unusual: str) -> bool:
    return "spans only" in unusual


def _hardly_varies(moments: Moments | None) -> bool:
    if moments is None or len(moments.low) > 4:
        return False
    seen = _range_of(moments)
    level = float(np.hypot(seen["mean"], seen["std"]))
    return 0 < seen["std"] < _STILL * level


def _first_norm(network: Network, layer: NodeProto) -> dict[str, Any] | None:
    """The BatchNormalization behind the first layer, or before it: how far its input is from training's."""
    node = next((n for n in network.norms if n.input[0] in {layer.output[0]} or n.output[0] == layer.input[0]), None)
    moments = network.moments.get(node.input[0]) if node is not None else None
    if node is None or moments is None:
        return None
    mean, variance = network.norm_statistics(node)
    live = variance > 1e-6 * np.median(variance)
    if live.sum() < 2 or len(variance) != len(moments.mean):
        return None
    ratio = np.log2((moments.variance[live] + 1e-30) / variance[live])
    shift = np.abs(moments.mean[live] - mean[live]) / np.sqrt(variance[live])
    return {
        "layer": title(node, ""),
        "log2_variance_ratio": _short(float(np.median(ratio))),
        "mean_shift_in_std": _short(float(np.median(shift))),
        "spread": _short(float(np.subtract(*np.percentile(ratio, [75, 25])))),
        "channels": int(live.sum()),
    }


def _norm_says(norm: dict[str, Any] | None, moments: Moments | None, *, unusual: bool) -> tuple[str, int]:
    """What BatchNormalization remembers, and how much that weighs: 0, 1, or 2 (enough alone).

    Far more variance than in training, at an input of a usual range, is the layer's doing: its weights, not its data.
    """
    if norm is None:
        return "", 0
    ratio, shift = norm["log2_variance_ratio"], norm["mean_shift_in_std"]
    if abs(ratio) < _NOTABLE or (abs(ratio) < _OFF and shift < _MOVED):
        return "", 0
    strong = abs(ratio) >= _FAR or shift >= _SHIFTED
    text = (
        f"{norm['layer']} remembers training data whose standard deviation was {2 ** (-ratio / 2):.3g} times as large, "
        f"and whose mean lies {shift:.2g} standard deviations away (median of {norm['channels']} channels)."
    )
    raw = moments is not None and float(moments.high.max() - moments.low.min()) >= _RAW
    if ratio > _FAR and not (unusual or raw):
        return "", 0
    return text, 2 if strong else 1


def _looked(layer: NodeProto, steps: list[Step], moments: Moments | None) -> dict[str, Any]:
    seen = {} if moments is None else _range_of(moments)
    return {"layer": title(layer, ""), "tensor": layer.input[0], "steps": [s.text for s in steps], **seen}

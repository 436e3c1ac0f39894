"""A small network with BatchNorm, and what later trainings make of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgebuild.core.bundle import Bundle, read_unverified

Values = dict[str, np.ndarray]

SIDE, CLASSES = 12, 5
GRAPH = f"""net (float[1, 3, {SIDE}, {SIDE}] x) => (float[1, {CLASSES}] y) {{
  c1 = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w1)
  n1 = BatchNormalization(c1, g1, b1, m1, v1)
  r1 = Relu(n1)
  c2 = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(r1, w2)
  n2 = BatchNormalization(c2, g2, b2, m2, v2)
  r2 = Relu(n2)
  p = GlobalAveragePool(r2)
  f = Flatten(p)
  y = Gemm<transB = 1>(f, w3, b3)
}}"""
_CHANNELS = (16, 32)


def values(seed: int = 0) -> Values:
    """Of a first training."""
    rng = np.random.default_rng(seed)
    first, second = _CHANNELS
    found: Values = {
        "w1": rng.normal(size=(first, 3, 3, 3)) * 0.3,
        "w2": rng.normal(size=(second, first, 3, 3)) * 0.1,
        "w3": rng.normal(size=(CLASSES, second)) * 0.4,
        "b3": rng.normal(size=CLASSES) * 0.1,
    }
    for name, count in (("1", first), ("2", second)):
        found |= {f"g{name}": rng.uniform(0.5, 1.5, count), f"b{name}": rng.normal(size=count) * 0.3}
        found |= {f"m{name}": rng.normal(size=count) * 0.1, f"v{name}": rng.uniform(0.5, 1.5, count)}
    return {name: value.astype(np.float32) for name, value in found.items()}


def write(path: Path, given: Mapping[str, np.ndarray], graph: str = GRAPH) -> Path:
    """The network as an ONNX file."""
    parsed = onnx.parser.parse_graph(graph)
    for name, value in given.items():
        parsed.initializer.append(numpy_helper.from_array(value, name))
    for number, node in enumerate(parsed.node):
        node.name = f"{node.op_type}_{number}"
    model = onnx.helper.make_model(parsed, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def samples(path: Path, seed: int = 7, count: int = 16, scale: float = 1.0) -> Path:
    """Calibration samples as an .npz file."""
    rng = np.random.default_rng(seed)
    np.savez(path, x=(rng.normal(size=(count, 1, 3, SIDE, SIDE)) * scale).astype(np.float32))
    return path


@dataclass(frozen=True)
class Release:
    """A bundle with its report."""

    path: Path
    report: dict[str, Any]

    @property
    def read(self) -> Bundle:
        return read_unverified(self.path.read_bytes())

    def file(self, name: str) -> bytes:
        return bytes(self.read.files[name])

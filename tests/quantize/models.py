"""Small models in ONNX's text form, and what ONNX Runtime makes of them."""

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from edgebuild.core import ort

Arrays = Mapping[str, np.ndarray]


def model(text: str, **constants: object) -> onnx.ModelProto:
    """A graph `(inputs) => (outputs) { nodes }` of opset 20; constants without a NumPy type become float32."""
    graph = onnx.parser.parse_graph(f"g {text}")
    for name, value in constants.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        graph.initializer.append(numpy_helper.from_array(array, name))
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    result = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(result, data_prop=True)


def session(proto: onnx.ModelProto, *, optimized: bool = True) -> onnxruntime.InferenceSession:
    """ONNX Runtime with its exact 8-bit kernels, or in float32 between Q/DQ when not optimized."""
    found: onnxruntime.InferenceSession = ort.session(proto, optimized=optimized)
    return found


def run(proto: onnx.ModelProto, inputs: Arrays, *, optimized: bool = True) -> dict[str, np.ndarray]:
    """Outputs of ONNX Runtime by name."""
    loaded = session(proto, optimized=optimized)
    names = [o.name for o in loaded.get_outputs()]
    return dict(zip(names, loaded.run(names, dict(inputs)), strict=True))


def operators(proto: onnx.ModelProto) -> list[str]:
    """Operator types in order, without Q/DQ."""
    return [n.op_type for n in proto.graph.node if n.op_type not in {"QuantizeLinear", "DequantizeLinear"}]


def boundaries(proto: onnx.ModelProto) -> dict[str, str]:
    """Quantized tensors to the name of their scale."""
    return {n.input[0]: n.input[1] for n in proto.graph.node if n.op_type == "QuantizeLinear"}


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Float32 normal numbers."""
    return (rng.normal(size=shape) * scale).astype(np.float32)


def samples(
    rng: np.random.Generator, shape: tuple[int, ...], count: int = 8, name: str = "x"
) -> list[dict[str, np.ndarray]]:
    """Random float samples of one input."""
    return [{name: normal(rng, *shape)} for _ in range(count)]


def structure(proto: onnx.ModelProto) -> list[tuple[object, ...]]:
    """All that must not depend on values: operators, names, attributes, and types and shapes of constants."""
    nodes: Iterable[tuple[object, ...]] = (
        (n.op_type, n.name, tuple(n.input), tuple(n.output), tuple(a.SerializeToString() for a in n.attribute))
        for n in proto.graph.node
    )
    constants: Iterable[tuple[object, ...]] = ((t.name, t.data_type, tuple(t.dims)) for t in proto.graph.initializer)
    return [*nodes, *constants]

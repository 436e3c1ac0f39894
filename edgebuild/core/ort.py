"""ONNX Runtime, as a judge of graphs: it runs what is written, and its errors name the graph."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgebuild.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

_THREADS = 2  # a fixed number: how ONNX Runtime splits work must not depend on the machine
_NOT_WANTED = ("WeightBiasQuantization",)
"""It gives float32 layers between Q/DQ weights of 8 bits with one scale for all channels
(microsoft/onnxruntime#22969): SqueezeNet's outputs lose 9 dB by it, and a layer that falls back to float32 seems to
harm."""


def session(
    model: "onnx.ModelProto",
    graph: str = "the graph",
    hint: str = "check the export",
    *,
    optimized: bool = True,
    integers: bool = True,
    threads: int = _THREADS,
) -> Any:
    """A session on the CPU with exact 8-bit products. Raises ModelError, which calls the model `graph`.

    Without `integers` whatever lies between Q/DQ is computed in float32, rounded as written; without `optimized`
    nothing at all is rewritten.
    """
    import onnxruntime  # noqa: PLC0415 - heavy

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if not integers:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(
            _apart(model).SerializeToString(), options, ["CPUExecutionProvider"], disabled_optimizers=_NOT_WANTED
        )
    except Exception as problem:  # ONNX Runtime raises classes of its own for each status
        raise ModelError(f"ONNX Runtime cannot load {graph}: {str(problem).strip()}", hint) from problem


def _apart(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """The same network, each of whose int8 constants one DequantizeLinear reads.

    Exact products make these uint8, once for each reader and always under the same name: a zero point or weights that
    two of them share are then "an attempt to replace the existing tensor", and the graph does not load.
    """
    import onnx  # noqa: PLC0415 - heavy

    constants = {item.name for item in model.graph.initializer if item.data_type == onnx.TensorProto.INT8}
    readers = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    read = Counter(name for node in readers for name in node.input if name in constants)
    if not read or max(read.values()) == 1:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    shared = {item.name: item for item in result.graph.initializer if read[item.name] > 1}
    for index, node in enumerate(result.graph.node):
        for place, name in enumerate(node.input):
            if node.op_type == "DequantizeLinear" and name in shared:
                node.input[place] = f"{name}.of.{index}"
                copy = result.graph.initializer.add()
                copy.CopyFrom(shared[name])
                copy.name = node.input[place]
    return result

"""TFLite files through tf2onnx; what is quantized already keeps its own scales.

Measured on 19 files (MLPerf Tiny's, a published MobileNetV2, and six Keras applications in float and INT8): tf2onnx
converts all of them; TVM's importer, which gives no ONNX either, 16 (it has no quantized PAD and STRIDED_SLICE).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgebuild.core.errors import ModelError
from edgebuild.core.manifest import Tensor, Trigger
from edgebuild.core.recipe import Recipe
from edgebuild.stages.ingest import TRAINED, Entry, FloatModel, foreign
from edgebuild.stages.ingest.layout import channels_first
from edgebuild.stages.ingest.onnx import identifier, model_inputs, normalize
from edgebuild.stages.ingest.parity import PARITY_SAMPLES, Array, agreement, compare
from edgebuild.stages.ingest.samples import real_samples
from edgebuild.stages.ingest.tensorflow import OPSET, quiet, tf, tidied
from edgebuild.stages.ingest.unsigned import with_unsigned_activations

_QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear"})


class Network:
    """A TFLite file: its ONNX graph, and the interpreter that it is compared with.

    `rounds`: the interpreter computes in integers of its own, all of it or what dynamic range quantization stored so.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._interpreter = _interpreter(path)
        converted = _converted(path)
        self.rounds = any(node.op_type in _QUANTIZED for node in converted.graph.node)
        if not any(node.op_type == "QuantizeLinear" for node in converted.graph.node):
            converted = _with_float_weights(converted)
        graph = with_unsigned_activations(normalize(converted, str(path)), str(path))
        self.model = channels_first(graph, str(path))

    def graph(self, inputs: Sequence[Tensor]) -> onnx.ModelProto:
        """`foreign.Source`"""
        foreign.check_inputs(str(self.path), model_inputs(self.model), inputs)
        return self.model

    def run(self, arrays: Sequence[Array]) -> Sequence[Array]:
        """`foreign.Source`: what the interpreter gives."""
        for detail, array in zip(self._interpreter.get_input_details(), arrays, strict=True):
            self._interpreter.set_tensor(detail["index"], array.reshape(detail["shape"]))
        self._interpreter.invoke()
        shapes = [tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim) for value in self.model.graph.output]
        details = self._interpreter.get_output_details()
        return [
            np.array(self._interpreter.get_tensor(detail["index"])).reshape(shape)
            for detail, shape in zip(details, shapes, strict=True)
        ]


def export(recipe: Recipe) -> FloatModel:
    """A TFLite file without a handler, compared with TensorFlow's interpreter. Raises ModelError."""
    assert recipe.saved is not None
    network = Network(recipe.saved)
    samples = real_samples(recipe, model_inputs(network.model), PARITY_SAMPLES)
    check = agreement if network.rounds else compare
    parity = check(network.model, lambda sample: network.run(list(sample.values())), samples, str(recipe.saved))
    return FloatModel(network.model, parity, Entry(identifier(recipe.saved.stem), Trigger(), None), TRAINED)


def _interpreter(path: Path) -> Any:
    try:
        with quiet():
            # The bytes, not the path: only these are verified, and a file that was cut off ends the process.
            interpreter = tf.lite.Interpreter(model_content=path.read_bytes(), num_threads=1)
            interpreter.allocate_tensors()
    except Exception as reason:
        raise ModelError(
            f"{path}: TensorFlow's interpreter refuses it: {str(reason).strip().splitlines()[0]}",
            "is cut off, or made of operators outside TFLite's own; convert the model again",
        ) from reason
    return interpreter


def _converted(path: Path) -> onnx.ModelProto:
    import tf2onnx  # noqa: PLC0415 - it imports TensorFlow

    try:
        with quiet():
            model, _ = tf2onnx.convert.from_tflite(str(path), opset=OPSET)
    except Exception as reason:
        raise ModelError(
            f"{path}: tf2onnx cannot convert it: {str(reason).strip().splitlines()[0]}", "give the TensorFlow model"
        ) from reason
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type):
            raise ModelError(
                f"{path}: TFLite operator {node.op_type.removeprefix('TFL_')} of '{node.name}' has no ONNX form",
                "give the TensorFlow model, or replace that layer",
            )
    return tidied(model, None, None)


def _with_float_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Weights that are stored in fewer bits while everything is computed in float32 (dynamic range quantization)."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or any(name not in constants for name in node.input):
            kept.append(node)
            continue
        value, scale, *zero = (numpy_helper.to_array(constants[name]) for name in node.input)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [1] * value.ndim
        if scale.size > 1:
            shape[axis] = scale.size
        offset = zero[0].astype(np.int32).reshape(shape if zero[0].size > 1 else ()) if zero else 0
        weight = ((value.astype(np.int32) - offset) * scale.reshape(shape if scale.size > 1 else ())).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model

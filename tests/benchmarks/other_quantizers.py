"""ONNX Runtime's static quantization and NNCF's, on the float graph and the calibration samples that edgebuild gets.

Both write QDQ graphs, which run in ONNX Runtime's exact mode, so that what is compared is the choice of scales and
weights and not a CPU's saturating instruction. Each gets its best honest setting: weights per channel with all 8 bits;
what stands before the first layer with weights (a colour matrix, a scale) is left in float32, as edgebuild leaves it.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from edgebuild.core.digest import package_version

Sample = dict[str, "object"]
WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


@dataclass(frozen=True)
class Quantizer:
    """`package` is the one whose version counts."""

    name: str
    package: str
    run: Callable[[onnx.ModelProto, Sequence[Sample]], onnx.ModelProto]

    def quantized(self, model: onnx.ModelProto, samples: Sequence[Sample]) -> onnx.ModelProto:
        """What they print goes to standard error."""
        with contextlib.redirect_stdout(sys.stderr):
            return self.run(model, samples)

    @property
    def version(self) -> str:
        return package_version(self.package)


def _onnxruntime(method: str) -> Callable[[onnx.ModelProto, Sequence[Sample]], onnx.ModelProto]:
    def run(model: onnx.ModelProto, samples: Sequence[Sample]) -> onnx.ModelProto:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory(prefix="edgebuild-quality-") as name:
            folder = Path(name)
            onnx.save(model, folder / "float.onnx")
            quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(folder / "prepared.onnx"),
                str(folder / "quantized.onnx"),
                _Reader(samples),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                calibrate_method=quantization.CalibrationMethod[method],
                nodes_to_exclude=before_weights(onnx.load(folder / "prepared.onnx")),
            )
            return onnx.load(folder / "quantized.onnx")

    return run


def _nncf(ranges: str | None) -> Callable[[onnx.ModelProto, Sequence[Sample]], onnx.ModelProto]:
    """`ranges`: how activations' ranges are estimated; None is NNCF's default."""

    def run(model: onnx.ModelProto, samples: Sequence[Sample]) -> onnx.ModelProto:
        import nncf
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        chosen = {"activations_range_estimator_params": getattr(RangeEstimatorParametersSet, ranges)} if ranges else {}
        found: onnx.ModelProto = nncf.quantize(
            model,
            nncf.Dataset(list(samples)),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER if _is_transformer(model) else None,
            ignored_scope=nncf.IgnoredScope(names=before_weights(model), validate=False),
            # The fix halves weights for CPUs that saturate; what runs here is exact.
            advanced_parameters=AdvancedQuantizationParameters(overflow_fix=OverflowFix.DISABLE, **chosen),
        )
        return found

    return run


def _is_transformer(model: onnx.ModelProto) -> bool:
    kinds = {node.op_type for node in model.graph.node}
    return "Softmax" in kinds and "LayerNormalization" in kinds


class _Reader:
    """ONNX Runtime's CalibrationDataReader."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._rest: Iterator[Sample] = iter(samples)

    def get_next(self) -> Sample | None:
        return next(self._rest, None)


def before_weights(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that no layer with weights precedes."""
    weights = {tensor.name for tensor in model.graph.initializer}
    behind: set[str] = set()
    names = []
    for node in model.graph.node:
        weighted = node.op_type in WEIGHTED and any(name in weights for name in node.input)
        if weighted or behind.intersection(node.input):
            behind.update(node.output)
        else:
            names.append(node.name)
    return names


QUANTIZERS = (
    Quantizer("ORT min-max", "onnxruntime", _onnxruntime("MinMax")),
    Quantizer("ORT entropy", "onnxruntime", _onnxruntime("Entropy")),
    Quantizer("ORT percentile", "onnxruntime", _onnxruntime("Percentile")),
    Quantizer("NNCF", "nncf", _nncf(None)),
    Quantizer("NNCF min-max", "nncf", _nncf("MINMAX")),
)

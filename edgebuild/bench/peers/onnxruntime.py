"""ONNX Runtime's CPU provider, in a form that does not saturate.

Without VNNI its uint8 × int8 products saturate at 16 bits (other results, not comparable): our graph then runs in its
exact mode, and its own quantizer keeps to 7-bit weights. With VNNI they are exact, and the mode would slow it down.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.bench.peers import FLOAT32, OWN, QDQ, Source, Unsupported
from edgebuild.core.target_file import host_features

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from edgebuild.core.calibration import Sample

CALIBRATION_SAMPLES = 64
_MODEL = "model.onnx"
_EXACT = "exact"
"""A file beside the model: it needs the exact mode where the CPU has no VNNI."""


def prepare(source: Source, variant: str, folder: Path) -> None:
    if variant == OWN:
        _quantize(source, folder / _MODEL)
        return
    model = {QDQ: source.qdq_model, FLOAT32: source.float_model}[variant]
    (folder / _MODEL).write_bytes(model.read_bytes())
    if variant == QDQ:
        (folder / _EXACT).touch()


def load(folder: Path, threads: int, samples: "list[Sample]") -> "OnnxRuntime":
    return OnnxRuntime(folder / _MODEL, threads, samples, exact=(folder / _EXACT).exists())


class OnnxRuntime:
    """A session whose inputs and outputs are bound once, so that a run copies nothing in Python."""

    def __init__(self, model: Path, threads: int, samples: "list[Sample]", *, exact: bool) -> None:
        import onnxruntime  # noqa: PLC0415 - a large library

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if exact and not has_vnni():
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._bindings = [self._binding(onnxruntime, sample) for sample in samples]
        self._bound = self._bindings[0]

    def _binding(self, onnxruntime: Any, sample: "Sample") -> Any:
        binding = self._session.io_binding()
        for name, array in sample.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
        for output in self._session.get_outputs():
            binding.bind_output(output.name, "cpu")
        return binding

    def bind(self, index: int) -> None:
        self._bound = self._bindings[index]

    def run(self) -> None:
        self._session.run_with_iobinding(self._bound)

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        return list(self._bound.copy_outputs_to_cpu())


def has_vnni() -> bool:
    return bool({"avx512vnni", "avxvnni"} & set(host_features()[1]))


def _quantize(source: Source, target: Path) -> None:
    """ONNX Runtime's static quantizer: QDQ, uint8 activations, int8 weights per channel (7 bits without VNNI)."""
    from onnxruntime import quantization  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    prepared = target.with_name("prepared.onnx")
    quant_pre_process(str(source.float_model), str(prepared), skip_symbolic_shape=True)
    try:
        quantization.quantize_static(
            str(prepared),
            str(target),
            _Reader(source.samples(CALIBRATION_SAMPLES)),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=not has_vnni(),
        )
    except Exception as reason:
        raise Unsupported(f"its quantizer fails: {first_line(reason)}") from reason
    finally:
        prepared.unlink()


class _Reader:
    """ONNX Runtime's CalibrationDataReader over samples that stream."""

    def __init__(self, samples: "Iterator[Sample]") -> None:
        self._samples = samples

    def get_next(self) -> "Sample | None":
        return next(self._samples, None)


def first_line(reason: Exception) -> str:
    lines = str(reason).strip().splitlines() or [""]
    return f"{type(reason).__name__}: {lines[0]}"[:200]

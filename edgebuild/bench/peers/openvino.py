"""OpenVINO's CPU plugin, which reads our QDQ graph as it is; its own quantizer is NNCF."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.bench.peers import FLOAT32, OWN, QDQ, Source

if TYPE_CHECKING:
    import numpy as np

    from edgebuild.core.calibration import Sample

CALIBRATION_SAMPLES = 64
_MODEL = "model.xml"
_FLOAT32 = "float32"
"""A file beside the model: bfloat16, which the plugin may choose by itself, is not wanted."""


def prepare(source: Source, variant: str, folder: Path) -> None:
    import openvino  # noqa: PLC0415 - a large library

    model = openvino.Core().read_model(source.qdq_model if variant == QDQ else source.float_model)
    if variant == OWN:
        import nncf  # noqa: PLC0415 - imports much

        samples = list(source.samples(CALIBRATION_SAMPLES))
        model = nncf.quantize(model, nncf.Dataset(samples), subset_size=len(samples))
    if variant == FLOAT32:
        (folder / _FLOAT32).touch()
    openvino.save_model(model, folder / _MODEL, compress_to_fp16=False)


def load(folder: Path, threads: int, samples: "list[Sample]") -> "OpenVino":
    return OpenVino(folder, threads, samples)


class OpenVino:
    """One infer request; the process is pinned, so the plugin need not pin its threads."""

    def __init__(self, folder: Path, threads: int, samples: "list[Sample]") -> None:
        import openvino  # noqa: PLC0415

        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": False,
        }
        if (folder / _FLOAT32).exists():
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = openvino.Core().compile_model(str(folder / _MODEL), "CPU", settings)
        self._outputs = len(compiled.outputs)
        self._request = compiled.create_infer_request()
        self._samples = [{name: openvino.Tensor(array) for name, array in sample.items()} for sample in samples]

    def bind(self, index: int) -> None:
        for name, tensor in self._samples[index].items():
            self._request.set_tensor(name, tensor)

    def run(self) -> None:
        self._request.infer()

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        return [self._request.get_output_tensor(index).data.copy() for index in range(self._outputs)]

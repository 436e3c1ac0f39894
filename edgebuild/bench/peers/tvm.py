"""TVM itself: Relax's default pipeline on our QDQ graph, untuned."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.bench.peers import QDQ, Source

if TYPE_CHECKING:
    import numpy as np

    from edgebuild.core.calibration import Sample

_MODEL = "model.so"


def prepare(source: Source, variant: str, folder: Path) -> None:
    import onnx  # noqa: PLC0415
    import tvm  # noqa: PLC0415 - a large library
    from tvm.relax.frontend.onnx import from_onnx  # noqa: PLC0415

    model = onnx.load(source.qdq_model if variant == QDQ else source.float_model)
    module = from_onnx(model, keep_params_in_input=False)
    target = tvm.target.Target({"kind": "llvm", "mcpu": tvm.get_global_func("target.llvm_get_system_cpu")()})
    with target:
        module = tvm.relax.get_pipeline("default")(module)
        executable = tvm.compile(module, target)
    executable.export_library(str(folder / _MODEL))


def load(folder: Path, threads: int, samples: "list[Sample]") -> "Tvm":
    os.environ["TVM_NUM_THREADS"] = str(threads)
    return Tvm(folder / _MODEL, samples)


class Tvm:
    """Relax's virtual machine."""

    def __init__(self, model: Path, samples: "list[Sample]") -> None:
        import tvm  # noqa: PLC0415
        from tvm import relax  # noqa: PLC0415

        machine = relax.VirtualMachine(tvm.runtime.load_module(str(model)), tvm.cpu())
        self._main = machine["main"]
        self._samples = [[tvm.runtime.tensor(array) for array in sample.values()] for sample in samples]
        self._bound = self._samples[0]
        self._made: Any = None

    def bind(self, index: int) -> None:
        self._bound = self._samples[index]

    def run(self) -> None:
        self._made = self._main(*self._bound)

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        made = [self._made] if hasattr(self._made, "numpy") else list(self._made)
        return [tensor.numpy() for tensor in made]

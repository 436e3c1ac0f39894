"""ExecuTorch with the XNNPACK backend, from the recipe's module; quantized by PT2E with XNNPACK's quantizer."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.bench.peers import OWN, Source, Unsupported

if TYPE_CHECKING:
    import numpy as np

    from edgebuild.core.calibration import Sample

CALIBRATION_SAMPLES = 32
_MODEL = "model.pte"


def prepare(source: Source, variant: str, folder: Path) -> None:
    import torch  # noqa: PLC0415 - a large library
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # noqa: PLC0415
    from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415

    from edgebuild.bench.case import restore_module  # noqa: PLC0415

    logging.disable(logging.CRITICAL)
    module = restore_module(source.recipe)
    example = _tensors(next(source.samples(1)))
    with torch.no_grad():
        program = torch.export.export(module, example, strict=False)
        if variant == OWN:
            program = torch.export.export(_quantized(program, source), example, strict=False)
        lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    delegated = sum("call_delegate" in str(node.target) for node in lowered.exported_program().graph.nodes)
    if not delegated:
        raise Unsupported("XNNPACK takes no operator of this model")
    (folder / _MODEL).write_bytes(lowered.to_executorch().buffer)


def _quantized(program: Any, source: Source) -> Any:
    """PT2E with XNNPACK's symmetric quantizer: int8, weights per channel."""
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (  # noqa: PLC0415
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    prepared = prepare_pt2e(program.module(), quantizer)
    for sample in source.samples(CALIBRATION_SAMPLES):
        prepared(*_tensors(sample))
    return convert_pt2e(prepared)


def _tensors(sample: "Sample") -> tuple[Any, ...]:
    import torch  # noqa: PLC0415

    return tuple(torch.from_numpy(array.copy()) for array in sample.values())


def load(folder: Path, threads: int, samples: "list[Sample]") -> "ExecuTorch":
    return ExecuTorch(folder / _MODEL, threads, samples)


class ExecuTorch:
    """The method `forward` of a program; its thread pool is the process's."""

    def __init__(self, model: Path, threads: int, samples: "list[Sample]") -> None:
        from executorch.extension.pybindings import portable_lib  # noqa: PLC0415

        portable_lib._unsafe_reset_threadpool(threads)
        self._module = portable_lib._load_for_executorch(str(model))
        self._samples = [_tensors(sample) for sample in samples]
        self._bound = self._samples[0]
        self._made: list[Any] = []

    def bind(self, index: int) -> None:
        self._bound = self._samples[index]

    def run(self) -> None:
        self._made = self._module.run_method("forward", self._bound)

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        return [tensor.numpy() for tensor in self._made]

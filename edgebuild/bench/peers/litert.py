"""LiteRT with XNNPACK: litert-torch converts the recipe's module, ai-edge-quantizer quantizes the .tflite."""

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild.bench.peers import OWN, Source, Unsupported

if TYPE_CHECKING:
    import numpy as np

    from edgebuild.core.calibration import Sample

CALIBRATION_SAMPLES = 32
_MODEL = "model.tflite"
_NUMBER = re.compile(r"(?:args|output)_(\d+)")


def prepare(source: Source, variant: str, folder: Path) -> None:
    import litert_torch  # noqa: PLC0415 - a large library
    import torch  # noqa: PLC0415

    from edgebuild.bench.case import restore_module  # noqa: PLC0415

    logging.disable(logging.CRITICAL)
    module = restore_module(source.recipe)
    example = tuple(torch.from_numpy(array.copy()) for array in next(source.samples(1)).values())
    target = folder / _MODEL
    litert_torch.convert(module, example).export(str(target))
    if variant == OWN:
        _quantize(source, target)


def _quantize(source: Source, target: Path) -> None:
    """In place: int8 activations and weights, weights per channel; what it knows of, the rest stays float32."""
    from ai_edge_quantizer import quantizer, recipe  # noqa: PLC0415

    chosen = quantizer.Quantizer(str(target), recipe.static_wi8_ai8())
    interpreter = _interpreter(target)
    signature = _signature(interpreter)
    names = sorted(interpreter.get_signature_list()[signature]["inputs"], key=_place)
    data = [dict(zip(names, sample.values(), strict=True)) for sample in source.samples(CALIBRATION_SAMPLES)]
    statistics = chosen.calibrate({signature: data})
    target.write_bytes(bytes(chosen.quantize(statistics).quantized_model))


def _interpreter(model: Path, threads: int = 1) -> Any:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    return Interpreter(str(model), num_threads=threads)


def _signature(interpreter: Any) -> str:
    return str(next(iter(interpreter.get_signature_list())))


def _place(name: str) -> int:
    """Which argument or result of the module a tensor is, from litert-torch's names: `…args_0`, `…output_1_output`."""
    found = _NUMBER.search(name)
    if found is None:
        raise Unsupported(f"the tensor {name} does not say which input or output it is")
    return int(found.group(1))


def _places(details: list[dict[str, Any]]) -> list[int]:
    """Indices of tensors in the module's order, which the file need not keep.

    The signature is no help: in a quantized file it names the int8 tensors in front of the last dequantization.
    """
    return [item["index"] for item in sorted(details, key=lambda item: _place(item["name"]))]


def _input(array: "np.ndarray[Any, Any]", form: dict[str, Any]) -> "np.ndarray[Any, Any]":
    """`array` as the file wants it: its quantizer makes float32 inputs int8, and int64 ones are int32."""
    scale, zero_point = form["quantization"]
    if scale and array.dtype.kind == "f":
        array = (array / scale + zero_point).round().clip(-128, 127)
    return array.astype(form["dtype"])


def load(folder: Path, threads: int, samples: "list[Sample]") -> "LiteRt":
    return LiteRt(folder / _MODEL, threads, samples)


class LiteRt:
    """An interpreter; XNNPACK takes what it can by default."""

    def __init__(self, model: Path, threads: int, samples: "list[Sample]") -> None:
        self._interpreter = _interpreter(model, threads)
        self._interpreter.allocate_tensors()
        self._inputs = _places(self._interpreter.get_input_details())
        self._made = _places(self._interpreter.get_output_details())
        self._scales = {item["index"]: item["quantization"] for item in self._interpreter.get_output_details()}
        forms = {item["index"]: item for item in self._interpreter.get_input_details()}
        self._samples = [
            [_input(array, forms[place]) for place, array in zip(self._inputs, sample.values(), strict=True)]
            for sample in samples
        ]

    def bind(self, index: int) -> None:
        for place, array in zip(self._inputs, self._samples[index], strict=True):
            self._interpreter.set_tensor(place, array)

    def run(self) -> None:
        self._interpreter.invoke()

    def outputs(self) -> "list[np.ndarray[Any, Any]]":
        return [self._output(place) for place in self._made]

    def _output(self, place: int) -> "np.ndarray[Any, Any]":
        """Its quantizer leaves some outputs in int8."""
        found: np.ndarray[Any, Any] = self._interpreter.get_tensor(place)
        scale, zero_point = self._scales[place]
        return (found.astype("float32") - zero_point) * scale if scale else found

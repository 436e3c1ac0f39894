"""Runs the float model over the calibration samples and feeds observers, one sample at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from edgebuild.core import ort
from edgebuild.core.errors import CalibrationError, ModelError
from edgebuild.stages.quantize.graph import Array
from edgebuild.stages.quantize.observers import Range, Watcher

Sample = Mapping[str, Array]
# A fixed number: how ONNX Runtime splits work among threads must not depend on the machine.


@dataclass(frozen=True)
class InputSpec:
    """Dtype and shape of a model input."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def input_specs(model: onnx.ModelProto) -> dict[str, InputSpec]:
    """What every sample must hold, by input name."""
    constants = {t.name for t in model.graph.initializer}
    specs = {}
    for value in model.graph.input:
        if value.name not in constants:
            tensor = value.type.tensor_type
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            specs[value.name] = InputSpec(dtype, tuple(d.dim_value for d in tensor.shape.dim))
    return specs


def check_sample(specs: Mapping[str, InputSpec], sample: Sample, number: int) -> None:
    """CalibrationError when sample `number` (from 0) does not fit the model's inputs."""
    expected = ", ".join(f"{name!r} ({spec})" for name, spec in specs.items())
    for name in specs:
        if name not in sample:
            found = ", ".join(repr(n) for n in sample) or "nothing"
            raise CalibrationError(
                f"calibration sample {number} lacks array {name!r}; it has {found}",
                f"the model's inputs are {expected}",
            )
    for name, array in sample.items():
        if name not in specs:
            raise CalibrationError(
                f"calibration array {name!r} is not an input of the model", f"the model's inputs are {expected}"
            )
        _check_array(name, np.asarray(array), specs[name], number)


def _check_array(name: str, array: Array, spec: InputSpec, number: int) -> None:
    where = f"calibration array {name!r}, sample {number}"
    if array.shape != spec.shape:
        raise CalibrationError(
            f"{where}: expected shape {list(spec.shape)}, found {list(array.shape)}",
            "one sample has exactly the model's input shape",
        )
    if array.dtype != spec.dtype:
        raise CalibrationError(
            f"{where}: expected dtype {spec.dtype}, found {array.dtype}",
            f"convert it with .astype({str(spec.dtype)!r})",
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise CalibrationError(f"{where}: holds NaN or infinite values", "remove or repair this sample")


def observe(
    model: onnx.ModelProto,
    specs: Mapping[str, InputSpec],
    samples: Iterable[Sample],
    watchers: Mapping[str, Sequence[Watcher]],
    progress: Callable[[int], None] | None = None,
) -> int:
    """Feeds every watcher (by tensor name) with its tensor's values. Returns the number of samples seen.

    `model` has the watched tensors as outputs; watched graph inputs are read from the samples. `progress` gets the
    number of samples done. CalibrationError when there is no sample, a sample does not fit, or a tensor becomes NaN or
    infinite.
    """
    computed = [name for name in watchers if name not in specs]
    session = ort.session(model, "the float model")
    number = 0
    for sample in samples:
        check_sample(specs, sample, number)
        values = dict(sample)
        if computed:
            values.update(zip(computed, _computed(session, computed, sample), strict=True))
        for name, watching in watchers.items():
            _feed(watching, name, values[name], number)
        number += 1
        if progress:
            progress(number)
    if number == 0:
        raise CalibrationError("there are no calibration samples", "give at least one; 64 or more are usual")
    return number


def _feed(watching: Sequence[Watcher], name: str, values: Array, number: int) -> None:
    if values.size == 0:
        return
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise CalibrationError(
            f"tensor {name!r} becomes NaN or infinite on calibration sample {number}",
            "check the model's weights, and that the samples look like what it was trained on",
        )
    for watcher in watching:
        watcher.observe(values, low, high)


def _computed(session: Any, names: list[str], sample: Sample) -> list[Array]:
    try:
        found: list[Array] = session.run(names, dict(sample))
    except Exception as problem:  # as above
        raise ModelError(
            f"the float model does not run on a calibration sample: {problem}", "check the layer, and the export"
        ) from problem
    return found


def merged(ranges: Iterable[Range | None]) -> Range | None:
    """The smallest range that holds all."""
    known = [r for r in ranges if r is not None]
    return (min(r[0] for r in known), max(r[1] for r in known)) if known else None

"""Search: which block sizes are fastest on this machine, measured in a bounded time.

For every shape the cost model's best candidates are compiled, several layers into one program.so, and run in turns in a
process of its own. Measured schedules are kept by shape in the user's cache, which only another search reads: a build
without one depends on `recipe.lock` and the shipped schedules alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgebuild.core import digest, disk
from edgebuild.core.cache import cache_dir
from edgebuild.core.target import Target
from edgebuild.kernels import schedules
from edgebuild.kernels.builder import Kernel
from edgebuild.kernels.conv import Conv
from edgebuild.kernels.isa import ISAS, Isa
from edgebuild.stages.compile.codegen import build_program
from edgebuild.stages.compile.fuse import fuse
from edgebuild.stages.compile.lower import lower
from edgebuild.stages.compile.native import TABLE_OFFSET
from edgebuild.stages.compile.schedule import is_scheduled
from edgebuild.stages.compile.values import Emitter, Step

if TYPE_CHECKING:
    import onnx

CANDIDATES = 6
BATCH = 6  # layers of one program.so: linking and starting a process take as long as measuring two layers
LEAST_GAIN = 0.02  # of the cost model's choice, in both halves of the rounds; anything less is noise
_UNITS = 8  # of work, which a candidate must have where the cost model's choice has them
_PATIENCE = 120.0  # seconds for one batch
_SCRIPT = Path(__file__).with_name("stopwatch.py")

Times = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Layer:
    """A shape to be measured: a step that has it, its buffers as (bytes, dtype) in calling order, and its candidates,
    the cost model's choice first.
    """

    key: str
    step: Step
    buffers: tuple[tuple[int, str], ...]
    candidates: tuple[str, ...]

    def kernels(self, isa: Isa) -> list[Kernel]:
        fitting = schedules.alternatives(_conv(self.step), isa)
        chosen = (self.step.with_option("schedule", fitting[text]) for text in self.candidates)
        return [step.make(step.spec, isa, **dict(step.options)) for step in chosen]


def tune(
    model: "onnx.ModelProto",
    target: Target,
    seconds: float,
    known: Mapping[str, str],
    progress: Callable[[int, int], None],
    *,
    again: bool = False,
) -> dict[str, str]:
    """`known` and what was measured now or before for the other shapes of a model: shape → schedule.

    Takes about `seconds`, and measures at least one batch; the layers with most work come first. `again` measures what
    was measured before. The target's code must run on this machine.
    """
    end = time.monotonic() + seconds
    emitter = lowered_steps(model, target)
    store = Store(target.isa)
    remembered = {} if again else store.read()
    layers = [layer for layer in layers_of(emitter) if layer.key not in known]
    fitting = {layer.key: remembered[layer.key] for layer in layers if remembered.get(layer.key) in layer.candidates}
    measured = measure([layer for layer in layers if layer.key not in fitting], target, end, progress)
    store.add(measured)
    return {**known, **fitting, **measured}


def lowered_steps(model: "onnx.ModelProto", target: Target) -> Emitter:
    """The kernel calls of a model as they are compiled, without schedules."""
    lowered = lower(model, ISAS[target.isa])
    fuse(lowered.emitter, lowered.kept)
    return lowered.emitter


def layers_of(emitter: Emitter) -> list[Layer]:
    """The shapes of a model, each once, those with most work first; those that can be cut in one way only are left
    out.
    """
    found: dict[str, Layer] = {}
    work: Counter[str] = Counter()
    for step in emitter.steps:
        if not is_scheduled(step):
            continue
        key = key_of(step)
        work[key] += step.macs
        if key not in found:
            found[key] = Layer(key, step, _buffers(emitter, step), _candidates(_conv(step), emitter.isa))
    return [found[key] for key, _ in work.most_common() if len(found[key].candidates) > 1]


def key_of(step: Step) -> str:
    return schedules.key(_conv(step), table=bool(step.option("table")))


def _conv(step: Step) -> Conv:
    assert isinstance(step.spec, Conv)
    return step.spec


def _candidates(conv: Conv, isa: Isa) -> tuple[str, ...]:
    """The cost model's best, and its best for each number of vectors: it is least sure between those."""
    fitting = schedules.alternatives(conv, isa)
    default = next(iter(fitting.values()))
    shared = {text: x for text, x in fitting.items() if _units(conv, x) >= min(_UNITS, _units(conv, default))}
    best_of: dict[int, str] = {}
    for text, schedule in shared.items():
        best_of.setdefault(schedule if isinstance(schedule, int) else schedule.vectors, text)
    return tuple(dict.fromkeys([*list(shared)[:CANDIDATES], *best_of.values()]))


def _units(conv: Conv, schedule: schedules.Schedule) -> int:
    """Units of work that threads can share; columns do not change them. One thread is timed, but several may run it."""
    return _UNITS if isinstance(schedule, int) else -(-conv.pixels // schedule.rows) * schedule.splits


def _buffers(emitter: Emitter, step: Step) -> tuple[tuple[int, str], ...]:
    import numpy as np  # noqa: PLC0415

    items = (emitter.storages[number] for number in (*step.inputs, step.output))
    return tuple((int(np.prod(i.shape, dtype=np.int64)) * np.dtype(i.dtype).itemsize, i.dtype) for i in items)


def measure(
    layers: Sequence[Layer], target: Target, end: float, progress: Callable[[int, int], None]
) -> dict[str, str]:
    """The fastest schedule of each layer that could be measured before `end` (`time.monotonic`)."""
    found: dict[str, str] = {}
    spent = 0.0
    for start in range(0, len(layers), BATCH):
        began = time.monotonic()
        if start and began + spent > end:
            break
        batch = layers[start : start + BATCH]
        for layer, times in zip(batch, timed(batch, target), strict=False):
            found[layer.key] = layer.candidates[fastest(times)]
        progress(min(start + BATCH, len(layers)), len(layers))
        spent = time.monotonic() - began
    return found


def fastest(times: Times) -> int:
    """The candidate with the least time, if it beats the first one in both halves of the rounds; else the first."""
    best = min(range(len(times)), key=lambda i: min(times[i]))
    clear = all(own < first * (1 - LEAST_GAIN) for own, first in zip(times[best], times[0], strict=True))
    return best if clear else 0


def timed(layers: Sequence[Layer], target: Target) -> list[Times]:
    """Nanoseconds of each candidate of each layer; nothing where the process did not live to tell."""
    made = [layer.kernels(ISAS[target.isa]) for layer in layers]
    with tempfile.TemporaryDirectory(prefix="edgebuild-tune-") as folder:
        library = Path(folder) / "program.so"
        library.write_bytes(build_program([kernel for group in made for kernel in group], target))
        request = {
            "library": str(library),
            "offset": TABLE_OFFSET,
            "core": max(os.sched_getaffinity(0)),
            "layers": list(_requests(layers, made)),
        }
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(_SCRIPT)],
                input=json.dumps(request).encode(),
                capture_output=True,
                check=False,
                timeout=_PATIENCE,
            )
        except subprocess.TimeoutExpired:
            return []
        return json.loads(done.stdout) if done.returncode == 0 else []


def _requests(layers: Iterable[Layer], made: Iterable[Sequence[Kernel]]) -> Iterator[dict[str, object]]:
    entry = 0
    for layer, kernels in zip(layers, made, strict=True):
        runs = [[entry + i, kernel.work] for i, kernel in enumerate(kernels)]
        yield {"buffers": layer.buffers, "scratch_bytes": max(k.scratch for k in kernels), "kernels": runs}
        entry += len(kernels)


class Store:
    """The user's cache of measured schedules: one file for each instruction set, processor, and state of the
    kernels.
    """

    def __init__(self, isa: str) -> None:
        own = digest.of_modules(("kernels", "core/target"))
        self._folder = cache_dir() / "schedules"
        self._name = f"{isa}-{digest.of_parts(own, _processor())[:16]}.json"

    def read(self) -> dict[str, str]:
        """What was measured before; nothing where the file is missing or broken."""
        try:
            found = json.loads((self._folder / self._name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def add(self, measured: Mapping[str, str]) -> None:
        if not measured:
            return
        disk.prepare_folder(self._folder)
        content = json.dumps({**self.read(), **measured}, indent=1, sort_keys=True)
        disk.write_together(self._folder, {self._name: content.encode()})


def _processor() -> str:
    """What Linux calls this processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = ("model name", "CPU implementer", "CPU part", "uarch")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))

"""Measured block sizes for the steps that have some: the lock's, else those that come with edgebuild."""

from collections.abc import Mapping

from edgebuild.kernels import schedules
from edgebuild.kernels.conv import Conv, conv_kernel
from edgebuild.kernels.depthwise import depthwise_kernel
from edgebuild.kernels.epilogue import BYTES
from edgebuild.stages.compile.values import Emitter, Step

SCHEDULED = (conv_kernel, depthwise_kernel)
"""Kernels that take a `schedule`."""


def is_scheduled(step: Step) -> bool:
    """Whether blocks of a step are measured: those on bytes are. The cost model cuts the others."""
    return step.make in SCHEDULED and step.option("types") == BYTES


def schedule(emitter: Emitter, locked: Mapping[str, str]) -> None:
    """Rewrites the emitter's steps; what has no measured schedule is left to the cost model. Comes after fusing."""
    shipped = schedules.read_shipped(emitter.isa)
    emitter.steps = [_scheduled(step, emitter, locked, shipped) for step in emitter.steps]


def _scheduled(step: Step, emitter: Emitter, locked: Mapping[str, str], shipped: Mapping[str, str]) -> Step:
    if not is_scheduled(step):
        return step
    assert isinstance(step.spec, Conv)
    table = bool(step.option("table"))
    found = schedules.find(step.spec, emitter.isa, table=table, locked=locked, shipped=shipped)
    return step if found is None else step.with_option("schedule", found)

"""Kernel calls that become part of others: byte tables, copies into the result of a Concat, maps of a frame; additions
that overwrite an operand.
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from edgebuild.kernels.builder import Kernel
from edgebuild.kernels.conv import Conv, conv_kernel
from edgebuild.kernels.copy import Box, Gather, Into, Table, box_kernel, gather_kernel, table_kernel
from edgebuild.kernels.depthwise import depthwise_kernel
from edgebuild.kernels.elementwise import Binary, binary_kernel, can_overwrite
from edgebuild.kernels.floats import map_kernel
from edgebuild.stages.compile.bytemaps import as_table, composed
from edgebuild.stages.compile.values import Emitter, Step

_Make = Callable[..., Kernel]
_TAKES_TABLE: tuple[_Make, ...] = (conv_kernel, depthwise_kernel, binary_kernel)
_TAKES_PLACE: tuple[_Make, ...] = (*_TAKES_TABLE, gather_kernel)


def fuse(emitter: Emitter, kept: Collection[int]) -> None:
    """Rewrites the emitter's steps; `kept` are the storages that the caller sees."""
    graph = _Steps(list(emitter.steps), frozenset(kept))
    for step in graph.present():
        if step.make is map_kernel:
            graph.tabulate(step, emitter)
    for step in graph.present():
        if step.make is table_kernel and emitter.isa.lookup is not None:
            graph.join(step, _with_table)
        elif step.make is box_kernel and step.kind == "concat":
            graph.join(step, _with_place if emitter.isa.lookup is not None else _with_plain_place)
    for place in range(len(graph.steps)):
        graph.overwrite(place, emitter)
    emitter.steps = graph.present()


@dataclass
class _Steps:
    """The steps by place, with who writes and who reads each storage; a removed step is None."""

    steps: list[Step | None]
    kept: frozenset[int]
    writers: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    readers: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self._index()

    def _index(self) -> None:
        self.writers.clear()
        self.readers.clear()
        for i, step in enumerate(self.steps):
            if step is None:
                continue
            for storage in step.written:
                self.writers[storage].append(i)
            for storage in step.inputs:
                self.readers[storage].append(i)

    def present(self) -> list[Step]:
        return [step for step in self.steps if step is not None]

    def join(self, step: Step, merged: Callable[[Step, Step], Step | None]) -> None:
        """Replace the one writer of what `step` alone reads by `merged(writer, step)`, and remove `step`."""
        source = step.inputs[0]
        if source in self.kept or len(self.writers[source]) != 1 or len(self.readers[source]) != 1:
            return
        (place,), (own,) = self.writers[source], self.readers[source]
        writer = self.steps[place]
        joined = merged(writer, step) if writer is not None else None
        if joined is None:
            return
        self.steps[place], self.steps[own] = joined, None
        self._index()

    def tabulate(self, step: Step, emitter: Emitter) -> None:
        """Replace a map, together with the map that alone feeds it, by a table where that is possible."""
        own = self.steps.index(step)
        for place in [self._only_feeder(step), None]:
            writer = None if place is None else self.steps[place]
            whole = step if writer is None else composed(writer, step)
            table = None if whole is None else as_table(emitter, whole)
            if table is None:
                continue
            self.steps[own] = table
            if place is not None:
                self.steps[place] = None
            self._index()
            return

    def overwrite(self, own: int, emitter: Emitter) -> None:
        """Let a sum or product take the place of an operand that nobody reads any more."""
        step = self.steps[own]
        if step is None or step.make is not binary_kernel:
            return
        binary, old = step.spec, step.output
        assert isinstance(binary, Binary)
        if step.option("into") or old in self.kept or self.writers[old] != [own]:
            return
        if not can_overwrite(binary, emitter.isa) or step.inputs[0] == step.inputs[1]:
            return
        for i, source in enumerate(step.inputs[: 1 if binary.broadcast else 2]):
            constant = emitter.storages[source].data is not None
            if constant or source in self.kept or self.readers[source][-1] != own:
                continue
            self.steps[own] = step.with_option("overwrites", i)
            for place in (own, *self.readers[old]):
                self.steps[place] = _renamed(self.steps[place], old, source)
            self._index()
            return

    def _only_feeder(self, step: Step) -> int | None:
        """The map whose result only `step` reads."""
        for storage in step.inputs:
            writers = self.writers[storage]
            if storage in self.kept or len(writers) != 1 or len(self.readers[storage]) != 1:
                continue
            writer = self.steps[writers[0]]
            if writer is not None and writer.make is map_kernel:
                return writers[0]
        return None


def _renamed(step: Step | None, old: int, new: int) -> Step | None:
    """The step with one storage in the place of another."""
    if step is None:
        return None
    inputs = tuple(new if storage == old else storage for storage in step.inputs)
    return replace(step, inputs=inputs, output=new if step.output == old else step.output)


def _with_table(writer: Step, step: Step) -> Step | None:
    if writer.make not in _TAKES_TABLE or writer.option("table") or writer.option("into"):
        return None
    if not isinstance(step.spec, Table) or step.spec.period > 1 or step.spec.dtype != "uint8":
        return None
    return writer.with_option("table", value=True, inputs=(*writer.inputs, step.inputs[1]), output=step.output)


def _with_place(writer: Step, step: Step) -> Step | None:
    """A copy, through a table or not, of all that the writer makes."""
    assert isinstance(step.spec, Box)
    placed = _with_plain_place(writer, replace(step, inputs=step.inputs[:1]))
    if placed is None or len(step.inputs) == 1:
        return placed
    if writer.make not in _TAKES_TABLE or writer.option("table") or step.spec.table != "uint8":
        return None
    return placed.with_option("table", value=True, inputs=(*writer.inputs, step.inputs[1]))


def _with_plain_place(writer: Step, step: Step) -> Step | None:
    into = _into(step.spec)
    if into is None or writer.make not in _TAKES_PLACE or writer.option("into") or len(step.inputs) > 1:
        return None
    if not into.fits(_line(writer.spec, into)):
        return None
    return writer.with_option("into", into, output=step.output)


def _line(spec: object, into: Into) -> int:
    """Elements of the lines in which a kernel makes its result."""
    if isinstance(spec, Conv):
        return spec.out_channels
    if isinstance(spec, Gather) or (isinstance(spec, Binary) and spec.broadcast):
        return spec.inner
    return into.line


def _into(box: object) -> Into | None:
    """Where the lines of a dense source go, if they go there at one distance from each other."""
    assert isinstance(box, Box)
    dense, size = [], 1
    for dim in reversed(box.dims):
        dense.append(size)
        size *= dim
    line = box.dims[-1]
    strides = [d if d == 1 else d // line * (box.out_strides[-2] if len(box.dims) > 1 else line) for d in dense[::-1]]
    walked = [s for s, d in zip(box.in_strides, box.dims, strict=True) if d > 1]
    wanted = [s for s, d in zip(dense[::-1], box.dims, strict=True) if d > 1]
    reached = [s for s, d in zip(box.out_strides, box.dims, strict=True) if d > 1]
    expected = [s for s, d in zip(strides, box.dims, strict=True) if d > 1]
    if box.in_offset or size != box.in_size or walked != wanted or reached != expected:
        return None
    return Into(line, box.out_strides[-2] if size > line else line, box.out_offset, box.out_size)

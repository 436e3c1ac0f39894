"""What the lowering makes: tensors with a memory order, constants, and a straight list of kernel calls."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgebuild.kernels.builder import Kernel
from edgebuild.kernels.isa import Isa


def row_major(rank: int) -> tuple[int, ...]:
    return tuple(range(rank))


@dataclass(frozen=True)
class Value:
    """A tensor as an operator sees it: logical `shape`, and `order`, its axes from outermost to innermost in memory.

    Several values may share one `storage`: transposing and reshaping move no byte while the memory order allows it.
    """

    storage: int
    dtype: str
    shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def memory_shape(self) -> tuple[int, ...]:
        return tuple(self.shape[a] for a in self.order)

    @property
    def strides(self) -> tuple[int, ...]:
        """Elements from one index to the next, for each logical axis."""
        strides, step = [0] * len(self.shape), 1
        for axis in reversed(self.order):
            strides[axis] = step
            step *= self.shape[axis]
        return tuple(strides)

    def has_order(self, order: Sequence[int]) -> bool:
        """Whether the bytes lie as `order` says; axes of size 1 may stand anywhere."""
        return [a for a in self.order if self.shape[a] > 1] == [a for a in order if self.shape[a] > 1]

    def seen(self, shape: Sequence[int], order: Sequence[int]) -> "Value":
        return replace(self, shape=tuple(shape), order=tuple(order))


@dataclass(frozen=True)
class Storage:
    """Bytes in the arena (`data` is None) or in weights.bin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """One call of the kernel `make(spec, isa, **options)`: it reads `inputs` and writes `also` and `output`, in
    the order of its arguments; all are storages.
    """

    name: str
    kind: str
    make: Callable[..., Kernel]
    spec: Hashable
    options: tuple[tuple[str, Hashable], ...]
    inputs: tuple[int, ...]
    output: int
    integer: bool
    macs: int
    also: tuple[int, ...] = ()

    @property
    def written(self) -> tuple[int, ...]:
        return (*self.also, self.output)

    def option(self, name: str) -> Hashable:
        return dict(self.options).get(name)

    def with_option(self, name: str, value: Hashable, **changes: Any) -> "Step":
        return replace(self, options=tuple(sorted({**dict(self.options), name: value}.items())), **changes)


@dataclass
class Emitter:
    """Collects storages and steps."""

    isa: Isa
    storages: list[Storage] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    def kernels(self) -> tuple[list[Kernel], list[int]]:
        """The kernels of all steps, each built once, and the kernel of each step."""
        made: dict[Hashable, int] = {}
        kernels: list[Kernel] = []
        of_step = []
        for step in self.steps:
            key = (step.make, step.spec, step.options)
            if key not in made:
                made[key] = len(kernels)
                kernels.append(step.make(step.spec, self.isa, **dict(step.options)))
            of_step.append(made[key])
        return kernels, of_step

    def tensor(self, name: str, dtype: str, shape: Sequence[int], order: Sequence[int] | None = None) -> Value:
        """A new tensor in the arena."""
        axes = tuple(order) if order is not None else row_major(len(shape))
        self.storages.append(Storage(name, dtype, tuple(shape[a] for a in axes)))
        return Value(len(self.storages) - 1, dtype, tuple(shape), axes)

    def constant(self, name: str, array: np.ndarray) -> Value:
        """A tensor in weights.bin, row-major."""
        array = np.ascontiguousarray(array)
        self.storages.append(Storage(name, str(array.dtype), array.shape, array))
        return Value(len(self.storages) - 1, str(array.dtype), array.shape, row_major(array.ndim))

    def call(
        self,
        kind: str,
        name: str,
        make: Callable[..., Kernel],
        spec: Hashable,
        inputs: Sequence[Value],
        output: Value,
        *,
        integer: bool = False,
        macs: int = 0,
        also: Sequence[Value] = (),
        **options: Hashable,
    ) -> None:
        """Call the kernel `make(spec, isa, **options)` with `inputs`, then `also` and `output`, which it writes."""
        given = tuple(sorted(options.items()))
        sources = tuple(v.storage for v in inputs)
        more = tuple(v.storage for v in also)
        self.steps.append(Step(name, kind, make, spec, given, sources, output.storage, integer, macs, more))

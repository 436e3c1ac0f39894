"""Measured block sizes of convolutions, as data: a shape's text, and the text of the blocks that were fastest.

    "conv 1x56x56x24 to 56x56x144 k1x1 s1x1 p0x0 d1x1 g1" = "6x2x1"             rows × vectors × splits
    "depthwise 1x56x56x144 to 56x56x144 k3x3 s1x1 p1x1 d1x1 g144 + table" = "4"   columns

`tuned/ISA.toml` holds what `tests/benchmarks/ship_schedules.py` measured for the recipes of this repository. A shape
that is not listed is cut as the cost model says. Constants are packed the same way for every schedule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebuild.core import toml
from edgebuild.core.errors import RecipeError
from edgebuild.core.lock import table_lines
from edgebuild.kernels.conv import Blocking, Conv, ConvPlan
from edgebuild.kernels.depthwise import DepthwisePlan, is_depthwise
from edgebuild.kernels.isa import Isa

SHIPPED = Path(__file__).with_name("tuned")

Schedule = Blocking | int
"""What a kernel takes as `schedule`: the blocks of a convolution, or the columns of a depthwise one."""


@dataclass(frozen=True)
class _File:
    """The schema of `tuned/ISA.toml`."""

    schedules: dict[str, str]


def key(conv: Conv, *, table: bool = False) -> str:
    """A shape's text; `table`: an activation table is part of the kernel. Where the result is put does not count."""
    kind = "depthwise" if is_depthwise(conv) else "conv"
    sizes = (conv.batch, conv.height, conv.width, conv.channels), (conv.out_height, conv.out_width, conv.out_channels)
    inputs, outputs, kernel, stride, pad, dilation = (
        "x".join(map(str, part)) for part in (*sizes, conv.kernel, conv.stride, conv.pad, conv.dilation)
    )
    window = f"k{kernel} s{stride} p{pad} d{dilation} g{conv.groups}"
    return f"{kind} {inputs} to {outputs} {window}" + (" + table" if table else "")


def alternatives(conv: Conv, isa: Isa) -> dict[str, Schedule]:
    """Every schedule that fits a shape, by its text; the cost model's choice first."""
    if is_depthwise(conv):
        return {str(columns): columns for columns in DepthwisePlan(conv, isa).alternatives}
    return {f"{b.rows}x{b.vectors}x{b.splits}": b for b in ConvPlan(conv, isa.gemm).alternatives}


def find(
    conv: Conv, isa: Isa, *, table: bool, locked: Mapping[str, str], shipped: Mapping[str, str]
) -> Schedule | None:
    """The schedule that the lock names for a shape, else the shipped one, else None: the cost model's.

    Raises RecipeError for a locked schedule that does not fit the registers or the shape. A shipped one that does not
    fit was measured with kernels that have changed since, and is passed over.
    """
    name, fitting = key(conv, table=table), alternatives(conv, isa)
    if name in locked and locked[name] not in fitting:
        raise RecipeError(
            f"recipe.lock: schedules.{isa.name}: '{name}' cannot be cut into blocks of '{locked[name]}'",
            "measure again: edgebuild compile --update-lock",
        )
    text = locked.get(name) or shipped.get(name)
    return fitting.get(text) if text else None


def read_shipped(isa: Isa) -> dict[str, str]:
    """The schedules that come with edgebuild for an instruction set."""
    path = SHIPPED / f"{isa.name}.toml"
    return toml.read(path, _File).schedules if path.exists() else {}


def shipped_text(measured: Mapping[str, str], title: str) -> str:
    """The content of `tuned/ISA.toml`."""
    return "\n".join([f"# {title}", "[schedules]", *table_lines(measured)]) + "\n"

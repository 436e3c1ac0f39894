"""Ingest: a model (with its handler) in, a float32 ONNX graph with static shapes out.

One adapter a framework: `pytorch.py`, `onnx.py`. `handler.py` loads a recipe's Python.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgebuild.core.manifest import Trigger

if TYPE_CHECKING:
    import onnx

TRAINED = "trained"
SPEED_ONLY = "speed-only"


@dataclass(frozen=True)
class Entry:
    """What the manifest says of the function: its name, what triggers it, its time limit in milliseconds."""

    name: str
    trigger: Trigger
    timeout_ms: int | None


@dataclass(frozen=True)
class FloatModel:
    """The graph that the next stages work on.

    `parity` compares it with the source framework on real samples: `samples` (their number), `max_relative_error` by
    output, and `decided_by_rounding`, the outputs that a last digit of the weights changes as much; None where there is
    no source framework. `quality` is `trained` or `speed-only`.
    """

    model: "onnx.ModelProto"
    parity: dict[str, object] | None
    entry: Entry
    quality: str

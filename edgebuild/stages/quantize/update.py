"""A later training of a network, quantized on the grid of an earlier one: what did not change stays the same bytes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx

from edgebuild.stages.quantize import rate
from edgebuild.stages.quantize.calibrated import Calibrated, Samples, Settings, calibrated_as
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Array, Graph
from edgebuild.stages.quantize.kept import Basis, Grids, check_same, grids
from edgebuild.stages.quantize.layers import Layers
from edgebuild.stages.quantize.search import decibels
from edgebuild.stages.quantize.support import check_operators


@dataclass(frozen=True)
class Aim:
    """How much a changed byte is worth. `price`: of a bit, as a share of the mean square of a layer's inputs, that is,
    of the error that a whole step in one weight makes (by layer, where it is in `prices`); `parts`: into how many steps
    of a bias an output step is divided.
    """

    price: float = 0.01
    parts: int = 8
    prices: Mapping[str, float] = field(default_factory=dict)

    def of(self, layer: str) -> float:
        """The price in a layer, by its node's key."""
        return self.prices.get(layer, self.price)


class Update:
    """A later training with what calibration saw of it, beside the earlier build."""

    def __init__(
        self,
        model: onnx.ModelProto,
        samples: Samples,
        settings: Settings,
        basis: Basis,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Raises ModelError where the networks differ by more than values, CalibrationError."""
        graph = Graph(fold(model))
        check_operators(graph)
        check_same(graph, basis.floating)
        self.basis = basis
        self.found: Calibrated = calibrated_as(model, graph, samples, settings, basis.choices, progress)
        self.plan = self.found.plan(basis.choices.fallback)
        self.ranges, fresh = self.found.choose(self.plan, basis.choices.fallback)
        self.grid: Grids = grids(self.found, self.plan, fresh, Graph(basis.model))

    @cached_property
    def layers(self) -> Layers:
        """Those that run as integers."""
        return Layers(self.plan, self.grid, self.basis)

    def quantized(self, aim: Aim) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The QDQ model, which but for values is the earlier one; and what changed, for the report."""
        integers = {name: rows.integers(aim.of(name)) for name, rows in self.layers.of.items()}
        model = self.model(integers, aim.parts)
        reached = decibels(self.found.judge.error(model))
        return model, self.changes(integers) | {"sqnr_db": round(reached, 2)}

    def model(
        self, integers: Mapping[str, Array], parts: int, shifts: Mapping[str, Array] | None = None
    ) -> onnx.ModelProto:
        """The QDQ model with these integers [O, K] of each layer; `shifts` [O] as in Rows.layer."""
        moved = shifts or {}
        self.plan.network.layers = {
            name: rows.layer(integers[name], parts, moved.get(name, 0.0)) for name, rows in self.layers.of.items()
        }
        made = self.plan.model(self.grid.chosen)
        check_same(Graph(made), self.basis.model)
        onnx.checker.check_model(made, full_check=True)
        return made

    def changes(self, integers: Mapping[str, Array]) -> dict[str, Any]:
        """`layers` [{name, weights, changed, rescaled, entropy_bytes}]: integers and channels' scales that differ."""
        rows = []
        for name, layer in self.layers.of.items():
            old, new = layer.old.q, integers[name]
            row: dict[str, Any] = {"name": layer.node.name, "weights": old.size, "changed": int((old != new).sum())}
            row["rescaled"] = int((layer.scale != layer.old.scale).sum())
            rows.append(row | {"entropy_bytes": round(rate.entropy(old, new) / 8)})
        totals = {key: sum(row[key] for row in rows) for key in ("weights", "changed", "rescaled", "entropy_bytes")}
        kept = len(self.grid.chosen) - len(self.grid.rows)
        return {**totals, "grids_kept": kept, "grids_changed": self.grid.rows, "layers": rows}

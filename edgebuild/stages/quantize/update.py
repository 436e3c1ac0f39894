"""A later training of a network, quantized on the grid of an earlier one: what did not change stays the same bytes."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import onnx

from edgebuild.stages.quantize import rate
from edgebuild.stages.quantize.calibrated import Calibrated, Samples, Settings, calibrated_as
from edgebuild.stages.quantize.fold import fold
from edgebuild.stages.quantize.graph import Graph
from edgebuild.stages.quantize.kept import Basis, Grids, check_same, grids
from edgebuild.stages.quantize.layers import Aim, Choice, Layers
from edgebuild.stages.quantize.search import decibels
from edgebuild.stages.quantize.support import check_operators

Choices = Mapping[str, Choice]
"""By the key of a layer's node."""


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

    def quantized(self, aim: Aim | None = None) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The QDQ model, which but for values is the earlier one; and what changed, for the report."""
        choices = self.choices(aim or Aim())
        model = self.model(choices)
        return model, self.changes(choices) | {"sqnr_db": self.decibels(model)}

    def choices(self, aim: Aim) -> Choices:
        """What is shipped of each layer."""
        return {name: rows.chosen(aim) for name, rows in self.layers.of.items()}

    def decibels(self, model: onnx.ModelProto) -> float:
        """How far a model's outputs are from the new float network's."""
        return round(decibels(self.found.judge.error(model)), 2)

    def model(self, choices: Choices) -> onnx.ModelProto:
        """The QDQ model with these choices."""
        self.plan.network.layers = {name: rows.layer(choices[name]) for name, rows in self.layers.of.items()}
        made = self.plan.model(self.grid.chosen)
        check_same(Graph(made), self.basis.model)
        onnx.checker.check_model(made, full_check=True)
        return made

    def shipped(self, choices: Choices) -> onnx.ModelProto:
        """The float network that a part of an update stands for: the next update starts from it."""
        graph = self.plan.network.graph.copy()
        for name, choice in choices.items():
            rows = self.layers.of[name]
            weight, bias = rows.shipped(choice)
            graph.constants[rows.node.input[1]] = weight
            if bias is not None:
                graph.constants[rows.node.input[2]] = bias
        return graph.to_model()

    def changes(self, choices: Choices) -> dict[str, Any]:
        """`layers` [{name, weights, changed, rescaled, entropy_bytes}]: integers and channels' scales that differ."""
        rows = []
        for name, layer in self.layers.of.items():
            new = choices[name]
            row: dict[str, Any] = {"name": layer.node.name, "weights": new.q.size}
            row |= {"changed": int((layer.old.q != new.q).sum()), "rescaled": int((layer.old.scale != new.scale).sum())}
            rows.append(row | {"entropy_bytes": round(rate.entropy(layer.old.q, new.q) / 8)})
        totals = {key: sum(row[key] for row in rows) for key in ("weights", "changed", "rescaled", "entropy_bytes")}
        kept = len(self.grid.chosen) - len(self.grid.rows)
        return {**totals, "grids_kept": kept, "grids_changed": self.grid.rows, "layers": rows}

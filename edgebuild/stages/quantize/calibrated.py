"""From a float network and samples to the choice of scales: what is observed, what is tried, what is taken.

Two passes over the samples: ranges of channels, from which equalization follows; then the values of every tensor that
may be rounded, as they are and equalized. Every fourth sample is held out to judge the rules for ranges, and counted at
the end; with the rule chosen, these and some others judge equalization. Nothing that is kept grows with the number of
samples.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
import onnx

from edgebuild.core.errors import UsageError
from edgebuild.stages.quantize import calibrate, equalize, parameters, rescue
from edgebuild.stages.quantize.boundaries import Boundaries
from edgebuild.stages.quantize.calibrate import InputSpec, Sample, input_specs
from edgebuild.stages.quantize.channels import find_channels
from edgebuild.stages.quantize.functions import Refined, functions
from edgebuild.stages.quantize.graph import Array, Graph, key
from edgebuild.stages.quantize.network import Network, Plan, Statistics
from edgebuild.stages.quantize.observers import Range, Watcher
from edgebuild.stages.quantize.parameters import Affine
from edgebuild.stages.quantize.precision import ROOM, words
from edgebuild.stages.quantize.rounding import Moments, ScaledMoments, SeenMoments, moments
from edgebuild.stages.quantize.search import Candidate, Choose, Judge, best, decibels, rules

Samples = Callable[[], Iterable[Sample]]
Fallback = Mapping[str, Literal["int16", "float32"]]
"""By the key of an operator, what its inputs are stored in, or that it stays float32."""

_HELD_OUT = 4
"""Every so many-th sample is held out …"""
_JUDGES = 32
"""… up to this number. Those that calibration saw would not show what happens to values beyond its ranges."""
_FEWEST, _HELD_BYTES = 8, 1 << 25
"""… or, where samples and what the network makes of them are large, as many as fit in that, but not fewer than of 32
samples: memory must not grow with their number."""
_FEW = 4


@dataclass(frozen=True)
class Settings:
    """How ranges are chosen. `observers` and `ranges` override it for single tensors; `equalized` None: as judged.

    `words`: some tensors get 16 bits, those that cost nothing by their shapes; `rescued`: and those without which the
    network is ruined.
    """

    observer: str = "auto"
    percentile: float = 99.99
    observers: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, Range] = field(default_factory=dict)
    equalized: bool | None = None
    words: bool = True
    rescued: bool = True


@dataclass(frozen=True)
class Choices:
    """What was decided for an earlier training of a network: the rule for ranges, the factor of each channel by tensor,
    the groups that need 16 bits, and the layers that left 8 bits.
    """

    rule: str
    factors: Mapping[str, Array]
    rescued: frozenset[str]
    fallback: Fallback


@dataclass(frozen=True)
class Calibrated:
    """What was found; quantizing with or without fallbacks needs no further pass over the samples.

    `rows`: each candidate with its error, for the report; `specs` and `held` serve tensors that a fallback uncovers.
    """

    settings: Settings
    network: Network
    rule: str
    count: int
    rows: list[dict[str, object]]
    judge: Judge
    again: Callable[[dict[str, list[Watcher]]], None]
    rescued: frozenset[str] = frozenset()

    def plan(self, fallback: Fallback | None = None) -> Plan:
        """What is rounded."""
        plan = self.network.plan(floating_of(fallback or {}))
        self.watch([plan])
        return plan

    def watch(self, plans: Sequence[Plan]) -> None:
        """Runs the samples once more if the plans round tensors whose values were not seen."""
        new: dict[str, list[Watcher]] = {}
        for plan in plans:
            new |= {name: [seen] for name, seen in self.network.unseen(plan).items()}
        if new:
            self.again(new)

    def choose(
        self, plan: Plan, fallback: Fallback | None = None, wide: frozenset[str] = frozenset()
    ) -> tuple[dict[str, Range], dict[str, Affine]]:
        """The range, and scale and zero point, of every group of tensors; those of `wide` get 16 bits too."""
        _check_overrides(self.settings, plan.boundaries)
        found = _ranges(plan, rules(self.settings.observer, self.settings.percentile)[self.rule], self.settings)
        return found, _parameters(plan, found, self.settings, fallback or {}, self.rescued | wide)

    def error(self, judge: Judge, fallback: Fallback | None = None, wide: frozenset[str] = frozenset()) -> float:
        """What `judge` says of the network with some layers, or groups of tensors, at a higher precision."""
        plan = self.plan(fallback)
        return judge.error(plan.model(self.choose(plan, fallback, wide)[1]))


def floating_of(fallback: Fallback) -> frozenset[str]:
    """The layers that stay float32."""
    return frozenset(layer for layer, kind in fallback.items() if kind == "float32")


def calibrated_network(
    model: onnx.ModelProto,
    graph: Graph,
    samples: Samples,
    settings: Settings,
    progress: Callable[[int], None] | None = None,
) -> Calibrated:
    """Observes the folded `graph` of `model`. `progress` gets the number of samples done, over both passes."""
    specs = input_specs(model)
    passes = _Passes(graph, specs, samples, progress)
    plain, equal = _networks(graph, passes, settings)
    networks = [n for n in (plain, equal) if n is not None]
    plans = [network.plan() for network in networks]
    for plan in plans:
        plan.network.unseen(plan)
    _check_overrides(settings, plans[0].boundaries)
    passes.run(_watchers(networks))
    judge = Judge.of(graph, passes.judges)
    candidate, rows = _judged(plans, settings, judge)
    if passes.held:
        candidate = _settled(candidate, rows, plans, settings, Judge.of(graph, [*passes.held, *passes.seen]))
    rescued_groups = _rescued(candidate, settings, judge)
    passes.finish(_watchers(networks))
    network = candidate.plan.network
    return Calibrated(settings, network, candidate.rule, passes.count, rows, judge, passes.once, rescued_groups)


def calibrated_as(
    model: onnx.ModelProto,
    graph: Graph,
    samples: Samples,
    settings: Settings,
    kept: Choices,
    progress: Callable[[int], None] | None = None,
) -> Calibrated:
    """Observes the folded `graph` of `model`, with the choices of an earlier training instead of new ones."""
    known = rules("auto", settings.percentile)
    settings = replace(settings, observer="auto" if kept.rule in known else kept.rule)
    passes = _Passes(graph, input_specs(model), samples, progress)
    plain, equal = _networks(graph, passes, settings, kept.factors)
    network = equal or plain
    plan = network.plan(floating_of(kept.fallback))
    network.unseen(plan)
    watchers = _watchers([plain, equal] if equal else [plain])
    passes.run(watchers)
    judge = Judge.of(graph, [*passes.judges, *passes.seen])
    passes.finish(watchers)
    return Calibrated(settings, network, kept.rule, passes.count, [], judge, passes.once, kept.rescued)


@dataclass
class _Passes:
    """Runs the float network over the samples; holds some out, and keeps as many of the others (`seen`)."""

    graph: Graph
    specs: Mapping[str, InputSpec]
    samples: Samples
    progress: Callable[[int], None] | None
    judges: list[Sample] = field(default_factory=list)
    held: list[Sample] = field(default_factory=list)
    seen: list[Sample] = field(default_factory=list)
    count: int = 0
    done: int = 0

    def run(self, watchers: Mapping[str, Sequence[Watcher]]) -> None:
        """All samples but those that are held out."""
        self.held, self.seen = [], []
        self.count = self._observe(watchers, self._parted()) + len(self.held)
        self.judges = self.held or self.seen[:_HELD_OUT]

    def finish(self, watchers: Mapping[str, Sequence[Watcher]]) -> None:
        """Those that were held out."""
        if self.held:
            self._observe(watchers, iter(self.held))

    def once(self, watchers: Mapping[str, Sequence[Watcher]]) -> None:
        """All samples."""
        self._observe(watchers, iter(self.samples()))

    @property
    def _room(self) -> int:
        """How many samples may be held out."""
        inputs = sum(spec.dtype.itemsize * math.prod(spec.shape) for spec in self.specs.values())
        outputs = 4 * sum(self.graph.sizes.values())
        return max(_FEWEST, min(_JUDGES, _HELD_BYTES // max(inputs + outputs, 1)))

    def _parted(self) -> Iterator[Sample]:
        for number, sample in enumerate(self.samples()):
            if number % _HELD_OUT == _HELD_OUT - 1 and len(self.held) < self._room:
                self.held.append(dict(sample))
                calibrate.check_sample(self.specs, sample, number)
                self._advance()
                continue
            if len(self.seen) < self._room:
                self.seen.append(dict(sample))
            yield sample

    def _observe(self, watchers: Mapping[str, Sequence[Watcher]], samples: Iterator[Sample]) -> int:
        model = self.graph.to_model(t for t in watchers if t not in self.specs)
        return calibrate.observe(model, self.specs, samples, watchers, lambda _: self._advance())

    def _advance(self) -> None:
        self.done += 1
        if self.progress:
            self.progress(self.done)


def _networks(
    graph: Graph, passes: _Passes, settings: Settings, kept: Mapping[str, Array] | None = None
) -> tuple[Network, Network | None]:
    """The network as it is, and equalized, with the factors that are kept if there are; the moments of the second
    follow from those of the first.
    """
    types = graph.types()
    inputs = moments(graph, types, frozenset(key(n) for n in graph.nodes))
    plain = Network(graph, {}, {}, inputs, {})
    channels = find_channels(graph, types)
    seen = {name: equalize.ChannelStatistics() for name in equalize.watched(graph, channels)}
    if not seen or settings.equalized is False or kept == {}:
        return plain, None
    passes.run({name: [watcher] for name, watcher in seen.items()})
    copy = graph.copy()
    factors = (
        equalize.equalize(copy, channels, seen) if kept is None else equalize.equalize_as(copy, channels, seen, kept)
    )
    if not factors:
        return plain, None
    scaled: dict[str, Moments] = {
        key(n): ScaledMoments(inputs[key(n)], factors[n.input[0]]) if n.input[0] in factors else inputs[key(n)]
        for n in graph.nodes
        if key(n) in inputs
    }
    ones = np.ones(1)
    plain.growth.update({n: equalize.growth(s, ones) for n, s in seen.items()})
    growth = {n: equalize.growth(s, factors.get(n, ones)) for n, s in seen.items()}
    return plain, Network(copy, factors, {}, scaled, growth)


def _watchers(networks: Sequence[Network]) -> dict[str, list[Watcher]]:
    """All that watch a tensor, by its name; what two networks have in common is watched once."""
    found: dict[str, list[Watcher]] = {}
    first = networks[0]
    for node in first.graph.nodes:
        if isinstance(seen := first.moments.get(key(node)), SeenMoments):
            found.setdefault(node.input[0], []).append(seen)
    for name in first.graph.float_outputs():
        if first.graph.producer(name) is not None:
            found.setdefault(name, [])  # every tensor that is read is checked for NaN and infinity
    for network in networks:
        for name in network.statistics:
            shared = first.statistics.get(name) if name not in network.factors else None
            if shared is not None:
                network.statistics[name] = shared
            if shared is None or network is first:
                found.setdefault(name, []).append(network.statistics[name])
    return found


def _judged(plans: Sequence[Plan], settings: Settings, judge: Judge) -> tuple[Candidate, list[dict[str, object]]]:
    """`plans`: of the network as it is, and of the equalized one, where there is one."""
    kinds = list(enumerate(plans))[-1:] if settings.equalized else enumerate(plans)
    tried = rules(settings.observer, settings.percentile)
    candidates = [Candidate(plan, rule, equal > 0) for equal, plan in kinds for rule in tried]
    if len(candidates) == 1:
        return candidates[0], []

    def models() -> Iterator[tuple[Candidate, onnx.ModelProto]]:
        for candidate in candidates:
            yield candidate, _model(candidate, settings)

    return best(models(), judge)


def _model(candidate: Candidate, settings: Settings) -> onnx.ModelProto:
    plan = candidate.plan
    return plan.model(_parameters(plan, _ranges_of(candidate, settings), settings, {}))


def _ranges_of(candidate: Candidate, settings: Settings) -> dict[str, Range]:
    return _ranges(candidate.plan, rules(settings.observer, settings.percentile)[candidate.rule], settings)


def _settled(
    candidate: Candidate, rows: list[dict[str, object]], plans: Sequence[Plan], settings: Settings, judge: Judge
) -> Candidate:
    """The same rule for the ranges, with or without equalization, by more samples.

    Ranges must be judged by samples that did not make them. Equalization was made by all of these, and is as good on
    one as on another; among few samples a single one that is far from the others decides.
    """
    if len(plans) < 2 or settings.equalized is not None:
        return candidate
    rated = []
    for equal, plan in enumerate(plans):
        tried = Candidate(plan, candidate.rule, equal > 0)
        reached = decibels(judge.error(_model(tried, settings)))
        rated.append((reached, tried))
        for row in rows:
            if (row["equalized"], row["observer"]) == (tried.equalized, tried.rule):
                row["all_sqnr_db"] = round(reached, 2)
    return max(rated, key=lambda pair: pair[0])[1]


def _rescued(candidate: Candidate, settings: Settings, judge: Judge) -> frozenset[str]:
    """What needs 16 bits because the network is ruined without."""
    plan = candidate.plan
    if not (settings.words and settings.rescued):
        return frozenset()
    ranges = _ranges_of(candidate, settings)

    def error(groups: frozenset[str]) -> float:
        return judge.error(plan.model(_parameters(plan, ranges, settings, {}, groups)))

    if decibels(error(frozenset())) >= rescue.RUINED:
        return frozenset()
    chosen = _parameters(plan, ranges, settings, {})
    pairs: dict[str, list[str]] = {}
    for tensor, function in plan.network.functions.get(plan.selection.quantized, {}).items():
        for result in function.results:
            pairs.setdefault(plan.boundaries.groups[result], []).append(plan.boundaries.groups[tensor])
    few = judge.first(_FEW)

    def roughly(groups: frozenset[str]) -> float:
        return few.error(plan.model(_parameters(plan, ranges, settings, {}, groups)))

    return rescue.rescued(plan, chosen, pairs, error, roughly)


def _ranges(plan: Plan, choose: Choose, settings: Settings) -> dict[str, Range]:
    """The range of each group: what its sources showed, what Pad writes into it, and what was asked for."""
    network, boundaries = plan.network, plan.boundaries
    found = {}
    for group, tensors in boundaries.sources.items():
        members = boundaries.members[group]
        asked = [settings.ranges[t] for t in members if t in settings.ranges]
        own = next((settings.observers[t] for t in members if t in settings.observers), None)
        rule = rules(own, settings.percentile)[own] if own else choose
        padding: list[Range] = [(v, v) for v in boundaries.pads.get(group, ())]
        seen = calibrate.merged(chain((rule(network.statistics[t]) for t in tensors), padding))
        found[group] = asked[0] if asked else parameters.checked_range(group, seen)
        if not asked and not own and len(members) == 1:
            found[group] = _behind_function(plan, group, found[group])
    return found


def _behind_function(plan: Plan, tensor: str, found: Range) -> Range:
    """The range, without what a function that alone reads the tensor makes the same of."""
    network, quantized = plan.network, plan.selection.quantized
    if quantized not in network.functions:
        network.functions[quantized] = functions(network.graph, network.graph.types(), quantized, plan.boundaries)
    function = network.functions[quantized].get(tensor)
    if function is None or not found[0] < found[1]:
        return found
    histogram = network.statistics[tensor].histogram
    seen = (tensor, function.results, int(histogram.counts().sum()))
    if seen not in network.refined:
        network.refined[seen] = Refined(histogram, function, network.graph, tensor)
    refined: Refined = network.refined[seen]
    return refined.range(found)


def _parameters(
    plan: Plan,
    ranges: Mapping[str, Range],
    settings: Settings,
    fallback: Fallback,
    rescued: frozenset[str] = frozenset(),
) -> dict[str, Affine]:
    wide = (set(words(plan)) if settings.words else set()) | rescued
    graph = plan.network.graph
    for node in graph.nodes:
        if fallback.get(key(node)) == "int16":
            wide |= {plan.boundaries.groups[t] for t in graph.data_inputs(node) if t in plan.boundaries.groups}
    asked = {plan.boundaries.groups[tensor] for tensor in settings.ranges}
    rooms = {g: 1.0 if g in asked or g not in wide else ROOM for g in ranges}
    return {
        g: parameters.activation(r[0] * rooms[g], r[1] * rooms[g], 16 if g in wide else 8) for g, r in ranges.items()
    }


def _check_overrides(settings: Settings, boundaries: Boundaries) -> None:
    for name in (*settings.ranges, *settings.observers):
        if name not in boundaries.groups:
            known = ", ".join(boundaries.groups)
            raise UsageError(f"there is no quantized tensor {name!r} to override", f"the tensors are: {known}")
    for name, (low, high) in settings.ranges.items():
        if not low < high:
            raise UsageError(f"range [{low}, {high}] of tensor {name!r} is empty", "give the smaller number first")


def factors_of(network: Network) -> list[dict[str, Any]]:
    """Rows for the report: tensors whose channels were scaled, with the smallest and largest factor."""
    made: dict[str, Array] = {n: f for n, f in network.factors.items() if network.graph.producer(n) is not None}
    return [{"tensor": n, "smallest": float(f.min()), "largest": float(f.max())} for n, f in made.items()]


__all__ = [
    "Calibrated",
    "Fallback",
    "Samples",
    "Settings",
    "Statistics",
    "calibrated_network",
    "factors_of",
    "floating_of",
]

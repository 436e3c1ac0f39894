"""16 bits for the tensors that ruin a network in 8.

Where one channel of a tensor is a hundred times as large as the others, and what lies behind is not homogeneous (SiLU,
sigmoid …), no equalization helps: the others have two or three steps left. Networks that suffer from it give outputs
that hardly resemble the float ones. For them, and only for them, the tensors in which most channels drown in the
rounding get 16 bits, as long as each of them helps.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from edgebuild.stages.quantize.graph import key
from edgebuild.stages.quantize.network import Plan
from edgebuild.stages.quantize.operators import ROWS, is_weighted
from edgebuild.stages.quantize.parameters import Affine
from edgebuild.stages.quantize.search import decibels

RUINED = 18.0
"""Signal to noise at the outputs, in dB, below which a network is looked at."""
_ENOUGH = 30.0
_TRIED = 30
_ALONE = 160
"""So many tensors are tried one by one."""
_HELPS = 0.985
"""The share of the error that a tensor may leave to be worth its 16 bits."""

Error = Callable[[frozenset[str]], float]


def rescued(
    plan: Plan, chosen: Mapping[str, Affine], pairs: Mapping[str, Iterable[str]], error: Error, roughly: Error
) -> frozenset[str]:
    """The groups that get 16 bits. `pairs`: for a group the others that its values come from through a function;
    `error(groups)`: the error at the outputs with these in 16 bits, as energy in relation to the outputs'; `roughly`
    the same on fewer samples.
    """
    suspects = _suspects(plan, chosen)
    found = _taken(frozenset(), suspects[:1], pairs, error)
    if decibels(error(found)) >= _ENOUGH:
        return found
    alone = {g: roughly(found | {g, *pairs.get(g, ())}) for g in suspects[:_ALONE] if g not in found}
    return _taken(found, sorted(alone, key=lambda g: alone[g])[:_TRIED], pairs, error)


def _taken(
    found: frozenset[str], groups: Sequence[str], pairs: Mapping[str, Iterable[str]], error: Error
) -> frozenset[str]:
    """`found` and those of the groups that help, in order, until the outputs are good enough."""
    least = error(found)
    for group in groups:
        if decibels(least) >= _ENOUGH:
            break
        tried = found | {group, *pairs.get(group, ())}
        now = error(tried)
        if now < _HELPS * least:
            found, least = tried, now
    return found


def _suspects(plan: Plan, chosen: Mapping[str, Affine]) -> list[str]:
    """Groups in 8 bits that layers with weights read, those whose channels drown most first."""
    scores = {g: _drowned(plan, g, float(p.scale)) for g, p in chosen.items() if p.bits == 8}
    return sorted((g for g, score in scores.items() if score > 0), key=lambda g: -scores[g])


def _drowned(plan: Plan, group: str, scale: float) -> float:
    """Rounding noise in relation to a channel's energy, at most 1, the mean over the channels; the worst reader's."""
    worst = 0.0
    for node in plan.readers(group):
        if node.op_type in ROWS or (node.op_type == "MatMul" and not is_weighted(plan.network.graph, node)):
            return 0.0
        moments = plan.network.moments.get(key(node))
        covariance = None if moments is None else moments.covariance()
        if moments is None or covariance is None:
            continue
        energy = np.einsum("gkk->gk", covariance) + moments.mean() ** 2
        seen = energy[energy > energy.max() * 1e-9]
        if seen.size:
            worst = max(worst, float(np.minimum(scale**2 / 12 / seen, 1.0).mean()))
    return worst

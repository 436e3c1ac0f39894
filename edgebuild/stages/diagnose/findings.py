"""What was found, in words, and in which order: the culprit first.

The culprit is where an error enters, not where it shows. What the data or the weights do to the float network comes
before what the integers add, and of two such faults the one that feeds the other comes first.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

HIGH, MEDIUM, LOW = "high", "medium", "low"
_ORDER = {HIGH: 0, MEDIUM: 1, LOW: 2}

PREPROCESSING = "preprocessing mismatch"
OUTLIER = "outlier channel"
SATURATION = "saturation"
CLIPPED = "clipped range"
TOO_LARGE = "scale too large"
SCALES_DIFFER = "scales differ"
WEIGHT_SCALE = "weight scale wrong"
COARSE_WEIGHTS = "weights on a coarse grid"
DEAD = "dead channel"
FEW_SAMPLES = "few samples"
UNREPRESENTATIVE = "unrepresentative calibration"
SENSITIVE = "sensitive layer"

REMEDIES = {
    PREPROCESSING: "Prepare the frame exactly as in training, once: look for a division, a mean or a standard "
    "deviation that both the handler and the model apply, or that is missing. Then build again.",
    OUTLIER: "Look at this channel's weights (a damaged checkpoint, a scale applied twice). If it is meant, divide its "
    "weights and bias and multiply the next layer's inputs by the same factor, or keep this layer in 16 bits.",
    SATURATION: "Look at this layer's weights and bias (a damaged checkpoint, a wrong unit of its input), or train it "
    "with weight decay; nothing behind it can tell inputs apart.",
    CLIPPED: "Calibrate this tensor on samples that show its whole range, or widen it: observer = \"minmax\", or a "
    "higher percentile.",
    TOO_LARGE: "Calibrate this tensor again without the sample that stretched its range: observer = \"mse\" or "
    "\"percentile\", or correct the scale that the model file brings along.",
    SCALES_DIFFER: "Write the same scale and zero point on both sides of the pair, and quantize the model again.",
    WEIGHT_SCALE: "Quantize these weights again with scale = max|w| / 127 per output channel; the file's scale does "
    "not belong to its integers.",
    COARSE_WEIGHTS: "Quantize these weights per output channel with scale = max|w| / 127.",
    DEAD: "Nothing is lost by it; pruning these channels makes the model smaller.",
    FEW_SAMPLES: "Calibrate on 64 samples or more that look like what the device will see.",
    UNREPRESENTATIVE: "Calibrate on samples like those that the device sees: many tensors leave the range that "
    "calibration found.",
    SENSITIVE: "Nothing is wrong with it. If the loss matters, keep this layer in 16 bits or float32.",
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One cause. `place`: where the tensor stands in the order of execution; `score`: strength in dB."""

    cause: str
    severity: str
    layer: str
    tensor: str
    operator: str
    what: str
    score: float
    place: float = 0.0
    names: frozenset[str] = frozenset()
    evidence: dict[str, Any] = field(default_factory=dict)
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the report shows it."""
        return {
            "cause": self.cause,
            "severity": self.severity,
            "layer": self.layer,
            "tensor": self.tensor,
            "operator": self.operator,
            "what": self.what,
            "remedy": self.remedy or REMEDIES[self.cause],
            "score_db": round(float(self.score), 1),
            "evidence": self.evidence,
        }


_ENTERS = {PREPROCESSING: 0, WEIGHT_SCALE: 1}  # what these two say, no other fault can bring about
_IN_FLOAT = frozenset({OUTLIER, SATURATION})


def ranked(findings: Iterable[Finding], *, cascading: bool) -> list[Finding]:
    """The culprit first. `cascading`: clipping too shows in everything behind it, since the float network is only known
    from the integers.
    """
    ordered = sorted(findings, key=lambda f: (_ENTERS.get(f.cause, 2), f.place, -f.score))
    kept: list[Finding] = []
    for finding in ordered:
        first = next((f for f in kept if _follows(finding, f, cascading=cascading)), None)
        kept.append(_behind(finding, first) if first is not None else finding)
    return sorted(kept, key=lambda f: (_ORDER[f.severity], f.cause != PREPROCESSING, -f.score, f.place))


def _follows(later: Finding, first: Finding, *, cascading: bool) -> bool:
    """Whether `later` may be a symptom of `first`, which is a fault of the float network before it."""
    if first.severity != HIGH or later.severity != HIGH:
        return False
    if first.cause == PREPROCESSING:
        return later.cause in _IN_FLOAT
    spreading = _IN_FLOAT | ({CLIPPED, WEIGHT_SCALE} if cascading else set())
    return first.cause in spreading and later.cause in spreading and first.tensor in later.names


def _behind(finding: Finding, first: Finding) -> Finding:
    what = f"{finding.what} It lies behind {first.layer or first.tensor} and may follow from what is wrong there."
    return replace(finding, severity=MEDIUM, what=what, score=finding.score / 4)

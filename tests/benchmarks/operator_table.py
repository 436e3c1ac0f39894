"""Writes edgebuild/core/OPERATORS.md: what became of ONNX's own cases for each operator, on this machine."""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from conformance.onnx_nodes import SEVERAL, Outcome, cases, outcomes, table  # noqa: E402

import edgebuild.core  # noqa: E402
from edgebuild.core.operators import THROUGH_TVM  # noqa: E402
from edgebuild.core.target_file import load_target  # noqa: E402

OPERATORS = Path(edgebuild.core.__file__).parent / "OPERATORS.md"
_KINDS = ("passed", "refused", "excluded")
_HEAD = """# Operators

Written by `tests/benchmarks/operator_table.py` from the node tests of onnx {version}, run through the float path:
ingest, keep_float, compile, kernels on the build machine. Passed: ONNX's expected result within the test's own
tolerance, and where edgebuild has a formula for the operator, the interpreter's bits. Refused: a ModelError that names
the layer. Excluded by a rule: {rules}.
float64 is run as float32. No case gives a wrong result.

| operator | kernel | passed | refused | excluded |
|---|---|---|---|---|
"""


def page(found: Sequence[Outcome]) -> str:
    """The text of OPERATORS.md."""
    rules = ", ".join(sorted({o.why for o in found if o.kind == "excluded"}))
    counts = table(found)
    rows = [_row(operator, counts[operator]) for operator in counts]
    total = sum(counts.values(), Counter())
    rows.append("| **all** | | " + " | ".join(f"**{total[kind]}**" for kind in _KINDS) + " |\n")
    return _HEAD.format(version=onnx.__version__, rules=rules) + "".join(rows) + _refusals(found)


def _row(operator: str, counts: Counter[str]) -> str:
    kernel = "" if operator == SEVERAL else "TVM" if operator in THROUGH_TVM else "own"
    return f"| {operator} | {kernel} | " + " | ".join(str(counts[kind]) for kind in _KINDS) + " |\n"


def _refusals(found: Sequence[Outcome]) -> str:
    """What the refusals say, without the names of files and layers."""
    said: Counter[tuple[str, str]] = Counter()
    for outcome in found:
        if outcome.kind == "refused" and outcome.case.operator != SEVERAL:
            said[outcome.case.operator, outcome.why.split(" | ")[0].split(": ")[-1]] += 1
    lines = [f"| {operator} | {why} | {count} |\n" for (operator, why), count in sorted(said.items())]
    return "\n| refused | because | cases |\n|---|---|---|\n" + "".join(lines)


if __name__ == "__main__":
    OPERATORS.write_text(page(outcomes(load_target("host"), cases())), encoding="utf-8")

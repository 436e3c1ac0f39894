"""Whatever is done to a bundle, a delta, a trust file or a release index: none is accepted, and none crashes a reader.

The long form is tests/benchmarks/mutants.py.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny
from machine import HOST
from tamper import harness, processes
from tamper.cases import Table
from tamper.subjects import Subjects

COUNT, SEED, EVERY = 120, 1, 5
PROCESSES = 60


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Subjects:
    return Subjects(tiny.program_so(tmp_path_factory.mktemp("program"), f"{HOST}-linux-gnu"), HOST)


@pytest.fixture
def judge(sanitized: Path, subjects: Subjects, tmp_path: Path) -> Iterator[Callable[..., Table]]:
    with harness.fast_folder(tmp_path) as folder:
        yield lambda cases, every: harness.run(sanitized / "tamper", folder, subjects, cases, every, lambda _: None)


def test_what_was_not_touched_is_accepted(judge: Callable[..., Table], subjects: Subjects) -> None:
    cases = list(harness.originals(subjects))
    table = judge(cases, 1)
    assert table.wrong == []
    assert table.statuses == {"ok": len(cases)}


def test_no_mutant_is_accepted(judge: Callable[..., Table], subjects: Subjects) -> None:
    table = judge(harness.cases(subjects, COUNT, SEED), EVERY)
    print(table.text())  # noqa: T201
    total = table.total()
    assert [(what, case.group, outcome) for what, case, outcome in table.wrong[:20]] == []
    assert (total.accepted, total.crashes, total.disagreements) == (0, 0, 0)
    assert total.mutants >= 20_000
    assert total.compared >= 3_000


def test_the_harness_sees_what_is_accepted(judge: Callable[..., Table], subjects: Subjects) -> None:
    """A good bundle that is said to be a mutant counts as accepted: by both readers, and by the store."""
    cases = [case for case in harness.originals(subjects) if case.letter != "t"]
    wrong = [harness.Case(case.group, case.letter, case.parts) for case in cases]
    table = judge(wrong, 1)
    both = sum(case.letter in "bid" for case in cases)
    assert table.total().accepted == len(cases) + both
    assert table.total().crashes == 0


def test_the_harness_sees_a_crash(judge: Callable[..., Table], subjects: Subjects) -> None:
    """A record that the driver does not know ends it; what comes behind is judged all the same."""
    first, *others = harness.originals(subjects)
    table = judge([first, harness.Case("nonsense", "?", ()), *others], 1000)
    assert table.total().crashes == 1
    assert table.statuses["ok"] == 1 + len(others)


def test_the_program_itself_refuses(sanitized: Path, subjects: Subjects, tmp_path: Path) -> None:
    """The same mutants through `edgebuild-run install`, a process each."""
    cases = list(harness.installs(subjects, 20, SEED + 1))
    chosen = itertools.islice(cases[:: max(1, len(cases) // PROCESSES)], PROCESSES)
    wrong = processes.check(sanitized / "edgebuild-run", tmp_path, subjects, chosen)
    assert wrong == []

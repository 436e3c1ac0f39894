"""Mutants of bundles, deltas, manifests, signatures, trust files and release indices, through both readers.

    python tests/benchmarks/mutants.py [--count N] [--seed N] [--every N] [--processes N]

About 100 mutants for each of COUNT, from SEED; one in EVERY through Python's reader too; PROCESSES of them through
`edgebuild-run install`. Prints a table of classes; exit code 1 if any mutant was accepted, crashed, or divides the
readers.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "runtime")]

import tiny  # noqa: E402
from machine import HOST  # noqa: E402
from tamper import harness, processes  # noqa: E402
from tamper.cases import Table  # noqa: E402
from tamper.subjects import Subjects  # noqa: E402

from edgebuild.stages.runtime import build_runtime, sanitized_build  # noqa: E402


def progress(table: Table) -> None:
    total = table.total()
    print(f"\r{total.mutants} mutants, {len(table.wrong)} wrong", end="", file=sys.stderr, flush=True)  # noqa: T201


def measure(options: argparse.Namespace, folder: Path) -> list[str]:
    """Prints the table; what went wrong."""
    programs = build_runtime(sanitized_build(targets=("edgebuild-run", "tamper")))
    subjects = Subjects(tiny.program_so(folder, f"{HOST}-linux-gnu"), HOST)
    start = time.perf_counter()
    found = harness.cases(subjects, options.count, options.seed)
    with harness.fast_folder(folder) as store:
        table = harness.run(programs / "tamper", store, subjects, found, options.every, progress)
    print(f"\n{table.text()}\n{time.perf_counter() - start:.0f} s, seed {options.seed}")  # noqa: T201
    wrong = [f"{what}: {case.group}: {outcome[:300]}" for what, case, outcome in table.wrong]
    cases = list(harness.installs(subjects, 100, options.seed + 1))
    chosen = cases[:: max(1, len(cases) // options.processes)][: options.processes]
    missed = processes.check(programs / "edgebuild-run", folder, subjects, chosen)
    print(f"edgebuild-run install: {len(chosen)} mutants, {len(missed)} wrong")  # noqa: T201
    return wrong + missed


def main() -> int:
    parser = argparse.ArgumentParser()
    for name, value in (("count", 2000), ("seed", 1), ("every", 7), ("processes", 300)):
        parser.add_argument(f"--{name}", type=int, default=value)
    with tempfile.TemporaryDirectory() as folder:
        wrong = measure(parser.parse_args(), Path(folder))
    for line in wrong[:50]:
        print(line)  # noqa: T201
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())

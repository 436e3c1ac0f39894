"""Every system call fails once: `python tests/benchmarks/faults.py [--stride N] [OPERATION]...`.

Each operation of tests/power runs with the real runtime in its bundles while one call of it, or of the canary or the
release that it starts, fails with each errno that may come of a full, broken or read-only disk, of too little memory or
too many descriptors, or of a signal, or is done by half; and once more while all calls of a kind fail from one on. Then
the old or the new release must be current and run, the exit code be right, and nothing be left over.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "runtime")]

import tiny  # noqa: E402
from machine import HOST  # noqa: E402
from power.calls import build_shim  # noqa: E402
from power.faulting import build_faults, fail_everywhere, held, lasting_faults, single_faults  # noqa: E402
from power.operations import OPERATIONS, Releases  # noqa: E402
from power.sweep import Bench, scratch_root  # noqa: E402


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("operations", nargs="*", choices=[[], *(operation.name for operation in OPERATIONS)])
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--show", type=int, default=12)
    arguments = parser.parse_args()
    chosen = [operation for operation in OPERATIONS if operation.name in arguments.operations] or OPERATIONS
    total: Counter[str] = Counter()
    with (
        tempfile.TemporaryDirectory() as built,
        tempfile.TemporaryDirectory(prefix="faults-", dir=scratch_root()) as folder,
    ):
        releases = Releases(Path(folder), tiny.program_so(Path(built), f"{HOST}-linux-gnu"), real=True)
        bench, faults = Bench(build_shim(Path(built)), Path(folder), releases), build_faults(Path(built))
        for operation in chosen:
            began = time.perf_counter()
            calls = held(faults, bench, operation)
            own = not operation.after.endswith("c") and operation.code == 0 and "crash" not in operation.name
            cases = [*single_faults(calls, own_runtime=own), *lasting_faults(calls)][:: arguments.stride]
            found = fail_everywhere(faults, bench, operation, cases)
            total.update(calls=len(calls), faults=len(cases), problems=len(found.problems))
            outcomes = ", ".join(f"{name} {count}" for name, count in sorted(found.outcomes.items()))
            say(
                f"{operation.name:30} {len(calls):5} calls {len(cases):6} faults: {outcomes}; {len(found.problems)} "
                f"problems ({time.perf_counter() - began:.0f} s)"
            )
            for problem in found.problems[: arguments.show]:
                say(f"    {problem}")
    say(f"all: {total['calls']} calls, {total['faults']} faults, {total['problems']} problems")
    if total["problems"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Builds every recipe for several CPUs and says whether the programs give the interpreter's bits on the golden samples.

    python tests/conformance/every_model.py [RECIPE ...] [--targets x86_64-avx2,…]

Networks are untrained: weights are random, and BatchNorm statistics come from real pictures. Foreign CPUs are emulated,
so this takes an hour for all of them.
"""

import argparse
import sys
import time

from edgebuild import pipeline
from edgebuild.core import keys
from edgebuild.core.errors import EdgebuildError
from edgebuild.core.target_file import load_target
from edgebuild.projects import Overrides, bundled_recipes, resolve

TARGETS = "x86_64-avx2,x86_64-generic,aarch64-generic,raspberry-pi-5,riscv64-generic"


class Silent:
    def started(self, stage: str) -> None: ...

    def advanced(self, stage: str, done: int, total: int | None) -> None: ...

    def finished(self, stage: str, seconds: float, *, cached: bool) -> None: ...


def verdict(name: str, target: str) -> str:
    """`identical`, or what is wrong."""
    recipe = resolve(name, Overrides(None, None, None, None))
    job = pipeline.Job(recipe, load_target(target), recipe.name, recipe.version, untrained=True)
    try:
        report = pipeline.build(job, keys.signing_key(None), Silent()).report
    except EdgebuildError as error:
        return f"FAILED: {error.message}"
    return "identical" if report["checked"] else f"not run: {report['check_reason']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--targets", default=TARGETS)
    given = parser.parse_args()
    good = True
    for name in given.recipes or sorted(bundled_recipes()):
        for target in given.targets.split(","):
            start = time.monotonic()
            found = verdict(name, target)
            good = good and found == "identical"
            print(f"{name:22} {target:18} {found} ({time.monotonic() - start:.0f} s)", flush=True)  # noqa: T201
    sys.exit(not good)


if __name__ == "__main__":
    main()

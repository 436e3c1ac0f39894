"""Checks the cost model of the GEMM's inner loop: `Cost.step` beside what llvm-mca says of the code that LLVM made.

    python tests/benchmarks/mca.py [TARGET ...]      # prints a table in Markdown; needs llvm-mca (Debian: llvm)

For a few blocks of each target the innermost loop of a 1×1 convolution is cut out of the assembly, and simulated for
CPUs that such a target means. mca knows ports and latencies, but no caches; its version must know the CPU.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from edgebuild.core.target import Target
from edgebuild.core.target_file import load_target
from edgebuild.kernels.conv import Blocking, Conv, ConvPlan, conv_kernel
from edgebuild.kernels.isa import ISAS, Isa
from edgebuild.stages.compile import codegen

ITERATIONS = 200
CONV = Conv(1, 28, 28, 192, 28, 28, 192)
BLOCKS = 4
"""The cost model's best, and its best for each other number of vectors."""

CPUS = {
    "x86_64-avx2": ("znver2", "znver3", "haswell", "skylake", "alderlake"),
    "x86_64-avx512vnni": ("cascadelake", "icelake-server", "sapphirerapids"),
    "aarch64-generic": ("cortex-a53", "cortex-a55", "cortex-a57", "cortex-a72"),
    "raspberry-pi-5": ("cortex-a55", "cortex-a76", "neoverse-n1"),
}
_DOTS = re.compile(r"^\s+(vpdpbusd|vpmaddwd|sdot|smlal2?)\s")
_LABEL = re.compile(r"^(\.L\w+):")
_BRANCH = re.compile(r"^\s+(?:j\w+|b\.?\w*|cbn?z|tbn?z)\s.*?(\.L\w+)$")
_CYCLES = re.compile(r"Total Cycles:\s+(\d+)")


@dataclass(frozen=True)
class Loop:
    """An innermost loop's lines of assembly, and the steps of the GEMM that it takes at once."""

    lines: tuple[str, ...]
    steps: float


def loops(assembly: str) -> Iterator[list[str]]:
    """Bodies of the loops that hold no other label: from a label to a branch back to it."""
    start, label = 0, ""
    lines = [
        line
        for line in assembly.splitlines()
        if line.strip() and not line.strip().startswith(("#", "//", ".Ltmp", ".p2align"))
    ]
    for number, line in enumerate(lines):
        if found := _LABEL.match(line):
            start, label = number + 1, found.group(1)
        elif (jump := _BRANCH.match(line)) and jump.group(1) == label:
            yield [each for each in lines[start : number + 1] if not each.strip().startswith(".")]


def inner_loop(block: Blocking, isa: Isa, target: Target) -> Loop:
    """The loop over K of a full block: the one with most dot instructions."""
    module = codegen._compile([conv_kernel(CONV, isa, schedule=block)], target)
    dots = {n: body for body in loops(module.inspect_source("asm")) if (n := sum(map(bool, map(_DOTS.match, body))))}
    if not dots:
        sys.exit(f"{target.name}: no loop with dot instructions found for {block}")
    return Loop(tuple(dots[max(dots)]), max(dots) / (block.rows * block.vectors))


def cycles(loop: Loop, target: Target, cpu: str) -> float | None:
    """Cycles of one step by llvm-mca, or None where it does not know the CPU or an instruction."""
    command = ["llvm-mca", f"-mtriple={target.triple}", f"-mcpu={cpu}", f"-iterations={ITERATIONS}"]
    attributes = [a for a in target.attributes if a.startswith("+")]
    if target.arch == "aarch64" and "dotprod" in target.features:
        attributes.append("+dotprod")
    options = [f"-mattr={','.join(attributes)}"] if attributes else []
    text = "\n".join(loop.lines) + "\n"
    done = subprocess.run([*command, *options], input=text, capture_output=True, text=True, check=False)
    found = _CYCLES.search(done.stdout)
    return int(found.group(1)) / ITERATIONS / loop.steps if found and done.returncode == 0 else None


def blocks(isa: Isa) -> list[Blocking]:
    alternatives = ConvPlan(CONV, isa).alternatives
    best_of: dict[int, Blocking] = {}
    for block in alternatives:
        best_of.setdefault(block.vectors, block)
    return list(dict.fromkeys([alternatives[0], *best_of.values()]))[:BLOCKS]


def table(targets: list[str]) -> Iterator[str]:
    yield "| instruction set | block | cost model | llvm-mca, cycles of one step |"
    yield "|---|---|---|---|"
    for name in targets:
        target = load_target(name)
        isa = ISAS[target.isa]
        for block in blocks(isa):
            loop = inner_loop(block, isa, target)
            found = {cpu: cycles(loop, target, cpu) for cpu in CPUS[name]}
            shown = ", ".join(f"{cpu} {'unknown' if n is None else f'{n:.1f}'}" for cpu, n in found.items())
            model = isa.cost.step(block.rows, block.vectors)
            yield f"| {isa.name} | {block.rows}×{block.vectors} | {model:.1f} | {shown} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=[*CPUS], help=f"of {', '.join(CPUS)}")
    for line in table(parser.parse_args().targets):
        print(line)  # noqa: T201


if __name__ == "__main__":
    main()

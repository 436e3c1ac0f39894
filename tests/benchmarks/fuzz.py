"""Searches the native readers with libFuzzer for as long as is asked for, and says what that covered.

    python tests/benchmarks/fuzz.py [SECONDS] [NAME ...]

Corpora lie in the cache: a later search goes on where this one ended. `tests/runtime/test_fuzz.py` is the short form.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "runtime")]

import tiny  # noqa: E402
from machine import HOST  # noqa: E402
from test_fuzz import seeds  # noqa: E402

from edgebuild.core.cache import cache_dir  # noqa: E402
from edgebuild.stages.runtime import build_runtime, sanitized_build  # noqa: E402

SECONDS = 600
NAMES = ("manifest", "bundle", "trust", "delta", "index", "state", "chunks")
# As the tests have it: each allocation is limited, not the process, whose sanitizers keep memory of their own.
OPTIONS = ("-max_len=32768", "-rss_limit_mb=0", "-malloc_limit_mb=1024", "-timeout=10", "-print_final_stats=1")


def corpus(name: str, found: list[bytes]) -> Path:
    """The folder of what was found before, with the seeds in it."""
    folder = cache_dir() / "fuzz" / name / "corpus"
    folder.mkdir(parents=True, exist_ok=True)
    for i, seed in enumerate(found):
        (folder / f"seed-{i}").write_bytes(seed)
    return folder


def search(program: Path, name: str, found: list[bytes], seconds: int) -> tuple[int, str]:
    """Exit code and last figures of libFuzzer."""
    folder = corpus(name, found)
    crashes = folder.parent / "crashes"
    crashes.mkdir(exist_ok=True)
    command = [program, f"-max_total_time={seconds}", *OPTIONS, f"-artifact_prefix={crashes}/", folder]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    figures = re.findall(r"cov: .*", done.stderr)
    runs = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    line = f"fuzz_{name}: {runs[-1] if runs else '?'} runs in {seconds} s, {figures[-1] if figures else 'no figures'}"
    if not done.returncode:
        return 0, f"{line}, no crash"
    return done.returncode, f"{line}\n{done.stderr[-3000:]}\nkept in {crashes}"


def main(arguments: list[str]) -> int:
    seconds = int(arguments[0]) if arguments else SECONDS
    names = arguments[1:] or NAMES
    with tempfile.TemporaryDirectory() as folder:
        start = seeds(tiny.Bundle(tiny.program_so(Path(folder), f"{HOST}-linux-gnu"), arch=HOST))
    if unknown := set(names) - set(start):
        raise SystemExit(f"no fuzzer {', '.join(unknown)}; there are {', '.join(start)}")
    programs = build_runtime(sanitized_build(targets=tuple(f"fuzz_{name}" for name in names)))
    worst = 0
    for name in names:
        code, line = search(programs / f"fuzz_{name}", name, start[name], seconds)
        print(line, flush=True)  # noqa: T201
        worst = max(worst, abs(code))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

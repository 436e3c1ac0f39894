"""Measures what README's table holds: `make bench`. Nothing else should run meanwhile.

Times are wall clock. Where two engines are compared, their runs alternate in one process; minimum and median are given.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import shared_data  # noqa: E402

from edgebuild.core.cache import cache_dir  # noqa: E402
from edgebuild.core.calibration import find_set, load_set  # noqa: E402
from edgebuild.core.manifest import Tensor  # noqa: E402
from edgebuild.demo import y4m  # noqa: E402
from edgebuild.stages.runtime import runtime_binary  # noqa: E402

Row = tuple[str, str, str]


class Bench:
    """A user's machine with an empty cache, but for the native runtime."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"EDGEBUILD_CACHE": str(folder / "cache"), "XDG_CONFIG_HOME": str(folder / "config"), "TERM": "dumb"}
        self.environment = {**os.environ, **own}
        self.trust = folder / "config" / "edgebuild" / "trust"
        (folder / "cache").mkdir()
        runtime_binary("x86_64-linux-gnu")
        for name in ("runtime", "libsodium"):
            if (cache_dir() / name).is_dir():
                shutil.copytree(cache_dir() / name, folder / "cache" / name)

    def edgebuild(self, *arguments: object) -> str:
        command = [sys.executable, "-m", "edgebuild", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=self.environment, cwd=self.folder
        )
        if done.returncode:
            raise SystemExit(done.stderr)
        return done.stdout

    def compile(self, *arguments: object) -> tuple[dict[str, Any], float]:
        start = time.perf_counter()
        report = json.loads(self.edgebuild("compile", *arguments, "--json"))
        return report, time.perf_counter() - start


def shortest(action: Callable[[], object], runs: int) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def digits(bench: Bench) -> list[Row]:
    report, cold = bench.compile("digits", "--baseline")
    _, again = bench.compile("digits")
    accuracy, size = report["accuracy"], report["size"]
    return [
        (
            "digits, top-1 on held-out digits",
            f"float {accuracy['float']:.2f} %, INT8 {accuracy['int8']:.2f} %",
            "drop ≤ 0.5, float ≥ 97 %",
        ),
        ("digits, INT8 weights / float32", f"{size['ratio']:.3f}", "≤ 0.28"),
        ("digits, compile with training, cold; unchanged", f"{cold:.1f} s; {again:.2f} s", ""),
        ("digits, one frame, 1 thread", _turns(report), ""),
        ("start of edgebuild-run to first result, digits", f"{1e3 * _first_result(bench):.1f} ms", "≤ 10 ms"),
    ]


def _first_result(bench: Bench) -> float:
    """Process start, verification of every byte, and one frame."""
    shape = Tensor("frame", "uint8", (64, 64, 3))
    sample = next(load_set(find_set("digits"), "test").samples([shape], 1))
    stream = bench.folder / "one.y4m"
    stream.write_bytes(b"".join(y4m(iter([sample["frame"]]), shape)))
    program = runtime_binary("x86_64-linux-gnu")
    bundle = bench.folder / "digits-1.0.0-host.ebundle"
    command = [program, bundle, "--trust", bench.trust, "--input", stream]
    return shortest(lambda: subprocess.run(command, capture_output=True, check=True), 50)


def _turns(report: dict[str, Any]) -> str:
    ours, theirs = report["baseline"]["edgebuild"], report["baseline"]["onnxruntime"]
    ratio = ours["min"] / theirs["min"]  # of the bar: our time over theirs
    return (
        f"min {ours['min']:,.0f} µs, median {ours['median']:,.0f} µs; ONNX Runtime INT8 "
        f"{theirs['min']:,.0f} and {theirs['median']:,.0f} µs ({ratio:.2f}×)"
    )


def mobilenetv2(bench: Bench) -> list[Row]:
    """Trained weights where they are at hand, else untrained ones: speed and size do not depend on them."""
    options: list[object] = ["--samples", "64"]
    if shared_data.ROOT.is_dir():
        recipe: object = shared_data.mobilenetv2_recipe(bench.folder / "recipe")
        options += ["--calibration", shared_data.imagenet_set(bench.folder / "imagenet")]
    else:
        recipe = "mobilenetv2"
        options += ["--untrained"]
    report, cold = bench.compile(recipe, *options, "--baseline")
    _, again = bench.compile(recipe, *options)
    macs, stages = report["macs"], report["seconds"]
    build = cold - stages.get("evaluate", 0.0)
    return [
        ("MobileNetV2 224, one frame, 1 thread", _turns(report), "≤ 2.0×"),
        ("MobileNetV2, INT8 weights / float32", f"{report['size']['ratio']:.3f}", "≤ 0.28"),
        ("MobileNetV2, multiply-accumulates in integers", f"{100 * macs['integer'] / macs['total']:.0f} %", "100 %"),
        (
            "MobileNetV2, compile with 64 pictures, cold; unchanged",
            f"{build:.1f} s (accuracy on 650 pictures {stages['evaluate']:.1f} s more); {again:.2f} s",
            "≤ 90 s; ≤ 2 s",
        ),
        ("  seconds per stage", ", ".join(f"{k} {v:.1f}" for k, v in stages.items()), ""),
    ]


def imagenet(bench: Bench) -> list[Row]:
    if not shared_data.ROOT.is_dir():
        return []
    pictures = shared_data.imagenet_set(bench.folder / "pictures")
    rows = []
    for name, weights in shared_data.WEIGHTS.items():
        options = ("--weights", weights, "--calibration", pictures, "--samples", "500", "--baseline")
        report, _ = bench.compile(name, *options)
        accuracy = report["accuracy"]
        top1 = f"float {accuracy['float']:.2f} %, INT8 {accuracy['int8']:.2f} % ({accuracy['samples']} pictures)"
        rows += [
            (f"{name}, top-1", top1, "drop ≤ 2"),
            (f"{name}, one frame, 1 thread", _turns(report), ""),
        ]
    return rows


def sizes(bench: Bench) -> list[Row]:
    help_time = shortest(lambda: bench.edgebuild("--help"), 10)
    bytes_of = {triple: runtime_binary(f"{triple}-linux-gnu").stat().st_size for triple in ("x86_64", "aarch64")}
    return [
        ("edgebuild --help", f"{help_time:.2f} s", "≤ 0.4 s"),
        ("edgebuild-run, stripped", ", ".join(f"{k} {v / 1000:.0f} KB" for k, v in bytes_of.items()), "≤ 400 KB"),
    ]


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edgebuild-bench-") as folder:
        bench = Bench(Path(folder))
        print("| what | measured | bar |\n|---|---|---|")  # noqa: T201
        for part in (sizes, digits, mobilenetv2, imagenet):
            for row in part(bench):
                print(f"| {' | '.join(row)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()

"""The demonstration: `digits` for this machine, run by the native runtime on held-out digits as a y4m stream."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebuild import pipeline, projects, views
from edgebuild.bench.session import with_baseline
from edgebuild.core import keys
from edgebuild.core.calibration import find_set, load_set
from edgebuild.core.errors import CheckError
from edgebuild.core.manifest import Tensor
from edgebuild.core.runner import said
from edgebuild.core.target_file import load_target

if TYPE_CHECKING:
    import numpy as np

OUT = Path("out")
SHARE_RIGHT = 0.95
"""Of the demonstration's frames; the recipe's accuracy is measured by the build, on tensors."""


def run(listener: pipeline.Listener, out: Path = OUT) -> list[tuple[str, str]]:
    """Compiles, runs, and returns what to show. Raises CheckError when the labels are not right."""
    recipe = projects.resolve(projects.DEFAULT, projects.Overrides())
    job = pipeline.Job(recipe, load_target("host"), recipe.name, recipe.version)
    key = keys.signing_key(None)
    result = with_baseline(pipeline.build(job, key, listener), recipe, key.public)
    out.mkdir(parents=True, exist_ok=True)
    bundle = pipeline.write_output(result, out)
    right, total, latency = _labels(bundle)
    if right < SHARE_RIGHT * total:
        raise CheckError(
            f"only {right} of {total} held-out digits were read right", "this is a bug in edgebuild; please report it"
        )
    made = result.report
    weights = made["size"]
    return [
        ("bundle", f"{bundle} ({views.size(made['bundle_bytes'])}), signed by {made['signer']}"),
        ("accuracy", views.accuracy_line(made)),
        ("read from y4m", f"{right} of {total} held-out digits right, median {latency:.0f} µs a frame"),
        (
            "weights",
            f"{views.size(weights['float_bytes'])} → {views.size(weights['int8_bytes'])} (x{weights['ratio']:.2f})",
        ),
        ("latency", views.latency_line(made["latency_us"], made["latency_reason"])),
        ("ONNX Runtime INT8", views.baseline_line(made["baseline"])),
        ("runtime", f"{views.size(made['runtime_bytes'])}, travels in the bundle"),
    ]


def _labels(bundle: Path) -> tuple[int, int, float]:
    """Runs the bundle on a y4m stream of held-out digits: labels that are right, all labels, median latency in µs."""
    from edgebuild.core.bundle import read_bundle  # noqa: PLC0415
    from edgebuild.stages.runtime import runtime_binary  # noqa: PLC0415

    trust = keys.user_trust_path()
    manifest = read_bundle(bundle.read_bytes(), keys.load_trust(trust)).manifest
    data = list(load_set(find_set(projects.DEFAULT), "test").labelled(manifest.inputs))
    stream = b"".join(y4m((sample[manifest.inputs[0].name] for sample, _ in data), manifest.inputs[0]))
    command = [runtime_binary(load_target("host").triple), bundle, "--input", "-", "--trust", trust, "--threads", "1"]
    done = subprocess.run([str(part) for part in command], input=stream, capture_output=True, check=False)
    if done.returncode != 0:
        raise CheckError(f"edgebuild-run fails: {said(done)}", "this is a bug in edgebuild; please report it")
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    pairs = zip(lines, (label for _, label in data), strict=True)
    right = sum(line["outputs"]["label"] == label for line, label in pairs)
    return right, len(lines), sorted(line["latency_us"] for line in lines)[len(lines) // 2]


def y4m(frames: "Iterator[np.ndarray[Any, Any]]", shape: Tensor) -> Iterator[bytes]:
    """Grey frames, uint8 [H, W, 3], as a full-range monochrome y4m stream."""
    height, width, _ = shape.shape
    yield f"YUV4MPEG2 W{width} H{height} F15:1 Ip Cmono XCOLORRANGE=FULL\n".encode()
    for frame in frames:
        yield b"FRAME\n" + frame[:, :, 0].tobytes()

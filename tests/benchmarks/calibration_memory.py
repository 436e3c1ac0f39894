"""Peak memory of calibration by the number of samples, for every observer, in Markdown.

    python tests/benchmarks/calibration_memory.py [MODEL ...] [--samples FEW MANY]

Each run is a process of its own. Its peak before calibration (Python, ONNX Runtime, the model) counts as well: it is
what a machine must have. The samples are the model's calibration set, again and again where it is smaller.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks")]

import onnx  # noqa: E402
from subjects import SUBJECTS, Subject  # noqa: E402

from edgebuild.core.calibration import load_set  # noqa: E402
from edgebuild.stages.ingest.onnx import model_inputs  # noqa: E402
from edgebuild.stages.quantize import Settings, quantize  # noqa: E402

OBSERVERS = ("auto", "minmax", "moving-average", "percentile", "entropy", "mse")
MODELS = ("resnet8", "mobilenet_v1_025")
MOST = 1.1


def peak(model: Path, data: Path, observer: str, count: int) -> int:
    """Bytes, of this process."""
    network = onnx.load(model)
    found = load_set(data)
    inputs = model_inputs(network)

    def samples() -> "itertools.islice[dict[str, object]]":
        endless = itertools.chain.from_iterable(found.samples(inputs, count) for _ in itertools.count())
        return itertools.islice(endless, count)

    quantize(network, samples, Settings(observer=observer))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()  # ru_maxrss has the parent's peak in it
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) << 10


def measured(subject: Subject, few: int, many: int) -> bool:
    """Prints a row for each observer; whether all are within the bar."""
    within = True
    with tempfile.TemporaryDirectory() as folder:
        recipe, model = subject.recipe(Path(folder)), Path(folder) / "float.onnx"
        onnx.save(subject.float_model(recipe), model)
        for observer in OBSERVERS:
            command = [sys.executable, __file__, "--one", str(model), str(recipe.calibration.set), observer]
            peaks = [int(subprocess.check_output([*command, str(count)])) for count in (few, many)]
            ratio = peaks[1] / peaks[0]
            within &= ratio <= MOST
            sizes = " | ".join(f"{size / 1e6:.0f} MB" for size in peaks)
            print(f"| {subject.name} | {observer} | {sizes} | {ratio:.3f} |", flush=True)  # noqa: T201
    return within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--samples", nargs=2, type=int, default=(32, 2000), metavar=("FEW", "MANY"))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        model, data, observer, count = given.one
        print(peak(Path(model), Path(data), observer, int(count)))  # noqa: T201
        return
    few, many = given.samples
    print(f"| model | observer | {few} samples | {many} | ratio, at most {MOST} |\n|---|---|---|---|---|")  # noqa: T201
    sys.exit(sum(not measured(SUBJECTS[name], few, many) for name in given.models))


if __name__ == "__main__":
    main()

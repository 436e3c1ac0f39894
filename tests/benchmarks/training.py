"""Trains the networks that are hard to quantize and come without weights, on Fashion-MNIST; kept in the cache.

python tests/benchmarks/training.py [NAME ...]
"""

import gzip
import importlib.util
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks")]

import numpy as np  # noqa: E402
import shared_data  # noqa: E402

from edgebuild.core import digest  # noqa: E402

if TYPE_CHECKING:
    import torch
    from torch import nn

RECIPES = Path(__file__).resolve().parent / "recipes"
BATCH = 128
SEED = 0
_IMAGES_OFFSET, _LABELS_OFFSET = 16, 8


@dataclass(frozen=True)
class Course:
    """`side`: of the picture that the network sees; `rate`: the highest learning rate of the cycle."""

    side: int
    epochs: int
    rate: float


COURSES = {
    "fashion_mobilenet_v3": Course(48, 2, 4e-3),
    "fashion_efficientnet": Course(32, 1, 4e-3),
    "fashion_vit": Course(28, 2, 2e-3),
}


def fashion(part: str) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Pictures uint8 [N, 28, 28] and labels of `train` or `t10k`."""
    folder = shared_data.ROOT / "fashion-mnist"
    raw = [
        gzip.decompress(shared_data.require(folder / f"{part}-{kind}-ubyte.gz").read_bytes())
        for kind in ("images-idx3", "labels-idx1")
    ]
    pictures = np.frombuffer(raw[0], np.uint8, offset=_IMAGES_OFFSET).reshape(-1, 28, 28)
    return pictures, np.frombuffer(raw[1], np.uint8, offset=_LABELS_OFFSET).astype(np.int64)


def trained(name: str, cache: Path) -> Path:
    """The weights of the recipe `name`; trained when the cache lacks them."""
    model, arguments = _model(name)
    key = digest.of_parts(digest.of_file(model), repr(arguments), repr(COURSES[name]), digest.of_file(Path(__file__)))
    path = cache / "weights" / f"{name}-{key[:16]}.safetensors"
    if not path.exists():
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        save_file(_train(name).state_dict(), partial)
        partial.replace(path)
    return path


def _model(name: str) -> tuple[Path, dict[str, Any]]:
    table = tomllib.loads((RECIPES / name / "recipe.toml").read_text(encoding="utf-8"))["model"]
    return RECIPES / name / table["file"], table.get("args", {})


def _build(name: str) -> "nn.Module":
    path, arguments = _model(name)
    spec = importlib.util.spec_from_file_location(f"_network_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    network: nn.Module = module.build(**arguments)
    return network


def _train(name: str) -> "nn.Module":
    """AdamW over one cycle of the learning rate; pictures are shifted and mirrored."""
    import torch
    from torch.nn import functional

    course = COURSES[name]
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    network = _build(name).train()
    pictures, labels = (torch.from_numpy(array.copy()) for array in fashion("train"))
    steps = course.epochs * (len(labels) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, course.rate, total_steps=steps)
    step = 0
    for _ in range(course.epochs):
        for batch in torch.randperm(len(labels)).split(BATCH)[: len(labels) // BATCH]:
            loss = functional.cross_entropy(network(_seen(network, pictures[batch], course.side)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cycle.step()
            step += 1
            if step % 100 == 0:
                print(f"  {name}: step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True)  # noqa: T201
    return network.eval()


def _seen(network: "nn.Module", pictures: "torch.Tensor", side: int) -> "torch.Tensor":
    """A batch as the handler gives it, at random up to 2 pixels aside, half of it mirrored."""
    import torch
    from torch.nn import functional

    x = functional.pad(pictures[:, None].float() / 255, (2, 2, 2, 2))
    dy, dx = (int(torch.randint(5, ())) for _ in range(2))
    x = x[..., dy : dy + 28, dx : dx + 28]
    x = torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)
    if side != x.shape[-1]:
        x = functional.interpolate(x, (side, side), mode="bilinear", align_corners=False)
    return (x.expand(-1, 3, -1, -1) - network.mean[:, None, None]) / network.std[:, None, None]


def main() -> None:
    from subjects import cache_folder

    for name in sys.argv[1:] or COURSES:
        print(trained(name, cache_folder()))  # noqa: T201


if __name__ == "__main__":
    main()

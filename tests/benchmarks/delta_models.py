"""A network and what later trainings make of it: the pairs that deltas and updates are measured on.

MobileNetV2 (1.0, 10 classes, 2.2 million weights) learns Fashion-MNIST's first 40,000 pictures as they are. The camera
is then remounted: the other 20,000 pictures, and the test set, are turned by 10 to 20 degrees, at a fifth less
contrast, with noise. Four fine-tunes learn these, each by its row of TUNES (seed and steps are fixed).

python tests/benchmarks/delta_models.py [FOLDER]    trains (once), prints accuracies, and compiles pairs into FOLDER
"""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks")]

import numpy as np  # noqa: E402
from training import RECIPES, SEED, _build, fashion  # noqa: E402

from edgebuild.core import digest  # noqa: E402

if TYPE_CHECKING:
    import torch
    from torch import nn

RECIPE = "fashion_mobilenet_v2"
SIDE, BATCH = 48, 128
PARTED = 40_000
"""So many training pictures are for the first training, the others for the fine-tunes."""
CACHE_VARIABLE = "EDGEBUILD_DELTA_MODELS"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tune:
    """`chosen` says which parameters learn, by name; `moving`: BatchNorm's statistics follow the new pictures."""

    chosen: Callable[[str], bool]
    rate: float
    steps: int
    moving: bool


def _head(name: str) -> bool:
    return name.startswith("classifier")


def _norms(name: str) -> bool:
    return _head(name) or name.endswith(".bias") or name.removesuffix(".weight") in NORMS


def _last2(name: str) -> bool:
    return _head(name) or name.startswith("features.18")


def _all(_: str) -> bool:
    return True


NORMS = frozenset(f"features.{n}.1" for n in (0, 18)) | frozenset(
    f"features.{block}.conv.{i}" for block in range(1, 18) for i in (("0.1", "1.1", "3") if block > 1 else ("0.1", "2"))
)
"""MobileNetV2's BatchNorm layers, in torchvision's names."""

TUNES = {
    "head": Tune(_head, 1e-3, 60, moving=False),
    "norms": Tune(_norms, 2e-3, 150, moving=True),
    "last2": Tune(_last2, 8e-5, 50, moving=False),
    "full": Tune(_all, 1e-4, 200, moving=True),
}
BASE_EPOCHS, BASE_RATE = 2, 4e-3


def cache_folder() -> Path:
    """Where weights are kept between runs."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "edgebuild-delta-models")


def remounted(pictures: Array, seed: int) -> Array:
    """Pictures uint8 [N, 28, 28], turned by 10 to 20 degrees, with four fifths of their contrast and noise on them."""
    import torch
    from torch.nn import functional

    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(pictures.copy()).float()[:, None]
    angle = (10 + 10 * torch.rand(len(x), generator=generator)) * np.pi / 180
    zeros = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zeros], 1), torch.stack([angle.sin(), angle.cos(), zeros], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), [len(x), 1, 28, 28], align_corners=False)
    turned = functional.grid_sample(x, grid, align_corners=False)
    noise = 4 * torch.randn(turned.shape, generator=generator)
    found: Array = (turned * 0.8 + noise).round().clamp(0, 255).to(torch.uint8)[:, 0].numpy()
    return found


def parts() -> dict[str, tuple[Array, Array]]:
    """Pictures and labels: `base`, `tune` (remounted), `test` (as they are), `shifted` (remounted)."""
    (train, labels), (test, test_labels) = fashion("train"), fashion("t10k")
    return {
        "base": (train[:PARTED], labels[:PARTED]),
        "tune": (remounted(train[PARTED:], SEED), labels[PARTED:]),
        "test": (test, test_labels),
        "shifted": (remounted(test, SEED + 1), test_labels),
    }


def weights(name: str) -> Path:
    """The weights of `old` or of one of TUNES; trained when the cache lacks them."""
    how: list[object] = [_learnt, _seen, SEED, PARTED, SIDE, BATCH, BASE_EPOCHS, BASE_RATE]
    if name != "old":
        tune = TUNES[name]
        how += [remounted, tune.chosen, tune.rate, tune.steps, tune.moving]
    key = digest.of_parts(*(inspect.getsource(part) if callable(part) else repr(part) for part in how))
    path = cache_folder() / f"{name}-{key[:12]}.safetensors"
    if not path.exists():
        from safetensors.torch import save_file

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(_trained(name).state_dict(), partial)
        partial.replace(path)
    return path


def _trained(name: str) -> "nn.Module":
    import torch
    from safetensors.torch import load_file

    torch.manual_seed(SEED)
    network = _build(RECIPE)
    if name == "old":
        pictures, labels = parts()["base"]
        steps = BASE_EPOCHS * (len(labels) // BATCH)
        return _learnt(network.train(), list(network.parameters()), pictures, labels, steps, BASE_RATE)
    tune = TUNES[name]
    network.load_state_dict(load_file(weights("old")))
    network.train(mode=tune.moving)
    return _learnt(
        network,
        [p for n, p in network.named_parameters() if tune.chosen(n)],
        *parts()["tune"],
        tune.steps,
        tune.rate,
    )


def _learnt(
    network: "nn.Module", learning: "list[nn.Parameter]", pictures: Array, labels: Array, steps: int, rate: float
) -> "nn.Module":
    """AdamW over one cycle of the learning rate; pictures are shifted by up to two pixels and mirrored."""
    import torch
    from torch.nn import functional

    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.requires_grad_(any(parameter is p for p in learning))
    optimizer = torch.optim.AdamW(learning, weight_decay=0.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    x, y = torch.from_numpy(pictures.copy()), torch.from_numpy(labels.copy())
    order = torch.cat([torch.randperm(len(y)) for _ in range(1 + steps * BATCH // len(y))])
    for step, batch in enumerate(order[: steps * BATCH].split(BATCH)):
        loss = functional.cross_entropy(network(_seen(network, x[batch], moved=True)), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        if step % 50 == 0:
            print(f"  step {step} of {steps}, loss {loss:.3f}", file=sys.stderr, flush=True)  # noqa: T201
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]


def _seen(network: "nn.Module", pictures: "torch.Tensor", *, moved: bool) -> "torch.Tensor":
    import torch
    from torch.nn import functional

    x = pictures[:, None].float()
    if moved:
        x = functional.pad(x, (2, 2, 2, 2), mode="replicate")
        dy, dx = (int(torch.randint(5, ())) for _ in range(2))
        x = x[..., dy : dy + 28, dx : dx + 28]
    x = functional.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False).round() / 255
    x = (x.expand(-1, 3, -1, -1) - network.mean[:, None, None]) / network.std[:, None, None]
    return x.contiguous(memory_format=torch.channels_last)


def accuracy(name: str, part: str) -> float:
    """Of the float network, in percent."""
    import torch
    from safetensors.torch import load_file

    network = _build(RECIPE)
    network.load_state_dict(load_file(weights(name)))
    network = network.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures, labels = parts()[part]
    right = 0
    with torch.inference_mode():
        for start in range(0, len(labels), 500):
            x = torch.from_numpy(pictures[start : start + 500].copy())
            found = network(_seen(network, x, moved=False)).argmax(1).numpy()
            right += int((found == labels[start : start + 500]).sum())
    return 100 * right / len(labels)


def fashion_set(folder: Path, part: str) -> Path:
    """A calibration set in `folder`: 1,000 pictures of `base` or `tune` to calibrate on, 10,000 to test on."""
    if (folder / "set.toml").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    found = parts()
    pairs = {"train": found[part], "t10k": found["test" if part == "base" else "shifted"]}
    for file, (pictures, labels) in pairs.items():
        limit = 1000 if file == "train" else None
        np.savez(folder / f"{file}.npz", images=pictures[:limit], labels=labels[:limit])
    (folder / "set.toml").write_text(
        '[set]\nname = "fashion"\nlicence = "MIT"\nkind = "images"\n'
        '[calibration]\npath = "train.npz"\n[test]\npath = "t10k.npz"\n',
        encoding="utf-8",
    )
    return folder


def compiled(name: str, out: Path, *options: str) -> Path:
    """The bundle that `edgebuild compile` makes of `old` (version 1.0.0) or a fine-tune (1.1.0) for this machine."""
    part, version = ("base", "1.0.0") if name == "old" else ("tune", "1.1.0")
    place = fashion_set(cache_folder() / "sets" / part, part)
    given = [str(RECIPES / RECIPE), "--weights", str(weights(name)), "--calibration", str(place), "--out", str(out)]
    command = [sys.executable, "-m", "edgebuild", "compile", *given, "--version", version, *options]
    subprocess.run(command, check=True, stdout=sys.stderr)
    return out / f"{RECIPE}-{version}-host.ebundle"


def pairs(folder: Path) -> Iterator[tuple[str, Path, Path]]:
    """Name, the first training's bundle, and that of each fine-tune as an update of it."""
    old = compiled("old", folder / "old")
    for name in TUNES:
        yield name, old, compiled(name, folder / name, "--update-of", str(old))


def main() -> None:
    rows = {name: {part: accuracy(name, part) for part in ("test", "shifted")} for name in ("old", *TUNES)}
    print(json.dumps(rows, indent=1))  # noqa: T201
    if sys.argv[1:]:
        for name in ("old", *TUNES):
            print(compiled(name, Path(sys.argv[1]) / name))  # noqa: T201


if __name__ == "__main__":
    main()

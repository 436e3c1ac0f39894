"""The handler: a frame in, the digit and how sure the network is out."""

import torch
from torch import nn
from torch.nn import functional

import edgebuild as eb

SIDE = 16
"""Side of the network's input in pixels."""

LUMA = (0.299, 0.587, 0.114)


def prepare(frame: torch.Tensor) -> torch.Tensor:
    """uint8 RGB [H, W, 3] to the network's input, float32 [1, 1, 16, 16] in -1..1."""
    grey = (frame.float() * torch.tensor(LUMA)).sum(dim=-1)
    small = functional.interpolate(grey[None, None], size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return small / 127.5 - 1


@eb.function(trigger=eb.camera("front", fps=15, size=(64, 64)), timeout_ms=100)
def classify(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`label`: int64, 0..9; `confidence`: float32, 0..1."""
    scores = torch.softmax(model(prepare(frame)), dim=1)
    confidence, label = scores[0].max(dim=0)
    return {"label": label, "confidence": confidence}

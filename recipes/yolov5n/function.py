"""The handler: a picture in, boxes out. Who takes them thins them out (non-maximum suppression)."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=15, size=(640, 640)), timeout_ms=500)
def detect(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`boxes`: float32 [25200, 4], left, top, right, bottom in pixels; `scores`: float32 [25200], 0..1; `labels`: int64
    [25200], COCO's classes in their usual order, 0..79.
    """
    return boxes(frame, model)


@eb.function(trigger=eb.camera("front", fps=15, size=(320, 320)), timeout_ms=500)
def detect_320(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """The same with 6300 boxes."""
    return boxes(frame, model)


def boxes(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """The network's answer to a frame, uint8 [H, W, 3]."""
    found, scores, labels = model(frame.float().permute(2, 0, 1)[None] / 255)
    return {"boxes": found[0], "scores": scores[0], "labels": labels[0]}

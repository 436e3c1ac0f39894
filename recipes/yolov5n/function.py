"""The handler: a picture in, the best boxes out, of which none covers another of its class."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=15, size=(640, 640)), timeout_ms=500)
def detect(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`boxes`: float32 [100, 4], left, top, right, bottom in pixels; `scores`: float32 [100], 0..1, the best first, 0
    where there are fewer; `labels`: int64 [100], COCO's classes in their usual order, 0..79.
    """
    return boxes(frame, model)


@eb.function(trigger=eb.camera("front", fps=15, size=(320, 320)), timeout_ms=500)
def detect_320(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """The same on smaller frames."""
    return boxes(frame, model)


def boxes(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """The network's answer to a frame, uint8 [H, W, 3]."""
    found, scores, labels = (part[0] for part in model(frame.float().permute(2, 0, 1)[None] / 255))
    best, confidence, places = eb.nms(found, scores, labels)
    return {"boxes": best, "scores": confidence, "labels": labels.index_select(0, places)}

"""The handler: a picture that was scaled to fit, top left, in; boxes in its pixels out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=15, size=(416, 416)), timeout_ms=500)
def detect(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`boxes`: float32 [100, 4], left, top, right, bottom in pixels; `scores`: float32 [100], the best first, 0 where
    there are fewer; `labels`: int64 [100], COCO's classes in their usual order, 0..79.
    """
    boxes, objects, classes = model(frame.float().flip(-1).permute(2, 0, 1)[None])
    best, labels = classes[0].max(-1)
    kept, scores, places = eb.nms(boxes[0], objects[0] * best, labels, limit=100, overlap=0.65)
    return {"boxes": kept, "scores": scores, "labels": labels.index_select(0, places)}

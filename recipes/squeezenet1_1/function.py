"""The handler: a picture in, scores and the best class out."""

import torch
from torch import nn

import edgebuild as eb

MEAN_BGR = (104.0, 117.0, 123.0)


@eb.function(trigger=eb.camera("front", fps=15, size=(227, 227)), timeout_ms=500)
def classify(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`logits`: float32 [1000]; `label`: int64, the best class; `confidence`: float32, its probability."""
    picture = frame.float().flip(-1) - torch.tensor(MEAN_BGR)
    logits = model(picture.permute(2, 0, 1)[None])[0]
    return {"logits": logits, "label": logits.argmax(), "confidence": torch.softmax(logits, dim=0).max()}

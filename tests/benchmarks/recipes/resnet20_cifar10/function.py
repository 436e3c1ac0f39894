"""The handler: a small picture in, scores and the best class out."""

import torch
from torch import nn

import edgebuild as eb

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@eb.function(trigger=eb.camera("front", fps=30, size=(32, 32)), timeout_ms=100)
def classify(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`logits`: float32 [10]; `label`: int64, the best class."""
    picture = (frame.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    logits = model(picture.permute(2, 0, 1)[None])[0]
    return {"logits": logits, "label": logits.argmax()}

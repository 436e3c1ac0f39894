"""The handler: a picture of a piece of clothing in, scores and the best class out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=30, size=(48, 48)), timeout_ms=100)
def classify(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`logits`: float32 [10]; `label`: int64, the best class."""
    picture = (frame.float() / 255 - model.mean) / model.std
    logits = model(picture.permute(2, 0, 1)[None])[0]
    return {"logits": logits, "label": logits.argmax()}

"""The handler: a picture in, scores and the best class out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=15, size=(224, 224)), timeout_ms=500)
def classify(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`logits`: float32 [classes]; `label`: int64, the best class; `confidence`: float32, its probability."""
    picture = (frame.float() / 255 - model.mean) / model.std
    logits = model(picture.permute(2, 0, 1)[None])[0]
    return {"logits": logits, "label": logits.argmax(), "confidence": torch.softmax(logits, dim=0).max()}

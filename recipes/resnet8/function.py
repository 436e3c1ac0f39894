"""The handler: a small picture in, scores and the best class out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=30, size=(32, 32)), timeout_ms=100)
def classify(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`logits`: float32 [10]; `label`: int64, the best class; `confidence`: float32, its probability."""
    logits = model(frame.float().permute(2, 0, 1)[None])[0]
    return {"logits": logits, "label": logits.argmax(), "confidence": torch.softmax(logits, dim=0).max()}

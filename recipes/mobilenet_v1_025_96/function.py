"""The handler: a picture in, whether it shows a person out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.camera("front", fps=15, size=(96, 96)), timeout_ms=200)
def wake(frame: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`logits`: float32 [2]; `label`: int64, 1 for a person; `confidence`: float32, its probability."""
    logits = model(frame.float().permute(2, 0, 1)[None] / 255)[0]
    return {"logits": logits, "label": logits.argmax(), "confidence": torch.softmax(logits, dim=0).max()}

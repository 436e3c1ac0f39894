"""The handler: a second of sound as cepstral coefficients in, scores and the best keyword out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.timer(seconds=0.5), inputs={"features": eb.tensor("float32", 49, 10, 1)}, timeout_ms=100)
def spot(features: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`features`: float32 [49, 10, 1], MFCC of windows of 30 ms every 20 ms.

    `logits`: float32 [12]; `label`: int64, the best keyword; `confidence`: float32, its probability.
    """
    logits = model(features.permute(2, 0, 1)[None])[0]
    return {"logits": logits, "label": logits.argmax(), "confidence": torch.softmax(logits, dim=0).max()}

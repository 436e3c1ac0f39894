"""The handler: a text as word ids in, a vector that says what it is about out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.timer(seconds=1.0), inputs={"ids": eb.tensor("int32", 128)}, timeout_ms=500)
def embed(ids: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`ids`: int32 [128], a text of 128 word pieces; every one counts, so cut longer texts and join shorter ones.

    `embedding`: float32 [384] of length 1.
    """
    mean = model(ids[None])[0].mean(0)
    return {"embedding": mean / (mean * mean).sum().sqrt()}

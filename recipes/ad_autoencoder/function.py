"""The handler: a machine's sound as a piece of its spectrogram in, how unusual it is out."""

import torch
from torch import nn

import edgebuild as eb


@eb.function(trigger=eb.timer(seconds=0.1), inputs={"spectrum": eb.tensor("float32", 640)}, timeout_ms=50)
def listen(spectrum: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    """`spectrum`: float32 [640], five frames of 128 mel bands in decibels.

    `reconstruction`: float32 [640]; `anomaly`: float32, its mean squared difference from the spectrum.
    """
    reconstruction = model(spectrum[None])[0]
    return {"reconstruction": reconstruction, "anomaly": ((reconstruction - spectrum) ** 2).mean()}

"""The dense autoencoder that MLPerf Tiny takes for anomaly detection: the baseline of DCASE 2020's task 2 (Koizumi et
al., 2020, arXiv:2006.05822). What it cannot reconstruct is unlike the machine that it was trained on.
"""

import torch
from torch import nn

WIDTHS = (128, 128, 128, 128, 8, 128, 128, 128, 128)
EPSILON = 1e-3


class Autoencoder(nn.Module):
    """float32 [N, inputs] to [N, inputs]."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        sizes = (inputs, *WIDTHS)
        self.fc = nn.ModuleList(nn.Linear(n, m) for n, m in zip(sizes, (*WIDTHS, inputs), strict=True))
        self.bn = nn.ModuleList(nn.BatchNorm1d(n, EPSILON) for n in WIDTHS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The reconstruction."""
        *hidden, last = self.fc
        for layer, norm in zip(hidden, self.bn, strict=True):
            x = torch.relu(norm(layer(x)))
        return last(x)


def build(inputs: int = 640) -> nn.Module:
    """The network; kaiming-initialised."""
    network = Autoencoder(inputs)
    for layer in network.fc:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network

"""DS-CNN (Zhang et al., 2017, arXiv:1711.07128), as MLPerf Tiny has it for keyword spotting."""

import torch
from torch import nn
from torch.nn import functional

WIDTH, BLOCKS = 64, 4
EPSILON = 1e-3
PADDING = (1, 1, 4, 5)
"""Left, right, top, bottom: what TensorFlow's "same" adds for a 10x4 kernel with stride 2 on 49x10."""


class DsCnn(nn.Module):
    """float32 [N, 1, 49, 10], cepstral coefficients by time and index, to logits [N, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, WIDTH, (10, 4), 2, bias=False), nn.BatchNorm2d(WIDTH, EPSILON)
        self.dw = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH, bias=False) for _ in range(BLOCKS))
        self.dw_bn = nn.ModuleList(nn.BatchNorm2d(WIDTH, EPSILON) for _ in range(BLOCKS))
        self.pw = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1, bias=False) for _ in range(BLOCKS))
        self.pw_bn = nn.ModuleList(nn.BatchNorm2d(WIDTH, EPSILON) for _ in range(BLOCKS))
        self.fc = nn.Linear(WIDTH, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = torch.relu(self.bn1(self.conv1(functional.pad(x, PADDING))))
        for dw, dw_bn, pw, pw_bn in zip(self.dw, self.dw_bn, self.pw, self.pw_bn, strict=True):
            x = torch.relu(dw_bn(dw(x)))
            x = torch.relu(pw_bn(pw(x)))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def build(classes: int = 12) -> nn.Module:
    """The network; kaiming-initialised."""
    network = DsCnn(classes)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network

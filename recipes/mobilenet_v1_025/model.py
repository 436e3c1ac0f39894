"""MobileNetV1 at a quarter of its width (Howard et al., 2017, arXiv:1704.04861), for pictures of any even size."""

from typing import Literal

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
STRIDED = (1, 3, 5, 11)
FIRST = 8
EPSILON = 1e-3

Activation = Literal["relu", "relu6"]


class Conv(nn.Conv2d):
    """3x3, padded as TensorFlow pads: with stride 2, one row below and one column to the right."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=2 - stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return super().forward(functional.pad(x, (0, 1, 0, 1)) if self.stride == (2, 2) else x)


class MobileNetV1(nn.Module):
    """float32 [N, 3, H, W] to logits [N, classes]."""

    def __init__(self, classes: int, activation: Activation) -> None:
        super().__init__()
        inputs = (FIRST, *WIDTHS[:-1])
        self.conv1 = Conv(3, FIRST, 2)
        self.bn1 = nn.BatchNorm2d(FIRST, EPSILON)
        self.dw = nn.ModuleList(Conv(n, n, 2 if i in STRIDED else 1, groups=n) for i, n in enumerate(inputs))
        self.dw_bn = nn.ModuleList(nn.BatchNorm2d(n, EPSILON) for n in inputs)
        self.pw = nn.ModuleList(nn.Conv2d(n, m, 1, bias=False) for n, m in zip(inputs, WIDTHS, strict=True))
        self.pw_bn = nn.ModuleList(nn.BatchNorm2d(m, EPSILON) for m in WIDTHS)
        self.activation = nn.ReLU() if activation == "relu" else nn.ReLU6()
        self.fc = nn.Conv2d(WIDTHS[-1], classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.activation(self.bn1(self.conv1(x)))
        for dw, dw_bn, pw, pw_bn in zip(self.dw, self.dw_bn, self.pw, self.pw_bn, strict=True):
            x = self.activation(dw_bn(dw(x)))
            x = self.activation(pw_bn(pw(x)))
        return torch.flatten(self.fc(functional.adaptive_avg_pool2d(x, 1)), 1)


def build(classes: int = 1000, activation: Activation = "relu6") -> nn.Module:
    """The network; kaiming-initialised."""
    network = MobileNetV1(classes, activation)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network

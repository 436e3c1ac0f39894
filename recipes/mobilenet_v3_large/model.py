"""MobileNetV3 (Howard et al., 2019, arXiv:1905.02244), with the layout and the names of torchvision's
mobilenet_v3_large and mobilenet_v3_small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

FIRST = 16
EPSILON = 1e-3


@dataclass(frozen=True)
class Row:
    """A row of table 1 or 2 of the paper; `excite`: with squeeze-excite; `hard`: hard-swish instead of ReLU."""

    kernel: int
    hidden: int
    outputs: int
    excite: bool
    hard: bool
    stride: int


LARGE = (
    Row(3, 16, 16, excite=False, hard=False, stride=1),
    Row(3, 64, 24, excite=False, hard=False, stride=2),
    Row(3, 72, 24, excite=False, hard=False, stride=1),
    Row(5, 72, 40, excite=True, hard=False, stride=2),
    Row(5, 120, 40, excite=True, hard=False, stride=1),
    Row(5, 120, 40, excite=True, hard=False, stride=1),
    Row(3, 240, 80, excite=False, hard=True, stride=2),
    Row(3, 200, 80, excite=False, hard=True, stride=1),
    Row(3, 184, 80, excite=False, hard=True, stride=1),
    Row(3, 184, 80, excite=False, hard=True, stride=1),
    Row(3, 480, 112, excite=True, hard=True, stride=1),
    Row(3, 672, 112, excite=True, hard=True, stride=1),
    Row(5, 672, 160, excite=True, hard=True, stride=2),
    Row(5, 960, 160, excite=True, hard=True, stride=1),
    Row(5, 960, 160, excite=True, hard=True, stride=1),
)
SMALL = (
    Row(3, 16, 16, excite=True, hard=False, stride=2),
    Row(3, 72, 24, excite=False, hard=False, stride=2),
    Row(3, 88, 24, excite=False, hard=False, stride=1),
    Row(5, 96, 40, excite=True, hard=True, stride=2),
    Row(5, 240, 40, excite=True, hard=True, stride=1),
    Row(5, 240, 40, excite=True, hard=True, stride=1),
    Row(5, 120, 48, excite=True, hard=True, stride=1),
    Row(5, 144, 48, excite=True, hard=True, stride=1),
    Row(5, 288, 96, excite=True, hard=True, stride=2),
    Row(5, 576, 96, excite=True, hard=True, stride=1),
    Row(5, 576, 96, excite=True, hard=True, stride=1),
)
SIZES = {"large": (LARGE, 1280), "small": (SMALL, 1024)}
"""Rows, and the width of the classifier's hidden layer."""


def rounded(channels: int) -> int:
    """The nearest multiple of 8, but never less than nine tenths."""
    nearest = max(8, (channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


class ConvNormActivation(nn.Sequential):
    """Convolution, BatchNorm, and what is given as the activation."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, activation: nn.Module | None, *, stride: int = 1, groups: int = 1
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(outputs, EPSILON)
        super().__init__(conv, norm, *([] if activation is None else [activation]))


class SqueezeExcitation(nn.Module):
    """Scales each channel by what all channels' averages say of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, rounded(channels // 4), 1)
        self.fc2 = nn.Conv2d(rounded(channels // 4), channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, channels, H, W], the same out."""
        return nn.functional.hardsigmoid(self.fc2(torch.relu(self.fc1(self.avgpool(x))))) * x


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1, with a residual where the shapes allow one."""

    def __init__(self, inputs: int, row: Row) -> None:
        super().__init__()
        activation, hidden = nn.Hardswish() if row.hard else nn.ReLU(), row.hidden
        layers: list[nn.Module] = []
        if hidden != inputs:
            layers.append(ConvNormActivation(inputs, hidden, 1, activation))
        layers.append(ConvNormActivation(hidden, hidden, row.kernel, activation, stride=row.stride, groups=hidden))
        if row.excite:
            layers.append(SqueezeExcitation(hidden))
        layers.append(ConvNormActivation(hidden, row.outputs, 1, None))
        self.block = nn.Sequential(*layers)
        self.residual = row.stride == 1 and inputs == row.outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3(nn.Module):
    """float32 [N, 3, 224, 224], normalized by `mean` and `std`, to logits [N, classes]."""

    def __init__(
        self, rows: Sequence[Row], hidden: int, classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvNormActivation(3, FIRST, 3, nn.Hardswish(), stride=2)]
        channels = FIRST
        for row in rows:
            features.append(InvertedResidual(channels, row))
            channels = row.outputs
        features.append(ConvNormActivation(channels, 6 * channels, 1, nn.Hardswish()))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes)
        )
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def build(size: str, classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network; kaiming-initialised, as torchvision does it."""
    network = MobileNetV3(*SIZES[size], classes, mean, std)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return network

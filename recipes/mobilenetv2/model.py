"""MobileNetV2 (Sandler et al., 2018, arXiv:1801.04381), with the layout and the names of torchvision's mobilenet_v2."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Padding = Literal["symmetric", "same"]

BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Rows of table 2 of the paper: expansion, channels, repeats, stride of the first."""

FIRST, LAST = 32, 1280


class SameConv2d(nn.Conv2d):
    """3x3 with stride 2 on even sizes as TensorFlow pads it: one row below, one column to the right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, C, H, W] to [N, outputs, H / 2, W / 2]."""
        return super().forward(functional.pad(x, (0, 1, 0, 1)))


class ConvNormActivation(nn.Sequential):
    """Convolution, BatchNorm, ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, padding: Padding, stride: int = 1, groups: int = 1
    ) -> None:
        if padding == "same" and stride == 2:
            conv = SameConv2d(inputs, outputs, kernel, stride, 0, groups=groups, bias=False)
        else:
            conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise 3x3, project 1x1, with a residual where the shapes allow one."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int, *, padding: Padding) -> None:
        super().__init__()
        hidden = inputs * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(inputs, hidden, 1, padding=padding))
        layers.append(ConvNormActivation(hidden, hidden, 3, padding=padding, stride=stride, groups=hidden))
        layers += [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """float32 [N, 3, 224, 224], normalized by `mean` and `std`, to logits [N, classes]."""

    def __init__(self, classes: int, padding: Padding, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvNormActivation(3, FIRST, 3, padding=padding, stride=2)]
        channels = FIRST
        for expansion, outputs, repeats, stride in BLOCKS:
            for repeat in range(repeats):
                features.append(
                    InvertedResidual(channels, outputs, stride if repeat == 0 else 1, expansion, padding=padding)
                )
                channels = outputs
        features.append(ConvNormActivation(channels, LAST, 1, padding=padding))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, classes))
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = functional.adaptive_avg_pool2d(self.features(x), 1)
        return self.classifier(torch.flatten(x, 1))


def build(classes: int, padding: Padding, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network; kaiming-initialised, as torchvision does it."""
    network = MobileNetV2(classes, padding, mean, std)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return network

"""EfficientNet-B0 (Tan and Le, 2019, arXiv:1905.11946), with the layout and the names of torchvision's efficientnet_b0,
and EfficientNet-Lite0 (Google, 2020): the same without squeeze-excite and with ReLU6, for integer hardware.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

FIRST, LAST = 32, 1280

STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
"""Rows of table 1 of the paper: expansion, kernel, stride of the first block, channels, repeats."""


@dataclass(frozen=True)
class Variant:
    """What sets the two apart."""

    activation: type[nn.Module]
    excite: bool


VARIANTS = {"b0": Variant(nn.SiLU, excite=True), "lite0": Variant(nn.ReLU6, excite=False)}


class ConvNormActivation(nn.Sequential):
    """Convolution, BatchNorm, and the activation if there is one."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        activation: type[nn.Module] | None,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([] if activation is None else [activation()]))


class SqueezeExcitation(nn.Module):
    """Scales each channel by what all channels' averages say of it."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, channels, H, W], the same out."""
        return torch.sigmoid(self.fc2(nn.functional.silu(self.fc1(self.avgpool(x))))) * x


class MBConv(nn.Module):
    """Expand 1x1, depthwise, squeeze-excite, project 1x1, with a residual where the shapes allow one."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, variant: Variant) -> None:
        super().__init__()
        hidden, activation = inputs * expansion, variant.activation
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormActivation(inputs, hidden, 1, activation))
        layers.append(ConvNormActivation(hidden, hidden, kernel, activation, stride=stride, groups=hidden))
        if variant.excite:
            layers.append(SqueezeExcitation(hidden, inputs // 4))
        layers.append(ConvNormActivation(hidden, outputs, 1, None))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return x + self.block(x) if self.residual else self.block(x)


class EfficientNet(nn.Module):
    """float32 [N, 3, 224, 224], normalized by `mean` and `std`, to logits [N, classes]."""

    def __init__(self, variant: Variant, classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        features: list[nn.Module] = [ConvNormActivation(3, FIRST, 3, variant.activation, stride=2)]
        channels = FIRST
        for expansion, kernel, stride, outputs, repeats in STAGES:
            blocks: list[nn.Module] = []
            for repeat in range(repeats):
                blocks.append(MBConv(channels, outputs, kernel, stride if repeat == 0 else 1, expansion, variant))
                channels = outputs
            features.append(nn.Sequential(*blocks))
        features.append(ConvNormActivation(channels, LAST, 1, variant.activation))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(LAST, classes))
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


def build(variant: str, classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network; kaiming-initialised, as torchvision does it."""
    network = EfficientNet(VARIANTS[variant], classes, mean, std)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    return network

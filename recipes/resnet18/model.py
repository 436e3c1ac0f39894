"""Residual networks (He et al., 2016, arXiv:1512.03385), with the layout and the names of torchvision's resnet18 and
resnet50: the stride of a bottleneck lies in its 3x3 convolution.
"""

from collections.abc import Sequence

import torch
from torch import nn

FIRST = 64


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Without a bias, padded to keep the size."""
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)


class Residual(nn.Module):
    """What a block adds to; `downsample` is the shortcut's projection, where its shape changes."""

    expansion: int

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, width * expansion, H / stride, W / stride]."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The branch and the shortcut, added; shapes as `branch` has them."""
        return self.relu(self.branch(x) + (x if self.downsample is None else self.downsample(x)))


class Basic(Residual):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        self.conv1, self.bn1 = conv(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """As `Residual.branch`."""
        return self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))


class Bottleneck(Residual):
    """1x1 to a quarter of the channels, 3x3, 1x1 back."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride)
        outputs = width * self.expansion
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)

    def branch(self, x: torch.Tensor) -> torch.Tensor:
        """As `Residual.branch`."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.bn3(self.conv3(self.relu(self.bn2(self.conv2(x)))))


BLOCKS: dict[str, type[Residual]] = {"basic": Basic, "bottleneck": Bottleneck}


class ResNet(nn.Module):
    """float32 [N, 3, 224, 224], normalized by `mean` and `std`, to logits [N, classes]."""

    def __init__(
        self, block: type[Residual], depths: Sequence[int], classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, FIRST, 7, 2), nn.BatchNorm2d(FIRST)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        channels = FIRST
        for stage, depth in enumerate(depths):
            width, stride = FIRST << stage, 1 if stage == 0 else 2
            blocks: list[nn.Module] = []
            for index in range(depth):
                blocks.append(block(channels, width, stride if index == 0 else 1))
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def build(block: str, depths: Sequence[int], classes: int, mean: Sequence[float], std: Sequence[float]) -> nn.Module:
    """The network; kaiming-initialised, as the paper does it."""
    network = ResNet(BLOCKS[block], depths, classes, mean, std)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network

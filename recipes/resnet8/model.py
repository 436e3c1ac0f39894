"""ResNet-8, MLPerf Tiny's network for image classification (Banbury et al., 2021, arXiv:2106.07597)."""

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64)
EPSILON = 1e-3


class Conv(nn.Conv2d):
    """3x3, padded as TensorFlow pads: with stride 2, one row below and one column to the right."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=2 - stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return super().forward(functional.pad(x, (0, 1, 0, 1)) if self.stride == (2, 2) else x)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(inputs, outputs, stride), nn.BatchNorm2d(outputs, EPSILON)
        self.conv2, self.bn2 = Conv(outputs, outputs), nn.BatchNorm2d(outputs, EPSILON)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride != 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet8(nn.Module):
    """float32 [N, 3, 32, 32] in 0..255 to logits [N, classes]."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = Conv(3, WIDTHS[0]), nn.BatchNorm2d(WIDTHS[0], EPSILON)
        inputs = (WIDTHS[0], *WIDTHS[:-1])
        self.blocks = nn.Sequential(*(Block(n, m, 1 if n == m else 2) for n, m in zip(inputs, WIDTHS, strict=True)))
        self.fc = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.blocks(torch.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def build(classes: int = 10) -> nn.Module:
    """The network; kaiming-initialised."""
    network = ResNet8(classes)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return network

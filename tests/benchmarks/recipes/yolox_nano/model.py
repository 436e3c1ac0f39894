"""YOLOX-Nano (Ge et al., 2021, arXiv:2107.08430) with BatchNorm folded into the convolutions, in Megvii's names."""

from collections.abc import Sequence

import torch
from torch import nn

WIDTHS = (64, 128, 256)
"""Channels of the three levels that the head reads."""
STRIDES = (8, 16, 32)
HEAD = 64
CLASSES = 80


class Conv(nn.Module):
    """Convolution and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.conv(x))


class Depthwise(nn.Module):
    """A convolution by depth, then one by points."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.dconv = Conv(inputs, inputs, kernel, stride, groups=inputs)
        self.pconv = Conv(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pconv(self.dconv(x))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels, 1)
        self.conv2 = Depthwise(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2(self.conv1(x))
        return x + y if self.shortcut else y


class Csp(nn.Module):
    """Two branches side by side, one through `depth` bottlenecks."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool) -> None:
        super().__init__()
        hidden = outputs // 2
        self.conv1, self.conv2 = Conv(inputs, hidden, 1), Conv(inputs, hidden, 1)
        self.conv3 = Conv(2 * hidden, outputs, 1)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut=shortcut) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(torch.cat((self.m(self.conv1(x)), self.conv2(x)), 1))


class Pyramid(nn.Module):
    """Spatial pyramid pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels // 2, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, 1, kernel // 2) for kernel in (5, 9, 13))
        self.conv2 = Conv(2 * channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], 1))


class Focus(nn.Module):
    """Space to depth, then a convolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = Conv(12, outputs, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corners = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        return self.conv(torch.cat(corners, 1))


class Darknet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = Focus(16)
        self.dark2 = nn.Sequential(Depthwise(16, 32, 3, 2), Csp(32, 32, 1, shortcut=True))
        self.dark3 = nn.Sequential(Depthwise(32, 64, 3, 2), Csp(64, 64, 3, shortcut=True))
        self.dark4 = nn.Sequential(Depthwise(64, 128, 3, 2), Csp(128, 128, 3, shortcut=True))
        self.dark5 = nn.Sequential(Depthwise(128, 256, 3, 2), Pyramid(256), Csp(256, 256, 1, shortcut=False))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        third = self.dark3(self.dark2(self.stem(x)))
        fourth = self.dark4(third)
        return third, fourth, self.dark5(fourth)


class Neck(nn.Module):
    """Features of three levels, mixed from the coarsest to the finest and back."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Darknet()
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.lateral_conv0, self.reduce_conv1 = Conv(256, 128, 1), Conv(128, 64, 1)
        self.C3_p4, self.C3_p3 = Csp(256, 128, 1, shortcut=False), Csp(128, 64, 1, shortcut=False)
        self.bu_conv2, self.bu_conv1 = Depthwise(64, 64, 3, 2), Depthwise(128, 128, 3, 2)
        self.C3_n3, self.C3_n4 = Csp(128, 128, 1, shortcut=False), Csp(256, 256, 1, shortcut=False)

    def forward(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        third, fourth, fifth = self.backbone(x)
        coarse = self.lateral_conv0(fifth)
        middle = self.reduce_conv1(self.C3_p4(torch.cat([self.upsample(coarse), fourth], 1)))
        fine = self.C3_p3(torch.cat([self.upsample(middle), third], 1))
        back = self.C3_n3(torch.cat([self.bu_conv2(fine), middle], 1))
        return fine, back, self.C3_n4(torch.cat([self.bu_conv1(back), coarse], 1))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(Conv(width, HEAD, 1) for width in WIDTHS)
        self.cls_convs, self.reg_convs = (
            nn.ModuleList(nn.Sequential(Depthwise(HEAD, HEAD, 3), Depthwise(HEAD, HEAD, 3)) for _ in WIDTHS)
            for _ in range(2)
        )
        self.cls_preds, self.reg_preds, self.obj_preds = (
            nn.ModuleList(nn.Conv2d(HEAD, outputs, 1) for _ in WIDTHS) for outputs in (CLASSES, 4, 1)
        )

    def forward(self, levels: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Per place: box [N, 4], objectness [N], class scores [N, 80], in the order of the levels."""
        found = [self._level(i, x, stride) for i, (x, stride) in enumerate(zip(levels, STRIDES, strict=True))]
        boxes, objects, classes = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        return boxes, objects[..., 0], classes

    def _level(self, i: int, x: torch.Tensor, stride: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.stems[i](x)
        classes, region = self.cls_preds[i](self.cls_convs[i](x)), self.reg_convs[i](x)
        box, thing = self.reg_preds[i](region), self.obj_preds[i](region)
        height, width = box.shape[-2:]
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack((columns, rows), 2).reshape(1, -1, 2).float()
        flat, sure, kinds = (part.flatten(2).transpose(1, 2) for part in (box, thing.sigmoid(), classes.sigmoid()))
        centres, halves = (flat[..., :2] + grid) * stride, flat[..., 2:].exp() * (stride / 2)
        return torch.cat([centres - halves, centres + halves], -1), sure, kinds


class Yolox(nn.Module):
    """float32 [1, 3, 416, 416], BGR 0..255, to boxes [1, 3549, 4], objectness [1, 3549] and classes [1, 3549, 80]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = Neck(), Head()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.head(self.backbone(x))


def build() -> nn.Module:
    """The network that the published weights belong to."""
    return Yolox()

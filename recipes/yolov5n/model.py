"""YOLOv5n (G. Jocher et al., YOLOv5 release 6, doi:10.5281/zenodo.3908559), with that release's layout and names."""

import torch
from torch import nn
from torch.nn import functional

WIDTHS = (16, 32, 64, 128, 256)
EPSILON = 1e-3
STRIDES = (8, 16, 32)
ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)
"""Widths and heights in pixels, by stride."""

SKIPS = {12: 6, 16: 4, 19: 14, 22: 10}
"""Layers that join the layer before them with an earlier one, and which."""

HEADS = (17, 20, 23)
"""The layers that boxes are read from, by stride."""


Boxes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Corners float32 [N, M, 4] (left, top, right, bottom, in pixels), scores float32 [N, M] in 0..1 (objectness times the
best class's) and these classes, int64 [N, M]; M = 3 * Σ H·W.
"""


class Conv(nn.Module):
    """Convolution, BatchNorm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int | None = None) -> None:
        super().__init__()
        padding = kernel // 2 if padding is None else padding
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        return functional.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1, then 3x3, in the backbone with a residual."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels), Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, channels, H, W], the same out."""
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Two halves of the channels, one through bottlenecks, joined again (Wang et al., 2019, arXiv:1911.11929)."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.cv1, self.cv2, self.cv3 = Conv(inputs, half), Conv(inputs, half), Conv(outputs, outputs)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut=shortcut) for _ in range(depth)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H, W]."""
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class Sppf(nn.Module):
    """Maxima of windows of 5, 9 and 13, each pooled from the one before it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(channels, channels // 2), Conv(2 * channels, channels)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, channels, H, W], the same out."""
        pools = [self.cv1(x)]
        for _ in range(3):
            pools.append(self.m(pools[-1]))
        return self.cv2(torch.cat(pools, 1))


class Concat(nn.Module):
    """Joins two layers' channels; holds no weights."""

    def forward(self, x: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
        """float32 [N, A, H, W] and [N, B, H, W] to [N, A + B, H, W]."""
        return torch.cat((x, earlier), 1)


class Detect(nn.Module):
    """A 1x1 convolution a stride, whose channels are (box, objectness, classes) of each anchor."""

    def __init__(self, classes: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.values = 5 + classes
        self.m = nn.ModuleList(nn.Conv2d(width, len(ANCHORS[0]) * self.values, 1) for width in widths)
        sizes = torch.tensor(ANCHORS, dtype=torch.float32) / torch.tensor(STRIDES).view(-1, 1, 1)
        self.register_buffer("anchors", sizes)

    def forward(self, features: list[torch.Tensor]) -> Boxes:
        """Feature maps float32 [N, width, H, W] to `Boxes`, ordered by stride, row, column and anchor."""
        layers = zip(self.m, features, self.anchors, STRIDES, strict=True)
        boxes, scores, labels = zip(*(self._boxes(conv(x), sizes * s, s) for conv, x, sizes, s in layers), strict=True)
        return torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)

    def _boxes(self, x: torch.Tensor, anchors: torch.Tensor, stride: int) -> Boxes:
        """The boxes of one stride; `anchors` in pixels. Sigmoid keeps order, so the best class is found before it."""
        count, _, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(count, -1, self.values)
        y, z = torch.meshgrid(torch.arange(height) - 0.5, torch.arange(width) - 0.5, indexing="ij")
        corner = torch.stack((z, y), 2)[:, :, None]
        place = torch.sigmoid(rows[..., :4]).view(count, height, width, len(anchors), 4)
        centre = (place[..., :2] * 2 + corner) * stride
        half = place[..., 2:] ** 2 * (anchors * 2)
        boxes = torch.cat((centre - half, centre + half), 4).view(count, -1, 4)
        best, labels = rows[..., 5:].max(2)
        return boxes, torch.sigmoid(rows[..., 4]) * torch.sigmoid(best), labels


class YoloV5n(nn.Module):
    """float32 [N, 3, H, W] in 0..1, H and W multiples of 32, to `Boxes`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        a, b, c, d, e = WIDTHS
        self.model = nn.ModuleList([
            Conv(3, a, 6, 2, 2),
            Conv(a, b, 3, 2),
            C3(b, b, 1),
            Conv(b, c, 3, 2),
            C3(c, c, 2),
            Conv(c, d, 3, 2),
            C3(d, d, 3),
            Conv(d, e, 3, 2),
            C3(e, e, 1),
            Sppf(e),
            Conv(e, d),
            nn.Upsample(scale_factor=2, mode="nearest"),
            Concat(),
            C3(e, d, 1, shortcut=False),
            Conv(d, c),
            nn.Upsample(scale_factor=2, mode="nearest"),
            Concat(),
            C3(d, c, 1, shortcut=False),
            Conv(c, c, 3, 2),
            Concat(),
            C3(d, d, 1, shortcut=False),
            Conv(d, d, 3, 2),
            Concat(),
            C3(e, e, 1, shortcut=False),
            Detect(classes, (c, d, e)),
        ])  # fmt: skip

    def forward(self, x: torch.Tensor) -> Boxes:
        """What is where."""
        *layers, detect = self.model
        outputs: list[torch.Tensor] = []
        for index, layer in enumerate(layers):
            x = layer(x, outputs[SKIPS[index]]) if index in SKIPS else layer(x)
            outputs.append(x)
        return detect([outputs[index] for index in HEADS])


def build(classes: int = 80) -> nn.Module:
    """The network; kaiming-initialised."""
    network = YoloV5n(classes)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network

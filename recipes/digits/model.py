"""A small convolutional network for 16x16 digits, and its training."""

import torch
from function import classify, prepare
from torch import nn
from torch.nn import functional

from edgebuild.core.calibration import find_set, load_set

EPOCHS = 12
BATCH = 32
LEARNING_RATE = 4e-3
MAX_SHIFT = 2


class Separable(nn.Module):
    """Depthwise 3x3, pointwise 1x1, each with BatchNorm and ReLU6; with a residual where the shapes allow one."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(outputs)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, inputs, H, W] to [N, outputs, H / stride, W / stride]."""
        y = functional.relu6(self.depthwise_norm(self.depthwise(x)))
        y = functional.relu6(self.pointwise_norm(self.pointwise(y)))
        return x + y if self.residual else y


class Digits(nn.Module):
    """float32 [N, 1, 16, 16] in -1..1 to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6())
        self.blocks = nn.Sequential(Separable(32, 128), Separable(128, 128), Separable(128, 256, stride=2))
        self.head = nn.Sequential(nn.Conv2d(256, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU6())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.head(self.blocks(self.stem(x)))
        return self.classifier(torch.flatten(self.pool(x), 1))


def build() -> nn.Module:
    """The network that the recipe's weights belong to."""
    return Digits()


def train(seed: int) -> nn.Module:
    """Trains on the digits' training part, seen through the handler's own preprocessing and shifted at random."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = _training_data()
    network = build().train()
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=1e-2)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            if len(batch) < BATCH:
                continue
            loss = functional.cross_entropy(
                network(_shifted(images[batch], generator)), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def _training_data() -> tuple[torch.Tensor, torch.Tensor]:
    samples = list(load_set(find_set("digits")).labelled(classify.inputs))
    images = torch.cat([prepare(torch.from_numpy(sample["frame"])) for sample, _ in samples])
    return images, torch.tensor([label for _, label in samples])


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The batch moved by up to MAX_SHIFT pixels, background filled in."""
    right, down = torch.randint(0, 2 * MAX_SHIFT + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, [MAX_SHIFT] * 4, value=-1.0)
    side = images.shape[-1]
    return padded[:, :, down : down + side, right : right + side]

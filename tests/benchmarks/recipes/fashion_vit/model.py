"""A small vision transformer (Dosovitskiy et al., 2020, arXiv:2010.11929): pre-norm, GELU, mean of the tokens."""

import torch
from torch import nn

PATCH, SIDE = 4, 28
WIDTH, DEPTH, HEADS = 96, 4, 3


class Block(nn.Module):
    """Attention, then two dense layers, each behind a LayerNorm and beside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mixed, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [N, tokens, WIDTH], the same out."""
        x = x + self.out(self._attend(self.norm1(x)))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        heads = self.mixed(x).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = heads[0], heads[1], heads[2]
        scores = query @ key.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5
        return (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, tokens, WIDTH)


class Vit(nn.Module):
    """float32 [N, 3, 28, 28], normalized by `mean` and `std`, to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(0.02 * torch.randn(1, (SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)
        self.register_buffer("mean", torch.full((3,), 0.286), persistent=False)
        self.register_buffer("std", torch.full((3,), 0.353), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def build() -> nn.Module:
    """The network, untrained."""
    return Vit()

"""A small BERT encoder (Wang et al., 2020, arXiv:2002.10957; Devlin et al., 2019, arXiv:1810.04805), with the layout of
all-MiniLM-L6-v2 and the parameter names of the BERT models of the package transformers.
"""

import math

import torch
from torch import nn
from torch.nn import functional

TYPES = 2
EPSILON = 1e-12


class Embeddings(nn.Module):
    """A word, its position, and the type of its text (always the first), added and normalized."""

    def __init__(self, words: int, positions: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.token_type_embeddings = nn.Embedding(TYPES, width)
        self.LayerNorm = nn.LayerNorm(width, EPSILON)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int32 [N, T] to float32 [N, T, width]."""
        places = self.position_embeddings.weight[: ids.shape[1]] + self.token_type_embeddings.weight[0]
        return self.LayerNorm(self.word_embeddings(ids) + places)


class SelfAttention(nn.Module):
    """Each word gathers from all others; no word is masked."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """float32 [N * length, width], the same out."""
        query, key, value = (
            layer(x).view(-1, length, self.heads, x.shape[1] // self.heads) for layer in self._layers()
        )
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) / math.sqrt(x.shape[1] // self.heads)
        return (torch.softmax(scores, -1) @ value.transpose(1, 2)).transpose(1, 2).reshape(x.shape)

    def _layers(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.query, self.key, self.value


class Output(nn.Module):
    """Back to the residual's width, added to it and normalized."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inputs, width), nn.LayerNorm(width, EPSILON)

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """float32 [M, inputs] and [M, width] to [M, width]."""
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    """Attention, then two dense layers with GELU between them."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(width, heads), "output": Output(width, width)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = Output(hidden, width)

    def forward(self, x: torch.Tensor, length: int) -> torch.Tensor:
        """float32 [N * length, width], the same out."""
        x = self.attention["output"](self.attention["self"](x, length), x)
        return self.output(functional.gelu(self.intermediate["dense"](x)), x)


class MiniLm(nn.Module):
    """Word ids, int32 [N, T], to float32 [N, T, width]."""

    def __init__(self, words: int, positions: int, width: int, heads: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(words, positions, width)
        stack = nn.ModuleList(Layer(width, heads, hidden) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layer": stack})

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """A vector a word."""
        embedded = self.embeddings(ids)
        x = embedded.flatten(0, 1)
        for layer in self.encoder["layer"]:
            x = layer(x, ids.shape[1])
        return x.view(embedded.shape)


def build(
    words: int = 30522, positions: int = 512, width: int = 384, heads: int = 12, hidden: int = 1536, layers: int = 6
) -> nn.Module:
    """The network; initialised so that dense layers keep the variance, and words count for more than their places."""
    network = MiniLm(words, positions, width, heads, hidden, layers)
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    for table in (network.embeddings.position_embeddings, network.embeddings.token_type_embeddings):
        nn.init.normal_(table.weight, std=0.1)
    return network

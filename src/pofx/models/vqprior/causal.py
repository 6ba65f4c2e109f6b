"""Autoregressive networks over a map of codes in raster order: a transformer and a gated PixelCNN.

Both take the first n codes of each image, (b, n), and return the logits of the next one after each of 0..n codes,
(b, n + 1, size). Code i has no influence on the logits before i + 1, not even by rounding.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pofx.base import rng
from pofx.models.family import outer, stacked
from pofx.models.layers import attend

Cache = dict[int, tuple[Tensor, Tensor]]  # block -> keys and values of the codes seen so far


def _head(width: int, size: int) -> nn.Linear:
    # Zeros: training starts from the uniform distribution, log(size) nats a code.
    head = outer(nn.Linear(width, size))
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class Transformer(nn.Module):
    """Pre-norm causal transformer with learned positions and a start token (Radford et al. 2019, GPT-2).

    Args:
        size: number of different codes.
        length: codes of an image.
        cfg: Config of vqprior.py: width, layers, heads, dropout.
    """

    def __init__(self, size: int, length: int, cfg: Any):
        super().__init__()
        self.embed = nn.Embedding(size + 1, cfg.width)  # the last one: the start
        self.place = nn.Embedding(length, cfg.width)
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.02)
        self.blocks = nn.ModuleList(TransformerBlock(cfg.width, cfg.heads, cfg.dropout) for _ in range(cfg.layers))
        self.norm, self.head = nn.LayerNorm(cfg.width), _head(cfg.width, size)

    def forward(self, codes: Int64[Tensor, "b n"], cache: Cache | None = None) -> Float[Tensor, "b m size"]:
        """With a `cache`, which is filled, only what it lacks is computed: call it with one code more each time, from
        none on, for the logits of the next one alone (m = 1)."""
        seen = cache[0][0].shape[2] if cache else 0
        tokens = F.pad(codes, (1, 0), value=self.embed.num_embeddings - 1)[:, seen:]
        h = self.embed(tokens) + self.place.weight[seen : seen + tokens.shape[1]]
        for i, block in enumerate(self.blocks):
            h = block(h, i, cache)
        return self.head(self.norm(h))


class TransformerBlock(nn.Module):
    """Attention to what is not later, then an MLP, each on a norm and added to its input."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, rng.Dropout(dropout)
        self.norm1, self.qkv = nn.LayerNorm(width), stacked(nn.Linear(width, 3 * width), 3)
        self.out = nn.Linear(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "b n width"], index: int, cache: Cache | None) -> Float[Tensor, "b n width"]:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        whole = not cache or index not in cache  # else one query, which may see all
        if cache is not None:
            if not whole:
                k, v = (torch.cat(pair, 2) for pair in zip(cache[index], (k, v), strict=True))
            cache[index] = k, v
        h = attend(q, k, v, causal=whole)
        x = x + self.dropout(self.out(h.transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class PixelCNN(nn.Module):
    """Gated PixelCNN (van den Oord et al. 2016, arXiv 1606.05328): one stack sees the rows above, one the row's left.

    Its input is moved down for the one stack and right for the other, in place of masks on the first layer.

    Args:
        size: number of different codes.
        side: height and width of the map of codes.
        cfg: Config of vqprior.py: width, layers, dropout.
    """

    def __init__(self, size: int, side: tuple[int, int], cfg: Any):
        super().__init__()
        self.side = side
        self.embed = nn.Embedding(size, cfg.width)
        self.layers = nn.ModuleList(GatedLayer(cfg.width, 3 if i else 7) for i in range(cfg.layers))
        self.out, self.head = nn.Linear(cfg.width, cfg.width), _head(cfg.width, size)
        self.dropout = rng.Dropout(cfg.dropout)

    def forward(self, codes: Int64[Tensor, "b n"], cache: Cache | None = None) -> Float[Tensor, "b m size"]:
        """A `cache` saves nothing: each call computes the whole map."""
        n = codes.shape[1]
        x = self.embed(F.pad(codes, (0, math.prod(self.side) - n))).transpose(1, 2).unflatten(2, self.side)
        down, right = F.pad(x, (0, 0, 1, 0))[:, :, :-1], F.pad(x, (1, 0))[..., :-1]
        for layer in self.layers:
            down, right = layer(down, right)
        h = self.dropout(F.relu(right.flatten(2).transpose(1, 2)))
        return self.head(F.relu(self.out(h)))[:, : n + 1]


class GatedLayer(nn.Module):
    """(rows above, rows above and left) -> the same, by tanh times sigmoid; the second stack has a skip connection."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        half = kernel // 2
        self.above, self.left = (half, half, half, 0), (half, 0, 0, 0)
        self.vertical = nn.Conv2d(width, 2 * width, (half + 1, kernel))
        self.horizontal = nn.Conv2d(width, 2 * width, (1, half + 1))
        self.across, self.out = nn.Conv2d(2 * width, 2 * width, 1), nn.Conv2d(width, width, 1)

    def forward(self, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        v = self.vertical(F.pad(down, self.above))
        h = self.out(_gate(self.horizontal(F.pad(right, self.left)) + self.across(v)))
        return _gate(v), right + h


def _gate(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a.tanh() * b.sigmoid()

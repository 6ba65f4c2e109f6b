"""A U-Net that knows the noise level: DDPM (Ho et al. 2020) with Gaussian Fourier features (Song et al. 2021)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def _norm(channels: int) -> nn.GroupNorm:
    # As published 32 groups; in narrow networks as many as leave four channels or more in each.
    groups = max(g for g in range(1, 33) if channels % g == 0 and channels // g >= 4)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _zeros(layer: nn.Conv2d) -> nn.Conv2d:
    # Each residual branch starts as nothing, so that the network starts as a shallow one.
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Fourier(nn.Module):
    """Gaussian Fourier features of a scalar: sin and cos of 2 pi w t with fixed w ~ N(0, scale^2)."""

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.register_buffer("w", torch.randn(dim // 2) * scale)

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        angle = 2 * math.pi * t[:, None] * self.w
        return torch.cat([angle.sin(), angle.cos()], 1)


class Block(nn.Module):
    """Residual block: norm, SiLU, conv, twice; the noise embedding is added between."""

    def __init__(self, before: int, after: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.embed = nn.Linear(embedding, after)
        self.norm2, self.dropout = _norm(after), nn.Dropout(dropout)
        self.conv2 = _zeros(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.embed(e)[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Attention(nn.Module):
    """Self-attention over the positions of the map, with a residual connection."""

    def __init__(self, channels: int, heads: int = 1):
        super().__init__()
        self.heads, self.norm = heads, _norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), _zeros(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(2, 3).reshape(b, c, h, w))


class UNet(nn.Module):
    """Image and noise level in, image out.

    Args:
        channels: width of the first level.
        multipliers: width of every level as a multiple of `channels`; each level halves the side.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention: sides of the maps that get self-attention.
        patch: fold patch x patch pixels into channels first: the network then works at 1/patch of the side, which
            costs patch^2 times less. 1 is the published network.
        dropout: share of features dropped within residual blocks.
    """

    def __init__(self, channels: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], patch: int,
                 dropout: float, size: int = 32):  # fmt: skip
        super().__init__()
        embedding, side, folded = 4 * channels, size // patch, 3 * patch**2
        self.embed = nn.Sequential(Fourier(channels, scale=1.0), nn.Linear(channels, embedding), nn.SiLU(),
                                   nn.Linear(embedding, embedding), nn.SiLU())  # fmt: skip
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.first = nn.Conv2d(folded, channels, 3, padding=1)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths, kept, now = [channels * m for m in multipliers], [channels], channels
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(self._step(now, width, embedding, dropout, side in attention))
                now = width
                kept.append(now)
            if level + 1 < len(widths):
                self.down.append(nn.Conv2d(now, now, 3, 2, 1))
                kept.append(now)
                side //= 2
        middle_attention = [Attention(now)] if attention else []
        self.middle = nn.ModuleList(
            [Block(now, now, embedding, dropout), *middle_attention, Block(now, now, embedding, dropout)]
        )
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(self._step(now + kept.pop(), width, embedding, dropout, side in attention))
                now = width
            if level:
                self.up.append(
                    nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(now, now, 3, padding=1))
                )
                side *= 2
        self.last = nn.Sequential(_norm(now), nn.SiLU(), _zeros(nn.Conv2d(now, folded, 3, padding=1)))

    @staticmethod
    def _step(before: int, after: int, embedding: int, dropout: float, attend: bool) -> nn.ModuleList:
        return nn.ModuleList([Block(before, after, embedding, dropout), *([Attention(after)] if attend else [])])

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """`t` names the noise level: any real number, of order one (the logarithm of sigma over four, say)."""
        e = self.embed(t)
        h = self.first(self.fold(x))
        kept = [h]
        for step in self.down:
            h = self._run(step, h, e) if isinstance(step, nn.ModuleList) else step(h)
            kept.append(h)
        h = self._run(self.middle, h, e)
        for step in self.up:
            h = self._run(step, torch.cat([h, kept.pop()], 1), e) if isinstance(step, nn.ModuleList) else step(h)
        return self.unfold(self.last(h))

    @staticmethod
    def _run(step: nn.ModuleList, h: Tensor, e: Tensor) -> Tensor:
        for layer in step:
            h = layer(h, e) if isinstance(layer, Block) else layer(h)
        return h

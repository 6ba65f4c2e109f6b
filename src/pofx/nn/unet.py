"""A U-Net that knows the noise level: the network of DDPM (Ho et al. 2020, arXiv 2006.11239).

It is told the level by sinusoids of the time step, as DDPM, or by Gaussian Fourier features of log sigma (Song et al.
2021, arXiv 2011.13456).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIZE = 32  # pixels a side


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


class Sinusoid(nn.Module):
    """sin and cos of a time step at `dim` / 2 frequencies from 1 down to 1e-4 (Vaswani et al. 2017)."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("w", torch.logspace(0, -4, dim // 2), persistent=False)

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b dim"]:
        angle = t[:, None] * self.w
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

    def __init__(self, channels: int, heads: int):
        super().__init__()
        self.heads, self.norm = heads, _norm(channels)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), _zeros(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(2, 3).reshape(b, c, h, w))


@dataclass(frozen=True)
class Shape:
    """What a U-Net looks like: the published one of DDPM has 128, (1, 2, 2, 2), 2, (16,), 1, conv, 1, 0.1."""

    channels: int  # width of the first level
    multipliers: tuple[int, ...]  # width of every level as a multiple of it; each level halves the side
    blocks: int  # residual blocks a level on the way down, one more on the way up
    attention: tuple[int, ...]  # sides of the maps with self-attention; if any, the middle has it too
    heads: int  # of the self-attention
    resample: Literal["conv", "plain"]  # halve and double the side with a convolution, or by mean and repetition alone
    patch: int  # fold squares of pixels into channels first, which costs patch^2 times less
    dropout: float  # share of features dropped within residual blocks

    def __post_init__(self) -> None:
        for key in ("channels", "blocks", "heads", "patch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)} should be at least 1")
        attended = [m for i, m in enumerate(self.multipliers) if self.side(i) in self.attention]
        attended += self.multipliers[-1:] if self.attention else []
        if any(self.channels * m % self.heads for m in attended):
            raise ValueError(f"heads = {self.heads} should divide the width of every map with attention")
        if not self.multipliers or SIZE % (self.patch * 2 ** (len(self.multipliers) - 1)):
            raise ValueError(f"multipliers = {list(self.multipliers)}: too many or no levels at patch {self.patch}")

    def side(self, level: int) -> int:
        return SIZE // self.patch // 2**level


class UNet(nn.Module):
    """Image and noise level in, image out.

    Args:
        shape: widths, depths and the rest.
        time: what `t` is: "sigma", a real number of order one such as log(sigma) / 4, or "step", of a chain of about
            a thousand.
    """

    def __init__(self, shape: Shape, time: Literal["sigma", "step"]):
        super().__init__()
        channels, patch, plain = shape.channels, shape.patch, shape.resample == "plain"
        embedding, folded = 4 * channels, 3 * patch**2
        features = Fourier(channels, scale=1.0) if time == "sigma" else Sinusoid(channels)
        self.embed = nn.Sequential(features, nn.Linear(channels, embedding), nn.SiLU(),
                                   nn.Linear(embedding, embedding), nn.SiLU())  # fmt: skip
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.first = nn.Conv2d(folded, channels, 3, padding=1)

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths, kept, now = [channels * m for m in shape.multipliers], [channels], channels

        def step(before: int, after: int, level: int) -> nn.ModuleList:
            attention = [Attention(after, shape.heads)] if shape.side(level) in shape.attention else []
            return nn.ModuleList([Block(before, after, embedding, shape.dropout), *attention])

        for level, width in enumerate(widths):
            for _ in range(shape.blocks):
                self.down.append(step(now, width, level))
                now = width
                kept.append(now)
            if level + 1 < len(widths):
                self.down.append(nn.AvgPool2d(2) if plain else nn.Conv2d(now, now, 3, 2, 1))
                kept.append(now)
        attention = [Attention(now, shape.heads)] if shape.attention else []
        first, last = (Block(now, now, embedding, shape.dropout) for _ in range(2))
        self.middle = nn.ModuleList([first, *attention, last])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(shape.blocks + 1):
                self.up.append(step(now + kept.pop(), width, level))
                now = width
            if level:
                conv = [] if plain else [nn.Conv2d(now, now, 3, padding=1)]
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *conv))
        self.last = nn.Sequential(_norm(now), nn.SiLU(), _zeros(nn.Conv2d(now, folded, 3, padding=1)))

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """`t` names the noise level, in the unit of `time`; it need not be one that was trained on."""
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

"""The U-Net of DDPM (Ho et al. 2020, arXiv 2006.11239). The noise level enters by sinusoids of the time step, as there,
or by Gaussian Fourier features of log sigma (Song et al. 2021, arXiv 2011.13456)."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt, MinLen
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base.errors import UserError
from pofx.base.rng import Dropout
from pofx.models.family import Images, Layer, Shape, outer, stacked
from pofx.models.layers import LayerNorm, attend


def _norm(channels: int) -> nn.GroupNorm:
    # As published 32 groups; in narrow networks as many as leave four channels or more in each.
    groups = max(g for g in range(1, 33) if channels % g == 0 and channels // g >= 4)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _zeros(layer: Layer) -> Layer:
    # Each residual branch starts as nothing, and with it the network as a shallow one.
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Fourier(nn.Module):
    """Gaussian Fourier features of a scalar: sin and cos of 2 pi w t with fixed w ~ N(0, 1)."""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("w", torch.randn(dim // 2))

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


def embedder(features: nn.Module, dim: int, inner: int, out: int) -> nn.Sequential:
    """From a noise level, by its `dim` features, to an embedding of `out` numbers."""
    return nn.Sequential(features, outer(nn.Linear(dim, inner)), nn.SiLU(), nn.Linear(inner, out), nn.SiLU())


class Block(nn.Module):
    """Residual block: norm, SiLU, conv, twice; the noise embedding is added between."""

    def __init__(self, before: int, after: int, embedding: int, dropout: float):
        super().__init__()
        self.norm1, self.conv1 = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.embed = nn.Linear(embedding, after)
        self.norm2, self.dropout = _norm(after), Dropout(dropout)
        self.conv2 = _zeros(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.embed(e)[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


class Dense(nn.Module):
    """Residual block: layer norm, SiLU, conv, twice; the noise embedding scales and shifts what the second norm gives.

        h = conv(silu(norm(x))),   y = skip(x) + conv(silu(norm(h) (1 + scale) + shift))

    As in ADM (Dhariwal & Nichol 2021, arXiv 2105.05233, AdaGN), with layer norm over channels for its GroupNorm. Nearly
    all of it is dense 3x3 convolutions, which processors with matrix units do fastest.
    """

    def __init__(self, before: int, after: int, embedding: int, dropout: float):
        super().__init__()
        self.norm, self.dropout = LayerNorm(), Dropout(dropout)
        self.conv1, self.embed = nn.Conv2d(before, after, 3, padding=1), nn.Linear(embedding, 2 * after)
        self.conv2 = _zeros(nn.Conv2d(after, after, 3, padding=1))
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        h = self.norm(self.conv1(F.silu(self.norm(x))))
        scale, shift = self.embed(e)[:, :, None, None].chunk(2, 1)
        return self.skip(x) + self.conv2(self.dropout(F.silu(h * (1 + scale) + shift)))


class Inverted(nn.Module):
    """Inverted residual block: layer norm, to four times the width, a depthwise 3x3, and back.

    The shape of the block is MobileNetV2's (Sandler et al. 2018, arXiv 1801.04381); the noise embedding scales and
    shifts what enters and scales what leaves, as in DiT (Peebles & Xie 2023, arXiv 2212.09748). Nearly all of it is
    matrix products over single positions, which suits a processor without tensor cores. Every position is normed by
    itself: a small shape on a plain ground is not drowned by the ground's statistics.
    """

    def __init__(self, before: int, after: int, embedding: int, dropout: float):
        super().__init__()
        wide = 4 * after
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        self.embed = nn.Linear(embedding, 3 * after)
        self.widen, self.spread = nn.Linear(after, wide), nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.dropout, self.narrow = Dropout(dropout), _zeros(nn.Linear(wide, after))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = self.skip(x)
        scale, shift, gate = self.embed(e)[:, None, None].chunk(3, -1)
        h = F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2])  # channels last, as the maps lie in memory
        h = self.widen(torch.addcmul(shift, h, 1 + scale)).permute(0, 3, 1, 2)
        h = F.gelu(h + self.spread(h)).permute(0, 2, 3, 1)
        return x + ((1 + gate) * self.narrow(self.dropout(h))).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Self-attention over the positions of the map, with a residual connection."""

    def __init__(self, channels: int, heads: int, norm: nn.Module):
        super().__init__()
        if channels % heads:
            raise UserError(f"net.heads = {heads} should divide the width of every map with attention")
        self.heads, self.norm = heads, norm
        self.qkv = stacked(nn.Conv2d(channels, 3 * channels, 1), 3)
        self.out = _zeros(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, _: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        y = attend(q, k, v, causal=False).transpose(1, 2).reshape(b, h, w, c)
        return x + self.out(y.permute(0, 3, 1, 2))


@dataclass(frozen=True)
class UNetConfig:
    """What a U-Net looks like: the published one of DDPM has 128, (1, 2, 2, 2), 2, residual, (16,), 1, conv, 1, 0.1."""

    channels: Annotated[int, Ge(4)] = 32  # width of the first level
    multipliers: Annotated[tuple[int, ...], MinLen(1)] = (1, 2)  # width of every level, times it; each halves the side
    blocks: Annotated[int, Ge(1)] = 1  # residual blocks a level on the way down, one more on the way up
    # dense: 3x3 convolutions, layer norms; residual: DDPM's, with GroupNorm; inverted: 1x1 and depthwise convolutions
    block: Literal["dense", "residual", "inverted"] = "dense"
    attention: tuple[int, ...] = (8,)  # sides of the maps with self-attention; if any, the middle has it too
    heads: Annotated[int, Ge(1)] = 4  # of the self-attention
    resample: Literal["conv", "plain"] = "plain"  # halve and double the side by convolutions, or by mean and repetition
    patch: Annotated[int, Ge(1)] = 2  # fold squares of pixels into channels first, which costs patch^2 times less
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0  # share of features dropped within residual blocks


# Of every kind of block: the block, the norm of attention, and the side of the first and the last convolution's kernel.
KINDS = {
    "dense": (Dense, lambda _: LayerNorm(), 1),
    "residual": (Block, _norm, 3),
    "inverted": (Inverted, _norm, 1),
}


class UNet(nn.Module):
    """Image and noise level in, image out.

    Args:
        time: what `t` is: "sigma", a real number of order one such as log(sigma) / 4, or "step", of a chain of about
            a thousand.

    Raises:
        UserError: the image cannot be halved so often, or the heads do not divide a width.
    """

    def __init__(self, cfg: UNetConfig, shape: Shape, time: Literal["sigma", "step"]):
        super().__init__()
        factor = cfg.patch * 2 ** (len(cfg.multipliers) - 1)
        if any(side % factor for side in shape[1:]):
            raise UserError(
                f"net.multipliers = {list(cfg.multipliers)} with net.patch = {cfg.patch} divides the side by {factor}, "
                f"which images of {shape[1]}x{shape[2]} do not allow: take fewer levels"
            )
        channels, patch, plain = cfg.channels, cfg.patch, cfg.resample == "plain"
        block, norm, side = KINDS[cfg.block]
        embedding, folded = 4 * channels, shape[0] * patch**2
        features = Fourier(channels) if time == "sigma" else Sinusoid(channels)
        self.embed = embedder(features, channels, embedding, embedding)
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.first = outer(nn.Conv2d(folded, channels, side, padding=side // 2))

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        widths, kept, now = [channels * m for m in cfg.multipliers], [channels], channels

        def step(before: int, after: int, level: int) -> nn.ModuleList:
            attended = shape[1] // patch // 2**level in cfg.attention
            attention = [Attention(after, cfg.heads, norm(after))] if attended else []
            return nn.ModuleList([block(before, after, embedding, cfg.dropout), *attention])

        for level, width in enumerate(widths):
            for _ in range(cfg.blocks):
                self.down.append(step(now, width, level))
                now = width
                kept.append(now)
            if level + 1 < len(widths):
                self.down.append(nn.AvgPool2d(2) if plain else nn.Conv2d(now, now, 3, 2, 1))
                kept.append(now)
        attention = [Attention(now, cfg.heads, norm(now))] if cfg.attention else []
        first, last = (block(now, now, embedding, cfg.dropout) for _ in range(2))
        self.middle = nn.ModuleList([first, *attention, last])
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(cfg.blocks + 1):
                self.up.append(step(now + kept.pop(), width, level))
                now = width
            if level:
                conv = [] if plain else [nn.Conv2d(now, now, 3, padding=1)]
                self.up.append(nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), *conv))
        active = [norm(now), nn.SiLU()] if cfg.block != "inverted" else []
        self.last = nn.Sequential(*active, outer(_zeros(nn.Conv2d(now, folded, side, padding=side // 2))))

    @property
    def deepest(self) -> nn.Module:
        """The layer that puts out the last map of the smallest side."""
        return self.middle[-1]

    def forward(self, x: Images, t: Float[Tensor, " b"]) -> Images:
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
            h = layer(h, e)
        return h

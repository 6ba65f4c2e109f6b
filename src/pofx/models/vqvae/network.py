"""Residual encoder and decoder between images and maps of a quarter of their side (van den Oord et al. 2017).

The published layers (two stride-2 convolutions, a 3x3 one, residual blocks of 3x3 and 1x1), with a GroupNorm before the
activations: training may be short and fast.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(8, channels // 4), channels)


class Block(nn.Module):
    """norm, SiLU, 3x3 conv to half the width, norm, SiLU, 1x1 conv, added to the input."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(channels), nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.norm2, self.conv2 = _norm(channels // 2), nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Encoder(nn.Module):
    """(b, c, h, w) -> (b, dim, h / 4, w / 4)."""

    def __init__(self, colours: int, channels: int, blocks: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(colours, channels // 2, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(channels // 2, channels, 4, 2, 1), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1), *(Block(channels) for _ in range(blocks)),
            _norm(channels), nn.SiLU(), nn.Conv2d(channels, dim, 1),
        )  # fmt: skip

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b dim _ _"]:
        return self.layers(x)


class Decoder(nn.Module):
    """(b, dim, h / 4, w / 4) -> (b, c, h, w): the mean of the image."""

    def __init__(self, colours: int, channels: int, blocks: int, dim: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, channels, 3, padding=1), *(Block(channels) for _ in range(blocks)),
            _norm(channels), nn.SiLU(), nn.ConvTranspose2d(channels, channels // 2, 4, 2, 1),
            _norm(channels // 2), nn.SiLU(), nn.ConvTranspose2d(channels // 2, colours, 4, 2, 1),
        )  # fmt: skip

    def forward(self, z: Float[Tensor, "b dim h w"]) -> Float[Tensor, "b c _ _"]:
        return self.layers(z)

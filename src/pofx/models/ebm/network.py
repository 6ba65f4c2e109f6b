"""Residual networks from images to energies, after IGEBM (Du & Mordatch 2019, arXiv 1903.08689).

Nothing in them mixes images: no batch statistics.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pofx.models.unet import SIZE, Fourier

Wrap = Callable[[nn.Conv2d], nn.Module]


@dataclass(frozen=True)
class Shape:
    """What an energy network looks like: IGEBM's has 128, (1, 2, 4), 3, 1, spectral, 1."""

    channels: int  # width of the first stage
    multipliers: tuple[int, ...]  # width of every stage as a multiple of it; each halves the side
    blocks: int  # residual blocks a stage; the first halves the side
    patch: int  # fold squares of pixels into channels first, which costs patch^2 times less
    spectral: bool  # bound every convolution by its spectral norm
    scales: int  # networks whose energies add up: one sees the image, the next its half side, and so on (2012.01316)

    def __post_init__(self) -> None:
        for key in ("channels", "blocks", "patch", "scales"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} = {getattr(self, key)} should be at least 1")
        if not self.multipliers or SIZE % (self.patch * 2 ** (len(self.multipliers) + self.scales - 1)):
            size = f"at patch {self.patch}, scales {self.scales}"
            raise ValueError(f"multipliers = {list(self.multipliers)}: too many or no stages {size}")


class Energy(nn.Module):
    """(b, 3, 32, 32) -> (b,): one number an image.

    Args:
        shape: widths, depths and the rest.
        levels: whether the network is told a noise level.
    """

    def __init__(self, shape: Shape, levels: bool):
        super().__init__()
        self.towers = nn.ModuleList(Tower(shape, levels) for _ in range(shape.scales))

    @property
    def deepest(self) -> nn.Module:
        """The layer that puts out the last map of the tower that sees the whole image."""
        return self.towers[0].blocks[-1]

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        """`t` names the noise level: a real number of order one, such as log(sigma) / 4."""
        total = self.towers[0](x, t)
        for tower in self.towers[1:]:
            x = F.avg_pool2d(x, 2)
            total = total + tower(x, t)
        return total


class Tower(nn.Module):
    """The network at one scale."""

    def __init__(self, shape: Shape, levels: bool):
        super().__init__()
        wrap: Wrap = spectral_norm if shape.spectral else lambda layer: layer
        channels, embedding = shape.channels, 4 * shape.channels if levels else 0
        self.embed = None
        if levels:
            self.embed = nn.Sequential(Fourier(channels, scale=1.0), nn.Linear(channels, embedding), nn.SiLU(),
                                       nn.Linear(embedding, embedding), nn.SiLU())  # fmt: skip
        folded = 3 * shape.patch**2
        self.first = nn.Sequential(nn.PixelUnshuffle(shape.patch), wrap(nn.Conv2d(folded, channels, 3, padding=1)))
        self.blocks, now = nn.ModuleList(), channels
        for width in (channels * m for m in shape.multipliers):
            for k in range(shape.blocks):
                self.blocks.append(Block(now, width, embedding, shrink=k == 0, wrap=wrap))
                now = width
        self.last = nn.Linear(embedding, now) if levels else nn.Linear(now, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"] | None) -> Float[Tensor, " b"]:
        e = self.embed(t) if self.embed else None
        h = self.first(x)
        for block in self.blocks:
            h = block(h, e)
        # In float32 also under autocast: the loss is a small difference of energies.
        h = F.silu(h).float().sum((2, 3))
        return (h * self.last.weight).sum(1) + self.last.bias if e is None else (h * self.last(e)).sum(1)


class Block(nn.Module):
    """SiLU, conv, SiLU, conv with a skip connection; then the side halves where asked. The noise level is added between
    the convolutions (Gao et al. 2021, arXiv 2012.08125)."""

    def __init__(self, before: int, after: int, embedding: int, shrink: bool, wrap: Wrap):
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(before, after, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(after, after, 3, padding=1))
        self.embed = nn.Linear(embedding, after) if embedding else None
        self.skip = wrap(nn.Conv2d(before, after, 1)) if before != after else nn.Identity()
        self.shrink = shrink

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        h = self.conv1(F.silu(x))
        if e is not None:
            h = h + self.embed(e)[:, :, None, None]
        h = self.skip(x) + self.conv2(F.silu(h))
        return F.avg_pool2d(h, 2) if self.shrink else h

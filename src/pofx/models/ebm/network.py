"""Residual networks from images to energies, after IGEBM (Du & Mordatch 2019, arXiv 1903.08689).

Nothing in them mixes images: no batch statistics.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, MinLen
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pofx.base.errors import UserError
from pofx.models.family import Images, Shape, outer
from pofx.models.unet import Fourier, embedder


@dataclass(frozen=True)
class EnergyConfig:
    """What an energy network looks like: IGEBM's has 128, (1, 2, 4), 3, 1, spectral, 1."""

    channels: Annotated[int, Ge(1)] = 32  # width of the first stage
    multipliers: Annotated[tuple[int, ...], MinLen(1)] = (1, 2, 4, 4)  # of every stage; each halves an even side
    blocks: Annotated[int, Ge(1)] = 1  # residual blocks a stage; the first halves the side
    patch: Annotated[int, Ge(1)] = 2  # fold squares of pixels into channels first, which costs patch^2 times less
    spectral: bool = False  # bound every convolution by its spectral norm
    # Networks whose energies add up: one sees the image, the next its half side, and so on (arXiv 2012.01316).
    scales: Annotated[int, Ge(1)] = 1


class Energy(nn.Module):
    """(b, c, h, w) -> (b,): one number an image, at a noise level if it has `levels`.

    Raises:
        UserError: the image cannot be folded, or halved for its scales.
    """

    def __init__(self, cfg: EnergyConfig, shape: Shape, levels: bool):
        super().__init__()
        colours, h, w = shape
        if any(side % (cfg.patch * 2 ** (cfg.scales - 1)) for side in (h, w)):
            raise UserError(f"ebm.net.patch = {cfg.patch} with scales = {cfg.scales} does not fit {h}x{w}: lower one")
        self.towers = nn.ModuleList(Tower(cfg, (colours, h >> k, w >> k), levels) for k in range(cfg.scales))

    @property
    def deepest(self) -> nn.Module:
        """The layer that puts out the last map of the tower that sees the whole image."""
        return self.towers[0].blocks[-1]

    def forward(self, x: Images, t: Float[Tensor, " b"] | None = None) -> Float[Tensor, " b"]:
        """`t` names the noise level: a real number of order one, such as log(sigma) / 4."""
        total = self.towers[0](x, t)
        for tower in self.towers[1:]:
            x = F.avg_pool2d(x, 2)
            total = total + tower(x, t)
        return total


class Tower(nn.Module):
    """The network at one scale."""

    def __init__(self, cfg: EnergyConfig, shape: Shape, levels: bool):
        super().__init__()
        channels, embedding = cfg.channels, 4 * cfg.channels if levels else 0
        self.embed = embedder(Fourier(channels), channels, embedding, embedding) if levels else None
        first = _conv(shape[0] * cfg.patch**2, channels, 3, cfg.spectral)
        self.first = nn.Sequential(nn.PixelUnshuffle(cfg.patch), outer(first))
        self.blocks, now = nn.ModuleList(), channels
        sides = [side // cfg.patch for side in shape[1:]]
        for width in (channels * m for m in cfg.multipliers):
            halved = all(side % 2 == 0 for side in sides)  # of a small image the last stages keep the side
            for k in range(cfg.blocks):
                self.blocks.append(Block(now, width, embedding, shrink=halved and k == 0, spectral=cfg.spectral))
                now = width
            sides = [side // 2 for side in sides] if halved else sides
        self.last = outer(nn.Linear(embedding, now) if levels else nn.Linear(now, 1))

    def forward(self, x: Images, t: Float[Tensor, " b"] | None) -> Float[Tensor, " b"]:
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

    def __init__(self, before: int, after: int, embedding: int, shrink: bool, spectral: bool):
        super().__init__()
        self.conv1, self.conv2 = _conv(before, after, 3, spectral), _conv(after, after, 3, spectral)
        self.embed = nn.Linear(embedding, after) if embedding else None
        self.skip = _conv(before, after, 1, spectral) if before != after else nn.Identity()
        self.shrink = shrink

    def forward(self, x: Tensor, e: Tensor | None) -> Tensor:
        h = self.conv1(F.silu(x))
        if e is not None:
            h = h + self.embed(e)[:, :, None, None]
        h = self.skip(x) + self.conv2(F.silu(h))
        return F.avg_pool2d(h, 2) if self.shrink else h


def _conv(before: int, after: int, side: int, spectral: bool) -> nn.Module:
    conv = nn.Conv2d(before, after, side, padding=side // 2)
    return spectral_norm(conv) if spectral else conv

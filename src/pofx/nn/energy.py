"""A residual network from images to energies, after IGEBM (Du & Mordatch 2019, arXiv 1903.08689).

Nothing in it mixes images: no batch statistics.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Energy(nn.Module):
    """(b, 3, 32, 32) -> (b,): one number an image.

    Args:
        channels: width of the first stage; it doubles in each of the two after it.
        blocks: residual blocks a stage; the first of each stage halves the side.
        patch: fold patch x patch pixels into channels first: patch^2 times cheaper; 1 is the published network.
        spectral: bound the Lipschitz constant of every convolution by spectral normalisation.
    """

    def __init__(self, channels: int, blocks: int, patch: int, spectral: bool):
        super().__init__()
        wrap = (lambda layer: spectral_norm(layer)) if spectral else (lambda layer: layer)
        self.first = nn.Sequential(nn.PixelUnshuffle(patch), wrap(nn.Conv2d(3 * patch**2, channels, 3, padding=1)))
        widths = [channels, 2 * channels, 4 * channels]
        self.blocks = nn.ModuleList()
        now = channels
        for width in widths:
            for k in range(blocks):
                self.blocks.append(EnergyBlock(now, width, shrink=k == 0, wrap=wrap))
                now = width
        self.last = nn.Linear(now, 1)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        # In float32 also under autocast: the loss is a small difference of energies.
        return (F.silu(h).float().sum((2, 3)) * self.last.weight).sum(1) + self.last.bias


class EnergyBlock(nn.Module):
    """SiLU, conv, SiLU, conv with a skip connection; then the side halves where asked."""

    def __init__(self, before: int, after: int, shrink: bool, wrap):
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(before, after, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(after, after, 3, padding=1))
        self.skip = wrap(nn.Conv2d(before, after, 1)) if before != after else nn.Identity()
        self.shrink = shrink

    def forward(self, x: Tensor) -> Tensor:
        h = self.skip(x) + self.conv2(F.silu(self.conv1(F.silu(x))))
        return F.avg_pool2d(h, 2) if self.shrink else h

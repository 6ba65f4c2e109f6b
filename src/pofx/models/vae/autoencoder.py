"""Encoder and decoder of a VAE: down to a small map by halving the side once a level, mirrored on the way up.

Dense: squares of 2x2 pixels are folded into channels, which is the first halving, and all convolutions are 3x3 on at
most a quarter of the positions, with layer norm over channels. Otherwise, with `blocks` 0, each level is one stride-2
convolution. Else it has that many residual blocks before its side is halved, and after it is doubled, by repetition and
a convolution.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from pofx.models.family import Images, Shape, outer
from pofx.models.layers import LayerNorm


def _smallest(shape: Shape, channels: Sequence[int]) -> Shape:
    """The shape of the smallest map."""
    return channels[-1], shape[1] >> len(channels), shape[2] >> len(channels)


def _active(channels: int) -> list[nn.Module]:
    # GroupNorm, not BatchNorm: the model is the same in training and in evaluation.
    return [nn.GroupNorm(min(8, channels // 4), channels), nn.SiLU()]


class Residual(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027): norm, SiLU, conv, twice, beside a skip."""

    def __init__(self, channels: int):
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))
        self.layers = nn.Sequential(*_active(channels), first, *_active(channels), second)
        nn.init.zeros_(second.weight)  # the branch starts as nothing, the network as a shallow one

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Encoder(nn.Module):
    """(b, c, h, w) -> (b, 2 latent): means and log variances."""

    def __init__(self, shape: Shape, channels: Sequence[int], blocks: int, latent: int):
        super().__init__()
        layers: list[nn.Module] = []
        if blocks:
            layers += [outer(nn.Conv2d(shape[0], channels[0], 3, 1, 1))]
            for now, after in pairwise([*channels, channels[-1]]):
                layers += [*(Residual(now) for _ in range(blocks)), nn.Conv2d(now, after, 3, 2, 1)]
            layers += _active(channels[-1])
        else:
            for before, after in pairwise([shape[0], *channels]):
                layers += [nn.Conv2d(before, after, 4, 2, 1), *_active(after)]
            outer(layers[0])
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(math.prod(_smallest(shape, channels)), 2 * latent))

    def forward(self, x: Images) -> Float[Tensor, "b twice_latent"]:
        return self.layers(x)


class Decoder(nn.Module):
    """(b, latent) -> (b, out, h, w): the mean of the image, or whatever `out` parameters describe a pixel."""

    def __init__(self, shape: Shape, channels: Sequence[int], blocks: int, latent: int, out: int):
        super().__init__()
        up, small = list(channels)[::-1], _smallest(shape, channels)
        layers: list[nn.Module] = [nn.Linear(latent, math.prod(small)), nn.Unflatten(1, small)]
        if blocks:
            for before, now in pairwise([up[0], *up]):
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, now, 3, 1, 1)]
                layers += [Residual(now) for _ in range(blocks)]
        else:
            for before, after in pairwise([*up, up[-1]]):
                layers += [*_active(before), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, *_active(up[-1]), outer(nn.Conv2d(up[-1], out, 3, 1, 1)))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b out h w"]:
        return self.layers(z)


class DenseEncoder(nn.Module):
    """(b, c, h, w) -> (b, 2 latent): means and log variances, by 3x3 convolutions on folded pixels."""

    def __init__(self, shape: Shape, channels: Sequence[int], latent: int):
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), outer(nn.Conv2d(4 * shape[0], channels[0], 3, 1, 1))]
        for before, after in pairwise(channels):
            layers += [LayerNorm(), nn.SiLU(), nn.Conv2d(before, after, 3, 2, 1)]
        codes = nn.Linear(math.prod(_smallest(shape, channels)), 2 * latent)
        self.layers = nn.Sequential(*layers, LayerNorm(), nn.SiLU(), nn.Flatten(), codes)

    def forward(self, x: Images) -> Float[Tensor, "b twice_latent"]:
        return self.layers(x)


class DenseDecoder(nn.Module):
    """(b, latent) -> (b, out, h, w), as `Decoder`, by 3x3 convolutions on folded pixels."""

    def __init__(self, shape: Shape, channels: Sequence[int], latent: int, out: int):
        super().__init__()
        up, small = list(channels)[::-1], _smallest(shape, channels)
        layers: list[nn.Module] = [nn.Linear(latent, math.prod(small)), nn.Unflatten(1, small)]
        for before, after in pairwise(up):
            layers += [LayerNorm(), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, 1, 1)]
        self.layers = nn.Sequential(
            *layers, LayerNorm(), nn.SiLU(), outer(nn.Conv2d(up[-1], 4 * out, 3, 1, 1)), nn.PixelShuffle(2)
        )

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b out h w"]:
        return self.layers(z)

"""Encoder and decoder of a VAE: down to a small map by halving the side once a level, mirrored on the way up."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn


def _norm(channels: int) -> nn.Module:
    # GroupNorm, not BatchNorm: the model is the same in training and in evaluation.
    return nn.GroupNorm(min(8, channels // 4), channels)


class Encoder(nn.Module):
    """(b, 3, size, size) -> (b, 2 latent): means and log variances, by one stride-2 convolution a stage."""

    def __init__(self, channels: Sequence[int], latent: int, size: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip([3, *channels], channels, strict=False):
            layers += [nn.Conv2d(before, after, 4, 2, 1), _norm(after), nn.SiLU()]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(channels[-1] * (size >> len(channels)) ** 2, 2 * latent)
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b twice_latent"]:
        return self.layers(x)


class Decoder(nn.Module):
    """(b, latent) -> (b, out, size, size): the mean of the image, or whatever `out` parameters describe a pixel."""

    def __init__(self, channels: Sequence[int], latent: int, out: int = 3, size: int = 32):
        super().__init__()
        up, side = list(channels)[::-1], size >> len(channels)
        layers: list[nn.Module] = [nn.Linear(latent, up[0] * side**2), nn.Unflatten(1, (up[0], side, side))]
        for before, after in zip(up, [*up[1:], up[-1]], strict=True):
            layers += [_norm(before), nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, _norm(up[-1]), nn.SiLU(), nn.Conv2d(up[-1], out, 3, 1, 1))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b out h w"]:
        return self.layers(z)


class Residual(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027): norm, SiLU, conv, twice, beside a skip."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(*(
            layer for _ in range(2) for layer in (_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, 1, 1))
        ))  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)  # the branch starts as nothing, the network as a shallow one

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ResnetEncoder(nn.Module):
    """As Encoder, with `blocks` residual blocks at every level before it is halved by a stride-2 convolution."""

    def __init__(self, channels: Sequence[int], blocks: int, latent: int, size: int = 32):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, 1, 1)]
        for now, after in pairwise([*channels, channels[-1]]):
            layers += [*(Residual(now) for _ in range(blocks)), nn.Conv2d(now, after, 3, 2, 1)]
        last, side = channels[-1], size >> len(channels)
        self.layers = nn.Sequential(
            *layers, _norm(last), nn.SiLU(), nn.Flatten(), nn.Linear(last * side**2, 2 * latent)
        )

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b twice_latent"]:
        return self.layers(x)


class ResnetDecoder(nn.Module):
    """As Decoder, the encoder's levels backwards: each is doubled by repetition and a convolution before its blocks."""

    def __init__(self, channels: Sequence[int], blocks: int, latent: int, out: int = 3, size: int = 32):
        super().__init__()
        up, side = list(channels)[::-1], size >> len(channels)
        layers: list[nn.Module] = [nn.Linear(latent, up[0] * side**2), nn.Unflatten(1, (up[0], side, side))]
        for before, now in pairwise([up[0], *up]):
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, now, 3, 1, 1)]
            layers += [Residual(now) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, _norm(up[-1]), nn.SiLU(), nn.Conv2d(up[-1], out, 3, 1, 1))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b out h w"]:
        return self.layers(z)

"""Convolutional encoder and decoder of a VAE: stride-2 stages down to a small map, mirrored on the way up."""

from collections.abc import Sequence

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
    """(b, latent) -> (b, 3, size, size): the mean of the image."""

    def __init__(self, channels: Sequence[int], latent: int, size: int = 32):
        super().__init__()
        up, side = list(channels)[::-1], size >> len(channels)
        layers: list[nn.Module] = [nn.Linear(latent, up[0] * side**2), nn.Unflatten(1, (up[0], side, side))]
        for before, after in zip(up, [*up[1:], up[-1]], strict=True):
            layers += [_norm(before), nn.SiLU(), nn.ConvTranspose2d(before, after, 4, 2, 1)]
        self.layers = nn.Sequential(*layers, _norm(up[-1]), nn.SiLU(), nn.Conv2d(up[-1], 3, 3, 1, 1))

    def forward(self, z: Float[Tensor, "b latent"]) -> Float[Tensor, "b 3 h w"]:
        return self.layers(z)

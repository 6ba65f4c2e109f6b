"""Discretised mixture of logistics on 256 grey levels (PixelCNN++, Salimans et al. 2017, arXiv 1701.05517).

Every pixel has K components, chosen for its three channels together. In each, red is logistic around its mean, green
around a mean that depends linearly on the pixel's red, blue on red and green. A grey level gets the mass of its bin,
the outermost two all that lies beyond them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

PER_COMPONENT = 10  # numbers: a logit, three means, three log scales, three coefficients
LOG_SCALE_FLOOR = -7.0  # as published: a bin's half width is exp(-5.5)
HALF = 1 / 255  # of a bin, images on [-1, 1]


Map = Float[Tensor, "b k h w"]


def split(
    raw: Float[Tensor, "b tenfold h w"],
) -> tuple[Map, Float[Tensor, "b 3 k h w"], Float[Tensor, "b 3 k h w"], list[Map]]:
    """Logits, means, log scales, and coefficients in [-1, 1]: green on red, blue on red, blue on green."""
    k = raw.shape[1] // PER_COMPONENT
    means, log_scales, coefficients = raw[:, k:].unflatten(1, (3, 3, k)).unbind(1)
    return raw[:, :k], means, log_scales.clamp(min=LOG_SCALE_FLOOR), list(coefficients.tanh().unbind(1))


def log_prob(x: Float[Tensor, "b 3 h w"], raw: Float[Tensor, "b tenfold h w"]) -> Float[Tensor, " b"]:
    """log P(x) in nats, summed over pixels and channels.

    Args:
        x: images in [-1, 1], on the 256 grey levels.
        raw: 10 K numbers for every pixel.
    """
    logits, means, log_scales, (on_red, blue_on_red, blue_on_green) = split(raw)
    x = x[:, :, None]
    red, green, _ = x.unbind(1)
    given = [torch.zeros_like(on_red), on_red * red, blue_on_red * red + blue_on_green * green]
    centred, sharp = x - means - torch.stack(given, 1), (-log_scales).exp()
    low, high = (centred - HALF) * sharp, (centred + HALF) * sharp
    # F(high) - F(low) = (1 - exp(low - high)) F(high) F(-low): in logarithms exact in both tails.
    inside = F.logsigmoid(high) + F.logsigmoid(-low) + torch.log(-torch.expm1(-2 * HALF * sharp))
    channels = torch.where(x < HALF - 1, F.logsigmoid(high), torch.where(x > 1 - HALF, F.logsigmoid(-low), inside))
    return (channels.sum(1) + logits.log_softmax(1)).logsumexp(1).flatten(1).sum(1)


def mean(raw: Float[Tensor, "b tenfold h w"]) -> Float[Tensor, "b 3 h w"]:
    """The mean image: of every component red, green given that red, blue given both, each held in [-1, 1]."""
    logits, means, _, (on_red, blue_on_red, blue_on_green) = split(raw)
    red = means[:, 0].clamp(-1, 1)
    green = (means[:, 1] + on_red * red).clamp(-1, 1)
    blue = (means[:, 2] + blue_on_red * red + blue_on_green * green).clamp(-1, 1)
    return (torch.stack([red, green, blue], 1) * logits.softmax(1)[:, None]).sum(2)

"""Images as a decoder's mean plus noise of one standard deviation for all pixels, constant or learned.

A learned one balances likelihood and code by itself (sigma-VAE, Rybkin et al. 2021, arXiv 2006.13202).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from pofx.base import rng

BIN = 2 / 255  # width of one grey level, with images in [-1, 1]
LOG_SIGMA_FLOOR = -6.0
SMALLEST = math.exp(LOG_SIGMA_FLOOR)


def dequantised(x: Float[Tensor, "b *shape"]) -> Float[Tensor, "b *shape"]:
    """The density of a grey level is spread evenly over its bin."""
    return x + (rng.rand_like(x) - 0.5) * BIN


def log_prob(x: Float[Tensor, "b *shape"], mean: Float[Tensor, "b *shape"], log_sigma: Tensor) -> Float[Tensor, " b"]:
    """log N(x; mean, sigma^2 I) in nats, summed over pixels and channels."""
    error = ((x - mean) * (-log_sigma).exp()).square().flatten(1).sum(1)
    return -0.5 * error - x[0].numel() * (log_sigma + 0.5 * math.log(2 * math.pi))


def log_sigma(width: Tensor) -> Tensor:
    """Of a learned number. Held above a floor: flat images would otherwise drive sigma to zero and the loss to -inf."""
    return LOG_SIGMA_FLOOR + F.softplus(width)


def width(sigma: float) -> Tensor:
    """The number whose `log_sigma` is log(sigma), for a sigma above SMALLEST."""
    return torch.tensor(math.log(math.expm1(math.log(sigma) - LOG_SIGMA_FLOOR)))

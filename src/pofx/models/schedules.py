"""Noise levels of score-based models, in float64, and what a network may predict at one of them.

Everything is written for x = x0 + sigma z (variance exploding). A variance-preserving chain x_t = sqrt(a) x0 +
sqrt(1 - a) z is the same thing at another scale: sigma = sqrt((1 - a) / a), x_t = x / sqrt(1 + sigma^2).
"""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float64
from torch import Tensor

Levels = Float64[np.ndarray, " _"]
Spacing = Literal["uniform", "quadratic", "geometric", "karras"]
Prediction = Literal["eps", "x0", "v", "score"]


# --- ladders, falling


def geometric(largest: float, smallest: float, n: int) -> Levels:
    """`n` noise levels from `largest` down to `smallest` at equal ratios."""
    return np.geomspace(largest, smallest, n)


def karras(largest: float, smallest: float, n: int, rho: float) -> Levels:
    """Levels at equal steps of sigma^(1/rho): the larger rho, the more small ones (Karras et al. 2022, eq. 5)."""
    return np.linspace(largest ** (1 / rho), smallest ** (1 / rho), n) ** rho


def preserving(schedule: Literal["linear", "cosine"], n: int) -> Levels:
    """The `n` levels of a variance-preserving chain.

    linear: beta from 1e-4 to 0.02 for 1,000 steps (Ho et al. 2020), in proportion for another number. cosine: the
    signal's share follows cos^2 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17).
    """
    if schedule == "linear":
        beta = np.linspace(1e-4, 0.02, n) * 1000 / n
    else:
        signal = np.cos((np.linspace(0, 1, n + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - signal[1:] / signal[:-1]
    kept = np.cumprod(1 - np.minimum(beta, 0.999))
    return np.sqrt((1 - kept) / kept)[::-1]


def spaced(ladder: Levels, spacing: Literal["uniform", "quadratic"], n: int) -> Levels:
    """`n` levels of a trained ladder, ends included, at equal or quadratically growing steps of its index (Song et al.
    2021, arXiv 2010.02502, appendix D.2). Between two rungs log sigma is interpolated, so that no level comes twice."""
    last = len(ladder) - 1
    time = np.linspace(0, last, n) if spacing == "uniform" else np.linspace(0, math.sqrt(last), n) ** 2
    return np.exp(np.interp(time, np.arange(last + 1), np.log(ladder[::-1])))[::-1]


# --- neighbouring levels, at the ratio g = sigma[i] / sigma[i+1]


def overlap(ratio: float, dims: int) -> float:
    """Technique 2 (Song & Ermon 2020, arXiv 2006.09011): the share C of one level's noise that lies where the next
    larger level's does, in `dims` dimensions; the paper aims at 0.5."""
    wide = math.sqrt(2 * dims) * (ratio - 1)
    return 0.5 * (math.erf((wide + 3 * ratio) / math.sqrt(2)) - math.erf((wide - 3 * ratio) / math.sqrt(2)))


def technique4(ratio: float, steps: int) -> float:
    """Technique 4: the step eta, over sigma^2, that keeps the noise nearest to its level, for `steps` steps a level.

    With the score of a single data point, a chain that starts a level with variance g^2 (in units of the level's own)
    ends it with (1 - eta)^(2T) (g^2 - q) + q, q = 2 eta / (1 - (1 - eta)^2). The eta sought makes this nearest to one.
    """
    eta = np.geomspace(1e-5, 1 - 1e-5, 200_000)
    q = 2 * eta / (1 - (1 - eta) ** 2)
    after = (1 - eta) ** (2 * steps) * (ratio**2 - q) + q
    return float(eta[np.argmin(np.abs(after - 1))])


# --- what a network predicts; sigma is a number or broadcasts against x


def to_denoised(kind: Prediction, value: Tensor, x: Tensor, sigma: Tensor | float) -> Tensor:
    """D(x, sigma) from a prediction: eps the noise z, x0 the image, score (D - x) / sigma^2, or v = (z - sigma x0) /
    sqrt(1 + sigma^2) (Salimans & Ho 2022, arXiv 2202.00512)."""
    if kind == "eps":
        return x - sigma * value
    if kind == "score":
        return x + sigma**2 * value
    if kind == "v":
        return x / (1 + sigma**2) - sigma / (1 + sigma**2) ** 0.5 * value
    return value


def from_denoised(kind: Prediction, denoised: Tensor, x: Tensor, sigma: Tensor | float) -> Tensor:
    """The inverse of `to_denoised`; with x0 in the place of D it gives the target of training."""
    if kind == "eps":
        return (x - denoised) / sigma
    if kind == "score":
        return (denoised - x) / sigma**2
    if kind == "v":
        return (x / (1 + sigma**2) - denoised) * (1 + sigma**2) ** 0.5 / sigma
    return denoised

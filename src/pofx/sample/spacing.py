"""Which noise levels a sampler visits, and how large a Langevin step is between them."""

import math
from typing import Literal

import numpy as np

from pofx.models.denoiser import Levels


def karras(largest: float, smallest: float, n: int, rho: float) -> Levels:
    """Levels at equal steps of sigma^(1/rho): the larger rho, the more small ones (Karras et al. 2022, eq. 5)."""
    return np.linspace(largest ** (1 / rho), smallest ** (1 / rho), n) ** rho


def by_index(levels: Levels, spacing: Literal["uniform", "quadratic"], n: int) -> Levels:
    """`n` of the levels that were trained on, ends included, at equal or quadratically growing steps of their index
    (Song et al. 2021, arXiv 2010.02502, appendix D.2). Between two of them log sigma is interpolated, so that no level
    comes twice."""
    last = len(levels) - 1
    time = np.linspace(0, last, n) if spacing == "uniform" else np.linspace(0, math.sqrt(last), n) ** 2
    return np.exp(np.interp(time, np.arange(last + 1), np.log(levels[::-1])))[::-1]


def technique4(ratio: float, steps: int) -> float:
    """Technique 4 (Song & Ermon 2020, arXiv 2006.09011): the step eta, over sigma^2, that keeps the noise nearest to
    its level, for `steps` Langevin steps a level and the ratio g of neighbouring levels.

    With the score of a single data point, a chain that starts a level with variance g^2 (in units of the level's own)
    ends it with (1 - eta)^(2T) (g^2 - q) + q, q = 2 eta / (1 - (1 - eta)^2). The eta sought makes this nearest to one.
    """
    eta = np.geomspace(1e-5, 1 - 1e-5, 200_000)
    q = 2 * eta / (1 - (1 - eta) ** 2)
    after = (1 - eta) ** (2 * steps) * (ratio**2 - q) + q
    return float(eta[np.argmin(np.abs(after - 1))])

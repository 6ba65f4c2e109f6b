"""Noise schedules: the noise levels of score-based models, in float64, for images on [-1, 1]."""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float64

Levels = Float64[np.ndarray, " _"]


def preserving(schedule: Literal["linear", "cosine"], n: int) -> Levels:
    """The `n` noise levels of a variance-preserving chain, falling: sigma^2 = (1 - abar) / abar.

    linear: beta from 1e-4 to 0.02 for 1,000 steps (Ho et al. 2020), in proportion for another number. cosine: the
    signal's share follows cos^2 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17).
    """
    if schedule == "linear":
        beta = np.linspace(1e-4, 0.02, n) * 1000 / n
    else:
        signal = np.cos((np.linspace(0, 1, n + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - signal[1:] / signal[:-1]
    abar = np.cumprod(1 - np.minimum(beta, 0.999))
    return np.sqrt((1 - abar) / abar)[::-1]


def overlap(ratio: float, dims: int) -> float:
    """Technique 2 (Song & Ermon 2020, arXiv 2006.09011): the share C of one level's noise that lies where the next
    larger level's does, in `dims` dimensions, at the ratio of the two levels. The paper aims at 0.5."""
    wide = math.sqrt(2 * dims) * (ratio - 1)
    return 0.5 * (math.erf((wide + 3 * ratio) / math.sqrt(2)) - math.erf((wide - 3 * ratio) / math.sqrt(2)))

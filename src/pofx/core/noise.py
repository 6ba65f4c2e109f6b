"""Noise levels of score-based models, in float64, and the step size that fits them (Song & Ermon 2020, 2006.09011).

Between neighbouring levels the ratio is g = sigma[i] / sigma[i+1]. Langevin dynamics at level sigma takes steps of size
eta * sigma^2 on the score; eta is dimensionless (the paper's epsilon is eta * sigma_min^2, with images on [0, 1]).
"""

import numpy as np
from jaxtyping import Float64


def geometric(largest: float, smallest: float, n: int) -> Float64[np.ndarray, " n"]:
    """`n` noise levels from `largest` down to `smallest` at equal ratios."""
    return np.geomspace(largest, smallest, n)


def technique4(ratio: float, steps: int) -> float:
    """Technique 4: the dimensionless step eta that keeps the noise nearest to its level, for `steps` steps a level.

    With the score of a single data point, a chain that starts a level with variance g^2 (in units of the level's own)
    ends it with (1 - eta)^(2T) (g^2 - q) + q, q = 2 eta / (1 - (1 - eta)^2). The eta sought makes this nearest to one.
    """
    eta = np.geomspace(1e-5, 1 - 1e-5, 200_000)
    q = 2 * eta / (1 - (1 - eta) ** 2)
    after = (1 - eta) ** (2 * steps) * (ratio**2 - q) + q
    return float(eta[np.argmin(np.abs(after - 1))])

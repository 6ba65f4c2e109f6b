"""Samplers as plain loops over noise levels, for any denoiser D(x, sigma) = E[x0 | x = x0 + sigma z].

The score of the noisy density is (D(x, sigma) - x) / sigma^2 (Tweedie's formula).
"""

import math
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from pofx.core.progress import Bar
from pofx.core.rng import Noise

Denoiser = Callable[[Tensor, float], Tensor]


def annealed_langevin(
    denoise: Denoiser, noise: Noise, shape: Sequence[int], sigmas: Sequence[float], steps: int, eta: float, final: bool
) -> Float[Tensor, "n ..."]:
    """Annealed Langevin dynamics (Song & Ermon 2019, arXiv 1907.05600, algorithm 1).

    Starts from N(0, sigmas[0]^2), the limit of the noisy density for large noise.

    Args:
        sigmas: noise levels, falling.
        steps: Langevin steps a level.
        eta: step size over sigma^2.
        final: end with the denoised mean D(x, sigmas[-1]), one more evaluation (Jolicoeur-Martineau et al. 2020).
    """
    x = sigmas[0] * noise.normal(*shape)
    for sigma in Bar(sigmas, desc="levels", leave=False):
        for _ in range(steps):
            x = x + eta * (denoise(x, sigma) - x) + math.sqrt(2 * eta) * sigma * noise.normal(*shape)
    return denoise(x, sigmas[-1]) if final else x


def consistent_annealed(
    denoise: Denoiser, noise: Noise, shape: Sequence[int], sigmas: Sequence[float], eta: float | None, final: bool
) -> Float[Tensor, "n ..."]:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2020, arXiv 2009.05475, algorithm 2).

    One step a level, x' = x + eta (D(x, s) - x) + b s' z with b = sqrt(1 - ((1 - eta) s / s')^2), which leaves exactly
    the noise of the next level where Langevin dynamics leaves more: far better with few levels.

    Args:
        eta: step size over sigma^2, above 1 - s'/s and below 1 + s'/s; None: 1 - (s'/s)^2, the ancestral step.
    """
    x = sigmas[0] * noise.normal(*shape)
    for now, after in zip(Bar(sigmas[:-1], desc="levels", leave=False), sigmas[1:], strict=True):
        r = after / now
        h = 1 - r**2 if eta is None else eta
        x = x + h * (denoise(x, now) - x) + math.sqrt(1 - ((1 - h) / r) ** 2) * after * noise.normal(*shape)
    return denoise(x, sigmas[-1]) if final else x

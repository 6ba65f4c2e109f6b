"""Samplers as plain loops over noise levels, for any denoiser D(x, sigma) = E[x0 | x = x0 + sigma z].

The score of the noisy density is (D(x, sigma) - x) / sigma^2 (Tweedie's formula). All loops have one signature:

    sampler(denoise, noise, x, sigmas, cfg)

take x at the noise sigmas[0] down the falling `sigmas`, and return the denoised mean where these end in 0 and noisy
images at sigmas[-1] where not. Variance-preserving samplers (DDPM, DDIM) are written for x = x0 + sigma z as well: with
a = 1 / (1 + sigma^2) their x_t is x / sqrt(1 + sigma^2).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from pofx.base.errors import UserError
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models import schedules as schedule
from pofx.models.family import Draw

Denoise = Callable[[Float[Tensor, "n ..."], float], Float[Tensor, "n ..."]]
FEWEST_FIXED_LARGE = 250  # steps: with 10, 50, 100 of them the published FID is 367, 33, 10 (1000: 3.2; 2010.02502)


@dataclass(frozen=True)
class Sample(Draw):
    """How to draw from a denoiser; a key that the chosen sampler does not name below says nothing."""

    batch: int
    sampler: Literal["ancestral", "ddim", "dpmpp", "heun", "langevin", "consistent", "predictor_corrector"]
    guidance: float  # weight of the denoiser against its guide (pofx.models.denoiser); 1: none
    steps: int | None  # noise levels visited; None: all that the model was trained on
    spacing: schedule.Spacing
    rho: float  # karras spacing
    denoise: bool  # end with the denoised mean at the smallest level
    clip: bool  # denoised images to [-1, 1]
    variance: Literal["small", "large"]  # ancestral
    eta: float  # ddim: share of the ancestral noise
    churn: float  # heun: noise added back, over all steps
    langevin_steps: int  # langevin, predictor_corrector: a level
    step_size: float | None  # langevin, consistent: epsilon as published, at the smallest level, images on [0, 1]
    snr: float  # predictor_corrector

    def __post_init__(self) -> None:
        for key, low, high in (
            ("guidance", 1, math.inf), ("steps", 2, math.inf), ("rho", 1, math.inf), ("eta", 0, 1),
            ("churn", 0, math.inf), ("langevin_steps", 1, math.inf), ("snr", 1e-9, 0.7),
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{key} = {value} should lie between {low:g} and {high:g}")


def draw(
    denoise: Denoise, noise: Noise, cfg: Sample, sigma_range: tuple[float, float], ladder: schedule.Levels | None
) -> Float[Tensor, "n 3 32 32"]:
    """Images from pure noise, by the sampler of `cfg`.

    Args:
        sigma_range: smallest and largest level of the denoiser.
        ladder: the levels it was trained on, falling; None: a continuum.

    Raises:
        UserError: the sampler is known to fail, or is not defined, with these levels.
    """
    levels = choose_levels(cfg, sigma_range, ladder)
    if cfg.sampler == "ancestral" and cfg.variance == "large" and len(levels) < FEWEST_FIXED_LARGE:
        raise UserError(
            f"ancestral sampling with variance large leaves noise in the images with fewer than {FEWEST_FIXED_LARGE} "
            f"steps (here {len(levels)}): take variance small, or ddim, dpmpp or heun"
        )

    def clipped(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, sigma).clamp(-1, 1)

    x = levels[0] * noise.normal(3, 32, 32)
    sigmas = [*levels, 0.0] if cfg.denoise else levels
    return SAMPLERS[cfg.sampler](clipped if cfg.clip else denoise, noise, x, sigmas, cfg)


def choose_levels(cfg: Sample, sigma_range: tuple[float, float], ladder: schedule.Levels | None) -> list[float]:
    """The noise levels to visit, falling, without the final 0."""
    smallest, largest = sigma_range
    if cfg.steps is None and ladder is not None:
        return ladder.tolist()
    if cfg.steps is None:
        raise UserError("this family was trained on a continuum of noise levels: say how many steps to sample with")
    if cfg.spacing == "karras":
        return schedule.karras(largest, smallest, cfg.steps, cfg.rho).tolist()
    if cfg.spacing == "geometric":
        return schedule.geometric(largest, smallest, cfg.steps).tolist()
    if ladder is None:
        raise UserError(f"spacing {cfg.spacing} counts along a trained ladder, and this family has none: take karras")
    return schedule.spaced(ladder, cfg.spacing, cfg.steps).tolist()


def _pairs(sigmas: list[float]) -> Iterator[tuple[float, float]]:
    return zip(Bar(sigmas[:-1], desc="levels", leave=False), sigmas[1:], strict=True)


# --- variance-preserving chains


def ancestral(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """The reverse chain of DDPM (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

    The mean is that of q(x' | x, x0 = D). variance: "small" that of the same density, "large" beta_t, both published.
    """
    for now, after in _pairs(sigmas):
        variance = (now**2 - after**2) * (
            after**2 / now**2 if cfg.variance == "small" or after == 0 else (1 + after**2) / (1 + now**2)
        )
        x = denoise(x, now).lerp(x, after**2 / now**2)
        x = x + math.sqrt(variance) * noise.normal(*x.shape[1:]) if after else x
    return x


def ddim(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12): eta 0 follows an ordinary differential equation, 1 is
    `ancestral` with its small variance."""
    for now, after in _pairs(sigmas):
        fresh = cfg.eta * after / now * math.sqrt(now**2 - after**2)
        x = denoise(x, now).lerp(x, math.sqrt(after**2 - fresh**2) / now)
        x = x + fresh * noise.normal(*x.shape[1:]) if fresh else x
    return x


# --- the probability-flow equation dx / dsigma = (x - D) / sigma, at higher order


def dpmpp(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): D is extrapolated linearly in log sigma."""
    before, last = None, None
    for now, after in _pairs(sigmas):
        d = denoise(x, now)
        ahead = d
        if before is not None and after:
            share = math.log(now / after) / (2 * math.log(before / now))
            ahead = d + share * (d - last)
        x = ahead.lerp(x, after / now)
        before, last = now, d
    return x


def heun(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """EDM's sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 2): Heun's method, with `churn` a stochastic one.

    Two evaluations a step, one in the last, where the slope at sigma = 0 does not exist.
    """
    gamma = min(cfg.churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for now, after in _pairs(sigmas):
        wide = now * (1 + gamma)
        if gamma:
            x = x + math.sqrt(wide**2 - now**2) * noise.normal(*x.shape[1:])
        slope = (x - denoise(x, wide)) / wide
        y = x + (after - wide) * slope
        if after:
            y = x + (after - wide) * 0.5 * (slope + (y - denoise(y, after)) / after)
        x = y
    return x


# --- Langevin dynamics: steps x + eta (D - x) + sqrt(2 eta) sigma z, with eta the step size over sigma^2


def langevin(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """Annealed Langevin dynamics (Song & Ermon 2019, arXiv 1907.05600, algorithm 1), with a last denoising step
    (Jolicoeur-Martineau et al. 2020). step_size None: by Technique 4 for the widest gap of the ladder."""
    levels = [s for s in sigmas if s]
    eta = _eta(cfg, levels, 0.0, 1.0)
    if eta is None:
        eta = schedule.technique4(max(a / b for a, b in pairwise(levels)), cfg.langevin_steps)
    for sigma in Bar(levels, desc="levels", leave=False):
        for _ in range(cfg.langevin_steps):
            x = _langevin_step(denoise, noise, x, sigma, eta)
    return x if sigmas[-1] else denoise(x, levels[-1])


def consistent(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2020, arXiv 2009.05475, algorithm 2).

    One step a level, x' = x + eta (D - x) + b s' z with b = sqrt(1 - ((1 - eta) s / s')^2), which leaves exactly the
    noise of the next level where Langevin dynamics leaves more: far better with few levels. It exists for
    1 - s'/s < eta < 1 + s'/s; step_size None is the ancestral step, 1 - (s'/s)^2.
    """
    levels = [s for s in sigmas if s]
    ratio = min(b / a for a, b in pairwise(levels))
    eta = _eta(cfg, levels, 1 - ratio, 1 + ratio)
    for now, after in _pairs(sigmas):
        if not after:
            return denoise(x, now)
        r = after / now
        h = 1 - r**2 if eta is None else eta
        x = x.lerp(denoise(x, now), h)
        x = x + math.sqrt(1 - ((1 - h) / r) ** 2) * after * noise.normal(*x.shape[1:])
    return x


def predictor_corrector(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """Predictor-corrector (Song et al. 2021, arXiv 2011.13456, algorithm 2): an ancestral step, then Langevin steps.

    The paper scales the corrector's step by measured norms, 2 (snr |z| / |score|)^2, averaged over the batch. Both are
    known in expectation, sqrt(d) and sqrt(d) / sigma, which gives eta = 2 snr^2 and ties no image to its batch.
    """
    eta = 2 * cfg.snr**2
    for now, after in _pairs(sigmas):
        x = denoise(x, now).lerp(x, after**2 / now**2)
        if after:
            x = x + math.sqrt(now**2 - after**2) * after / now * noise.normal(*x.shape[1:])
            for _ in range(cfg.langevin_steps):
                x = _langevin_step(denoise, noise, x, after, eta)
    return x


def _langevin_step(denoise: Denoise, noise: Noise, x: Tensor, sigma: float, eta: float) -> Tensor:
    return x.lerp(denoise(x, sigma), eta) + math.sqrt(2 * eta) * sigma * noise.normal(*x.shape[1:])


def _eta(cfg: Sample, levels: list[float], low: float, high: float) -> float | None:
    """cfg.step_size over the variance of the smallest level; refused outside the sampler's range of validity."""
    if cfg.step_size is None:
        return None
    unit = (levels[-1] / 2) ** 2  # published for images on [0, 1]
    if not low < cfg.step_size / unit < high:
        raise UserError(
            f"step_size = {cfg.step_size:.3g} of the {cfg.sampler} sampler should lie between {low * unit:.3g} and "
            f"{high * unit:.3g} with these {len(levels)} noise levels; null chooses one"
        )
    return cfg.step_size / unit


SAMPLERS = {f.__name__: f for f in (ancestral, ddim, dpmpp, heun, langevin, consistent, predictor_corrector)}

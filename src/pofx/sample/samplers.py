"""Samplers as plain loops over noise levels, for any denoiser D(x, sigma) = E[x0 | x = x0 + sigma z].

The score of the noisy density is (D(x, sigma) - x) / sigma^2 (Tweedie's formula). All loops have one signature:

    sampler(denoise, noise, x, sigmas, cfg)

take x at the noise sigmas[0] down the falling `sigmas`, and return the denoised mean where these end in 0 and noisy
images at sigmas[-1] where not. Variance-preserving samplers (DDPM, DDIM) are written for x = x0 + sigma z as well: with
a = 1 / (1 + sigma^2) their x_t is x / sqrt(1 + sigma^2).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MultipleOf
from jaxtyping import Float
from torch import Tensor

from pofx.base.errors import UserError
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.sample.spacing import technique4

Denoise = Callable[[Float[Tensor, "n ..."], float], Float[Tensor, "n ..."]]
READS = {  # which of the settings that not all samplers share each of them reads
    "ancestral": {"variance"},
    "ddim": {"eta"},
    "dpmpp": set(),
    "heun": {"churn", "churn_min", "churn_max", "churn_noise"},
    "langevin": {"langevin_steps", "step_size"},
    "consistent": {"step_size"},
    "predictor_corrector": {"langevin_steps", "snr"},
}


@dataclass(frozen=True)
class Sample:
    """How to draw from a denoiser. A setting that the chosen sampler does not read is refused."""

    batch: Annotated[int, Ge(64), MultipleOf(64)] = 128
    sampler: Literal["ancestral", "ddim", "dpmpp", "heun", "langevin", "consistent", "predictor_corrector"] = "heun"
    guidance: Annotated[float, Ge(1)] = 1.0  # weight of the denoiser against its guide (autoguidance); 1: none
    steps: Annotated[int, Ge(2)] | None = None  # noise levels visited; None: all that the model was trained on
    # Of the levels. uniform or quadratic: along those that were trained on; geometric; karras: equal in sigma^(1/rho)
    spacing: Literal["uniform", "quadratic", "geometric", "karras"] = "karras"
    # From N(mean, sigma^2) or, by the principal components that the model was trained with, N(mean, covariance +
    # sigma^2), which is near the truth at far smaller noise levels too.
    start: Literal["noise", "gaussian"] = "noise"
    sigma_max: Annotated[float, Gt(0)] | None = None  # the level to start at; None: the model's largest
    denoise: bool = True  # end with the denoised mean at the smallest level
    clip: bool = False  # denoised images to [-1, 1]
    rho: Annotated[float, Ge(1)] = 7.0  # karras spacing
    variance: Literal["small", "large"] = "small"  # ancestral
    eta: Annotated[float, Ge(0), Le(1)] = 0.0  # ddim: share of the ancestral noise
    churn: Annotated[float, Ge(0)] = 0.0  # heun: noise added back, over all steps (S_churn)
    churn_min: Annotated[float, Ge(0)] = 0.0  # heun: from this noise level (S_tmin)
    churn_max: Annotated[float, Gt(0)] | None = None  # heun: up to this noise level (S_tmax); None: all
    churn_noise: Annotated[float, Gt(0)] = 1.0  # heun: standard deviation of that noise (S_noise), 1.003 to 1.007
    langevin_steps: Annotated[int, Ge(1)] = 1  # langevin, predictor_corrector: a level
    step_size: Annotated[float, Gt(0)] | None = None  # langevin, consistent: epsilon as published, images on [0, 1]
    snr: Annotated[float, Gt(0), Le(0.7)] = 0.16  # predictor_corrector

    def __post_init__(self) -> None:
        special = set().union(*READS.values())
        for field in fields(self):
            changed = getattr(self, field.name) != field.default
            if changed and field.name in special - READS[self.sampler]:
                users = ", ".join(name for name, read in READS.items() if field.name in read)
                raise ValueError(f"{field.name} is not read by {self.sampler} (by {users}): take it out")
        if self.rho != 7.0 and self.spacing != "karras":
            raise ValueError(f"rho is not read by spacing {self.spacing} (by karras): take it out")

    def by(self, sampler: str, steps: int, **settings: float) -> "Sample":
        """By another sampler, at its own defaults or by `settings`; the rest as here."""
        kept = ("batch", "guidance", "spacing", "start", "sigma_max", "clip", "rho")
        shared = {key: getattr(self, key) for key in kept}
        return Sample(sampler=sampler, steps=steps, **shared, **settings)


def _pairs(sigmas: list[float]) -> Iterator[tuple[float, float]]:
    return zip(Bar(sigmas[:-1], desc="levels", leave=False), sigmas[1:], strict=True)


# --- variance-preserving chains


def ancestral(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """The reverse chain of DDPM (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

    The mean is that of q(x' | x, x0 = D), as is the "small" variance; the "large" one is beta_t. Both are published.
    """
    for now, after in _pairs(sigmas):
        x = denoise(x, now).lerp(x, after**2 / now**2)
        if after:
            share = after**2 / now**2 if cfg.variance == "small" else (1 + after**2) / (1 + now**2)
            x = x + math.sqrt((now**2 - after**2) * share) * noise.normal(*x.shape[1:])
    return x


def ddim(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12): eta 0 follows an ordinary differential equation, 1 is
    `ancestral` with its small variance."""
    for now, after in _pairs(sigmas):
        fresh = cfg.eta * after / now * math.sqrt(now**2 - after**2)
        x = denoise(x, now).lerp(x, math.sqrt(after**2 - fresh**2) / now)
        if fresh:
            x = x + fresh * noise.normal(*x.shape[1:])
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
    """EDM's sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 2): Heun's method, with `churn` a stochastic one:
    noise goes up by a share gamma before a step down.

    Two evaluations a step, one in the last, where the slope at sigma = 0 does not exist.
    """
    gamma = min(cfg.churn / (len(sigmas) - 1), math.sqrt(2) - 1)
    for now, after in _pairs(sigmas):
        churned = gamma and cfg.churn_min <= now <= (cfg.churn_max or math.inf)
        wide = now * (1 + gamma) if churned else now
        if churned:
            x = x + cfg.churn_noise * math.sqrt(wide**2 - now**2) * noise.normal(*x.shape[1:])
        slope = (x - denoise(x, wide)) / wide
        y = x + (after - wide) * slope
        if after:
            y = x + (after - wide) * 0.5 * (slope + (y - denoise(y, after)) / after)
        x = y
    return x


# --- Langevin dynamics: steps x + eta (D - x) + sqrt(2 eta) sigma z, with eta the step size over sigma^2


def langevin(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """Annealed Langevin dynamics (Song & Ermon 2019, arXiv 1907.05600, algorithm 1), with a last denoising step
    (Jolicoeur-Martineau et al. 2020).

        x <- x + alpha_i score(x, sigma_i) + sqrt(2 alpha_i) z,   alpha_i = epsilon sigma_i^2 / sigma_L^2

    The whole step alpha, as in Song & Ermon 2020 (algorithm 1) and in the code of both papers; as printed in 2019, with
    alpha / 2 and sqrt(alpha), epsilon is twice this one. step_size is epsilon; None: by Technique 4 for the widest gap
    between two levels.
    """
    levels = [s for s in sigmas if s]
    eta = _eta(cfg, levels, 0.0, 1.0)
    if eta is None:
        eta = technique4(max(a / b for a, b in pairwise(levels)), cfg.langevin_steps)
    for sigma in Bar(levels, desc="levels", leave=False):
        for _ in range(cfg.langevin_steps):
            x = _langevin_step(denoise, noise, x, sigma, eta)
    return x if sigmas[-1] else denoise(x, levels[-1])


def consistent(denoise: Denoise, noise: Noise, x: Tensor, sigmas: list[float], cfg: Sample) -> Tensor:
    """Consistent annealed sampling (Jolicoeur-Martineau et al. 2020, arXiv 2009.05475, algorithm 2).

    One step a level, x' = x + eta (D - x) + b s' z with b = sqrt(1 - ((1 - eta) s / s')^2), leaves exactly the noise of
    the next level. It exists for 1 - s'/s < eta < 1 + s'/s; step_size None is the ancestral step, 1 - (s'/s)^2.
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

    The paper scales the corrector's step by measured norms, 2 (snr |z| / |score|)^2, averaged over the batch. Their
    expectations are sqrt(d) and sqrt(d) / sigma, which gives eta = 2 snr^2 and ties no image to its batch.
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

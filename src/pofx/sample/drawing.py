"""Drawing images from a trained model: the one way in for denoisers and for families with a sampler of their own."""

from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pofx.base.errors import UserError
from pofx.base.rng import Noise
from pofx.models.denoiser import Denoiser
from pofx.models.family import Family, Sampled
from pofx.sample import samplers, spacing
from pofx.sample.samplers import Denoise, Sample

FEWEST_FIXED_LARGE = 250  # steps: with 10, 50, 100 of them the published FID is 367, 33, 10 (1000: 3.2; 2010.02502)


def draw(model: Family, noise: Noise, cfg: Any) -> Float[Tensor, "n c h w"]:
    """len(noise) images by `cfg`, the Sample of the family; under no_grad, never inference_mode.

    Raises:
        UserError: the sampler is known to fail, or is not defined, with these settings.
    """
    if isinstance(model, Sampled):
        return model.sample(noise, cfg)
    return follow(model, guided(model, cfg.guidance), noise, cfg)


def follow(
    model: Denoiser, denoise: Denoise, noise: Noise, cfg: Sample, start: Float[Tensor, "n c h w"] | None = None
) -> Float[Tensor, "n c h w"]:
    """Images by the sampler of `cfg` along the noise levels of `model`, denoised by `denoise`, from noise about
    the mean of the data or from a Gaussian of theirs.

    `start`: the standard normal numbers to begin with, in place of those of `noise`.
    """
    levels = choose_levels(model, cfg)
    if cfg.sampler == "ancestral" and cfg.variance == "large" and len(levels) < FEWEST_FIXED_LARGE:
        raise UserError(
            f"ancestral sampling with variance large leaves noise in the images with fewer than {FEWEST_FIXED_LARGE} "
            f"steps (here {len(levels)}): take variance small, or ddim, dpmpp or heun"
        )

    def clipped(x: Tensor, sigma: float) -> Tensor:
        return denoise(x, sigma).clamp(-1, 1)

    if cfg.start == "gaussian" and model.gaussian is None:
        raise UserError("start = gaussian needs principal components: train with gaussian = 64, or start from noise")
    z = noise.normal(*model.shape) if start is None else start
    x = model.mean + levels[0] * z if cfg.start == "noise" else model.gaussian.noisy(z, levels[0])
    sigmas = [*levels, 0.0] if cfg.denoise else levels
    return samplers.SAMPLERS[cfg.sampler](clipped if cfg.clip else denoise, noise, x, sigmas, cfg)


def guided(model: Denoiser, weight: float) -> Denoise:
    """Autoguidance: D1 + (weight - 1) (D1 - D0), D0 by the guide (Karras et al. 2024, arXiv 2406.02507, equation 3).

    Where the two differ, the weaker one errs in the same direction and further: going on beyond D1 leads back to the
    data. Weight 1 is the denoiser itself.
    """
    if weight == 1:
        return model.denoise
    if model.guide is None:
        raise UserError("guidance needs a guide: train with a share above 0 under guide, or sample with guidance 1")
    return lambda x, sigma: model.denoise(x, sigma, model.guide).lerp(model.denoise(x, sigma), weight)


def choose_levels(model: Denoiser, cfg: Sample) -> list[float]:
    """The noise levels to visit, falling, without the final 0."""
    smallest, largest = model.sigma_range
    trained = model.levels
    if cfg.sigma_max is not None:
        least = smallest if trained is None else trained[-2]  # two levels at least
        if not least <= cfg.sigma_max <= largest:
            raise UserError(f"sigma_max = {cfg.sigma_max:g} to sample from should lie between {least:.3g} and "
                            f"{largest:.3g}, the noise levels of this model; null takes the largest")  # fmt: skip
        largest, trained = cfg.sigma_max, None if trained is None else trained[trained <= cfg.sigma_max]
    if cfg.steps is None and trained is not None:
        return trained.tolist()
    if cfg.steps is None:
        raise UserError("this family was trained on a continuum of noise levels: say how many steps to sample with")
    if cfg.spacing == "karras":
        return spacing.karras(largest, smallest, cfg.steps, cfg.rho).tolist()
    if cfg.spacing == "geometric":
        return np.geomspace(largest, smallest, cfg.steps).tolist()
    if trained is None:
        raise UserError(f"spacing {cfg.spacing} counts along trained noise levels, which this family lacks: use karras")
    return spacing.by_index(trained, cfg.spacing, cfg.steps).tolist()

"""What a denoiser D(x, sigma) does, in pictures and in numbers: how it denoises, and samplers and steps to compare.

Noise levels are for images on [-1, 1].
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import UInt8
from torch import Tensor

from pofx.base.images import Sheet, sheet, to_model, to_uint8
from pofx.base.rng import Noise
from pofx.models.denoiser import Denoiser
from pofx.models.moments import SIGMA_DATA
from pofx.sample import drawing
from pofx.sample.interpolation import slerp
from pofx.sample.samplers import SAMPLERS, Sample
from pofx.sample.settings import Setting


@dataclass(frozen=True)
class Sweep:
    models: tuple[str, ...] = ("ncsn", "edm")  # denoisers to do this for
    n: Annotated[int, Ge(2)] = 64  # images a point
    samplers: tuple[str, ...] = ("ddim", "dpmpp", "heun")
    steps: tuple[Annotated[int, Ge(2)], ...] = (3, 6, 12)  # noise levels visited

    def __post_init__(self) -> None:
        for name in self.samplers:
            if name not in SAMPLERS:
                raise ValueError(f"samplers names {name!r}, which is none of {', '.join(SAMPLERS)}")


def settings(own: Sample, cfg: Sweep) -> list[Setting]:
    """The family's own setting with and without the last denoising step (Song & Ermon 2020, arXiv 2006.09011: FID 10.87
    with, 31.75 without), and every sampler at every number of steps, along the family's own spacing of noise levels."""
    mine = [dataclasses.replace(own, denoise=last) for last in (True, False)]
    other = [own.by(sampler, steps) for sampler in cfg.samplers for steps in cfg.steps]
    return [
        ({"own": i < len(mine), "sampler": p.sampler, "steps": p.steps, "denoise": p.denoise}, p)
        for i, p in enumerate(mine + other)
    ]


def levels(model: Denoiser, n: int) -> list[float]:
    """`n` noise levels over the model's range at equal ratios, rising. Of a model that was trained on certain levels
    they are the nearest of these, each once."""
    smallest, largest = model.sigma_range
    sigmas = np.geomspace(smallest, largest, n)
    if model.levels is not None:
        nearest = np.abs(np.log(model.levels)[:, None] - np.log(sigmas)).argmin(0)
        sigmas = np.unique(model.levels[nearest])
    return sigmas.tolist()


@torch.no_grad()
def strip(model: Denoiser, cfg: Sample, noise: Noise, columns: int) -> tuple[Sheet, list[float]]:
    """Progressive denoising: what the model predicts of its samples, evaluation by evaluation.

    Returns:
        A row for each of len(noise) samples: D(x, sigma) at evaluations evenly over all that the sampler of `cfg`
        makes, and last the sample itself. Fewer than `columns` where there are fewer evaluations. And sigma of every
        column but the last.
    """
    seen: list[tuple[float, Tensor]] = []
    denoise = drawing.guided(model, cfg.guidance)

    def recorded(x: Tensor, sigma: float) -> Tensor:
        out = denoise(x, sigma)
        seen.append((sigma, out))
        return out

    sample = drawing.follow(model, recorded, noise, cfg)
    picked = [seen[i] for i in np.linspace(0, len(seen) - 1, min(columns, len(seen))).round().astype(int)[:-1]]
    return sheet([*(image for _, image in picked), sample]), [sigma for sigma, _ in picked]


@torch.no_grad()
def noisy(model: Denoiser, images: UInt8[Tensor, "b 3 h w"], noise: Noise, columns: int) -> tuple[Sheet, list[float]]:
    """Images under growing noise, and what the model makes of them.

    Returns:
        Two rows an image: the image with noise of every level (the same noise, times sigma), scaled down to the spread
        of images about their mean, and below it D. And sigma of every column, rising.
    """
    x, z, sigmas = to_model(images), noise.normal(*images.shape[1:]), levels(model, columns)
    pairs = []
    for sigma in sigmas:
        y = x + sigma * z
        shown = model.mean + (y - model.mean) / math.hypot(1, sigma / SIGMA_DATA)
        pairs.append(torch.stack([shown, model.denoise(y, sigma)], 1).flatten(0, 1))
    return sheet(pairs), sigmas


@torch.no_grad()
def interpolation(model: Denoiser, cfg: Sample, noise: Noise, columns: int, steps: int) -> Sheet:
    """Images between images: DDIM (Song et al. 2021, arXiv 2010.02502, section 5.3) from noise on the great circle
    between two starts: deterministic, over `steps` levels, the rest as in `cfg`.

    Args:
        noise: of two images a row: the starts of the first column, then those of the last.
    """
    cfg = cfg.by("ddim", steps)
    first, last = noise.normal(*model.shape).chunk(2)
    starts = slerp(first, last, torch.linspace(0, 1, columns, device=first.device))
    images = drawing.follow(model, drawing.guided(model, cfg.guidance), noise, cfg, starts.flatten(0, 1))
    return to_uint8(images.view_as(starts)).cpu().numpy()


@torch.no_grad()
def errors(model: Denoiser, images: UInt8[Tensor, "b 3 h w"], noise: Noise, n: int) -> list[dict[str, float]]:
    """Denoising error at about `n` levels of images that the model has not seen, under the same noise.

    Returns:
        A row a level: sigma; mse: |D - x0|^2, mean over images and dimensions; eps_mse: the same over sigma^2, the
        error of the estimated noise; linear_mse, linear_eps_mse: those of the best linear denoiser, for N(mean, s^2)
        with mean and s those of all pixels of `images`: (1 / s^2 + 1 / sigma^2)^-1.
    """
    x, z = to_model(images), noise.normal(*images.shape[1:])
    precision, rows = 1 / x.double().var(correction=0).item(), []
    for sigma in levels(model, n):
        mse = (model.denoise(x + sigma * z, sigma) - x).double().square().mean().item()
        linear = 1 / (precision + sigma**-2)
        rows.append({"sigma": sigma, "mse": mse, "eps_mse": mse / sigma**2})
        rows[-1] |= {"linear_mse": linear, "linear_eps_mse": linear / sigma**2}
    return rows

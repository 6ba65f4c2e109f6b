"""What a denoiser D(x, sigma) does, in pictures and in numbers.

Pictures are bytes for `pofx.base.images.save_grid`, row by row. Noise levels are for images on [-1, 1].
"""

import math

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from pofx.base.images import to_model, to_uint8
from pofx.base.rng import Noise
from pofx.models.denoiser import SIGMA_DATA, Denoiser
from pofx.sample import drawing
from pofx.sample.interpolation import slerp
from pofx.sample.samplers import Sample

Picture = UInt8[np.ndarray, "n 3 h w"]


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
def strip(model: Denoiser, cfg: Sample, noise: Noise, columns: int) -> tuple[Picture, list[float]]:
    """Progressive denoising: what the model predicts of its samples, evaluation by evaluation.

    Returns:
        Picture: a row for each of len(noise) samples: D(x, sigma) at evaluations evenly over all that the sampler of
        `cfg` makes, and last the sample itself. Fewer than `columns` where there are fewer evaluations.
        Levels: sigma of every column but the last.
    """
    seen: list[tuple[float, Tensor]] = []
    denoise = drawing.guided(model, cfg.guidance)

    def recorded(x: Tensor, sigma: float) -> Tensor:
        out = denoise(x, sigma)
        seen.append((sigma, to_uint8(out)))
        return out

    sample = to_uint8(drawing.follow(model, recorded, noise, cfg))
    picked = [seen[i] for i in np.linspace(0, len(seen) - 1, min(columns, len(seen))).round().astype(int)[:-1]]
    shown = torch.stack([*(image for _, image in picked), sample], 1)
    return shown.flatten(0, 1).cpu().numpy(), [sigma for sigma, _ in picked]


@torch.no_grad()
def noisy(model: Denoiser, images: UInt8[Tensor, "b 3 h w"], noise: Noise, columns: int) -> tuple[Picture, list[float]]:
    """Images under growing noise, and what the model makes of them.

    Returns:
        Picture: two rows an image: the image with noise of every level (the same noise, times sigma), scaled down to
        the spread of images to be seen, and below it D.
        Levels: sigma of every column, rising.
    """
    x, z, sigmas = to_model(images), noise.normal(*images.shape[1:]), levels(model, columns)
    pairs = []
    for sigma in sigmas:
        y = x + sigma * z
        pairs.append(torch.stack([y / math.hypot(1, sigma / SIGMA_DATA), model.denoise(y, sigma)], 1))
    return to_uint8(torch.stack(pairs, 2).flatten(0, 2)).cpu().numpy(), sigmas


@torch.no_grad()
def interpolation(model: Denoiser, cfg: Sample, noise: Noise, columns: int, steps: int) -> Picture:
    """Images between images: DDIM (Song et al. 2021, arXiv 2010.02502, section 5.3) from noise on the great circle
    between two starts.

    Deterministic, so that an image is a function of its start: the rest of the settings as in `cfg`, `steps` levels.

    Args:
        noise: of two images a row: the starts of the first column, then those of the last.

    Returns:
        Picture: len(noise) / 2 rows of `columns` images.
    """
    cfg = cfg.by("ddim", steps)
    first, last = noise.normal(*model.shape).chunk(2)
    start = slerp(first, last, torch.linspace(0, 1, columns, device=first.device)).flatten(0, 1)
    images = drawing.follow(model, drawing.guided(model, cfg.guidance), noise, cfg, start)
    return to_uint8(images).cpu().numpy()


@torch.no_grad()
def errors(model: Denoiser, images: UInt8[Tensor, "b 3 h w"], noise: Noise, n: int) -> list[dict[str, float]]:
    """Denoising error of images that the model has not seen, at about `n` levels; one batch a level, the same noise.

    Returns:
        A row a level: sigma; mse: |D - x0|^2, mean over images and dimensions; eps_mse: the same over sigma^2, the
        error of the estimated noise; linear_mse, linear_eps_mse: those of the best denoiser for N(mean, s^2), with mean
        and s those of all pixels of `images`: (1 / s^2 + 1 / sigma^2)^-1. A network that returned nothing, behind the
        skip connection of Karras et al. (2022, arXiv 2206.00364), would score about that.
    """
    x, z = to_model(images), noise.normal(*images.shape[1:])
    precision, rows = 1 / x.double().var(correction=0).item(), []
    for sigma in levels(model, n):
        mse = (model.denoise(x + sigma * z, sigma) - x).double().square().mean().item()
        linear = 1 / (precision + sigma**-2)
        rows.append({"sigma": sigma, "mse": mse, "eps_mse": mse / sigma**2})
        rows[-1] |= {"linear_mse": linear, "linear_eps_mse": linear / sigma**2}
    return rows

"""Noise-conditional score network (Song & Ermon 2019, 2020): learn the score of the data at many noise levels.

    loss = 1/2 E || sigma s(x + sigma z, sigma) + z ||^2,   sigma uniform over a geometric ladder

(denoising score matching with the weight sigma^2, summed over pixels: a network that returns zero scores D/2). Noise
levels are given for images on [0, 1], as published; the model sees [-1, 1], so they are doubled inside.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pofx.core import noise as schedule
from pofx.core.errors import UserError
from pofx.core.family import Family, Terms
from pofx.core.loop import Train
from pofx.core.rng import Noise
from pofx.core.samplers import annealed_langevin, consistent_annealed
from pofx.nn.unet import UNet

UNITS = 2  # from images on [0, 1] to [-1, 1]
SIGMA_DATA = 0.5  # standard deviation of natural images on [-1, 1]


@dataclass(frozen=True)
class Config:
    n_sigmas: int  # noise levels
    sigma_max: float  # about the largest distance between two images (Technique 1)
    sigma_min: float
    weighting: Literal["dsm", "karras"]  # of the levels: sigma^2 as published, or with more for the coarse ones
    gaussian_skip: bool  # the network learns what the score of a Gaussian leaves over; false: the whole score
    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    patch: int
    dropout: float
    train: Train


@dataclass(frozen=True)
class Sample:
    batch: int
    sampler: Literal["langevin", "consistent"]
    steps: int  # Langevin steps a level; the consistent sampler takes one
    step_size: float | None  # the papers' epsilon, at sigma_min, images on [0, 1]; null: Technique 4, or ancestral
    denoise: bool  # end with one denoising step


class Model(Family):
    def __init__(self, cfg: Config):
        super().__init__()
        if not (cfg.n_sigmas >= 2 and cfg.sigma_max > cfg.sigma_min > 0):
            raise UserError("ncsn needs n_sigmas >= 2 and sigma_max > sigma_min > 0")
        self.cfg = cfg
        self.net = UNet(cfg.channels, cfg.multipliers, cfg.blocks, cfg.attention, cfg.patch, cfg.dropout)
        levels = schedule.geometric(UNITS * cfg.sigma_max, UNITS * cfg.sigma_min, cfg.n_sigmas)
        self.register_buffer("sigmas", torch.tensor(levels, dtype=torch.float32), persistent=False)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Terms:
        sigma = self.sigmas[torch.randint(len(self.sigmas), (len(x),), device=x.device)]
        z = torch.randn_like(x)
        wide = sigma[:, None, None, None]
        dsm = 0.5 * (self.scaled_score(x + wide * z, sigma) + z).square().flatten(1).sum(1)
        # "karras": equal weight for what the network itself has to get right at every level (arXiv 2206.00364, eq. 7
        # ff.). The published weight leaves the coarse levels, where place and colour are decided, to long training.
        weight = 1 + (sigma / SIGMA_DATA) ** 2 if self.cfg.weighting == "karras" else 1.0
        return {"loss": weight * dsm, "dsm_per_pixel": dsm / x[0].numel()}

    def scaled_score(self, x: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"]) -> Float[Tensor, "b 3 h w"]:
        """sigma * s(x, sigma), of order one at every noise level (Technique 3: the score is the network over sigma).

        With `gaussian_skip`, s is the score of N(0, sigma_data^2 + sigma^2), which is exact for large noise, plus the
        network at a matching scale (the preconditioning of Karras et al. 2022, arXiv 2206.00364, in score form).
        """
        wide = sigma[:, None, None, None]
        total = (wide**2 + SIGMA_DATA**2).sqrt()
        f = self.net(x / total, sigma.log() / 4).float()
        return SIGMA_DATA / total * f - wide / total**2 * x if self.cfg.gaussian_skip else f

    def denoise(self, x: Float[Tensor, "b 3 h w"], sigma: float) -> Float[Tensor, "b 3 h w"]:
        """D(x, sigma) = x + sigma^2 s(x, sigma)."""
        return x + sigma * self.scaled_score(x, torch.full((len(x),), sigma, device=x.device))

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n 3 32 32"]:
        """Down the ladder that the model was trained on, from pure noise."""
        levels = self.sigmas.double().tolist()
        ratio = levels[0] / levels[1]
        eta = None if cfg.step_size is None else cfg.step_size / self.cfg.sigma_min**2
        if cfg.sampler == "consistent":
            check_step(eta, 1 - 1 / ratio, 1 + 1 / ratio, self.cfg.sigma_min)
            return consistent_annealed(self.denoise, noise, (3, 32, 32), levels, eta, cfg.denoise)
        check_step(eta, 0.0, 1.0, self.cfg.sigma_min)
        eta = schedule.technique4(ratio, cfg.steps) if eta is None else eta
        return annealed_langevin(self.denoise, noise, (3, 32, 32), levels, cfg.steps, eta, cfg.denoise)


def check_step(eta: float | None, low: float, high: float, sigma_min: float) -> None:
    """Refuse a step size outside the sampler's range of validity."""
    if eta is not None and not low < eta < high:
        unit = sigma_min**2
        raise UserError(
            f"sample.ncsn.step_size = {eta * unit:.3g} should lie between {low * unit:.3g} and {high * unit:.3g} "
            "with this ladder of noise levels; null chooses one"
        )

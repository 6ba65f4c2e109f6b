"""Noise-conditional score network (Song & Ermon 2019, 2020): learn the score of the data at many noise levels.

    loss = 1/2 E || sigma s(x + sigma z, sigma) + z ||^2,   sigma uniform over a geometric ladder

(denoising score matching with the weight sigma^2, summed over pixels: a network that returns zero scores D/2). Noise
levels are given for images on [0, 1], as published; the model sees [-1, 1], so they are doubled inside.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pofx.base import rng
from pofx.base.images import to_model
from pofx.models import schedules as schedule
from pofx.models.denoiser import Denoiser
from pofx.models.family import Terms
from pofx.models.ncsn.refinenet import RefineNet
from pofx.models.unet import Shape, UNet
from pofx.sample.samplers import Sample
from pofx.train.loop import Train

__all__ = ["Config", "Model", "Sample"]

UNITS = 2  # from images on [0, 1] to [-1, 1]
SIGMA_DATA = 0.5  # standard deviation of natural images on [-1, 1]
WIDE_ENOUGH = 0.6  # of the largest distance between two images: sigma_max should be above
FEWEST_OVERLAP = 0.3


@dataclass(frozen=True)
class Config:
    n_sigmas: int  # noise levels
    sigma_max: float  # about the largest distance between two images (Technique 1)
    sigma_min: float
    continuous: bool  # train on all levels between, log-uniformly, rather than on the ladder's
    weighting: Literal["dsm", "karras"]  # of the levels: sigma^2 as published, or with more for the coarse ones
    output: Literal["score", "noise", "residual"]  # of the network: s (2019), sigma s (2020), what a Gaussian leaves
    guide: float  # share of the training after which the network is kept as a guide; 0: none
    network: Literal["unet", "refinenet", "refinenet_conditional"]
    net: Shape  # a RefineNet uses channels and patch alone
    train: Train

    def __post_init__(self) -> None:
        if self.n_sigmas < 2:
            raise ValueError(f"n_sigmas = {self.n_sigmas} should be at least 2")
        if not self.sigma_max > self.sigma_min > 0:
            raise ValueError(f"sigma_min = {self.sigma_min} should lie between 0 and sigma_max = {self.sigma_max}")


class Model(Denoiser):
    def __init__(self, cfg: Config):
        if cfg.network == "unet":
            net = UNet(cfg.net, "sigma")
        else:
            net = RefineNet(cfg.net.channels, cfg.network == "refinenet_conditional", cfg.net.patch)
        super().__init__(net, cfg.guide, cfg.train.images)
        self.cfg = cfg
        self.ladder = schedule.geometric(UNITS * cfg.sigma_max, UNITS * cfg.sigma_min, cfg.n_sigmas)
        self.sigma_range = (float(self.ladder[-1]), float(self.ladder[0]))
        self.likelihood = "flow" if cfg.continuous else None
        self.register_buffer("sigmas", torch.tensor(self.ladder, dtype=torch.float32), persistent=False)

    def prepare(self, images: UInt8[Tensor, "n 3 h w"]) -> dict[str, float]:
        """Check the ladder against the data: the largest distance of two images (Technique 1, units of [0, 1]), and the
        overlap C of neighbouring levels (Technique 2)."""
        some = to_model(images[:3000]).flatten(1) / UNITS
        largest = torch.cdist(some, some).max().item()
        overlap = schedule.overlap(self.ladder[0] / self.ladder[1], some.shape[1])
        if self.cfg.sigma_max < WIDE_ENOUGH * largest:
            _warn(f"ncsn.sigma_max = {self.cfg.sigma_max:g} is far below the largest distance between two images, "
                  f"{largest:.1f}: samples will lack variety; set it to about that distance")  # fmt: skip
        if overlap < FEWEST_OVERLAP:
            _warn(f"neighbouring noise levels overlap by C = {overlap:.2f}, below {FEWEST_OVERLAP}: Langevin dynamics "
                  f"may lose its way between them; raise ncsn.n_sigmas = {self.cfg.n_sigmas}")  # fmt: skip
        return {"largest_distance": largest, "overlap": overlap}

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Terms:
        if self.cfg.continuous:
            smallest, largest = self.sigma_range
            sigma = smallest * (largest / smallest) ** rng.batch(torch.rand, len(x), device=x.device)
        else:
            sigma = self.sigmas[rng.randint(len(self.sigmas), len(x), device=x.device)]
        z = rng.randn_like(x)
        wide = sigma[:, None, None, None]
        dsm = 0.5 * (self.scaled_score(x + wide * z, sigma) + z).square().flatten(1).sum(1)
        # "karras": equal weight for what the network itself has to get right at every level (arXiv 2206.00364, eq. 7
        # ff.). The published weight leaves the coarse levels, where place and colour are decided, to long training.
        weight = 1 + (sigma / SIGMA_DATA) ** 2 if self.cfg.weighting == "karras" else 1.0
        return {"loss": weight * dsm, "dsm_per_pixel": dsm / x[0].numel()}

    def scaled_score(
        self, x: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, " b"], net: nn.Module | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """sigma * s(x, sigma), of order one at every noise level.

        The network's output is s itself (Song & Ermon 2019), s sigma (2020, Technique 3), or what the score of
        N(0, sigma_data^2 + sigma^2) leaves over at a matching scale (the preconditioning of Karras et al. 2022, arXiv
        2206.00364, in score form); that score is exact for large noise.
        """
        wide = sigma[:, None, None, None]
        total = (wide**2 + SIGMA_DATA**2).sqrt()
        f = (net or self.net)(x / total, sigma.log() / 4).float()
        if self.cfg.output == "residual":
            return SIGMA_DATA / total * f - wide / total**2 * x
        return wide * f if self.cfg.output == "score" else f

    def denoise(self, x: Float[Tensor, "b 3 h w"], sigma: float, net: nn.Module | None = None) -> Tensor:
        """D(x, sigma) = x + sigma^2 s(x, sigma)."""
        return x + sigma * self.scaled_score(x, torch.full((len(x),), sigma, device=x.device), net)


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)

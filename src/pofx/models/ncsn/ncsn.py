"""Noise-conditional score network (Song & Ermon 2019, 2020): learn the score of the data at many noise levels.

    loss = 1/2 E || sigma s(x + sigma z, sigma) + z ||^2,   sigma uniform over geometric noise levels

(denoising score matching with the weight sigma^2, summed over pixels: a network that returns zero scores D/2). Noise
levels are given for images on [0, 1], as published; the model's are on [-1, 1], so they are doubled inside.
"""

import math
import sys
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pofx.base import rng
from pofx.base.images import to_model
from pofx.models.denoiser import Denoiser, DenoiserConfig, from_denoised, precondition
from pofx.models.family import Images, Shape, Terms
from pofx.models.ncsn.refinenet import RefineNet
from pofx.models.unet import UNet, UNetConfig

UNITS = 2  # from images on [0, 1] to [-1, 1]
WIDE_ENOUGH = 0.6  # of the largest distance between two images: sigma_max should be above
FEWEST_OVERLAP = 0.3
PREDICTION = {"score": "score", "noise": "scaled_score", "residual": None}  # what the network's output stands for


@dataclass(frozen=True)
class Config(DenoiserConfig):
    n_sigmas: Annotated[int, Ge(2)] = 24  # noise levels
    sigma_max: Annotated[float, Gt(0)] = 30.0  # about the largest distance between two images (Technique 1)
    sigma_min: Annotated[float, Gt(0)] = 0.02
    continuous: bool = False  # train on all noise levels between, log-uniformly: then bits/dim exist
    # Of the noise levels: sigma^2 as published (dsm), or with more for the coarse ones, as in EDM (karras).
    weighting: Literal["dsm", "karras"] = "karras"
    # Of the network: the score s (2019), sigma s (2020), or what the score of a Gaussian leaves over (EDM).
    output: Literal["score", "noise", "residual"] = "residual"
    network: Literal["unet", "refinenet", "refinenet_conditional"] = "unet"
    net: UNetConfig = field(default_factory=UNetConfig)  # a RefineNet uses channels and patch alone

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min} should be below sigma_max = {self.sigma_max}")


class Model(Denoiser):
    def __init__(self, cfg: Config, shape: Shape):
        if cfg.network == "unet":
            net = UNet(cfg.net, shape, "sigma")
        else:
            net = RefineNet(cfg.net.channels, cfg.network == "refinenet_conditional", cfg.net.patch, shape)
        super().__init__(cfg, shape, net)
        self.levels = np.geomspace(UNITS * cfg.sigma_max, UNITS * cfg.sigma_min, cfg.n_sigmas)
        self.sigma_range = (float(self.levels[-1]), float(self.levels[0]))
        self.likelihood = "flow" if cfg.continuous else None
        self.register_buffer("sigmas", torch.tensor(self.levels, dtype=torch.float32), persistent=False)

    def prepare(self, images: UInt8[Tensor, "n c h w"], batch: int) -> dict[str, float]:
        """Check the noise levels against the data besides: the largest distance of two images (Technique 1, units of
        [0, 1]), and the overlap C of neighbouring levels (Technique 2)."""
        noted = super().prepare(images, batch)
        some = to_model(images[:3000]).flatten(1) / UNITS
        largest = torch.cdist(some, some).max().item()
        share = overlap(self.levels[0] / self.levels[1], some.shape[1])
        if self.cfg.sigma_max < WIDE_ENOUGH * largest:
            _warn(f"ncsn.sigma_max = {self.cfg.sigma_max:g} is far below the largest distance between two images, "
                  f"{largest:.1f}: samples will lack variety; set it to about that distance")  # fmt: skip
        if share < FEWEST_OVERLAP:
            _warn(f"neighbouring noise levels overlap by C = {share:.2f}, below {FEWEST_OVERLAP}: Langevin dynamics "
                  f"may lose its way between them; raise ncsn.n_sigmas = {self.cfg.n_sigmas}")  # fmt: skip
        return noted | {"largest_distance": largest, "overlap": share}

    def forward(self, x: Images) -> Terms:
        if self.cfg.continuous:
            smallest, largest = self.sigma_range
            sigma = smallest * (largest / smallest) ** rng.batch(torch.rand, len(x), device=x.device)
        else:
            sigma = self.sigmas[rng.randint(len(self.sigmas), len(x), device=x.device)]
        wide, z = sigma[:, None, None, None], rng.randn_like(x)
        noisy = x + wide * z
        denoised = self.denoise(noisy, wide)
        dsm = 0.5 * (from_denoised("scaled_score", denoised, noisy, wide) + z).square().flatten(1).sum(1)
        # "karras": the network's own error weighs the same at every level (arXiv 2206.00364, eq. 7 ff.). The published
        # weight leaves the coarse levels, where place and colour are decided, to long training.
        weight = 1 + (sigma / self.sigma_data) ** 2 if self.cfg.weighting == "karras" else 1.0
        return {"loss": weight * dsm, "dsm_per_pixel": dsm / x[0].numel()}

    def denoise(self, x: Images, sigma: Float[Tensor, "b 1 1 1"] | float, net: nn.Module | None = None) -> Images:
        output = PREDICTION[self.cfg.output]
        return self.mean + precondition(net or self.net, x - self.mean, sigma, self.sigma_data, output)


def overlap(ratio: float, dims: int) -> float:
    """Technique 2 (Song & Ermon 2020, arXiv 2006.09011): the share C of one level's noise that lies where the next
    larger level's does, in `dims` dimensions, at the ratio of the two levels. The paper aims at 0.5."""
    wide = math.sqrt(2 * dims) * (ratio - 1)
    return 0.5 * (math.erf((wide + 3 * ratio) / math.sqrt(2)) - math.erf((wide - 3 * ratio) / math.sqrt(2)))


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)

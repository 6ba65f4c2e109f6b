"""Denoising diffusion probabilistic model (Ho et al. 2020, arXiv 2006.11239).

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) z,   loss = E || z - eps(x_t, t) ||^2 per pixel,   t uniform over T steps

The simplified loss, for the noise z as published, for the image x0, or for v = sqrt(a) z - sqrt(1 - a) x0 (Salimans &
Ho 2022, arXiv 2202.00512). Outside this file the model is a denoiser D(x, sigma) of x = x_t / sqrt(a_t) = x0 + sigma z.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base import rng
from pofx.models import schedules as schedule
from pofx.models.denoiser import Denoiser
from pofx.models.family import Terms
from pofx.models.unet import Shape, UNet
from pofx.sample.samplers import Sample
from pofx.train.loop import Train

__all__ = ["Config", "Model", "Sample"]


@dataclass(frozen=True)
class Config:
    timesteps: int  # T
    schedule: Literal["linear", "cosine"]
    prediction: Literal["eps", "x0", "v"]
    guide: float  # share of the training after which the network is kept as a guide; 0: none
    net: Shape
    train: Train

    def __post_init__(self) -> None:
        if self.timesteps < 21:  # fewer, and the linear schedule in proportion would have a beta of one
            raise ValueError(f"timesteps = {self.timesteps} should be above 20")


class Model(Denoiser):
    likelihood = "bound"

    def __init__(self, cfg: Config):
        super().__init__(UNet(cfg.net, "step"), cfg.guide, cfg.train.images)
        self.cfg = cfg
        self.ladder = schedule.preserving(cfg.schedule, cfg.timesteps)
        self.sigma_range = (float(self.ladder[-1]), float(self.ladder[0]))
        rising = torch.tensor(self.ladder[::-1].copy(), dtype=torch.float32)  # by time step
        self.register_buffer("sigmas", rising, persistent=False)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Terms:
        t = rng.randint(len(self.sigmas), len(x), device=x.device)
        sigma = self.sigmas[t][:, None, None, None]
        noisy = x + sigma * rng.randn_like(x)
        target = schedule.from_denoised(self.cfg.prediction, x, noisy, sigma)
        return {"loss": (self.predict(noisy, t.float(), sigma) - target).square().flatten(1).mean(1)}

    def predict(
        self, x: Float[Tensor, "b 3 h w"], t: Float[Tensor, " b"], sigma: Tensor | float, net: nn.Module | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """The network's answer for x = x0 + sigma z; it sees x_t, of variance about one at every step."""
        return (net or self.net)(x / (1 + sigma**2) ** 0.5, t).float()

    def denoise(self, x: Float[Tensor, "b 3 h w"], sigma: float, net: nn.Module | None = None) -> Tensor:
        """D(x, sigma). Levels between two of the chain are given the time step between."""
        t = np.interp(np.log(sigma), np.log(self.ladder[::-1]), np.arange(len(self.ladder)))
        out = self.predict(x, torch.full((len(x),), float(t), device=x.device), sigma, net)
        return schedule.to_denoised(self.cfg.prediction, out, x, sigma)

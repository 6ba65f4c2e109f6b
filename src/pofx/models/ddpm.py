"""Denoising diffusion probabilistic model (Ho et al. 2020, arXiv 2006.11239).

    x_t = sqrt(a_t) x0 + sqrt(1 - a_t) z,   loss = E || z - eps(x_t, t) ||^2 per pixel,   t uniform over T steps

The simplified loss, for the noise z as published, for the image x0, or for v = sqrt(a) z - sqrt(1 - a) x0 (Salimans &
Ho 2022, arXiv 2202.00512). Outside this file the model is a denoiser D(x, sigma) of x = x_t / sqrt(a_t) = x0 + sigma z.
The network sees, and predicts of, data in units of their spread s about their mean m: (x - m) / s, under noise sigma /
s. As published m = 0 and s = 1 (`centre: false, sigma_data: 1.0`). Noise levels are the published ones either way.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base import rng
from pofx.models.denoiser import Denoiser, DenoiserConfig, Levels, from_denoised, to_denoised
from pofx.models.family import Images, Shape, Terms
from pofx.models.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Config(DenoiserConfig):
    timesteps: Annotated[int, Ge(21)] = 1000  # T; with fewer the linear schedule in proportion has a beta of one
    schedule: Literal["linear", "cosine"] = "cosine"
    prediction: Literal["eps", "x0", "v"] = "v"
    net: UNetConfig = field(default_factory=UNetConfig)


def preserving(schedule: Literal["linear", "cosine"], n: int) -> Levels:
    """The `n` noise levels of a variance-preserving chain, falling: sigma^2 = (1 - abar) / abar.

    linear: beta from 1e-4 to 0.02 for 1,000 steps (Ho et al. 2020), in proportion for another number. cosine: the
    signal's share follows cos^2 (Nichol & Dhariwal 2021, arXiv 2102.09672, eq. 17).
    """
    if schedule == "linear":
        beta = np.linspace(1e-4, 0.02, n) * 1000 / n
    else:
        signal = np.cos((np.linspace(0, 1, n + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        beta = 1 - signal[1:] / signal[:-1]
    abar = np.cumprod(1 - np.minimum(beta, 0.999))
    return np.sqrt((1 - abar) / abar)[::-1]


class Model(Denoiser):
    likelihood = "bound"
    assumed = 1.0

    def __init__(self, cfg: Config, shape: Shape):
        super().__init__(cfg, shape, UNet(cfg.net, shape, "step"))
        self.levels = preserving(cfg.schedule, cfg.timesteps)
        self.sigma_range = (float(self.levels[-1]), float(self.levels[0]))
        rising = torch.tensor(self.levels[::-1].copy(), dtype=torch.float32)  # by time step
        self.register_buffer("sigmas", rising, persistent=False)

    def forward(self, x: Images) -> Terms:
        t = rng.randint(len(self.sigmas), len(x), device=x.device)
        sigma = self.sigmas[t][:, None, None, None]
        noisy = x + sigma * rng.randn_like(x)
        m, s = self.mean, self.sigma_data
        target = from_denoised(self.cfg.prediction, (x - m) / s, (noisy - m) / s, sigma / s)
        return {"loss": (self.predict((noisy - m) / s, t.float(), sigma / s) - target).square().flatten(1).mean(1)}

    def predict(self, x: Images, t: Float[Tensor, " b"], sigma: Tensor, net: nn.Module | None = None) -> Images:
        """The network's answer for x = x0 + sigma z, all in units of the data's spread about their mean; its input is
        x_t, of variance about one at every step."""
        return (net or self.net)(x / (1 + sigma**2) ** 0.5, t).float()

    def denoise(self, x: Images, sigma: float, net: nn.Module | None = None) -> Images:
        """D(x, sigma). Noise levels between two of the chain get the time step between."""
        t = np.interp(np.log(sigma), np.log(self.levels[::-1]), np.arange(len(self.levels)))
        x, sigma = (x - self.mean) / self.sigma_data, sigma / self.sigma_data
        out = self.predict(x, torch.full((len(x),), float(t), device=x.device), sigma, net)
        return self.mean + self.sigma_data * to_denoised(self.cfg.prediction, out, x, sigma)

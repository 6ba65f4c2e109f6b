"""EDM (Karras et al. 2022, arXiv 2206.00364): a denoiser with everything about it at unit scale.

    D(x, sigma) = c_skip x + c_out F(c_in x, log(sigma) / 4)
    loss = w(sigma) || D(y + sigma z, sigma) - y ||^2 per pixel,   log sigma ~ N(mean, std^2)

Input, target and loss of the network F have variance about one at every noise level (table 1 of the paper), and noise
levels are drawn where there is most to learn: little training goes far. The paper's augmentation is left out.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base import rng
from pofx.models.denoiser import Denoiser
from pofx.models.family import Terms
from pofx.models.unet import Shape, UNet
from pofx.sample.samplers import Sample
from pofx.train.loop import Train

__all__ = ["Config", "Model", "Sample"]


@dataclass(frozen=True)
class Config:
    sigma_min: float  # of the sampler, images on [-1, 1]
    sigma_max: float
    sigma_data: float  # standard deviation of the data
    log_mean: float  # of the training noise, of log sigma
    log_std: float
    guide: float  # share of the training after which the network is kept as a guide; 0: none
    net: Shape
    train: Train

    def __post_init__(self) -> None:
        if not self.sigma_max > self.sigma_min > 0:
            raise ValueError(f"sigma_min = {self.sigma_min} should lie between 0 and sigma_max = {self.sigma_max}")
        for key in ("sigma_data", "log_std"):
            if getattr(self, key) <= 0:
                raise ValueError(f"{key} = {getattr(self, key)} should be above 0")


class Model(Denoiser):
    likelihood = "flow"

    def __init__(self, cfg: Config):
        super().__init__(UNet(cfg.net, "sigma"), cfg.guide, cfg.train.images)
        self.cfg = cfg
        self.sigma_range = (cfg.sigma_min, cfg.sigma_max)

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Terms:
        cfg = self.cfg
        sigma = (cfg.log_mean + cfg.log_std * rng.batch(torch.randn, len(x), 1, 1, 1, device=x.device)).exp()
        weight = (sigma**2 + cfg.sigma_data**2) / (sigma * cfg.sigma_data) ** 2
        error = self.precondition(x + sigma * rng.randn_like(x), sigma) - x
        return {"loss": (weight * error.square()).flatten(1).mean(1)}

    def precondition(
        self, x: Float[Tensor, "b 3 h w"], sigma: Float[Tensor, "b 1 1 1"], net: nn.Module | None = None
    ) -> Float[Tensor, "b 3 h w"]:
        """D(x, sigma) of the paper's equation 7."""
        data = self.cfg.sigma_data
        total = (sigma**2 + data**2).sqrt()
        f = (net or self.net)(x / total, sigma.flatten().log() / 4).float()
        return (data / total) ** 2 * x + sigma * data / total * f

    def denoise(self, x: Float[Tensor, "b 3 h w"], sigma: float, net: nn.Module | None = None) -> Tensor:
        return self.precondition(x, torch.full((len(x), 1, 1, 1), sigma, device=x.device), net)

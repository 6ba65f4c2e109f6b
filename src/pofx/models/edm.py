"""EDM (Karras et al. 2022, arXiv 2206.00364): a denoiser with everything about it at unit scale.

    D(x, sigma) = m + c_skip (x - m) + c_out F(c_in (x - m), log(sigma) / 4),   m the mean of the data
    loss = w(sigma) || D(y + sigma z, sigma) - y ||^2 per pixel,   log sigma ~ N(mean, std^2)

Input, target and loss of the network F have variance about one at every noise level (table 1 of the paper), and noise
levels are drawn where there is most to learn: little training goes far. The paper's augmentation is left out.
"""

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Gt
from jaxtyping import Float
from torch import Tensor, nn

from pofx.base import rng
from pofx.models.denoiser import Denoiser, DenoiserConfig, loss_weight, precondition
from pofx.models.family import Images, Shape, Terms
from pofx.models.unet import UNet, UNetConfig


@dataclass(frozen=True)
class Config(DenoiserConfig):
    sigma_min: Annotated[float, Gt(0)] = 0.002  # of the sampler, images on [-1, 1]
    sigma_max: Annotated[float, Gt(0)] = 80.0
    log_mean: float = -1.2  # of log sigma in training
    log_std: Annotated[float, Gt(0)] = 1.2
    net: UNetConfig = field(default_factory=UNetConfig)

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min} should be below sigma_max = {self.sigma_max}")


class Model(Denoiser):
    likelihood = "flow"

    def __init__(self, cfg: Config, shape: Shape):
        super().__init__(cfg, shape, UNet(cfg.net, shape, "sigma"))
        self.sigma_range = (cfg.sigma_min, cfg.sigma_max)

    def forward(self, x: Images) -> Terms:
        cfg = self.cfg
        sigma = (cfg.log_mean + cfg.log_std * rng.batch(torch.randn, len(x), 1, 1, 1, device=x.device)).exp()
        denoised = self.denoise(x + sigma * rng.randn_like(x), sigma)
        return {"loss": (loss_weight(sigma, self.sigma_data) * (denoised - x).square()).flatten(1).mean(1)}

    def denoise(self, x: Images, sigma: Float[Tensor, "b 1 1 1"] | float, net: nn.Module | None = None) -> Images:
        return self.mean + precondition(net or self.net, x - self.mean, sigma, self.sigma_data)

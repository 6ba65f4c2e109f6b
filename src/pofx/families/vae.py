"""Variational autoencoder: beta-VAE (Higgins et al. 2017) with a Gaussian decoder of fixed or learned width.

    log p(x) >= E_q(z|x)[ log N(x; m(z), s^2 I) ] - KL( q(z|x) || N(0, I) )

Both terms are sums, over pixels and over latent units, so that beta means what the papers mean by it; s is a constant
or, with `likelihood: sigma_vae`, one learned number for all pixels (Rybkin et al. 2021, arXiv 2006.13202), which
balances the two terms by itself.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pofx.core.errors import UserError
from pofx.core.family import Family, Terms
from pofx.core.loop import Train
from pofx.core.rng import Noise
from pofx.nn.autoencoder import Decoder, Encoder

LOG_2PI = math.log(2 * math.pi)
LOG_SIGMA_FLOOR = -6.0
BIN = 2 / 255  # width of one grey level, with images in [-1, 1]


@dataclass(frozen=True)
class Config:
    channels: tuple[int, ...]  # of the stride-2 stages
    latent: int  # units
    likelihood: Literal["sigma_vae", "gaussian"]
    sigma: float  # of the decoder, on [-1, 1]: constant, or where a learned one starts
    beta: float  # weight of the KL term
    kl_warmup: int  # images over which beta grows from zero
    train: Train


@dataclass(frozen=True)
class Sample:
    batch: int


class Model(Family):
    likelihood = "forward"

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg.channels, cfg.latent)
        self.net = Decoder(cfg.channels, cfg.latent)
        if cfg.sigma <= math.exp(LOG_SIGMA_FLOOR):
            raise UserError(f"vae.sigma = {cfg.sigma} should be above {math.exp(LOG_SIGMA_FLOOR):.2g}")
        above = torch.tensor(math.log(math.expm1(math.log(cfg.sigma) - LOG_SIGMA_FLOOR)))  # inverse of softplus
        if cfg.likelihood == "sigma_vae":
            self.width = nn.Parameter(above)
        else:
            self.register_buffer("width", above, persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Terms:
        if not self.training:  # the density of a grey level is spread evenly over its bin
            x = x + (torch.rand_like(x) - 0.5) * BIN
        mean, log_var = self.encode(x)
        z = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        log_px = self.log_likelihood(x, self.net(z).float())
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1)
        terms = {"loss": self.beta() * kl - log_px, "log_px": log_px, "kl": kl, "sigma": self.log_sigma().exp()}
        if self.training:
            self.seen += len(x)
        else:  # the bound itself has beta 1; the density is turned into a probability by the volume of a bin
            terms["bpd"] = (kl - log_px) / (x[0].numel() * math.log(2)) - math.log2(BIN)
        return terms

    def encode(self, x: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]]:
        """Mean and log variance of q(z|x); log variances are held in [-10, 10], where exp is safe."""
        mean, log_var = self.encoder(x).float().chunk(2, 1)
        return mean, log_var.clamp(-10, 10)

    def log_likelihood(self, x: Float[Tensor, "b 3 h w"], mean: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        """log N(x; mean, sigma^2 I) in nats, summed over pixels and channels."""
        log_sigma = self.log_sigma()
        error = ((x - mean) * (-log_sigma).exp()).square().flatten(1).sum(1)
        return -0.5 * error - x[0].numel() * (log_sigma + 0.5 * LOG_2PI)

    def beta(self) -> Tensor | float:
        """The KL weight, growing linearly over the warm-up so that the code is used before it is priced."""
        if not self.training or not self.cfg.kl_warmup:
            return self.cfg.beta
        return self.cfg.beta * (self.seen / self.cfg.kl_warmup).clamp(max=1)

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n 3 32 32"]:
        """Decoder means of codes from the prior (without the decoder's own pixel noise)."""
        return self.net(noise.normal(self.cfg.latent))

    def log_sigma(self) -> Tensor:
        """Of the decoder. Held above a floor: flat images would otherwise drive sigma to zero and the loss to -inf."""
        return LOG_SIGMA_FLOOR + nn.functional.softplus(self.width)

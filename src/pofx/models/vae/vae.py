"""Variational autoencoder (Kingma & Welling 2013), with the weight, the price and the tightness of its bound to choose.

    log p(x) >= E_q(z|x)[ log p(x|z) ] - KL( q(z|x) || N(0, I) )

Both terms are sums, over pixels and over latent units, so that `beta` (beta-VAE, Higgins et al. 2017) means what the
papers mean by it. p(x|z) is a Gaussian of constant width, of one learned width for all pixels (`sigma_vae`: Rybkin et
al. 2021, arXiv 2006.13202), which balances the two terms by itself, or a mixture of discretised logistics. With
`perceptual` a distance in features of a frozen network is added in training (DFC-VAE, Hou et al. 2017, arXiv
1610.00291): the loss is then no bound, but in evaluation it is.
"""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, MinLen, MultipleOf
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pofx.base import dist, rng
from pofx.base.errors import UserError
from pofx.base.fetch import File, find
from pofx.base.images import to_model
from pofx.base.rng import Noise
from pofx.models.family import Images, ImportanceWeighted, Latent, Sampled, Shape, Terms
from pofx.models.features import active, kl
from pofx.models.pixels import gaussian, logistic
from pofx.models.vae import perceptual
from pofx.models.vae.autoencoder import Decoder, DenseDecoder, DenseEncoder, Encoder
from pofx.models.vae.mixture import Mixture

FEWEST_ACTIVE = 0.1  # of the units
FITTED = 10_000  # images that the mixture is fitted to
PART = 256  # images at a time, after training


@dataclass(frozen=True)
class Features:
    """The perceptual term."""

    alpha: Annotated[float, Ge(0)] = 0.0  # its weight; 0: none, and no network is loaded
    backbone: Literal["efficientnet_lite0", "vgg19"] = "efficientnet_lite0"  # in the installation, or as published
    layers: Annotated[tuple[int, ...], MinLen(1)] = (0, 2, 4)  # see perceptual.py; a shallow one keeps colours right
    side: Annotated[int, Ge(8)] = 96  # pixels that images are enlarged to
    weights: str | None = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"  # of vgg19: path or URL
    sha256: str = "dcbb9e9d"  # how the digest of that file begins

    def __post_init__(self) -> None:
        count = perceptual.LAYERS[self.backbone]
        if not all(0 <= layer < count for layer in self.layers):
            raise ValueError(f"layers = {list(self.layers)} should name layers of {self.backbone}, 0 to {count - 1}")


@dataclass(frozen=True)
class Config:
    arch: Literal["dense", "conv", "resnet"] = "dense"  # see autoencoder.py
    channels: Annotated[tuple[int, ...], MinLen(1)] = (32, 64, 128)  # of the levels, each of half the side
    blocks: Annotated[int, Ge(1)] = 2  # residual blocks a level, of a resnet
    latent: Annotated[int, Ge(1)] = 10  # units
    likelihood: Literal["sigma_vae", "gaussian", "logistic"] = "sigma_vae"
    sigma: Annotated[float, Gt(gaussian.SMALLEST)] = 0.15  # pixel noise, on [-1, 1]: constant, or a learned one's start
    mixtures: Annotated[int, Ge(1)] = 10  # components, of logistic
    beta: Annotated[float, Ge(0)] = 8.0  # weight of the KL term
    kl_warmup: Annotated[int, Ge(0)] = 5000  # images over which beta, or with a capacity that, grows from zero
    free_bits: Annotated[float, Ge(0)] = 0.0  # nats a unit that cost nothing (Kingma et al. 2016, arXiv 1606.04934)
    capacity: Annotated[float, Ge(0)] = 0.0  # nats that the KL term is held at (Burgess et al. 2018, arXiv 1804.03599)
    importance: Annotated[int, Ge(1)] = 1  # codes an image: 1 the bound above, more the tighter one (Burda et al. 2016)
    perceptual: Features = field(default_factory=Features)
    components: Annotated[int, Ge(0)] = 10  # Gaussians fitted to the aggregated posterior after training; 0: none

    def __post_init__(self) -> None:
        if sum([self.free_bits > 0, self.capacity > 0, self.importance > 1]) > 1:
            raise ValueError("free_bits, capacity and importance above 1 each say what the KL term costs: choose one")


@dataclass(frozen=True)
class Sample:
    batch: Annotated[int, Ge(64), MultipleOf(64)] = 256
    prior: Literal["normal", "mixture"] = "normal"  # of the code: N(0, I), or what was fitted after training


class Model(Sampled, Latent, ImportanceWeighted):
    def __init__(self, cfg: Config, shape: Shape):
        super().__init__(cfg, shape)
        self.logistic = cfg.likelihood == "logistic"
        if any(side % 2 ** len(cfg.channels) for side in shape[1:]):
            raise UserError(f"vae.channels: {len(cfg.channels)} levels do not halve images of {shape[1]}x{shape[2]}")
        if self.logistic and shape[0] != 3:
            raise UserError(f"vae.likelihood = logistic is defined for 3 channels, and images have {shape[0]}")
        out = logistic.PER_COMPONENT * cfg.mixtures if self.logistic else shape[0]
        if cfg.arch == "dense":
            self.encoder = DenseEncoder(shape, cfg.channels, cfg.latent)
            self.net = DenseDecoder(shape, cfg.channels, cfg.latent, out)
        else:
            blocks = cfg.blocks if cfg.arch == "resnet" else 0
            self.encoder = Encoder(shape, cfg.channels, blocks, cfg.latent)
            self.net = Decoder(shape, cfg.channels, blocks, cfg.latent, out)
        if cfg.likelihood == "sigma_vae":
            self.width = nn.Parameter(gaussian.width(cfg.sigma))
        else:
            self.register_buffer("width", gaussian.width(cfg.sigma), persistent=False)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.perceptual: perceptual.Perceptual | None = None  # see `fetch`
        self.mixture = Mixture(cfg.components, cfg.latent) if cfg.components else None

    def fetch(self, cache: Path, base: Path) -> None:
        cfg = self.cfg.perceptual
        if not cfg.alpha:
            return
        if cfg.backbone == "vgg19":
            keys = ("vae.perceptual.weights", "vae.perceptual.sha256")
            path = find(File(cfg.weights, cfg.sha256, keys, "vgg19-dcbb9e9d.pth"), cache, base)
            backbone = perceptual.vgg19(path)
        else:
            backbone = perceptual.efficientnet_lite0()
        self.perceptual = perceptual.Perceptual(backbone, cfg.layers, cfg.side)

    def forward(self, x: Images) -> Terms:
        cfg = self.cfg
        if not self.training:
            x = self.dequantised(x)
        out, log_px, log_ratio, units = self.draw(x, cfg.importance)
        divergence, nats = units.sum(1), log_px.mean(0)
        if cfg.importance == 1:
            loss = self.price(units) - nats
        else:
            loss = math.log(cfg.importance) - (log_px - self.beta() * log_ratio).logsumexp(0)
        terms = {"loss": loss, "log_px": nats, "kl": divergence}
        if not self.logistic:
            terms["sigma"] = gaussian.log_sigma(self.width).exp()
        if self.training and cfg.perceptual.alpha:
            terms["features"] = self.perceptual(x, self.mean(out[: len(x)]))
            terms["loss"] = loss + cfg.perceptual.alpha * terms["features"]
        if self.training:
            self.seen += len(x) * dist.parts()
        else:  # the bound itself has beta 1
            unit = x[0].numel() * math.log(2)
            terms |= {"bpd_prior": divergence / unit, "bpd_decoder": -nats / unit - self.log_bin() / math.log(2)}
            terms["bpd"] = terms["bpd_prior"] + terms["bpd_decoder"]
        return terms

    def draw(self, x: Images, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """k codes an image from q(z|x), decoded.

        Returns:
            The decoder's output (k b, c, h, w); log p(x|z) and log q(z|x) - log p(z), both (k, b); KL of every unit (b,
            latent), which is the mean of the latter in closed form.
        """
        mean, log_var = self.posterior(x)
        noise = rng.batch(torch.randn, k, *mean.shape, dim=1, device=x.device)
        z = mean + (0.5 * log_var).exp() * noise
        out = self.net(z.flatten(0, 1)).float()
        log_px = self.log_likelihood(x.expand(k, *x.shape).flatten(0, 1), out).unflatten(0, (k, len(x)))
        log_ratio = 0.5 * (z.square() - noise.square() - log_var).sum(2)
        return out, log_px, log_ratio, kl(mean, log_var)

    def posterior(self, x: Images) -> tuple[Float[Tensor, "b latent"], Float[Tensor, "b latent"]]:
        """Mean and log variance of q(z|x); log variances are held in [-10, 10], where exp is safe."""
        mean, log_var = self.encoder(x).float().chunk(2, 1)
        return mean, log_var.clamp(-10, 10)

    def decode(self, z: Float[Tensor, "b latent"]) -> Images:
        return self.mean(self.net(z).float())

    def log_likelihood(self, x: Images, out: Float[Tensor, "b k h w"]) -> Float[Tensor, " b"]:
        """log p(x|z) in nats, summed over pixels and channels: log N(x; out, sigma^2 I), or log P of grey levels."""
        if self.logistic:
            return logistic.log_prob(x, out)
        return gaussian.log_prob(x, out, gaussian.log_sigma(self.width))

    def mean(self, out: Float[Tensor, "b k h w"]) -> Images:
        return logistic.mean(out) if self.logistic else out

    def dequantised(self, x: Images) -> Images:
        """As the likelihood wants them: only a density needs more than grey levels."""
        return x if self.logistic else gaussian.dequantised(x)

    def log_bin(self) -> float:
        """What turns a log density into a log probability: the volume of a bin, a dimension."""
        return 0.0 if self.logistic else math.log(gaussian.BIN)

    def price(self, units: Float[Tensor, "b latent"]) -> Float[Tensor, " b"]:
        """What the KL term costs an image. Free bits count every unit's mean over the batch, as published."""
        cfg, divergence = self.cfg, units.sum(1)
        if cfg.capacity:
            return cfg.beta * (divergence - cfg.capacity * self.ramp()).abs()
        if cfg.free_bits:
            divergence = dist.mean(units).clamp(min=cfg.free_bits).sum().expand(len(units))
        return self.beta() * divergence

    def ramp(self) -> Tensor | float:
        """From 0 to 1 over the warm-up; 1 in evaluation."""
        if not self.training or not self.cfg.kl_warmup:
            return 1.0
        return (self.seen / self.cfg.kl_warmup).clamp(max=1)

    def beta(self) -> Tensor | float:
        """The KL weight, growing linearly over the warm-up so that the code is used before it is priced."""
        return self.cfg.beta * self.ramp()

    def log_weights(self, x: Images, k: int) -> Float[Tensor, "k b"]:
        x = self.dequantised(x)
        _, log_px, log_ratio, _ = self.draw(x, k)
        return log_px - log_ratio + x[0].numel() * self.log_bin()

    def preview(self, noise: Noise) -> Float[Tensor, "n c h w"]:
        return self.sample(noise, Sample())

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n c h w"]:
        """Decoder means of codes from the prior (without the decoder's own pixel noise)."""
        if cfg.prior == "mixture" and self.mixture is None:
            raise UserError("prior = mixture needs a model trained with vae.components above 0: set it, or draw from "
                            "normal (sample.vae.prior) and take the row out (-S ~rows.vae.mixture)")  # fmt: skip
        z = self.mixture.draw(noise) if cfg.prior == "mixture" else noise.normal(self.cfg.latent)
        return self.decode(z)

    def finish(self, images: UInt8[Tensor, "n c h w"]) -> None:
        """Fit the mixture to codes of the first images, one draw each."""
        if self.mixture is not None:
            pairs = [self.posterior(to_model(part)) for part in images[:FITTED].split(PART)]
            self.mixture.fit(torch.cat([m + (0.5 * v).exp() * rng.randn_like(m) for m, v in pairs]))

    def monitor(self, images: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
        """Is the code in use, and does it match the prior: active units, KL of every unit (nats, falling), and of the
        aggregated posterior the largest mean of a unit (0 in the prior) and the range of standard deviations (1)."""
        pairs = [self.posterior(to_model(part)) for part in images.split(PART)]
        mean, log_var = (torch.cat(rows).double() for rows in zip(*pairs, strict=True))
        used, units = int(active(mean).sum()), self.cfg.latent
        if used < FEWEST_ACTIVE * units:
            print(f"warning: {used} of {units} units of the VAE's code are in use, the posterior has collapsed: "
                  "lower vae.beta, or set vae.free_bits or a longer vae.kl_warmup", file=sys.stderr)  # fmt: skip
        nats = kl(mean, log_var).mean(0).sort(descending=True).values
        std = (mean.var(0, correction=0) + log_var.exp().mean(0)).sqrt()
        return {
            "active_units": used,
            "kl_units": [round(v, 4) for v in nats.tolist()],
            "code_mean_largest": mean.mean(0).abs().max().item(),
            "code_std_smallest": std.min().item(),
            "code_std_largest": std.max().item(),
        }

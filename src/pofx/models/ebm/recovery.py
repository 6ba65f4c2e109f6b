"""Diffusion recovery likelihood (Gao et al. 2021, arXiv 2012.08125).

An energy of the data under every noise level, and conditional densities of one level given the next, which are close to
Gaussians where p itself is not:

    p(y | x) ~ exp(-E(y, sigma_i) - |x - y|^2 / 2 s^2),    y = x0 + sigma_i z,    x = y + s z',
    s^2 = sigma_{i+1}^2 - sigma_i^2

Their likelihood is trained by MCMC chains that start at x, or, with `chain` 0, by the paper's normal approximation for
small s: denoising score matching with the gradient of an energy. Images are drawn from noise, level by level.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torch.nn.utils.parametrize import cached

from pofx.base import dist, rng
from pofx.base.errors import UserError
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models.denoiser import loss_weight
from pofx.models.ebm.chains import CALM, Chains, Draw, Observed, Sample, drawn_from, last, slope
from pofx.models.ebm.network import Energy
from pofx.models.family import Images, Shape, Terms
from pofx.models.features import PROBED, inside
from pofx.models.moments import SIGMA_DATA, Measured

IDLE = 1000  # steps after which denoising should have a smaller loss than NONE
NONE = 0.8  # with no network the loss is about 1
ALARMS = {
    "gap": "the energies of data and chains ran apart: lower ebm.train.lr, or raise ebm.chain",
    "denoising": "the gradient of the energy denoises far worse than none would: lower ebm.train.lr",
    "idle": "the gradient of the energy denoises hardly better than none would: ebm.train.lr is far too high, or low",
}
WARNINGS = {"uphill": "chains end at higher energies than they start from: raise ebm.chain, or lower ebm.recovery.step"}


@dataclass(frozen=True)
class RecoveryConfig:
    sigma_min: Annotated[float, Gt(0)] = 0.02  # noise levels, geometric, images on [-1, 1]
    sigma_max: Annotated[float, Gt(0)] = 20.0
    levels: Annotated[int, Ge(2)] = 24
    centre: bool = True  # the network sees images without the mean of the training images
    # Root mean square of the images about that mean, or about 0; None: of the training images.
    sigma_data: Annotated[float, Gt(0)] | None = None
    log_mean: float = -1.2  # normal approximation: of log sigma in training
    log_std: Annotated[float, Gt(0)] = 1.2
    step: Annotated[float, Gt(0), Le(1)] = 1.0  # of a chain: 1 forgets, in a Gaussian, where it was

    def __post_init__(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min = {self.sigma_min} should be below sigma_max = {self.sigma_max}")


class Recovery(Chains, Measured):
    def __init__(self, cfg: Any, shape: Shape):
        super().__init__(cfg, shape)
        self.own: RecoveryConfig = cfg.recovery
        self.sigma_data.fill_(self.own.sigma_data or SIGMA_DATA)
        self.second_order = cfg.chain == 0
        self.net = Energy(cfg.net, shape, levels=True)
        lowest, highest = math.log10(self.own.sigma_min), math.log10(self.own.sigma_max)
        self.register_buffer("sigmas", torch.logspace(lowest, highest, self.own.levels + 1), persistent=False)
        names = ("gap",) if cfg.chain else ("denoising", "idle")
        self.alarms, self.warnings = {name: ALARMS[name] for name in names}, WARNINGS if cfg.chain else {}

    def prepare(self, images: UInt8[Tensor, "n c h w"], batch: int) -> dict[str, float]:
        return self.measure(images, self.own.centre, self.own.sigma_data)

    def forward(self, x: Images) -> Terms:
        return self._recover(x) if self.training and self.cfg.chain else self._approximate(x)

    def level_energy(self, x: Images, sigma: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, " b"]:
        """E(x, sigma) = |y|^2 / 2 + sigma_data / sigma F(y, c_noise),   y = (x - m) / sqrt(sigma^2 + sigma_data^2)

        EDM's preconditioning (models/denoiser.py) of the denoiser x - sigma^2 dE/dx, written as an energy. m is the
        mean of the data.
        """
        scaled = (x - self.mean) * (sigma**2 + self.sigma_data**2).rsqrt()
        gaussian = scaled.square().flatten(1).sum(1) / 2
        return gaussian + self.sigma_data / sigma.flatten() * self.net(scaled, sigma.flatten().log() / 4)

    def _slope(self, x: Images, sigma: Float[Tensor, "b 1 1 1"], graph: bool = False) -> tuple[Tensor, Images]:
        return slope(lambda at: self.level_energy(at, sigma), x, graph)

    def _level(self, i: Int64[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        return self.sigmas[i].view(-1, 1, 1, 1)

    def _nearest(self, sigma: Float[Tensor, ""] | float) -> Int64[Tensor, ""]:
        return (self.sigmas / sigma).log().abs().argmin()

    def _energy_near(self, x: Images, sigma: Float[Tensor, ""] | float) -> Float[Tensor, " b"]:
        """At the noise level nearest to sigma."""
        return self.level_energy(x, self._level(self._nearest(sigma).expand(len(x))))

    def _approximate(self, x: Images) -> Terms:
        """Squared error of the denoised images: what the likelihood becomes where s is small, weighted as in EDM."""
        own = self.own
        sigma = (own.log_mean + own.log_std * rng.batch(torch.randn, len(x), 1, 1, 1, device=x.device)).exp()
        sigma = sigma.clamp(own.sigma_min, own.sigma_max)
        noisy = x + sigma * rng.randn_like(x)
        energy, gradient = self._slope(noisy, sigma, graph=self.training)
        error = noisy - sigma**2 * gradient - x
        loss = (loss_weight(sigma, self.sigma_data) * error.square()).flatten(1).mean(1)
        mean = dist.mean(loss.detach())
        alarms = {"alarm_denoising": mean > 10 * NONE, "alarm_idle": self._idle(mean)}
        return {"loss": loss, "energy_data": energy} | alarms

    def _recover(self, x: Images) -> Terms:
        """The difference of energies at the data's x_i and at the end of chains that start at x_{i+1}."""
        i = rng.randint(self.own.levels, len(x), device=x.device)
        sigma = self._level(i)
        positive = x + sigma * rng.randn_like(x)
        above = positive + (self._level(i + 1) ** 2 - sigma**2).sqrt() * rng.randn_like(x)
        with self.frozen():
            first, _ = self._slope(above, sigma)
        negative = self._conditional(above, i, self.cfg.chain, rng.randn_like)
        e_pos, e_neg = self.level_energy(torch.cat([positive, negative]), torch.cat([sigma, sigma])).float().chunk(2)
        fall = (first - e_neg).detach()
        return {
            # Gradients of the energies grow as 1 / sigma: each noise level weighs the same.
            "loss": sigma.flatten() / self.sigma_data * (e_pos - e_neg),
            "energy_data": e_pos,
            "energy_model": e_neg,
            "chain_move": (negative - above).abs().mean(),
            "chain_fall": fall,
            "alarm_gap": self.outside(dist.mean((e_pos - e_neg).detach())),
            "warn_uphill": dist.mean(fall) < 0,
        }

    def _conditional(self, above: Images, i: Int64[Tensor, " b"], steps: int, draw: Draw) -> Images:
        """Images at noise level i given images `above` at i + 1, by `steps` Langevin steps that start there.

        The step is `step` of the variance v of the conditional in directions of noise alone, and the noise added leaves
        just this variance there: a step of 1 renews it as a whole, and a single one is ancestral sampling. Where the
        data vary, large steps leave less than the density's variance, at worst half of it if levels are few.
        """
        sigma, c = self._level(i), self.own.step
        s2 = self._level(i + 1) ** 2 - sigma**2
        v, y = 1 / (1 / s2 + 1 / sigma**2), above
        with self.frozen():
            for _ in range(steps):
                _, gradient = self._slope(y, sigma)
                y = y - c * v * (gradient + (y - above) / s2) + (c * (2 - c) * v).sqrt() * draw(y)
        return y

    def _idle(self, loss: Float[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether the running mean of the loss is hardly better than without a network."""
        if not self.training:
            return torch.zeros((), dtype=torch.bool, device=loss.device)
        mean, square, steps, out = self.watched.unbind()
        mean = mean + (loss - mean) / (steps + 1).clamp(max=CALM)
        self.watched.copy_(torch.stack([mean, square, steps + 1, out]))
        return (self.watched[2] >= IDLE) & (mean > NONE)

    def preview(self, noise: Noise) -> Images:
        return self.sample(noise, Sample())

    def path(self, noise: Noise, cfg: Sample) -> Iterator[Images]:
        """cfg.chain Langevin steps at every noise level, from noise."""
        if cfg.start == "buffer":
            raise UserError("ebm.objective=recovery keeps no replay buffer: set sample.ebm.start=noise")
        return self._descend(self._noise(noise), self.own.levels, noise, cfg)

    def _noise(self, noise: Noise) -> Images:
        return self.mean + self.own.sigma_max * noise.normal(*self.shape)

    def _descend(self, x: Images, top: int, noise: Noise, cfg: Sample, observed: Observed = None) -> Iterator[Images]:
        """From noise level `top` down to images without noise."""
        draw = drawn_from(noise)
        yield x
        with cached():
            for i in Bar(range(top - 1, -1, -1), desc="levels", leave=False):
                x = self._conditional(x, torch.full((len(x),), i, device=x.device), cfg.chain, draw)
                if observed is not None:
                    x = torch.where(observed[1], observed[0] + self.sigmas[i] * draw(x), x)
                yield x
        sigma = self._level(torch.zeros(len(x), dtype=torch.int64, device=x.device))
        with self.frozen():
            x = x - sigma**2 * self._slope(x, sigma)[1]
        yield x if observed is None else torch.where(observed[1], observed[0], x)

    def energy(self, x: Images) -> Float[Tensor, " b"]:
        """At the level where noise is as strong as the data. Training shows unlikely images only where noise makes all
        alike: at small levels the energy of pure noise is far below that of data."""
        return self._energy_near(x, self.sigma_data)

    @property
    def layer(self) -> str:
        return f"deepest map of the network at sigma {self.sigmas[self._nearest(PROBED)]:.3g}, averaged to 2x2"

    def features(self, x: Images) -> Float[Tensor, "b d"]:
        """Of images without noise, though the network is given a small noise level."""
        return inside(self.net.deepest, lambda: self._energy_near(x, PROBED))

    def inpaint(self, x: Images, mask: Bool[Tensor, "b 1 h w"], noise: Noise, cfg: Sample) -> Images:
        """Drawn as samples are; observed pixels are put back after every noise level, with that level's noise."""
        return last(self._descend(self._noise(noise), self.own.levels, noise, cfg, (x, mask)))

    def restore(self, x: Images, sigma: float, noise: Noise, cfg: Sample) -> Images:
        """From the noise level nearest to sigma downwards."""
        return last(self._descend(x, int(self._nearest(sigma)), noise, cfg))

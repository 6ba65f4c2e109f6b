"""Energy-based models, p(x) ~ exp(-E(x)): drawn from by Langevin dynamics, trained to one of two objectives.

`contrast`, after IGEBM (Du & Mordatch 2019, arXiv 1903.08689):

    loss = E(x+) - E(x-) + alpha (E(x+)^2 + E(x-)^2)

x+ are data with a little noise; x- are drawn by Langevin dynamics, each chain going on from where an earlier one ended
(a replay buffer, a share of it restarted from noise). The chains' steps are large against their noise, as published:
the density at temperature one is not what they draw from. Improved contrastive divergence (Du et al. 2021, arXiv
2012.01316) adds what `kl`, `entropy` and `augment` ask for.

`recovery`, diffusion recovery likelihood (Gao et al. 2021, arXiv 2012.08125): an energy of the data under every noise
level of a ladder, and conditional densities of one level given the next, close to Gaussians where p itself is not:

    p(y | x) ~ exp(-E(y, sigma_i) - |x - y|^2 / 2 s^2),    y = x0 + sigma_i z,    x = y + s z',
    s^2 = sigma_{i+1}^2 - sigma_i^2

Their likelihood is trained by chains that start at x, or where `chain` is 0 by the paper's normal approximation for
small s, which is denoising score matching with the gradient of an energy. Images are drawn from noise, level by level.
No likelihood is reported for either.
"""

import math
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.parametrize import cached

from pofx.base import dist, rng
from pofx.base.errors import UserError
from pofx.base.images import to_model, to_uint8
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models.ebm.network import Energy, Shape
from pofx.models.family import PROBED, Draw, Family, Terms, inside
from pofx.train.loop import Train

Images = Float[Tensor, "b 3 h w"]
Known = tuple[Images, Bool[Tensor, "b 1 h w"]]  # images, and which of their pixels are put back after every step
NEIGHBOURS = 100  # images of the buffer among which the entropy term looks for the nearest
CALM, WILD = 100, 5.0  # steps until the gap's spread is known, and of a gap outside it; in standard deviations
IDLE, NONE = (
    1000,
    0.8,
)  # steps after which denoising should have a smaller loss than this; with no network it is about 1


@dataclass(frozen=True)
class Config:
    objective: Literal["contrast", "recovery"]
    net: Shape
    chain: int  # Langevin steps a training step; recovery: 0 for the normal approximation
    # contrast
    alpha: float  # weight of the squared energies, which holds them near zero
    data_noise: float  # standard deviation added to x+
    buffer: int  # images kept between steps
    fresh: float  # share of chains that start from noise
    augment: float  # share of the others that start from a changed image: cropped, mirrored, in other colours
    step_size: float  # on the clipped gradient
    noise: float  # standard deviation added each step
    grad_clip: float  # largest absolute value of an element of the gradient with respect to the image
    kl: float  # weight of the energy that the last step of a chain comes to, as a function of that step
    entropy: float  # weight of the entropy of what the last steps come to; both 0: not improved
    energy_limit: float  # a mean |E| above it fires a guard
    # recovery
    sigma_min: float  # of the ladder, images on [-1, 1]
    sigma_max: float
    levels: int
    sigma_data: float  # standard deviation of the data
    log_mean: float  # normal approximation: of log sigma in training
    log_std: float
    step: float  # of a chain: 1 forgets, in a Gaussian, where it was
    train: Train

    def __post_init__(self) -> None:
        if self.objective == "contrast" and self.buffer < self.train.batch:
            raise ValueError(f"buffer = {self.buffer} should hold at least a batch ({self.train.batch})")
        if self.chain < (self.objective == "contrast"):
            raise ValueError(f"chain = {self.chain} should be at least {int(self.objective == 'contrast')}")
        if not self.sigma_max > self.sigma_min > 0:
            raise ValueError(f"sigma_min = {self.sigma_min} should lie between 0 and sigma_max = {self.sigma_max}")
        if self.levels < 2:
            raise ValueError(f"levels = {self.levels} should be at least 2")
        for key, most in (("fresh", 1), ("augment", 1), ("step", 1), ("kl", math.inf), ("entropy", math.inf)):
            if not 0 <= getattr(self, key) <= most:
                raise ValueError(f"{key} = {getattr(self, key)} should lie between 0 and {most}")
        if not self.step:
            raise ValueError("step = 0 would leave chains where they are")
        if self.train.compile and (self.kl or self.entropy or (self.objective == "recovery" and not self.chain)):
            raise ValueError("train.compile = true: PyTorch compiles no second derivatives, which this objective takes")


@dataclass(frozen=True)
class Sample(Draw):
    batch: int
    chain: int  # Langevin steps; recovery: at every level
    start: Literal["noise", "buffer"]  # recovery keeps no buffer


ALARMS = {
    "energy": "the mean energy left its bounds (ebm.energy_limit): "
    "lower ebm.train.lr or ebm.step_size, or raise ebm.alpha or ebm.chain",
    "gap": "the energies of data and chains ran apart: lower ebm.train.lr, or raise ebm.chain",
    "denoising": "the gradient of the energy denoises far worse than none would: lower ebm.train.lr",
    "idle": "the gradient of the energy denoises hardly better than none would: ebm.train.lr is far too high, or low",
}
WARNINGS = {
    "uphill": "chains end at higher energies than they start from: raise ebm.chain, or lower ebm.step_size or ebm.step",
    "saturated": "more than a fifth of the chains' pixels are black or white: lower ebm.step_size or ebm.grad_clip",
    "alike": "the chains' images differ from each other less than a third as much as data do: raise ebm.fresh",
}


class Model(Family):
    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.net = Energy(cfg.net, levels=cfg.objective == "recovery")
        if cfg.objective == "contrast":
            alarms, warnings = ("energy", "gap"), tuple(WARNINGS)
            self.register_buffer("buffer", torch.randint(0, 256, (cfg.buffer, 3, 32, 32), dtype=torch.uint8))
        else:
            alarms, warnings = (("gap",), ("uphill",)) if cfg.chain else (("denoising", "idle"), ())
            rungs = torch.logspace(math.log10(cfg.sigma_min), math.log10(cfg.sigma_max), cfg.levels + 1)
            self.register_buffer("rungs", rungs, persistent=False)
        self.alarms, self.warnings = {k: ALARMS[k] for k in alarms}, {k: WARNINGS[k] for k in warnings}
        self.register_buffer("watched", torch.zeros(4))  # gap or loss: mean, mean square; steps so far, and outside

    def forward(self, x: Images) -> Terms:
        if self.cfg.objective == "contrast":
            return self._contrast(x)
        return self._recover(x) if self.training and self.cfg.chain else self._approximate(x)

    # --- contrast

    def _contrast(self, x: Images) -> Terms:
        cfg = self.cfg
        start, slots = self._start(len(x), x.device)
        improved = self.training and bool(cfg.kl or cfg.entropy)
        negative, first, extra = start, None, torch.zeros(len(x), device=x.device)
        if self.training:
            negative, first = self._langevin(start, cfg.chain - improved)
            if improved:
                negative, extra = self._last_step(negative)
            self.buffer[slots] = dist.gather(to_uint8(negative))
        positive = x + cfg.data_noise * rng.randn_like(x)
        # One pass: nothing in the network mixes images.
        e_pos, e_neg = self.net(torch.cat([positive, negative])).float().chunk(2)
        size = dist.mean(e_pos.detach().abs() + e_neg.detach().abs())
        saturated, move = (negative.abs() == 1).float().mean(), (negative - start).abs().mean()
        fall = (first if first is not None else e_neg).detach() - e_neg.detach()
        diversity = _spread(dist.gather(negative)) / _spread(dist.gather(x))
        return {
            "loss": e_pos - e_neg + cfg.alpha * (e_pos.square() + e_neg.square()) + extra,
            "energy_data": e_pos,
            "energy_model": e_neg,
            "saturated": saturated,
            "diversity": diversity,
            "chain_move": move,
            "chain_fall": fall,
            "alarm_energy": size > 2 * cfg.energy_limit,
            "alarm_gap": self._outside(dist.mean((e_pos - e_neg).detach())),
            "warn_uphill": dist.mean(fall) < 0,
            "warn_saturated": saturated > 0.2,
            "warn_alike": diversity < 0.3,
        }

    def _start(self, n: int, device: torch.device) -> tuple[Float[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
        """Where n chains start, and the places of the whole batch's in the buffer: distinct, so that no two chains race
        for one. Every process has the same buffer."""
        if self.training:
            slots = torch.randperm(len(self.buffer), device=device)[: n * dist.parts()]
        else:  # nothing is put back, and a batch may be larger than the buffer
            slots = rng.randint(len(self.buffer), n, device=device)
        start = to_model(self.buffer[dist.rows(slots)])
        if self.cfg.augment and self.training:
            start = torch.where(_chance(self.cfg.augment, start), augmented(start), start)
        return torch.where(_chance(self.cfg.fresh, start), 2 * rng.rand_like(start) - 1, start), slots

    def _langevin(
        self, x: Images, steps: int, draw=rng.randn_like, known: Known | None = None
    ) -> tuple[Images, Float[Tensor, " b"] | None]:
        """`steps` steps of x <- clamp(x - step_size * clip(dE/dx) + noise), without gradients of the weights.

        Returns:
            Where the chains end, and the energies at which they started (None: no step).
        """
        cfg, first = self.cfg, None
        with self._still():
            for _ in range(steps):
                energy, slope = _slope(self.net, x)
                first = energy if first is None else first
                x = x - cfg.step_size * slope.clamp(-cfg.grad_clip, cfg.grad_clip) + cfg.noise * draw(x)
                x = x.clamp_(-1, 1)
                if known is not None:
                    x = torch.where(known[1], known[0], x)
        return x.detach(), first

    def _last_step(self, x: Images) -> tuple[Images, Float[Tensor, " b"]]:
        """The last step of the chains, and what it adds to the loss: the energy that it comes to, which the sampler
        should bring down, less the entropy of its images, by their distance to the nearest of the buffer. Both are
        functions of the weights by way of the step alone."""
        cfg = self.cfg
        with self._eval(), torch.enable_grad():
            x = x.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.net(x).sum(), x, create_graph=True)
            moved = x.detach() - cfg.step_size * slope.clamp(-cfg.grad_clip, cfg.grad_clip)
            moved = (moved + cfg.noise * rng.randn_like(x)).clamp(-1, 1)
        others = to_model(self.buffer[torch.randperm(len(self.buffer), device=x.device)[:NEIGHBOURS]])
        nearest = torch.cdist(moved.flatten(1), others.flatten(1)).amin(1)
        with self._still():
            energy = self.net(moved).float()
        return moved.detach(), cfg.kl * energy - cfg.entropy * (nearest + 1e-6).log()

    # --- recovery

    def _energy(self, x: Images, sigma: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, " b"]:
        """E(x, sigma): a Gaussian's, and a network's whose gradient is of unit scale at every level. It is EDM's
        preconditioning (Karras et al. 2022, table 1) of the denoiser x - sigma^2 dE/dx, written as an energy."""
        total = (sigma**2 + self.cfg.sigma_data**2).sqrt()
        gaussian = (x / total).square().flatten(1).sum(1) / 2
        return gaussian + self.cfg.sigma_data / sigma.flatten() * self.net(x / total, sigma.flatten().log() / 4)

    def _level(self, i: Int64[Tensor, " b"]) -> Float[Tensor, "b 1 1 1"]:
        return self.rungs[i].view(-1, 1, 1, 1)

    def _nearest(self, sigma: float) -> Int64[Tensor, ""]:
        return (self.rungs.log() - math.log(sigma)).abs().argmin()

    def _approximate(self, x: Images) -> Terms:
        """Squared error of the denoised images: what the likelihood becomes where s is small, weighted as in EDM."""
        cfg = self.cfg
        sigma = (cfg.log_mean + cfg.log_std * rng.batch(torch.randn, len(x), 1, 1, 1, device=x.device)).exp()
        sigma = sigma.clamp(cfg.sigma_min, cfg.sigma_max)
        noisy = x + sigma * rng.randn_like(x)
        energy, slope = _slope(lambda at: self._energy(at, sigma), noisy, graph=self.training)
        weight = (sigma**2 + cfg.sigma_data**2) / (sigma * cfg.sigma_data) ** 2
        loss = (weight * (noisy - sigma**2 * slope - x).square()).flatten(1).mean(1)
        mean = dist.mean(loss.detach())
        return {
            "loss": loss,
            "energy_data": energy,
            "alarm_denoising": mean > 10 * NONE,
            "alarm_idle": self._idle(mean),
        }

    def _recover(self, x: Images) -> Terms:
        """The difference of energies at the data's x_i and at the end of chains that start at x_{i+1}."""
        i = rng.randint(self.cfg.levels, len(x), device=x.device)
        sigma = self._level(i)
        positive = x + sigma * rng.randn_like(x)
        above = positive + (self._level(i + 1) ** 2 - sigma**2).sqrt() * rng.randn_like(x)
        with self._still():
            first, _ = _slope(lambda at: self._energy(at, sigma), above)
        negative = self._conditional(above, i, self.cfg.chain)
        e_pos, e_neg = self._energy(torch.cat([positive, negative]), torch.cat([sigma, sigma])).float().chunk(2)
        gap = dist.mean((e_pos - e_neg).detach())
        fall = (first - e_neg).detach()
        return {
            # Gradients of the energies grow as 1 / sigma: each level weighs the same.
            "loss": sigma.flatten() / self.cfg.sigma_data * (e_pos - e_neg),
            "energy_data": e_pos,
            "energy_model": e_neg,
            "chain_move": (negative - above).abs().mean(),
            "chain_fall": fall,
            "alarm_gap": self._outside(gap),
            "warn_uphill": dist.mean(fall) < 0,
        }

    def _conditional(self, above: Images, i: Int64[Tensor, " b"], steps: int, draw=rng.randn_like) -> Images:
        """Images at level i given images `above` at i + 1, by `steps` Langevin steps that start there.

        The step is `step` of the variance v that the conditional has in directions of noise alone, and the noise added
        leaves just this variance there: a step of 1 renews it as a whole, and a single one is ancestral sampling.
        Where the data vary, large steps leave less than the density's variance, at worst half of it if levels are few.
        """
        sigma, c = self._level(i), self.cfg.step
        s2 = self._level(i + 1) ** 2 - sigma**2
        v, y = 1 / (1 / s2 + 1 / sigma**2), above
        with self._still():
            for _ in range(steps):
                _, slope = _slope(lambda at: self._energy(at, sigma), y)
                y = y - c * v * (slope + (y - above) / s2) + (c * (2 - c) * v).sqrt() * draw(y)
        return y

    def _descend(self, x: Images, top: int, noise: Noise, cfg: Sample, known: Known | None = None) -> Iterator[Images]:
        """From level `top` of the ladder down to images without noise."""

        def draw(like: Images) -> Images:
            return noise.normal(*like.shape[1:])

        yield x
        with cached():
            for i in Bar(range(top - 1, -1, -1), desc="levels", leave=False):
                x = self._conditional(x, torch.full((len(x),), i, device=x.device), cfg.chain, draw)
                if known is not None:
                    x = torch.where(known[1], known[0] + self.rungs[i] * draw(x), x)
                yield x
        sigma = self._level(torch.zeros(len(x), dtype=torch.int64, device=x.device))
        with self._still():
            x = x - sigma**2 * _slope(lambda at: self._energy(at, sigma), x)[1]
        yield x if known is None else torch.where(known[1], known[0], x)

    # --- both

    @contextmanager
    def _eval(self) -> Iterator[None]:
        """Without power iterations of the spectral norms: they would change the energy within a chain."""
        was_training = self.net.training
        self.net.eval()
        try:
            yield
        finally:
            self.net.train(was_training)

    @contextmanager
    def _still(self) -> Iterator[None]:
        """The network as a function of images alone: no gradients of the weights, one spectral normalisation."""
        weights = [p for p in self.net.parameters() if p.requires_grad]
        for p in weights:
            p.requires_grad_(False)
        try:
            with self._eval(), cached():
                yield
        finally:
            for p in weights:
                p.requires_grad_(True)

    def _outside(self, gap: Float[Tensor, ""]) -> Tensor:
        """Whether the gap between energies was outside five times its running spread for a hundred steps on end."""
        if not self.training:
            return torch.zeros((), dtype=torch.bool, device=gap.device)
        mean, square, steps, out = self.watched.unbind()
        wild = (steps >= CALM) & ((gap - mean).abs() > WILD * (square - mean**2).clamp(min=0).sqrt())
        share = torch.where(wild, 0.0, 1 / (steps + 1).clamp(max=CALM))  # outliers do not widen the spread
        self.watched.copy_(torch.stack([
            mean + share * (gap - mean), square + share * (gap**2 - square), steps + 1, torch.where(wild, out + 1, 0.0)
        ]))  # fmt: skip
        return self.watched[3] >= CALM

    def _idle(self, loss: Float[Tensor, ""]) -> Tensor:
        """Whether the running mean of the loss is that of a network which says next to nothing."""
        if not self.training:
            return torch.zeros((), dtype=torch.bool, device=loss.device)
        mean, square, steps, out = self.watched.unbind()
        mean = mean + (loss - mean) / (steps + 1).clamp(max=CALM)
        self.watched.copy_(torch.stack([mean, square, steps + 1, out]))
        return (self.watched[2] >= IDLE) & (mean > NONE)

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n 3 32 32"]:
        """Contrast: chains of cfg.chain steps from uniform noise, or from the places noise.start.. of the buffer.
        Recovery: cfg.chain steps at every level of the ladder, from noise."""
        return _last(self.path(noise, cfg))

    def path(self, noise: Noise, cfg: Sample) -> Iterator[Images]:
        if self.cfg.objective == "recovery":
            if cfg.start == "buffer":
                raise UserError("ebm.objective=recovery keeps no replay buffer: set sample.ebm.start=noise")
            return self._descend(self.cfg.sigma_max * noise.normal(3, 32, 32), self.cfg.levels, noise, cfg)
        if cfg.start == "noise":
            return self._chain(2 * noise.uniform(3, 32, 32) - 1, noise, cfg)
        if noise.stop > len(self.buffer):
            raise UserError(
                f"sample.n exceeds ebm.buffer = {len(self.buffer)}: lower it, or set sample.ebm.start=noise"
            )
        return self._chain(to_model(self.buffer[noise.start : noise.stop]), noise, cfg)

    def _chain(self, x: Images, noise: Noise, cfg: Sample, known: Known | None = None) -> Iterator[Images]:
        yield x
        with cached():
            for _ in Bar(range(cfg.chain), desc="chain", leave=False):
                x, _ = self._langevin(x, 1, lambda like: noise.normal(*like.shape[1:]), known)
                yield x

    # --- what an energy is for

    def energy(self, x: Images) -> Float[Tensor, " b"]:
        """Recovery: at the level where the noise is as strong as the data are. Images unlike any are seen in training
        only where noise makes all images alike: at small levels the energy of pure noise is far below that of data."""
        if self.cfg.objective == "contrast":
            return self.net(x).float()
        return self._energy(x, self._level(self._nearest(self.cfg.sigma_data).expand(len(x))))

    @property
    def layer(self) -> str:
        level = f" at sigma {self.rungs[self._nearest(PROBED)]:.3g}" if self.cfg.objective == "recovery" else ""
        return f"deepest map of the network{level}, averaged to 2x2"

    def features(self, x: Images) -> Float[Tensor, "b d"]:
        """Recovery: of images to which no noise is added, though the network is told that it was."""
        if self.cfg.objective == "contrast":
            return inside(self.net.deepest, lambda: self.net(x))
        sigma = self._level(self._nearest(PROBED).expand(len(x)))
        return inside(self.net.deepest, lambda: self._energy(x, sigma))

    def inpaint(self, x: Images, known: Bool[Tensor, "b 1 h w"], noise: Noise, cfg: Sample) -> Images:
        """Drawn as samples are, from noise; known pixels are put back after every step (recovery: after every level,
        with that level's noise)."""
        if self.cfg.objective == "contrast":
            start = 2 * noise.uniform(*x.shape[1:]) - 1
            return _last(self._chain(torch.where(known, x, start), noise, cfg, (x, known)))
        start = self.cfg.sigma_max * noise.normal(*x.shape[1:])
        return _last(self._descend(start, self.cfg.levels, noise, cfg, (x, known)))

    def restore(self, x: Images, sigma: float, noise: Noise, cfg: Sample) -> Images:
        """A chain from x, whatever sigma; recovery: from the level that is nearest to sigma downwards."""
        if self.cfg.objective == "contrast":
            return _last(self._chain(x, noise, cfg))
        return _last(self._descend(x, int(self._nearest(sigma)), noise, cfg))


def _slope(energy, x: Images, graph: bool = False) -> tuple[Float[Tensor, " b"], Images]:
    """The energies of images and their gradients; with a graph of the weights where asked."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        found = energy(x)
        (slope,) = torch.autograd.grad(found.sum(), x, create_graph=graph)
    return found.detach(), slope


def _last(states: Iterator[Images]) -> Images:
    return deque(states, maxlen=1).pop()


def _chance(share: float, like: Images) -> Tensor:
    return rng.batch(torch.rand, len(like), 1, 1, 1, device=like.device) < share


def _spread(x: Images) -> Float[Tensor, ""]:
    """Mean distance of neighbours in the batch."""
    return (x - x.roll(1, 0)).flatten(1).norm(dim=1).mean()


def augmented(x: Images) -> Images:
    """Images cropped to 70 to 100 percent of a side, mirrored by chance, colours scaled and shifted by up to a fifth:
    moves that a chain would not make by itself."""
    n, like = len(x), {"device": x.device}
    scale = 0.7 + 0.3 * rng.batch(torch.rand, n, **like)
    shift = (1 - scale)[:, None] * (2 * rng.batch(torch.rand, n, 2, **like) - 1)
    mirror = 1 - 2 * rng.randint(2, n, **like)
    zero = torch.zeros_like(scale)
    rows = [torch.stack([mirror * scale, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    cut = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    gain, lift = (0.4 * rng.batch(torch.rand, 2, n, 3, 1, 1, dim=1, **like) - 0.2).unbind()
    return ((1 + gain) * cut + lift).clamp(-1, 1)

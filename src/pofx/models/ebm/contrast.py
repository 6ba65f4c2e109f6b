"""Contrastive divergence with a replay buffer, after IGEBM (Du & Mordatch 2019, arXiv 1903.08689).

    loss = E(x+) - E(x-) + alpha (E(x+)^2 + E(x-)^2)
    x <- clamp(x - step_size clip(dE/dx) + noise z)

x+ are data with a little noise. x- are drawn by Langevin dynamics: each chain starts where an earlier one ended, but a
share of them restarts from noise. Steps are large against their noise, as published: chains do not draw from the
density at temperature one. `kl`, `entropy` and `augment` are improved contrastive divergence (Du et al. 2021, arXiv
2012.01316).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.parametrize import cached

from pofx.base import dist, rng
from pofx.base.errors import UserError
from pofx.base.images import to_model, to_uint8
from pofx.base.progress import Bar
from pofx.base.rng import Noise
from pofx.models.ebm.chains import Chains, Draw, Observed, Sample, drawn_from, last, slope
from pofx.models.ebm.network import Energy
from pofx.models.family import Images, Shape, Terms
from pofx.models.features import inside

NEIGHBOURS = 100  # images of the buffer among which the entropy term looks for the nearest
ALARMS = {
    "energy": "the mean energy left its bounds (ebm.contrast.energy_limit): "
    "lower ebm.train.lr or ebm.contrast.step_size, or raise ebm.contrast.alpha or ebm.chain",
    "gap": "the energies of data and chains ran apart: lower ebm.train.lr, or raise ebm.chain",
}
WARNINGS = {
    "uphill": "chains end at higher energies than they start from: raise ebm.chain, or lower ebm.contrast.step_size",
    "saturated": "more than a fifth of the chains' pixels are black or white: "
    "lower ebm.contrast.step_size or ebm.contrast.grad_clip",
    "alike": "the chains' images differ from each other less than a third as much as data do: raise ebm.contrast.fresh",
}


@dataclass(frozen=True)
class ContrastConfig:
    alpha: Annotated[float, Ge(0)] = 0.1  # weight of the squared energies, which holds them near zero
    data_noise: Annotated[float, Ge(0)] = 0.02  # standard deviation added to x+, images on [-1, 1]
    buffer: Annotated[int, Ge(1)] = 1000  # images kept between steps
    fresh: Annotated[float, Ge(0), Le(1)] = 0.05  # share of chains that start from noise
    augment: Annotated[float, Ge(0), Le(1)] = 0.0  # share of the others that start from a changed image
    step_size: Annotated[float, Gt(0)] = 10.0  # on the clipped gradient
    noise: Annotated[float, Ge(0)] = 0.005  # standard deviation added each step
    grad_clip: Annotated[float, Gt(0)] = 0.03  # largest absolute value of an element of dE/dx
    kl: Annotated[float, Ge(0)] = 0.0  # weight of the energy that the last step of a chain comes to
    entropy: Annotated[float, Ge(0)] = 0.0  # weight of the entropy of what the last steps come to
    energy_limit: Annotated[float, Gt(0)] = 10.0  # a mean |E| above it fires a guard


class Contrast(Chains):
    layer = "deepest map of the network, averaged to 2x2"
    alarms, warnings = ALARMS, WARNINGS

    def __init__(self, cfg: Any, shape: Shape):
        super().__init__(cfg, shape)
        self.own: ContrastConfig = cfg.contrast
        self.second_order = bool(self.own.kl or self.own.entropy)
        self.net = Energy(cfg.net, shape, levels=False)
        self.register_buffer("buffer", torch.randint(0, 256, (self.own.buffer, *shape), dtype=torch.uint8))

    def forward(self, x: Images) -> Terms:
        own = self.own
        start, slots = self._start(len(x), x.device)
        improved = self.training and self.second_order
        negative, first, extra = start, None, torch.zeros(len(x), device=x.device)
        if self.training:
            steps = self.cfg.chain - 1 if improved else self.cfg.chain  # the last one is taken below
            negative, first = self._langevin(start, steps, rng.randn_like)
            if improved:
                negative, extra = self._last_step(negative)
            self.buffer[slots] = dist.gather(to_uint8(negative))
        positive = x + own.data_noise * rng.randn_like(x)
        # One pass: nothing in the network mixes images.
        e_pos, e_neg = self.net(torch.cat([positive, negative])).float().chunk(2)
        size = dist.mean(e_pos.detach().abs() + e_neg.detach().abs())
        saturated = (negative.abs() == 1).float().mean()
        fall = (first if first is not None else e_neg).detach() - e_neg.detach()
        diversity = _spread(dist.gather(negative)) / _spread(dist.gather(x))
        return {
            "loss": e_pos - e_neg + own.alpha * (e_pos.square() + e_neg.square()) + extra,
            "energy_data": e_pos,
            "energy_model": e_neg,
            "saturated": saturated,
            "diversity": diversity,
            "chain_move": (negative - start).abs().mean(),
            "chain_fall": fall,
            "alarm_energy": size > 2 * own.energy_limit,
            "alarm_gap": self.outside(dist.mean((e_pos - e_neg).detach())),
            "warn_uphill": dist.mean(fall) < 0,
            "warn_saturated": saturated > 0.2,
            "warn_alike": diversity < 0.3,
        }

    def _start(self, n: int, device: torch.device) -> tuple[Images, Int64[Tensor, " m"]]:
        """Where n chains start, and the places of the whole batch's in the buffer: distinct, so that no two chains race
        for one. Every process has the same buffer."""
        whole = n * dist.parts()
        if self.training:
            if whole > len(self.buffer):
                raise UserError(f"ebm.contrast.buffer = {len(self.buffer)} should hold at least a batch ({whole})")
            slots = torch.randperm(len(self.buffer), device=device)[:whole]
        else:  # nothing is put back, and a batch may be larger than the buffer
            slots = rng.randint(len(self.buffer), n, device=device)
        start = to_model(self.buffer[dist.rows(slots)])
        if self.own.augment and self.training:
            start = torch.where(_chance(self.own.augment, start), augmented(start), start)
        return torch.where(_chance(self.own.fresh, start), 2 * rng.rand_like(start) - 1, start), slots

    def _langevin(
        self, x: Images, steps: int, draw: Draw, observed: Observed = None
    ) -> tuple[Images, Float[Tensor, " b"] | None]:
        """Where chains of Langevin steps end, and the energies at which they started (None: no step)."""
        first = None
        with self.frozen():
            for _ in range(steps):
                energy, gradient = slope(self.net, x)
                first = energy if first is None else first
                x = self._step(x, gradient, draw)
                if observed is not None:
                    x = torch.where(observed[1], observed[0], x)
        return x.detach(), first

    def _step(self, x: Images, gradient: Images, draw: Draw) -> Images:
        own = self.own
        moved = x - own.step_size * gradient.clamp(-own.grad_clip, own.grad_clip)
        return (moved + own.noise * draw(x)).clamp(-1, 1)

    def _last_step(self, x: Images) -> tuple[Images, Float[Tensor, " b"]]:
        """The last step of the chains, and what it adds to the loss: the energy that it comes to, which the sampler
        should bring down, less the entropy of its images, by their distance to the nearest of the buffer. Both are
        functions of the weights by way of the step alone."""
        with self.eval_mode():
            _, gradient = slope(self.net, x, graph=True)
        moved = self._step(x.detach(), gradient, rng.randn_like)
        others = to_model(self.buffer[torch.randperm(len(self.buffer), device=x.device)[:NEIGHBOURS]])
        nearest = torch.cdist(moved.flatten(1), others.flatten(1)).amin(1)
        with self.frozen():
            energy = self.net(moved).float()
        return moved.detach(), self.own.kl * energy - self.own.entropy * (nearest + 1e-6).log()

    def preview(self, noise: Noise) -> Images:
        return self.sample(noise, Sample(chain=self.cfg.chain))

    def path(self, noise: Noise, cfg: Sample) -> Iterator[Images]:
        """Chains of cfg.chain steps from uniform noise, or from the places noise.start.. of the replay buffer."""
        if cfg.start == "noise":
            return self._chain(self._uniform(noise), noise, cfg)
        if noise.stop > len(self.buffer):
            raise UserError(f"sample.n exceeds ebm.contrast.buffer = {len(self.buffer)}: lower it, or set "
                            "sample.ebm.start=noise")  # fmt: skip
        return self._chain(to_model(self.buffer[noise.start : noise.stop]), noise, cfg)

    def _uniform(self, noise: Noise) -> Images:
        return 2 * noise.uniform(*self.shape) - 1

    def _chain(self, x: Images, noise: Noise, cfg: Sample, observed: Observed = None) -> Iterator[Images]:
        yield x
        with cached():
            for _ in Bar(range(cfg.chain), desc="chain", leave=False):
                x, _ = self._langevin(x, 1, drawn_from(noise), observed)
                yield x

    def energy(self, x: Images) -> Float[Tensor, " b"]:
        return self.net(x).float()

    def features(self, x: Images) -> Float[Tensor, "b d"]:
        return inside(self.net.deepest, lambda: self.net(x))

    def inpaint(self, x: Images, mask: Bool[Tensor, "b 1 h w"], noise: Noise, cfg: Sample) -> Images:
        """Drawn as samples are, from noise; observed pixels are put back after every step."""
        start = torch.where(mask, x, self._uniform(noise))
        return last(self._chain(start, noise, cfg, (x, mask)))

    def restore(self, x: Images, sigma: float, noise: Noise, cfg: Sample) -> Images:
        """A chain from x, whatever sigma."""
        return last(self._chain(x, noise, cfg))


def _chance(share: float, like: Images) -> Bool[Tensor, "b 1 1 1"]:
    return rng.batch(torch.rand, len(like), 1, 1, 1, device=like.device) < share


def _spread(x: Images) -> Float[Tensor, ""]:
    """Mean distance of neighbours in the batch."""
    return (x - x.roll(1, 0)).flatten(1).norm(dim=1).mean()


def augmented(x: Images) -> Images:
    """Images cropped to 70 to 100 percent of a side, mirrored by chance, colours scaled and shifted by up to a fifth:
    moves that a chain would not make by itself."""
    n, channels, like = len(x), x.shape[1], {"device": x.device}
    scale = 0.7 + 0.3 * rng.batch(torch.rand, n, **like)
    shift = (1 - scale)[:, None] * (2 * rng.batch(torch.rand, n, 2, **like) - 1)
    mirror = 1 - 2 * rng.randint(2, n, **like)
    zero = torch.zeros_like(scale)
    rows = [torch.stack([mirror * scale, zero, shift[:, 0]], 1), torch.stack([zero, scale, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    cut = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    gain, lift = (0.4 * rng.batch(torch.rand, 2, n, channels, 1, 1, dim=1, **like) - 0.2).unbind()
    return ((1 + gain) * cut + lift).clamp(-1, 1)

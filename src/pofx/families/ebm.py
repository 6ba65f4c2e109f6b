"""Energy-based model after IGEBM (Du & Mordatch 2019, arXiv 1903.08689): p(x) ~ exp(-E(x)), trained by short chains.

    loss = E(x+) - E(x-) + alpha (E(x+)^2 + E(x-)^2)

x+ are data with a little noise; x- are drawn by Langevin dynamics, each chain going on from where an earlier one ended
(a replay buffer, a share of it restarted from noise). The chains' steps are large against their noise, as published:
the density at temperature one is not what they draw from, and no likelihood is reported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.utils.parametrize import cached

from pofx.core.errors import UserError
from pofx.core.family import Draw, Family, Terms
from pofx.core.images import to_model, to_uint8
from pofx.core.loop import Train
from pofx.core.progress import Bar
from pofx.core.rng import Noise
from pofx.nn.energy import Energy


@dataclass(frozen=True)
class Config:
    channels: int
    blocks: int
    patch: int
    spectral: bool
    alpha: float  # weight of the squared energies, which holds them near zero
    data_noise: float  # standard deviation added to x+
    buffer: int  # images kept between steps
    fresh: float  # share of chains that start from noise
    chain: int  # Langevin steps a training step
    step_size: float  # on the clipped gradient
    noise: float  # standard deviation added each step
    grad_clip: float  # largest absolute value of an element of the gradient with respect to the image
    energy_limit: float  # a mean |E| above it stops the run
    train: Train

    def __post_init__(self) -> None:
        if self.buffer < self.train.batch:
            raise ValueError(f"buffer = {self.buffer} should hold at least a batch ({self.train.batch})")
        if self.chain < 1:
            raise ValueError(f"chain = {self.chain} should be at least 1")


@dataclass(frozen=True)
class Sample(Draw):
    batch: int
    chain: int  # Langevin steps
    start: Literal["noise", "buffer"]


class Model(Family):
    alarm = (
        "the mean energy left its bounds (ebm.energy_limit): "
        "lower ebm.train.lr or ebm.step_size, or raise ebm.alpha or ebm.chain"
    )

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.net = Energy(cfg.channels, cfg.blocks, cfg.patch, cfg.spectral)
        self.register_buffer("buffer", torch.randint(0, 256, (cfg.buffer, 3, 32, 32), dtype=torch.uint8))

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Terms:
        start, slots = self._start(len(x), x.device)
        negative, first = self._langevin(start, self.cfg.chain) if self.training else (start, None)
        if self.training:
            self.buffer[slots] = to_uint8(negative)
        positive = x + self.cfg.data_noise * torch.randn_like(x)
        # One pass: nothing in the network mixes images.
        e_pos, e_neg = self.net(torch.cat([positive, negative])).float().chunk(2)
        size = e_pos.detach().abs().mean() + e_neg.detach().abs().mean()
        return {
            "loss": e_pos - e_neg + self.cfg.alpha * (e_pos.square() + e_neg.square()),
            "energy_data": e_pos,
            "energy_model": e_neg,
            "saturated": (negative.abs() == 1).float().mean(),
            "chain_move": (negative - start).abs().mean(),
            "chain_fall": (first if first is not None else e_neg).detach() - e_neg.detach(),
            "alarm": size > 2 * self.cfg.energy_limit,
        }

    def _start(self, n: int, device: torch.device) -> tuple[Float[Tensor, "n 3 32 32"], Int64[Tensor, " n"]]:
        """Where n chains start, and their places in the buffer: distinct, so that no two chains race for one."""
        if self.training:
            slots = torch.randperm(len(self.buffer), device=device)[:n]
        else:  # nothing is put back, and a batch may be larger than the buffer
            slots = torch.randint(len(self.buffer), (n,), device=device)
        start = to_model(self.buffer[slots])
        fresh = torch.rand(n, 1, 1, 1, device=device) < self.cfg.fresh
        return torch.where(fresh, 2 * torch.rand_like(start) - 1, start), slots

    def _langevin(
        self, x: Float[Tensor, "n 3 32 32"], steps: int, draw=torch.randn_like
    ) -> tuple[Float[Tensor, "n 3 32 32"], Float[Tensor, " n"]]:
        """`steps` steps of x <- clamp(x - step_size * clip(dE/dx) + noise), without gradients of the weights.

        Returns:
            Where the chains end, and the energies at which they started.
        """
        cfg, weights = self.cfg, [p for p in self.net.parameters() if p.requires_grad]
        for p in weights:
            p.requires_grad_(False)
        was_training = self.net.training
        self.net.eval()  # spectral norm: no power iterations inside a chain
        first = None
        with cached():  # the weights stand still: one spectral normalisation a chain
            for _ in range(steps):
                with torch.enable_grad():
                    x = x.detach().requires_grad_(True)
                    energy = self.net(x)
                    (slope,) = torch.autograd.grad(energy.sum(), x)
                first = energy.detach() if first is None else first
                with torch.no_grad():
                    x = x - cfg.step_size * slope.clamp(-cfg.grad_clip, cfg.grad_clip) + cfg.noise * draw(x)
                    x = x.clamp_(-1, 1)
        self.net.train(was_training)
        for p in weights:
            p.requires_grad_(True)
        return x.detach(), first

    def sample(self, noise: Noise, cfg: Sample) -> Float[Tensor, "n 3 32 32"]:
        """Chains of cfg.chain steps from uniform noise, or from the places noise.start.. of the replay buffer."""
        if cfg.start == "noise":
            x = 2 * noise.uniform(3, 32, 32) - 1
        else:
            if noise.stop > len(self.buffer):
                raise UserError(
                    f"sample.n exceeds ebm.buffer = {len(self.buffer)}: lower it, or set sample.ebm.start=noise"
                )
            x = to_model(self.buffer[noise.start : noise.stop])
        with cached():
            for _ in Bar(range(cfg.chain), desc="chain", leave=False):
                x, _ = self._langevin(x, 1, draw=lambda like: noise.normal(*like.shape[1:]))
        return x

    # --- what an energy is for

    def energy(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
        return self.net(x).float()

    def inpaint(
        self, x: Float[Tensor, "b 3 h w"], known: Bool[Tensor, "b 1 h w"], noise: Noise, cfg: Sample
    ) -> Float[Tensor, "b 3 h w"]:
        """A chain from uniform noise in which the known pixels are put back after every step."""
        start = 2 * noise.uniform(*x.shape[1:]) - 1
        return self._walk(torch.where(known, x, start), noise, cfg.chain, lambda y: torch.where(known, x, y))

    def restore(self, x: Float[Tensor, "b 3 h w"], sigma: float, noise: Noise, cfg: Sample) -> Float[Tensor, "b 3 h w"]:
        """A chain from x, whatever sigma: this energy knows no noise levels."""
        return self._walk(x, noise, cfg.chain)

    def _walk(self, x: Tensor, noise: Noise, steps: int, after: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        with cached():
            for _ in Bar(range(steps), desc="chain", leave=False):
                x = after(self._langevin(x, 1, draw=lambda like: noise.normal(*like.shape[1:]))[0])
        return x

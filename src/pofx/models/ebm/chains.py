"""What both energy-based models share: their Sample, slopes of energies, and the guard of training."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, MultipleOf
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.parametrize import cached

from pofx.base.rng import Noise
from pofx.models.family import EnergyBased, Images, Shape

Observed = tuple[Images, Bool[Tensor, "b 1 h w"]] | None  # images, and which pixels are put back after every step
Draw = Callable[[Images], Images]  # standard normal numbers of the shape of images
CALM, WILD = 100, 5.0  # steps that estimate the gap's spread, and that a gap stays outside it; standard deviations


@dataclass(frozen=True)
class Sample:
    batch: Annotated[int, Ge(64), MultipleOf(64)] = 128
    chain: Annotated[int, Ge(0)] = 3  # Langevin steps; recovery: at every noise level
    start: Literal["noise", "buffer"] = "noise"  # buffer: the places of the replay buffer; recovery has none


class Chains(EnergyBased):
    """An energy-based model with a network of images, and perhaps of noise levels."""

    def __init__(self, cfg: Any, shape: Shape):
        super().__init__(cfg, shape)
        self.register_buffer("watched", torch.zeros(4))  # gap or loss: mean, mean square; steps so far, and outside

    def sample(self, noise: Noise, cfg: Sample) -> Images:
        return last(self.path(noise, cfg))

    @contextmanager
    def eval_mode(self) -> Iterator[None]:
        """Without power iterations of the spectral norms: they would change the energy within a chain."""
        was_training = self.net.training
        self.net.eval()
        try:
            yield
        finally:
            self.net.train(was_training)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The network as a function of images alone: no gradients of the weights, one spectral normalisation."""
        weights = [p for p in self.net.parameters() if p.requires_grad]
        for p in weights:
            p.requires_grad_(False)
        try:
            with self.eval_mode(), cached():
                yield
        finally:
            for p in weights:
                p.requires_grad_(True)

    def outside(self, gap: Float[Tensor, ""]) -> Bool[Tensor, ""]:
        """Whether the gap between energies was outside five times its running spread for a hundred steps on end."""
        if not self.training:
            return torch.zeros((), dtype=torch.bool, device=gap.device)
        mean, square, steps, out = self.watched.unbind()
        wild = (steps >= CALM) & ((gap - mean).abs() > WILD * (square - mean**2).clamp(min=0).sqrt())
        share = torch.where(wild, 0.0, 1 / (steps + 1).clamp(max=CALM))  # outliers do not widen the spread
        mean, square = mean + share * (gap - mean), square + share * (gap**2 - square)
        self.watched.copy_(torch.stack([mean, square, steps + 1, torch.where(wild, out + 1, 0.0)]))
        return self.watched[3] >= CALM


def slope(energy: Callable[[Images], Tensor], x: Images, graph: bool = False) -> tuple[Float[Tensor, " b"], Images]:
    """The energies of images and their gradients dE/dx; with a graph of the weights where asked."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = energy(x)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=graph)
    return value.detach(), gradient


def drawn_from(noise: Noise) -> Draw:
    """As rng.randn_like, from `noise`."""
    return lambda like: noise.normal(*like.shape[1:])


def last(states: Iterator[Images]) -> Images:
    return deque(states, maxlen=1).pop()

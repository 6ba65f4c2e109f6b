"""Exponential moving average of the weights, its half-life counted in images (Karras et al. 2022, arXiv 2206.00364)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

RAMP = 0.05  # the half-life is at most this share of the images seen, so that the random start is soon forgotten


class Ema:
    """The average of a model's parameters, without buffers (schedules, counters).

    Args:
        half_life: images after which a weight's influence has halved; 0 turns averaging off.
    """

    def __init__(self, model: nn.Module, half_life: int | float):
        self.params = [p for p in model.parameters() if p.requires_grad]
        self.half_life = half_life
        self.shadow = [p.detach().clone() for p in self.params]

    @torch.no_grad()
    def update(self, seen: int, batch: int) -> None:
        """After a step of `batch` images, `seen` in all."""
        half_life = min(self.half_life, RAMP * seen)
        decay = 0.5 ** (batch / half_life) if half_life > 0 else 0.0
        torch._foreach_lerp_(self.shadow, self.params, 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the model carries the averaged weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the model's weights and the averaged ones."""
        for p, s in zip(self.params, self.shadow, strict=True):
            keep = p.clone()
            p.copy_(s)
            s.copy_(keep)

    def state_dict(self) -> dict[str, list[Tensor]]:
        return {"shadow": self.shadow}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        for s, saved in zip(self.shadow, state["shadow"], strict=True):
            s.copy_(saved)

"""How images go through a model: how many at a time, and on which device."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pofx.base.images import to_model


@dataclass(frozen=True)
class Batches:
    size: int  # images at a time, at most
    device: torch.device

    def of(self, images: UInt8[np.ndarray, "n 3 h w"]) -> Iterator[Float[Tensor, "b 3 h w"]]:
        """All images on [-1, 1], batch by batch, on the device."""
        for start in range(0, len(images), self.size):
            yield to_model(torch.from_numpy(np.array(images[start : start + self.size])).to(self.device))

    @torch.no_grad()
    def map(self, f: Callable[[Tensor], Tensor], images: UInt8[np.ndarray, "n 3 h w"]) -> Float[Tensor, "n ..."]:
        """What `f` makes of all images, on the CPU."""
        return torch.cat([f(part).float().cpu() for part in self.of(images)])

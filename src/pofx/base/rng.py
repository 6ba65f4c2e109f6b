"""Randomness as a function of (seed, step) in training, of (seed, image index) in sampling: no hidden state to save."""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pofx.base import dist

BLOCK = 64  # images that share one random stream


def fold(*numbers: int | str) -> int:
    """One 63-bit seed from any number of integers and names, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def batch(draw: Callable[..., Tensor], *shape: int, dim: int = 0, **like: Any) -> Tensor:
    """Random numbers of a training step: `draw(shape)`, such as torch.randn, by the global generator.

    Where several processes share a batch, all draw the numbers of all its images and take their own, so that an image
    is given the same ones whatever the number of processes. `dim` is the dimension of the images.
    """
    shape = (*shape[:dim], shape[dim] * dist.parts(), *shape[dim + 1 :])
    return dist.rows(draw(shape, **like), dim)


def randint(high: int, n: int, **like: Any) -> Int64[Tensor, " n"]:
    """n whole numbers below `high`, by `batch`."""
    return batch(partial(torch.randint, high), n, **like)


def randn_like(x: Tensor) -> Tensor:
    """As torch.randn_like, by `batch`."""
    return dist.rows(torch.randn_like(_whole(x)))


def rand_like(x: Tensor) -> Tensor:
    """As torch.rand_like, by `batch`."""
    return dist.rows(torch.rand_like(_whole(x)))


def dropout(x: Tensor, share: float, training: bool) -> Tensor:
    """As F.dropout, by `batch`."""
    if not (training and share) or dist.parts() == 1:
        return F.dropout(x, share, training)
    return x * dist.rows(torch.empty_like(_whole(x)).bernoulli_(1 - share).div_(1 - share))


class Dropout(nn.Dropout):
    """As nn.Dropout, by `batch`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)


def _whole(x: Tensor) -> Tensor:
    """An empty tensor for the whole batch of which x are rows, laid out in memory as x is."""
    return (
        x
        if dist.parts() == 1
        else torch.empty_strided((len(x) * dist.parts(), *x.shape[1:]), x.stride(), dtype=x.dtype, device=x.device)
    )


class Noise:
    """Random numbers for the images start..stop of an endless sequence.

    Every block of 64 images has a generator of its own, so image i is the same whatever the batch size and however many
    images are asked for, at the speed of the native generator.

    Args:
        seed: names the sequence.
        start: index of the first image, a multiple of BLOCK.
        stop: index after the last image.
        device: where the numbers are drawn.
    """

    def __init__(self, seed: int, start: int, stop: int, device: torch.device | str = "cpu"):
        if start % BLOCK or stop <= start:
            raise ValueError(f"images {start}..{stop}: the first must be a multiple of {BLOCK}, the range not empty")
        self.start, self.stop, self.device = start, stop, torch.device(device)
        self.blocks = [
            torch.Generator(device).manual_seed(fold(seed, "noise", first)) for first in range(start, stop, BLOCK)
        ]

    def __len__(self) -> int:
        return self.stop - self.start

    def normal(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Standard normal numbers of shape (len(self), *shape)."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Uniform numbers in [0, 1) of shape (len(self), *shape)."""
        return self._draw(torch.rand, shape)

    def _draw(self, kind, shape: tuple[int, ...]) -> Tensor:
        rows = [kind(BLOCK, *shape, generator=g, device=self.device) for g in self.blocks]
        return (rows[0] if len(rows) == 1 else torch.cat(rows))[: len(self)]

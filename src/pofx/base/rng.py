"""Randomness as a function of (seed, step) in training, of (seed, image index) elsewhere: no hidden state to save."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from pofx.base import dist

BLOCK = 64  # images that share one random stream


def fold(*numbers: int | str) -> int:
    """One 63-bit seed from any number of integers and names, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def batch(draw: Callable[..., Tensor], *shape: int, dim: int = 0, **like: Any) -> Tensor:
    """Random numbers of a batch: `draw(shape)`, such as torch.randn, by the global generator or within `per_image`.

    Where several processes share a batch, all draw the numbers of all its images and take their own, so that an image
    is given the same ones whatever the number of processes. `dim` is the dimension of the images.
    """
    if _noise is not None:
        if shape[dim] != len(_noise):
            raise ValueError(f"numbers for {shape[dim]} images were asked for, {len(_noise)} have noise of their own")
        numbers = _noise.draw(draw, *shape[:dim], *shape[dim + 1 :], dtype=like.get("dtype"))
        return numbers.movedim(0, dim)
    shape = (*shape[:dim], shape[dim] * dist.parts(), *shape[dim + 1 :])
    return dist.rows(draw(shape, **like), dim)


def randint(high: int, n: int, **like: Any) -> Int64[Tensor, " n"]:
    """n whole numbers below `high`, by `batch`."""
    return batch(partial(torch.randint, high), n, **like)


def randn_like(x: Tensor) -> Tensor:
    """As torch.randn_like, by `batch`."""
    if _noise is not None:
        return batch(torch.randn, *x.shape, dtype=x.dtype)
    return dist.rows(torch.randn_like(_whole(x)))


def rand_like(x: Tensor) -> Tensor:
    """As torch.rand_like, by `batch`."""
    if _noise is not None:
        return batch(torch.rand, *x.shape, dtype=x.dtype)
    return dist.rows(torch.rand_like(_whole(x)))


class Dropout(nn.Dropout):
    """As nn.Dropout, by `batch`."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.p) or dist.parts() == 1:
            return super().forward(x)
        return x * dist.rows(torch.empty_like(_whole(x)).bernoulli_(1 - self.p).div_(1 - self.p))


def _whole(x: Tensor) -> Tensor:
    """A tensor for the whole batch of which x are rows, laid out in memory as x is."""
    if dist.parts() == 1:
        return x
    return torch.empty_strided((len(x) * dist.parts(), *x.shape[1:]), x.stride(), dtype=x.dtype, device=x.device)


class Noise:
    """Random numbers for the images start..stop of an endless sequence that `seed` names.

    Every block of 64 images has a generator of its own, so image i is the same whatever the batch size and however many
    images are asked for. Whole blocks are drawn: a start at a multiple of 64 wastes nothing.
    """

    def __init__(self, seed: int, start: int, stop: int, device: torch.device | str = "cpu"):
        if stop <= start:
            raise ValueError(f"images {start}..{stop}: there is none")
        self.start, self.stop, self.device = start, stop, torch.device(device)
        self.blocks = [
            torch.Generator(device).manual_seed(fold(seed, "noise", first))
            for first in range(start - start % BLOCK, stop, BLOCK)
        ]

    def __len__(self) -> int:
        return self.stop - self.start

    def normal(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Standard normal numbers of shape (len(self), *shape)."""
        return self.draw(torch.randn, *shape)

    def uniform(self, *shape: int) -> Float[Tensor, "n ..."]:
        """Uniform numbers in [0, 1) of shape (len(self), *shape)."""
        return self.draw(torch.rand, *shape)

    def draw(self, draw: Callable[..., Tensor], *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Numbers of shape (len(self), *shape), by `draw`: torch.randn or another function of a shape."""
        blocks = [draw((BLOCK, *shape), generator=g, device=self.device, dtype=dtype) for g in self.blocks]
        first = self.start % BLOCK
        return (blocks[0] if len(blocks) == 1 else torch.cat(blocks))[first : first + len(self)]


_noise: Noise | None = None  # see `per_image`


@contextmanager
def per_image(noise: Noise) -> Iterator[None]:
    """Within the block every image of a batch has its own numbers, those of `noise` in place of the global generator's.

    What is measured of an image then depends neither on the batch size nor on the images beside it.
    """
    global _noise
    before, _noise = _noise, noise
    try:
        yield
    finally:
        _noise = before

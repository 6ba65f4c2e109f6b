"""Randomness as a function of (seed, step) in training, of (seed, image index) in sampling: no hidden state to save."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 64  # images that share one random stream


def fold(*numbers: int | str) -> int:
    """One 63-bit seed from any number of integers and names, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


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

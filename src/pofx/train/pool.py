"""The training set as one uint8 tensor on the device; a batch is a function of (seed, step)."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.base.rng import fold


class Pool:
    """Batches of a data set that lives on the device.

    Every epoch visits each image once, in an order that is a function of (seed, epoch). Its last partial batch runs on
    into the next epoch. The last `validation` images are in none; they are in `held_out`.

    Raises:
        UserError: no image is left for the batches.
    """

    def __init__(self, images: UInt8[Tensor, "n c h w"], batch: int, seed: int, flip: bool, validation: int = 0):
        if validation >= len(images):
            raise UserError(f"train.validation = {validation} should be below the {len(images)} training images")
        self.images, self.held_out = images[: len(images) - validation], images[len(images) - validation :]
        self.batch, self.seed, self.flip = batch, seed, flip
        self._orders: dict[int, Tensor] = {}

    def __call__(self, step: int) -> Float[Tensor, "b c h w"]:
        """The batch of this step, in [-1, 1]. Call after the step's seeding: flips come from the global generator."""
        n, first = len(self.images), step * self.batch
        epochs = range(first // n, (first + self.batch - 1) // n + 1)
        order = torch.cat([self._order(e) for e in epochs])
        offset = first - epochs[0] * n
        x = to_model(self.images[order[offset : offset + self.batch]])
        if self.flip:  # with probability one half
            mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
            x = torch.where(mirrored, x.flip(3), x)
        return x

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            generator = torch.Generator().manual_seed(fold(self.seed, "epoch", epoch))
            order = torch.randperm(len(self.images), generator=generator).to(self.images.device)
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1} | {epoch: order}
        return self._orders[epoch]

"""What a model is told of the training images before training: their mean, their spread, where they vary most.

The network then sees data of mean zero, at a scale that is theirs, wherever in [-1, 1] a data set lies.
"""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.models.family import Family, Images, Shape

SIGMA_DATA = 0.5  # standard deviation of natural images on [-1, 1]
ENOUGH = 10_000  # images that principal components are found from: 123 MB as floats of 32x32
SPARE = 16  # further directions searched, so that those kept are exact


class Measured(Family):
    """A family whose network sees images without their mean.

    Attributes:
        mean: (c, 1, 1), a buffer: of every channel, images on [-1, 1]; 0 until images are seen.
        sigma_data: (), a buffer: root mean square of the images about it.
    """

    def __init__(self, cfg: Any, shape: Shape):
        super().__init__(cfg, shape)
        self.register_buffer("mean", torch.zeros(shape[0], 1, 1))
        self.register_buffer("sigma_data", torch.tensor(SIGMA_DATA))

    def measure(self, images: UInt8[Tensor, "n c h w"], centre: bool, sigma_data: float | None) -> dict[str, float]:
        """Set both buffers from training images: the mean if `centre`, else 0; sigma_data if no number is given.

        Counts of grey levels are exact: every machine and every process finds the same numbers.

        Raises:
            UserError: all images are of one colour, so that nothing is left about the mean.
        """
        counts = torch.stack([torch.bincount(x.flatten(), minlength=256) for x in images.unbind(1)])
        share = counts.cpu().double() / counts[0].sum().item()
        grey = torch.arange(256, dtype=torch.float64) / 127.5 - 1
        mean = share @ grey if centre else torch.zeros(len(share), dtype=torch.float64)
        rms = (share * (grey - mean[:, None]) ** 2).sum(1).mean().sqrt()
        if rms == 0:
            raise UserError("all training images are of one colour, there is nothing to learn: look at data/train.npy")
        self.mean.copy_(mean.view(-1, 1, 1))
        self.sigma_data.copy_(rms if sigma_data is None else sigma_data)
        return {"sigma_data": self.sigma_data.item()}


class LowRank(nn.Module):
    """A Gaussian of images: principal components, and one variance for all directions besides (probabilistic PCA,
    Tipping & Bishop 1999).

        N(mean, U' diag(lambda) U + rest (1 - U' U)),   rows of U the k axes

    `rest` is the mean of the variances left over, so that the total variance is right.
    """

    def __init__(self, k: int, shape: Shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("axes", torch.zeros(k, self.mean.numel()))
        self.register_buffer("variances", torch.zeros(k))
        self.register_buffer("rest", torch.zeros(()))

    def fit(self, images: UInt8[Tensor, "n c h w"]) -> None:
        """To ENOUGH of the images, evenly apart.

        Raises:
            UserError: there are fewer images, or dimensions, than axes.
        """
        x = to_model(images[:: -(-len(images) // ENOUGH)]).flatten(1)
        mean, k, (n, d) = x.mean(0), len(self.axes), x.shape
        if k >= min(n, d):
            raise UserError(f"gaussian = {k} principal components need more than {min(n, d)} images and values in one")
        x -= mean
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _, singular, axes = torch.svd_lowrank(x, min(k + SPARE, n, d), niter=4)
        variances = singular[:k].square() / n
        self.mean.copy_(mean.view_as(self.mean))
        self.axes.copy_(axes[:, :k].T)
        self.variances.copy_(variances)
        self.rest.copy_((x.square().sum() / n - variances.sum()) / (d - k))

    def noisy(self, z: Float[Tensor, "n c h w"], sigma: float) -> Images:
        """The image of this Gaussian under noise of standard deviation sigma that standard normal numbers z stand for.

        mean + w z + U' (sqrt(lambda + sigma^2) - w) U z,   w = sqrt(rest + sigma^2)
        """
        wide = (self.rest + sigma**2).sqrt()
        with torch.autocast(z.device.type, enabled=False):  # samplers keep images in fp32
            along = (z.flatten(1) @ self.axes.T) * ((self.variances + sigma**2).sqrt() - wide)
            return self.mean + wide * z + (along @ self.axes).view_as(z)

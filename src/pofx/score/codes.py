"""What a family's code holds, in pictures: bytes for `pofx.base.images.save_grid`, row by row."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pofx.base.images import to_uint8
from pofx.models.family import Coded, Latent, active, kl
from pofx.sample.interpolation import lerp, slerp
from pofx.score.batches import Batches

Images = UInt8[np.ndarray, "n 3 h w"]
Picture = UInt8[np.ndarray, "_ 3 h w"]
Sheet = tuple[Picture, int]  # and its columns
Code = Float[Tensor, "n latent"]
COLUMNS, UNITS, PAIRS = 12, 10, 5  # of the pictures; rows of traversals; pairs of rows in the others
VALUES = np.linspace(-2.5, 2.5, 11).tolist()  # of a unit in traversals, in standard deviations of the prior


def pictures(model: Coded, images: Images, again: Images, batches: Batches) -> dict[str, Sheet]:
    """Reconstructions of the first `images`; of a Gaussian code also traversals, if a unit is in use over all of them,
    and interpolations.

    Args:
        again: what comes back of `images`.
    """
    columns = min(COLUMNS, len(images))
    sheets = {"reconstructions": (reconstructions(images, again, columns, PAIRS), columns)}
    if isinstance(model, Latent):
        mean, log_var = posterior(model, images, batches)
        moved = traversals(model, mean, log_var, VALUES, UNITS)
        if len(moved):
            sheets["traversals"] = moved, len(VALUES)
        sheets["interpolations"] = interpolations(model, mean, images, PAIRS, COLUMNS), COLUMNS
    return sheets


def reconstructions(images: Images, again: Images, columns: int, rows: int) -> Picture:
    """Rows of `columns` images, below each row what came back of it; `rows` such pairs at most."""
    n = min(rows, len(images) // columns) * columns
    pairs = (part[:n].reshape(-1, columns, *part.shape[1:]) for part in (images, again))
    return np.stack([*pairs], 1).reshape(-1, *images.shape[1:])


def posterior(model: Latent, images: Images, batches: Batches) -> tuple[Code, Code]:
    """Mean and log variance of the code of every image."""
    codes = batches.map(lambda x: torch.stack(model.posterior(x), 1), images)
    mean, log_var = codes.to(batches.device).unbind(1)
    return mean, log_var


@torch.no_grad()
def traversals(model: Latent, mean: Code, log_var: Code, values: list[float], rows: int) -> Picture:
    """What single units do: the code of the first image, with one unit at each of `values`, in standard deviations of
    the prior.

    Returns:
        A row a unit, of those in use the `rows` with the largest KL over the images, largest first; a column a value.
    """
    order = kl(mean, log_var).mean(0).argsort(descending=True, stable=True)
    units = order[active(mean)[order]][:rows]
    z = mean[0].repeat(len(units), len(values), 1)
    for i, unit in enumerate(units):
        z[i, :, unit] = z.new_tensor(values)
    return to_uint8(model.decode(z.flatten(0, 1))).cpu().numpy()


@torch.no_grad()
def interpolations(model: Latent, mean: Code, images: Images, pairs: int, columns: int) -> Picture:
    """Between the codes of images 0 and 1, 2 and 3, ...

    Returns:
        Two rows a pair: along the straight line, and below it at equal angles; first and last column: the images.
    """
    pairs = min(pairs, len(images) // 2)
    share = torch.linspace(0, 1, columns - 2, device=mean.device)
    first, last = mean[: 2 * pairs : 2], mean[1 : 2 * pairs : 2]
    z = torch.stack([way(first, last, share) for way in (lerp, slerp)], 1)
    between = to_uint8(model.decode(z.flatten(0, 2))).cpu().numpy().reshape(2 * pairs, columns - 2, *images.shape[1:])
    left, right = (images[i : 2 * pairs : 2].repeat(2, 0)[:, None] for i in (0, 1))
    return np.concatenate([left, between, right], 1).reshape(-1, *images.shape[1:])

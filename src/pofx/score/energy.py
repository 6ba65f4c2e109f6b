"""What an energy-based model is for: detecting outliers, chains of any length, inpainting, denoising."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, MinLen
from jaxtyping import Bool, Float, Float64, UInt8
from torch import Tensor

from pofx.base.errors import UserError
from pofx.base.images import Batches, Images, Sheet, sheet, to_model
from pofx.base.rng import Noise
from pofx.data.sprites import SIDE, generate
from pofx.models.family import EnergyBased
from pofx.sample.settings import Setting
from pofx.score.codes import psnr

TILES = 4  # a side, in `outsiders`
HIDDEN = ("right half", "centre")  # what inpainting fills in, of images in turn


@dataclass(frozen=True)
class Energy:
    models: tuple[str, ...] = ("ebm",)  # energy-based models to do this for
    n: Annotated[int, Ge(2)] = 64  # images a chain length
    chains: Annotated[tuple[Annotated[int, Ge(0)], ...], MinLen(1)] = (0, 1, 2, 4)  # Langevin steps
    images: Annotated[int, Ge(2)] = 500  # test images, and images of every other set

    def __post_init__(self) -> None:
        if len(set(self.chains)) < len(self.chains):
            raise ValueError(f"chains = {list(self.chains)} should name each length once")


# --- scores


def outsiders(test: Images, train: UInt8[np.ndarray, "m 3 h w"], data: str, seed: int) -> dict[str, Images]:
    """Sets of len(test) images to compare with `test`: training images, and outliers, from far to near.

    Args:
        data: name of the data set; sprites stand among the others unless they are the data, or of another size.
    """
    rng, n = np.random.default_rng(seed), len(test)
    colours, other = rng.integers(0, 256, (*test.shape[:2], 1, 1), np.uint8), {}
    if data != "sprites" and test.shape[2:] == (SIDE, SIDE):
        other["sprites"] = generate(n, seed)[0]
    return {
        "training": train[:n],  # AUROC 0.5, if the model has not learned them by heart
        "uniform noise": rng.integers(0, 256, test.shape, np.uint8),
        "constant colours": np.broadcast_to(colours, test.shape),
        **other,
        "blends": np.rint(test / 2 + np.roll(test, 1, 0) / 2).astype(np.uint8),  # of each with the one before
        "shuffled tiles": shuffled(test, rng),
        "inverted": 255 - test,
    }


def shuffled(images: Images, rng: np.random.Generator) -> Images:
    """Every image cut into TILES x TILES squares, which change places; pixels left over, right and below, stay."""
    (n, c), (h, w) = images.shape[:2], (side // TILES for side in images.shape[2:])
    whole = np.s_[:, :, : TILES * h, : TILES * w]
    squares = images[whole].reshape(n, c, TILES, h, TILES, w).transpose(0, 2, 4, 1, 3, 5).reshape(n, TILES**2, c, h, w)
    orders = rng.permuted(np.tile(np.arange(TILES**2), (n, 1)), axis=1)
    mixed = squares[np.arange(n)[:, None], orders].reshape(n, TILES, TILES, c, h, w).transpose(0, 3, 1, 4, 2, 5)
    moved = images.copy()
    moved[whole] = mixed.reshape(n, c, TILES * h, TILES * w)
    return moved


def energies(model: EnergyBased, images: Images, batches: Batches) -> Float64[np.ndarray, " n"]:
    """The energy of every image.

    Raises:
        UserError: one is not finite.
    """
    values = batches.map(model.energy, images).double().numpy()
    if not np.isfinite(values).all():
        raise UserError("energies of images are not finite: train the model anew, with smaller steps")
    return values


def scores(model: EnergyBased, test: Images, sets: dict[str, Images], batches: Batches) -> dict[str, Any]:
    """Mean and standard deviation of the energy of `test`, and for each of `sets` mean and `auroc`."""
    inside, rows = energies(model, test, batches), []
    for name, images in sets.items():
        outside = energies(model, images, batches)
        rows.append({"set": name, "auroc": auroc(inside, outside), "energy": float(outside.mean())})
    return {"test_energy": float(inside.mean()), "test_std": float(inside.std()), "auroc": rows}


def auroc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> float:
    """Share of pairs in which the energy of `outside` is the higher one, ties by half: the area under the ROC curve.

    Below 0.5 the model finds the others likelier than the data.
    """
    from sklearn.metrics import roc_auc_score  # late: slow to import, and stages.check reads this module

    truth = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


# --- chains


def settings(rows: dict[str, Any], chains: Sequence[int]) -> list[Setting]:
    """Every row (pofx.sample.rows) at every number of Langevin steps."""
    return [
        ({"row": row, "chain": k}, dataclasses.replace(cfg, chain=k))
        for row, cfg in rows.items()
        for k in sorted(chains)
    ]


@torch.no_grad()
def strip(model: EnergyBased, cfg: Any, noise: Noise, columns: int) -> Sheet:
    """A row an image, states of its chain from start to sample, evenly apart: fewer than `columns` if it is short."""
    states = list(model.path(noise, cfg))
    shown = np.unique(np.linspace(0, len(states) - 1, columns).round().astype(int))
    return sheet([states[k] for k in shown])


# --- images in part or in noise


def hidden(n: int, h: int, w: int) -> Bool[np.ndarray, "n 1 h w"]:
    """Pixels to be filled in: of even images the right half, of odd ones a square in the centre of half the side."""
    masks = np.zeros((2, 1, h, w), bool)
    masks[0, :, :, w // 2 :] = True
    masks[1, :, h // 4 : h - h // 4, w // 4 : w - w // 4] = True
    return masks[np.arange(n) % 2]


def _psnr(x: Tensor, y: Tensor, where: Tensor | None = None) -> float:
    """Mean over pairs of images, of the pixels `where` (None: all)."""
    return float(psnr(x.cpu().numpy(), y.cpu().numpy(), True if where is None else where.cpu().numpy()).mean())


@torch.no_grad()
def inpainting(
    model: EnergyBased, cfg: Any, images: UInt8[Tensor, "n 3 h w"], noises: Sequence[Noise]
) -> tuple[Sheet, list[dict[str, Any]]]:
    """Images without the pixels that are `hidden`, and what the model fills in: of all images, then of those shown.

    Returns:
        A row an image, the right halves first: without what is hidden, every draw, the original. And for each of
        HIDDEN the PSNR of the hidden pixels in the first draw, and filled with the mean colour of the others.
    """
    x = to_model(images)
    mask = torch.from_numpy(~hidden(len(x), *x.shape[2:])).to(x.device)  # of observed pixels
    draws = [model.inpaint(x[: len(z)], mask[: len(z)], z, cfg).clamp(-1, 1) for z in noises]
    few = len(noises[-1])
    halves_first = [*range(0, few, 2), *range(1, few, 2)]
    columns = [column[halves_first] for column in (x.where(mask, 0.0), *draws, x)]
    filled = ((x * mask).sum((2, 3), True) / mask.sum((2, 3), True)).expand_as(x)
    rows = []
    for i, name in enumerate(HIDDEN[: len(x)]):
        own, where = x[i::2], ~mask[i::2]
        rows.append({"unknown": name, "images": len(own)})
        rows[-1] |= {"psnr_filled": _psnr(filled[i::2], own, where), "psnr": _psnr(draws[0][i::2], own, where)}
    return sheet(columns), rows


@torch.no_grad()
def restoring(
    model: EnergyBased, cfg: Any, images: UInt8[Tensor, "n 3 h w"], sigmas: Sequence[float], noise: Callable[[], Noise]
) -> tuple[Sheet, list[dict[str, float]]]:
    """Images with Gaussian noise of standard deviations `sigmas`, and what Langevin dynamics makes of them from there.

    Returns:
        A row an image: noisy and restored for each of `sigmas`, and the original. And for each of `sigmas` the PSNR of
        the noisy images, cut to [-1, 1], and of the restored ones.
    """
    x, columns, rows = to_model(images), [], []
    for sigma in sigmas:
        z = noise()
        noisy = x + sigma * z.normal(*x.shape[1:])
        again = model.restore(noisy, sigma, z, cfg).clamp(-1, 1)
        noisy = noisy.clamp(-1, 1)
        rows.append({"sigma": sigma, "images": len(x), "psnr_noisy": _psnr(noisy, x), "psnr": _psnr(again, x)})
        columns += [noisy, again]
    return sheet([*columns, x]), rows


def chance(n: int) -> float:
    """Standard deviation of the AUROC of two sets of n images each, drawn alike (Mann & Whitney 1947)."""
    return math.sqrt((2 * n + 1) / (12 * n * n))

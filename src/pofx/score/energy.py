"""What an energy-based model is for: telling what is no data, drawing by chains of any length, filling in, cleaning.

Functions of arrays and of a model with `energy`, `path`, `inpaint` and `restore`. Pictures are bytes for
`pofx.base.images.save_grid`, row by row.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, MinLen
from jaxtyping import Bool, Float, Float64, UInt8
from sklearn.metrics import roc_auc_score
from torch import Tensor

from pofx.base.errors import UserError
from pofx.base.images import to_model, to_uint8
from pofx.base.rng import Noise
from pofx.data.sprites import generate
from pofx.models.family import Family
from pofx.score.batches import Batches

Images = UInt8[np.ndarray, "n 3 h w"]
Picture = UInt8[np.ndarray, "_ 3 h w"]
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
    """Sets of len(test) images to tell from `test`: training images, and what is no data, from far to near.

    Args:
        data: name of the data set; sprites stand among the others unless they are the data.
    """
    rng, n = np.random.default_rng(seed), len(test)
    colours = rng.integers(0, 256, (*test.shape[:2], 1, 1), np.uint8)
    other = {} if data == "sprites" else {"sprites": generate(n, seed)[0]}
    return {
        "training": train[:n],  # 0.5, if the model has not learned them by heart
        "uniform noise": rng.integers(0, 256, test.shape, np.uint8),
        "constant colours": np.broadcast_to(colours, test.shape),
        **other,
        "blends": np.rint(test / 2 + np.roll(test, 1, 0) / 2).astype(np.uint8),  # of each with the one before
        "shuffled tiles": shuffled(test, rng),
        "inverted": 255 - test,
    }


def shuffled(images: Images, rng: np.random.Generator) -> Images:
    """Every image cut into TILES x TILES squares, which change places: its parts are right, the whole is not."""
    n, c, h, w = images.shape
    y, x = h // TILES, w // TILES
    cut = images.reshape(n, c, TILES, y, TILES, x).transpose(0, 2, 4, 1, 3, 5).reshape(n, TILES**2, c, y, x)
    order = rng.permuted(np.tile(np.arange(TILES**2), (n, 1)), axis=1)
    moved = cut[np.arange(n)[:, None], order].reshape(n, TILES, TILES, c, y, x)
    return moved.transpose(0, 3, 1, 4, 2, 5).reshape(images.shape)


def energies(model: Family, images: Images, batches: Batches) -> Float64[np.ndarray, " n"]:
    """The energy of every image.

    Raises:
        UserError: the family has no energy, or one is not finite.
    """
    if model.energy(next(batches.of(images[:1]))) is None:
        raise UserError("this family has no energy: take it out of energy.models")
    values = batches.map(model.energy, images).double().numpy()
    if not np.isfinite(values).all():
        raise UserError("energies of images are not finite: train the model anew, with smaller steps")
    return values


def scores(
    energy: Callable[[Images], Float64[np.ndarray, " n"]], test: Images, sets: dict[str, Images]
) -> dict[str, Any]:
    """Mean and standard deviation of the energy of `test`, and for each of `sets` mean and `auroc`."""
    inside, outside = energy(test), {name: energy(images) for name, images in sets.items()}
    rows = [{"set": f, "auroc": auroc(inside, e), "energy": float(e.mean())} for f, e in outside.items()]
    return {"test_energy": float(inside.mean()), "test_std": float(inside.std()), "auroc": rows}


def auroc(inside: Float[np.ndarray, " n"], outside: Float[np.ndarray, " m"]) -> float:
    """Share of pairs in which the energy of `outside` is the higher one, ties by half: the area under the ROC curve of
    the energy as a score for being no data. Below 0.5 the model finds the others likelier than the data."""
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


# --- chains


def plan(rows: dict[str, Any], chains: Sequence[int]) -> list[tuple[dict[str, Any], Any]]:
    """Every way to draw (pofx.models.family.draws) at every number of Langevin steps, for `pofx.score.drawing.draw`."""
    return [
        ({"row": row, "chain": k}, dataclasses.replace(cfg, chain=k))
        for row, cfg in rows.items()
        for k in sorted(chains)
    ]


@torch.no_grad()
def strip(model: Family, cfg: Any, noise: Noise, columns: int) -> tuple[Picture, int]:
    """A row an image, states of its chain from start to sample, evenly apart; and the columns, fewer if it is short."""
    states = [to_uint8(x) for x in model.path(noise, cfg)]
    shown = np.unique(np.linspace(0, len(states) - 1, columns).round().astype(int)).tolist()
    return torch.stack([states[k] for k in shown], 1).flatten(0, 1).cpu().numpy(), len(shown)


# --- images in part or in noise


def hidden(n: int, h: int, w: int) -> Bool[np.ndarray, "n 1 h w"]:
    """Pixels to be filled in: of images 0, 2, 4, ... the right half, of the others a square in the centre of half the
    side."""
    masks = np.zeros((2, 1, h, w), bool)
    masks[0, :, :, w // 2 :] = True
    masks[1, :, h // 4 : h - h // 4, w // 4 : w - w // 4] = True
    return masks[np.arange(n) % 2]


def psnr(
    x: Float[Tensor, "n 3 h w"], y: Float[Tensor, "n 3 h w"], where: Bool[Tensor, "n 1 h w"] | None = None
) -> float:
    """Peak signal-to-noise ratio in dB over the pixels `where` (None: all), images on [-1, 1], mean over the images."""
    where = torch.ones_like(x, dtype=torch.bool) if where is None else where.expand_as(x)
    error = ((x - y).double().square() * where).sum((1, 2, 3)) / where.sum((1, 2, 3))
    return (10 * (4 / error.clamp(min=1e-10)).log10()).mean().item()


@torch.no_grad()
def inpainting(
    model: Family, cfg: Any, images: UInt8[Tensor, "n 3 h w"], noises: Sequence[Noise]
) -> tuple[Picture, list[dict[str, Any]]]:
    """Images with a part unknown (`hidden`), and what the model fills in.

    Args:
        noises: of each draw. The first is of all images, the others of those to be shown.

    Returns:
        Picture: a row an image, the right halves first: without what is hidden, every draw, the original.
        A row for each of HIDDEN: PSNR of the unknown pixels in the first draw, and filled with the mean colour of the
        known ones.
    """
    x = to_model(images)
    unknown = torch.from_numpy(hidden(*images.shape[:1], *images.shape[2:])).to(x.device)
    draws = [model.inpaint(x[: len(z)], ~unknown[: len(z)], z, cfg).clamp(-1, 1) for z in noises]
    few = len(noises[-1])
    columns = [x.where(~unknown, 0.0)[:few], *(y[:few] for y in draws), x[:few]]
    shown = torch.stack(columns, 1)[[*range(0, few, 2), *range(1, few, 2)]]
    known = (~unknown).expand_as(x)
    filled = ((x * known).sum((2, 3), True) / known.sum((2, 3), True)).expand_as(x)
    rows = [
        {
            "unknown": name,
            "images": len(x[i::2]),
            "psnr_filled": psnr(filled[i::2], x[i::2], unknown[i::2]),
            "psnr": psnr(draws[0][i::2], x[i::2], unknown[i::2]),
        }
        for i, name in enumerate(HIDDEN)
        if len(x[i::2])
    ]
    return to_uint8(shown.flatten(0, 1)).cpu().numpy(), rows


@torch.no_grad()
def restoring(
    model: Family,
    cfg: Any,
    images: UInt8[Tensor, "n 3 h w"],
    sigmas: Sequence[float],
    noise: Callable[[], Noise],
    few: int,
) -> tuple[Picture, list[dict[str, float]]]:
    """Images with Gaussian noise, and what Langevin dynamics makes of them from there.

    Args:
        sigmas: standard deviations of the noise, images on [-1, 1].
        noise: of len(images), anew at every call.
        few: images to be shown.

    Returns:
        Picture: a row an image: with noise and restored, for each of `sigmas`; the original.
        A row for each of `sigmas`: PSNR of the noisy images, cut to [-1, 1], and of the restored ones.
    """
    x, columns, rows = to_model(images), [], []
    for sigma in sigmas:
        z = noise()
        noisy = x + sigma * z.normal(*x.shape[1:])
        again = model.restore(noisy, sigma, z, cfg).clamp(-1, 1)
        noisy = noisy.clamp(-1, 1)
        rows.append({"sigma": sigma, "images": len(x), "psnr_noisy": psnr(noisy, x), "psnr": psnr(again, x)})
        columns += [noisy[:few], again[:few]]
    return to_uint8(torch.stack([*columns, x[:few]], 1).flatten(0, 1)).cpu().numpy(), rows


def chance(n: int) -> float:
    """Standard deviation of the AUROC of two sets of n images each, drawn alike (Mann & Whitney 1947)."""
    return math.sqrt((2 * n + 1) / (12 * n * n))

"""What a family's code holds: how near reconstructions come to their images, and pictures of the code."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from pofx.base.images import Batches, Images, Sheet, to_model, to_uint8
from pofx.models.family import Coded, Latent
from pofx.models.features import active, kl
from pofx.sample.interpolation import lerp, slerp

Exact = Float[np.ndarray, "n 3 h w"]  # on [-1, 1]
Code = Float[Tensor, "n latent"]
WINDOW = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # of Wang et al. 2004
EDGE = 5  # pixels: half of its 11
PART = 1000  # images at a time
COLUMNS, UNITS, PAIRS = 12, 10, 5  # of the pictures; rows of traversals; pairs of rows in the others
VALUES = np.linspace(-2.5, 2.5, 11).tolist()  # of a unit in traversals, in standard deviations of the prior


# --- reconstructions, in numbers: they say nothing of samples


def reconstruct(model: Coded, images: Images, batches: Batches) -> Exact:
    """`images` as they come back from their codes, in [-1, 1]."""
    return batches.map(lambda x: model.reconstruct(x).clamp(-1, 1), images).numpy()


def evaluate(images: Images, again: Exact) -> dict[str, float]:
    """How near reconstructions are to `images`: means over images, standard errors under ..._stderr.

    Returns:
        recon_psnr: peak signal-to-noise ratio in dB.
        recon_ssim: structural similarity; 1 for equal images.
        recon_sharpness: the mean difference of neighbouring pixels as a share of that of the originals, below 1 for
            blur, above for grain.
    """
    originals = to_model(torch.from_numpy(images)).numpy()
    scores = {"recon_sharpness": roughness(again) / roughness(originals)}
    for key, values in (("recon_psnr", psnr(originals, again)), ("recon_ssim", ssim(originals, again))):
        scores |= {key: float(values.mean()), f"{key}_stderr": float(values.std() / math.sqrt(len(values)))}
    return scores


def roughness(images: Exact) -> float:
    """Mean absolute difference of neighbouring pixels, across and down."""
    return float(sum(np.abs(np.diff(images, axis=axis)).mean() for axis in (2, 3)) / 2)


def psnr(x: Exact, y: Exact, where: Bool[np.ndarray, "n 1 h w"] | bool = True) -> Float64[np.ndarray, " n"]:
    """Peak signal-to-noise ratio of every pair in dB over the pixels `where`: 10 log10(2^2 / MSE) on [-1, 1]."""
    error = np.square(x - y).mean((1, 2, 3), dtype=float, where=where)
    return 10 * np.log10(4 / error.clip(1e-10))


def ssim(x: Exact, y: Exact) -> Float64[np.ndarray, " n"]:
    """Structural similarity of every pair (Wang et al. 2004, eq. 13), mean over pixels and channels.

        (2 m_x m_y + c1) (2 s_xy + c2) / ((m_x^2 + m_y^2 + c1) (s_x^2 + s_y^2 + c2)),   c1 = 0.01^2, c2 = 0.03^2

    Images are taken on [0, 1], to which c1 belongs: on [-1, 1] grey would have a mean of zero. scikit-image is given
    all images as one, below each other; pixels whose window reaches beyond their image are left out.
    """
    from skimage.metrics import structural_similarity  # late: slow to import, and stages.check reads this module

    parts = []
    for start in range(0, len(x), PART):
        one, other = ((v[start : start + PART] + 1) / 2 for v in (x, y))
        rows = (v.reshape(-1, v.shape[-1]) for v in (one, other))
        _, values = structural_similarity(*rows, data_range=1.0, full=True, **WINDOW)
        parts.append(values.reshape(one.shape)[..., EDGE:-EDGE, EDGE:-EDGE].mean((1, 2, 3), dtype=float))
    return np.concatenate(parts)


# --- pictures


def pictures(model: Coded, images: Images, again: Images, batches: Batches) -> dict[str, Sheet]:
    """Reconstructions `again` of `images`; of a Gaussian code interpolations and, if a unit is in use, traversals."""
    sheets = {"reconstructions": reconstructions(images, again, min(COLUMNS, len(images)), PAIRS)}
    if isinstance(model, Latent):
        mean, log_var = posterior(model, images, batches)
        moved = traversals(model, mean, log_var, VALUES, UNITS)
        if len(moved):
            sheets["traversals"] = moved
        sheets["interpolations"] = interpolations(model, mean, images, PAIRS, COLUMNS)
    return sheets


def reconstructions(images: Images, again: Images, columns: int, rows: int) -> Sheet:
    """Rows of `columns` images, below each row what came back of it; `rows` such pairs at most."""
    n = min(rows, len(images) // columns) * columns
    pairs = np.stack([part[:n].reshape(-1, columns, *part.shape[1:]) for part in (images, again)], 1)
    return pairs.reshape(-1, *pairs.shape[2:])


def posterior(model: Latent, images: Images, batches: Batches) -> tuple[Code, Code]:
    """Mean and log variance of the code of every image."""
    codes = batches.map(lambda x: torch.stack(model.posterior(x), 1), images)
    mean, log_var = codes.to(batches.device).unbind(1)
    return mean, log_var


@torch.no_grad()
def traversals(model: Latent, mean: Code, log_var: Code, values: list[float], rows: int) -> Sheet:
    """The code of the first image with one unit at each of `values`, in standard deviations of the prior.

    Returns:
        A row a unit, of those in use the `rows` with the largest KL over the images, largest first; a column a value.
    """
    order = kl(mean, log_var).mean(0).argsort(descending=True, stable=True)
    units = order[active(mean)[order]][:rows]
    z = mean[0].repeat(len(units), len(values), 1)
    for i, unit in enumerate(units):
        z[i, :, unit] = z.new_tensor(values)
    return _decoded(model, z)


@torch.no_grad()
def interpolations(model: Latent, mean: Code, images: Images, pairs: int, columns: int) -> Sheet:
    """Between the codes of images 0 and 1, 2 and 3, ...

    Returns:
        Two rows a pair: along the straight line, and below it at equal angles; first and last column: the images.
    """
    pairs = min(pairs, len(images) // 2)
    share = torch.linspace(0, 1, columns - 2, device=mean.device)
    first, last = mean[: 2 * pairs : 2], mean[1 : 2 * pairs : 2]
    between = torch.stack([way(first, last, share) for way in (lerp, slerp)], 1).flatten(0, 1)
    left, right = (images[i : 2 * pairs : 2].repeat(2, 0)[:, None] for i in (0, 1))
    return np.concatenate([left, _decoded(model, between), right], 1)


def _decoded(model: Latent, z: Float[Tensor, "rows columns latent"]) -> Sheet:
    images = to_uint8(model.decode(z.flatten(0, 1)))
    return images.unflatten(0, z.shape[:2]).cpu().numpy()

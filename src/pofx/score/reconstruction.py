"""How well a family with a code gives images back: PSNR and SSIM, which say nothing of its samples."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8

from pofx.base.images import to_model
from pofx.models.family import Coded
from pofx.score.batches import Batches

Images = UInt8[np.ndarray, "n 3 h w"]
Exact = Float[np.ndarray, "n 3 h w"]  # on [-1, 1]
WINDOW = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # of Wang et al. 2004
EDGE = 5  # pixels: half of its 11
PART = 1000  # images at a time


def reconstruct(model: Coded, images: Images, batches: Batches) -> Exact:
    """`images` as they come back from their codes, in [-1, 1]."""
    return batches.map(lambda x: model.reconstruct(x).clamp(-1, 1), images).numpy()


def evaluate(images: Images, again: Exact) -> dict[str, float]:
    """How near `again`, what came back of `images`, is to them: means over images, standard errors under ..._stderr.

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

    c1 and the means it is weighed against belong to values from 0 up, so images are taken on [0, 1]: on [-1, 1] grey
    would have a mean of zero. scikit-image is given all images as one, below each other, and the pixels whose window
    reaches into another image are left out, as it leaves out those at the edge of a single image.
    """
    from skimage.metrics import structural_similarity  # late: slow to import, and stages.check reads this module

    parts = []
    for start in range(0, len(x), PART):
        one, other = ((v[start : start + PART] + 1) / 2 for v in (x, y))
        rows = (v.reshape(-1, v.shape[-1]) for v in (one, other))
        _, values = structural_similarity(*rows, data_range=1.0, full=True, **WINDOW)
        parts.append(values.reshape(one.shape)[..., EDGE:-EDGE, EDGE:-EDGE].mean((1, 2, 3), dtype=float))
    return np.concatenate(parts)

"""How well a family with a code gives images back: PSNR and SSIM, which say nothing of its samples."""

import math

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from scipy.ndimage import gaussian_filter
from torch import nn

from pofx.core.images import to_model

PART = 1000  # images at a time


@torch.no_grad()
def reconstruct(
    family: nn.Module, images: UInt8[np.ndarray, "n 3 h w"], batch: int, device: torch.device
) -> Float[np.ndarray, "n 3 h w"] | None:
    """`images` as they come back from the family's code, in [-1, 1]; None: it has no code."""
    parts = []
    for start in range(0, len(images), batch):
        again = family.reconstruct(to_model(torch.from_numpy(np.array(images[start : start + batch])).to(device)))
        if again is None:
            return None
        parts.append(again.clamp(-1, 1).cpu().numpy())
    return np.concatenate(parts)


def evaluate(images: UInt8[np.ndarray, "n 3 h w"], again: Float[np.ndarray, "n 3 h w"]) -> dict[str, float]:
    """recon_psnr (dB) and recon_ssim of `images` and what came back of them: means over images, with their standard
    errors under ..._stderr. recon_sharpness: the mean difference of neighbouring pixels as a share of that of the
    originals, below 1 for blur, above for grain."""
    originals = to_model(torch.from_numpy(images)).numpy()
    starts = range(0, len(images), PART)
    each = np.concatenate([compare(originals[i : i + PART], again[i : i + PART]) for i in starts])
    found = {"recon_sharpness": roughness(again) / roughness(originals)}
    for key, values in zip(("recon_psnr", "recon_ssim"), each.T, strict=True):
        found |= {key: float(values.mean()), f"{key}_stderr": float(values.std() / math.sqrt(len(values)))}
    return found


def roughness(images: Float[np.ndarray, "n 3 h w"]) -> float:
    """Mean absolute difference of neighbouring pixels, across and down."""
    return float(sum(np.abs(np.diff(images, axis=axis)).mean() for axis in (2, 3)) / 2)


def compare(x: Float[np.ndarray, "n 3 h w"], y: Float[np.ndarray, "n 3 h w"]) -> Float64[np.ndarray, "n 2"]:
    """PSNR in dB and SSIM of every pair of images in [-1, 1]. SSIM (Wang et al. 2004) has a Gaussian window, as
    scikit-image's, whose values these are: all images at once take a seventh of the time."""

    def smooth(v: np.ndarray) -> np.ndarray:
        return gaussian_filter(v, 1.5, truncate=3.5, axes=(2, 3))

    error = np.square(x - y).mean((1, 2, 3), dtype=float)
    a, b = smooth(x), smooth(y)
    squares, product = smooth(x * x) + smooth(y * y), smooth(x * y)
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    ssim = (2 * a * b + c1) * (2 * (product - a * b) + c2)
    ssim /= (a * a + b * b + c1) * (squares - a * a - b * b + c2)
    edge = slice(5, -5)  # half a window: those nearer to it reach over the edge
    return np.stack([10 * np.log10(4 / error), ssim[..., edge, edge].mean((1, 2, 3), dtype=float)], 1)

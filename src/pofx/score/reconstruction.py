"""How well a family with a code gives images back: PSNR and SSIM, which say nothing of its samples."""

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from pofx.base.images import to_model


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
    each = np.array([compare(*pair) for pair in zip(originals, again, strict=True)])
    found = {"recon_sharpness": roughness(again) / roughness(originals)}
    for key, values in zip(("recon_psnr", "recon_ssim"), each.T, strict=True):
        found |= {key: float(values.mean()), f"{key}_stderr": float(values.std() / math.sqrt(len(values)))}
    return found


def roughness(images: Float[np.ndarray, "n 3 h w"]) -> float:
    """Mean absolute difference of neighbouring pixels, across and down."""
    return float(sum(np.abs(np.diff(images, axis=axis)).mean() for axis in (2, 3)) / 2)


def compare(x: Float[np.ndarray, "3 h w"], y: Float[np.ndarray, "3 h w"]) -> tuple[float, float]:
    """PSNR in dB and SSIM of two images in [-1, 1], SSIM with the Gaussian window of Wang et al. 2004."""
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    ssim = structural_similarity(x, y, data_range=2.0, channel_axis=0, **window)
    return float(peak_signal_noise_ratio(x, y, data_range=2.0)), float(ssim)

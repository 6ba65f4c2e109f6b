"""Bits per dimension of two Gaussians fitted to training images: what a model that is worth its cost stays below.

Images are dequantised uniformly, in training and in test, and both are exact: the noise adds its variance v to the
diagonal of the covariance S, and v tr S^-1 / 2 to the expected nats of a test image. There is no other regularisation:
v alone keeps S regular, however flat the images are. Units are grey levels, so that a bin's volume is one.
"""

import math
from collections.abc import Iterator

import numpy as np
import scipy.linalg
from jaxtyping import Float64, UInt8

NOISE = 1 / 12  # variance of uniform noise, one grey level wide
CHUNK = 2000  # images at a time in float64


def evaluate(
    train: UInt8[np.ndarray, "n *shape"], test: UInt8[np.ndarray, "m *shape"]
) -> dict[str, tuple[float, float]]:
    """Mean bits per dimension of all test images, and the standard error of that mean, under a Gaussian with
    full covariance ("gaussian") and under independent ones, one a pixel and channel ("pixel_gaussian")."""
    mean, covariance = moments(train)
    covariance[np.diag_indices_from(covariance)] += NOISE
    factor = scipy.linalg.cholesky(covariance, lower=True)
    inverse = scipy.linalg.solve_triangular(factor, np.eye(len(mean)), lower=True)  # S^-1 = inverse' inverse
    std = np.sqrt(covariance.diagonal())
    full, pixels = [], []
    for x in _chunks(test):
        full.append(np.square((x - mean) @ inverse.T).sum(1))
        pixels.append(np.square((x - mean) / std).sum(1))
    return {
        "gaussian": _bits(np.concatenate(full), np.square(inverse).sum(), np.log(factor.diagonal()).sum(), len(mean)),
        "pixel_gaussian": _bits(np.concatenate(pixels), np.sum(std**-2.0), np.log(std).sum(), len(mean)),
    }


def moments(images: UInt8[np.ndarray, "n *shape"]) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
    """Mean and (maximum-likelihood) covariance of the grey levels; sums of whole numbers, exact in float64."""
    total = sum(x.sum(0) for x in _chunks(images))
    square = sum(x.T @ x for x in _chunks(images))
    mean = total / len(images)
    return mean, square / len(images) - np.outer(mean, mean)


def _chunks(images: UInt8[np.ndarray, "n *shape"]) -> Iterator[Float64[np.ndarray, "_ d"]]:
    return (np.reshape(images[i : i + CHUNK], (-1, images[0].size)).astype(float) for i in range(0, len(images), CHUNK))


def _bits(distance: Float64[np.ndarray, " m"], trace: float, log_std: float, d: int) -> tuple[float, float]:
    """From squared Mahalanobis distances, the trace of S^-1 and log det S / 2."""
    nats = 0.5 * (distance + NOISE * trace + d * math.log(2 * math.pi)) + log_std
    bits = nats / (d * math.log(2))
    return float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(len(bits)))

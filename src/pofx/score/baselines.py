"""Gaussians fitted to training images: what a model that is worth its cost stays below, in bits and in distance.

Images are dequantised uniformly, in training and in test, and the bits are exact: the noise adds its variance v to the
diagonal of the covariance S, which keeps it regular, and v tr S^-1 / 2 to the expected nats of a test image. Units are
grey levels, so that a bin's volume is one.
"""

import math
from collections.abc import Iterator

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from jaxtyping import Float64, UInt8

NOISE = 1 / 12  # variance of uniform noise, one grey level wide
CHUNK = 2000  # images at a time in float64
EXACT = 1024  # images whose products, 2^14 at most, have sums that float32 holds exactly: up to 2^24
COMPONENTS = 64  # of the PCA


class Gaussians:
    """Three of them: "gaussian", with full covariance; "pixel_gaussian", independent ones, one a pixel and channel;
    "pca_gaussian", the 64 directions of largest variance alone, which has images but no density.

    Attributes:
        spreads: name -> what turns standard normal numbers into deviations from the mean: a matrix, or a factor each.
        refused: name -> why training images are too few for it.
    """

    def __init__(self, train: UInt8[np.ndarray, "n *shape"]):
        self.shape, (self.mean, covariance) = train.shape[1:], moments(train)
        d, few = len(self.mean), f"{len(train):,} training images are not more than its"
        noisy = covariance + NOISE * np.eye(d)
        self.spreads, self.refused = {}, {}
        if len(train) > d:
            self.spreads["gaussian"] = scipy.linalg.cholesky(noisy, lower=True).T
        else:
            self.refused["gaussian"] = f"{few} {d:,} dimensions"
        self.spreads["pixel_gaussian"] = np.sqrt(noisy.diagonal())
        if len(train) > COMPONENTS:
            start = np.random.default_rng(0).normal(size=d)  # of the iteration: the same vectors every time
            values, vectors = scipy.sparse.linalg.eigsh(covariance, min(COMPONENTS, d - 1), v0=start)
            self.spreads["pca_gaussian"] = (vectors * np.sqrt(np.maximum(values, 0))).T
        else:
            self.refused["pca_gaussian"] = f"{few} {COMPONENTS} components"

    def bits(self, test: UInt8[np.ndarray, "m *shape"]) -> dict[str, tuple[float, float]]:
        """Mean bits per dimension of all test images and the standard error of that mean, for each with a density."""
        d, std, bits = len(self.mean), self.spreads["pixel_gaussian"], {}
        if "gaussian" in self.spreads:
            factor = self.spreads["gaussian"].T
            inverse = scipy.linalg.solve_triangular(factor, np.eye(d), lower=True)  # S^-1 = inverse' inverse
            far = [np.square((x - self.mean) @ inverse.T).sum(1) for x in _chunks(test)]
            bits["gaussian"] = _bits(far, np.square(inverse).sum(), np.log(factor.diagonal()).sum(), d)
        far = [np.square((x - self.mean) / std).sum(1) for x in _chunks(test)]
        return bits | {"pixel_gaussian": _bits(far, np.sum(std**-2.0), np.log(std).sum(), d)}

    def draw(self, name: str, n: int, seed: int) -> UInt8[np.ndarray, "n *shape"]:
        """n images of the Gaussian `name`."""
        rng, spread = np.random.default_rng(seed), self.spreads[name]
        images = np.empty((n, len(self.mean)), np.uint8)
        for start in range(0, n, CHUNK):
            part = images[start : start + CHUNK]
            z = rng.normal(size=(len(part), len(spread)))
            x = z * spread if spread.ndim == 1 else z @ spread
            part[:] = (self.mean + x).round().clip(0, 255)
        return images.reshape(n, *self.shape)


def moments(images: UInt8[np.ndarray, "n *shape"]) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
    """Mean and (maximum-likelihood) covariance of the grey levels; sums of whole numbers, all exact."""
    total, square = 0.0, 0.0
    for start in range(0, len(images), EXACT):
        x = np.reshape(images[start : start + EXACT], (-1, images[0].size)).astype(np.float32) - 128
        total, square = total + x.sum(0, dtype=float), square + (x.T @ x).astype(float)
    mean = total / len(images)
    return 128 + mean, square / len(images) - np.outer(mean, mean)


def _chunks(images: UInt8[np.ndarray, "n *shape"]) -> Iterator[Float64[np.ndarray, "_ d"]]:
    return (np.reshape(images[i : i + CHUNK], (-1, images[0].size)).astype(float) for i in range(0, len(images), CHUNK))


def _bits(distances: list[Float64[np.ndarray, " _"]], trace: float, log_std: float, d: int) -> tuple[float, float]:
    """From squared Mahalanobis distances, the trace of S^-1 and log det S / 2."""
    nats = 0.5 * (np.concatenate(distances) + NOISE * trace + d * math.log(2 * math.pi)) + log_std
    bits = nats / (d * math.log(2))
    return float(bits.mean()), float(bits.std(ddof=1) / math.sqrt(len(bits)))

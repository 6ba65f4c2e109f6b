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
        names: of those that there are enough training images for.
        refused: name -> why training images are too few for it.
    """

    def __init__(self, train: UInt8[np.ndarray, "n *shape"]):
        self.shape, (self.mean, covariance) = train.shape[1:], moments(train)
        d, few = len(self.mean), f"{len(train):,} training images are not more than its"
        self.refused = {
            name: f"{few} {size:,} {of}"
            for name, size, of in (("gaussian", d, "dimensions"), ("pca_gaussian", COMPONENTS, "components"))
            if len(train) <= size
        }
        self.names = [name for name in ("gaussian", "pixel_gaussian", "pca_gaussian") if name not in self.refused]
        if "pca_gaussian" not in self.refused:
            start = np.random.default_rng(0).normal(size=d)  # of the iteration: the same vectors every time
            values, vectors = scipy.sparse.linalg.eigsh(covariance, min(COMPONENTS, d - 1), v0=start)
            self.components = vectors * np.sqrt(np.maximum(values, 0))
        covariance[np.diag_indices_from(covariance)] += NOISE
        self.std = np.sqrt(covariance.diagonal())
        if "gaussian" not in self.refused:
            self.factor = scipy.linalg.cholesky(covariance, lower=True)

    def bits(self, test: UInt8[np.ndarray, "m *shape"]) -> dict[str, tuple[float, float]]:
        """Mean bits per dimension of all test images and the standard error of that mean, for each with a density."""
        d, bits = len(self.mean), {}
        if "gaussian" not in self.refused:
            inverse = scipy.linalg.solve_triangular(self.factor, np.eye(d), lower=True)  # S^-1 = inverse' inverse
            far = [np.square((x - self.mean) @ inverse.T).sum(1) for x in _chunks(test)]
            bits["gaussian"] = _bits(far, np.square(inverse).sum(), np.log(self.factor.diagonal()).sum(), d)
        far = [np.square((x - self.mean) / self.std).sum(1) for x in _chunks(test)]
        return bits | {"pixel_gaussian": _bits(far, np.sum(self.std**-2.0), np.log(self.std).sum(), d)}

    def draw(self, name: str, n: int, seed: int) -> UInt8[np.ndarray, "n *shape"]:
        """n images of the Gaussian `name`."""
        rng, d = np.random.default_rng(seed), len(self.mean)
        images = np.empty((n, d), np.uint8)
        for start in range(0, n, CHUNK):
            part = images[start : start + CHUNK]
            match name:
                case "gaussian":
                    x = rng.normal(size=(len(part), d)) @ self.factor.T
                case "pixel_gaussian":
                    x = rng.normal(size=(len(part), d)) * self.std
                case "pca_gaussian":
                    x = rng.normal(size=(len(part), self.components.shape[1])) @ self.components.T
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

"""Distances between two sets of feature vectors, in float64, whatever the features are."""

import math
from functools import cached_property

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int64
from scipy.spatial.distance import cdist

from pofx.base.errors import UserError

POINTS = 8  # sizes of a set from which its Frechet distance is extrapolated


class Target:
    """Vectors that several sets are compared with: their mean and covariance are computed once."""

    def __init__(self, vectors: Float[np.ndarray, "m d"]):
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    @cached_property
    def moments(self) -> tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]:
        x = self.vectors.astype(np.float64)
        mean = x.mean(0)
        x -= mean
        return mean, x.T @ x / (len(x) - 1)

    @cached_property
    def root(self) -> Float64[np.ndarray, "d d"]:
        """The symmetric root of the covariance."""
        values, vectors = scipy.linalg.eigh(self.moments[1])
        return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def named(key: str, what: str) -> str:
    """The name of a distance of another kind in the same features: fd_effnet, "test" -> fd_test_effnet; "": itself."""
    head, _, tail = key.partition("_")
    return "_".join(filter(None, (head, what, tail)))


def frechet(x: Float[np.ndarray, "n d"], y: Target) -> float:
    """Frechet distance between Gaussians fitted to two sets (Heusel et al. 2017, 1706.08500):

        |mean_x - mean_y|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2)

    The last trace is the sum of the roots of the eigenvalues of R Sx R, R = Sy^(1/2), or, with Sx = A'A, of A Sy A',
    which is smaller for few vectors. Both are symmetric, so that covariances may be singular.

    Raises:
        UserError: fewer than two vectors on a side.
    """
    if min(len(x), len(y)) < 2:
        raise UserError(f"a Frechet distance needs two images a side, got {len(x)} and {len(y)}: raise sample.n")
    mean, s = y.moments
    x = x.astype(np.float64)
    shift = x.mean(0) - mean
    a = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    inner = a @ s @ a.T if len(a) <= len(s) else y.root @ (a.T @ a) @ y.root
    eigenvalues = scipy.linalg.eigvalsh(inner, overwrite_a=True, check_finite=False)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()
    return float(np.square(shift).sum() + np.square(a).sum() + np.trace(s) - 2 * cross)


def extrapolated(x: Float[np.ndarray, "n d"], y: Target, seed: int) -> tuple[float, float] | None:
    """Frechet distance extrapolated to infinitely many of `x` (Chong and Forsyth 2020, 1911.07023).

    The distance of n vectors is about a + b/n: least squares through `POINTS` sizes from half of `x` to all, evenly
    spaced in 1/n, of random subsets.

    Returns:
        a, and its standard error in the fit: too small, as subsets share vectors. None where half of `x` are fewer than
        dimensions, since the curve is no line there.
    """
    if len(x) < 2 * x.shape[1]:
        return None
    import scipy.stats  # late: a third of a second, which most stages save

    rng = np.random.RandomState(seed % 2**32)
    inverse = np.linspace(2 / len(x), 1 / len(x), POINTS)
    values = [frechet(x[rng.choice(len(x), round(1 / part), replace=False)], y) for part in inverse]
    fit = scipy.stats.linregress(inverse, values)
    return float(fit.intercept), float(fit.intercept_stderr)


def kid(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], subsets: int, size: int, seed: int
) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018, 1801.01401): unbiased squared MMD with the kernel (a.b/d + 1)^3.

    Mean and standard deviation over `subsets` random pairs of subsets of `size` vectors each, the subsets that
    torch-fidelity draws from the same seed. The estimate may fall slightly below zero for equal distributions.

    Raises:
        UserError: a subset is larger than a set, or has fewer than two vectors.
    """
    check_subset(size, len(x), len(y))
    rng, values = np.random.RandomState(seed % 2**32), []
    for _ in range(subsets):
        a, b = (v[rng.choice(len(v), size, replace=False)].astype(np.float64) for v in (x, y))
        within = sum(k.sum() - np.trace(k) for k in (_kernel(a, a), _kernel(b, b)))
        values.append(within / (size * (size - 1)) - 2 * _kernel(a, b).mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(a: Float64[np.ndarray, "n d"], b: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    k = a @ b.T / a.shape[1] + 1
    return k * k * k


def nearest(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], k: int) -> Int64[np.ndarray, "n k"]:
    """Indices in `y` of the k vectors that are nearest to each of `x` by Euclidean distance, nearest first."""
    return np.argsort(cdist(x, y), 1, kind="stable")[:, :k]


def check_subset(size: int, *counts: int) -> None:
    """UserError unless subsets of `size` can be drawn from sets of these sizes."""
    if not 2 <= size <= min(counts):
        raise UserError(
            f"fid.kid_subset_size = {size} with {min(counts)} images: set it to 2..{min(counts)}, or raise sample.n"
        )

"""Distances between two sets of feature vectors, in float64. Pure functions of arrays, whatever the features are."""

import math
from functools import cached_property

import numpy as np
import scipy.linalg
from jaxtyping import Float, Float64, Int64
from scipy.spatial.distance import cdist

from pofx.base.errors import UserError

POINTS = 8  # sizes of a set from which its Frechet distance is extrapolated
PAIRS = 2**24  # most values of the kernel at a time: 128 MiB


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


def named(key: str, what: str) -> str:
    """The name of a distance of another kind in the same features: fd_effnet, "test" -> fd_test_effnet; "": itself."""
    head, _, tail = key.partition("_")
    return "_".join(filter(None, (head, what, tail)))


def frechet(x: Float[np.ndarray, "n d"], y: Target) -> float:
    """Frechet distance between Gaussians fitted to two sets (Heusel et al. 2017, 1706.08500):

        |mean_x - mean_y|^2 + tr Sx + tr Sy - 2 tr (Sx Sy)^(1/2)

    With any factor Sx = R'R the last trace is the sum of the roots of the eigenvalues of R Sy R', which is symmetric:
    no matrix square root, no complex numbers, and nothing is added to the diagonal where a covariance is singular.

    Raises:
        UserError: fewer than two vectors on a side.
    """
    if min(len(x), len(y)) < 2:
        raise UserError(f"a Frechet distance needs two images a side, got {len(x)} and {len(y)}: raise sample.n")
    if len(x) > len(y):
        x, y = y.vectors, Target(x)  # the factor of the fewer is the smaller
    return _frechet(x, *y.moments)


def extrapolated(x: Float[np.ndarray, "n d"], y: Target, seed: int) -> tuple[float, float] | None:
    """Frechet distance as it would be for infinitely many of `x` (Chong and Forsyth 2020, 1911.07023).

    The distance of n vectors is about a + b/n: least squares through `POINTS` sizes from half of `x` to all, evenly
    spaced in 1/n, of random subsets; `y` stays as it is.

    Returns:
        a, and the standard error that the fit gives it. Subsets share vectors, so its true error is larger. None where
        half of `x` are fewer than dimensions: the curve is no line there.
    """
    if len(x) < 2 * x.shape[1]:
        return None
    import scipy.stats  # half a second, which the stages that never come here save

    rng = np.random.RandomState(seed % 2**32)
    inverse = np.linspace(2 / len(x), 1 / len(x), POINTS)
    found = [_frechet(x[rng.choice(len(x), round(1 / part), replace=False)], *y.moments) for part in inverse]
    fit = scipy.stats.linregress(inverse, found)
    return float(fit.intercept), float(fit.intercept_stderr)


def _frechet(x: Float[np.ndarray, "n d"], mean: Float64[np.ndarray, " d"], s: Float64[np.ndarray, "d d"]) -> float:
    """Distance of a set to a Gaussian."""
    x = x.astype(np.float64)
    mean_x = x.mean(0)
    x = (x - mean_x) / math.sqrt(len(x) - 1)
    traces = np.square(x).sum() + np.trace(s)
    r = _factor(x)
    eigenvalues = scipy.linalg.eigvalsh(r @ s @ r.T, overwrite_a=True, check_finite=False)
    cross = np.sqrt(np.maximum(eigenvalues, 0)).sum()  # rounding leaves zeros at about -1e-16 of the largest
    return float(np.square(mean_x - mean).sum() + traces - 2 * cross)


def _factor(x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, "k d"]:
    """R with R'R = x'x: `x` itself if it has no more rows than columns, else a Cholesky factor of x'x. Its pivots go in
    falling order and end where rounding begins, so that it exists for singular matrices too (dead features)."""
    if len(x) <= x.shape[1]:
        return x
    s = x.T @ x
    triangle, order, rank, _ = scipy.linalg.lapack.dpstrf(s, tol=np.finfo(np.float64).eps * s.diagonal().max())
    r = np.zeros_like(s)
    r[:, order - 1] = np.triu(triangle)
    return r[:rank]


def kid(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], subsets: int, size: int, seed: int
) -> tuple[float, float]:
    """Kernel distance (Binkowski et al. 2018, 1801.01401): unbiased squared MMD with the kernel (a.b/d + 1)^3.

    Args:
        subsets: random pairs of subsets to average over.
        size: vectors in a subset.
        seed: of the choice of subsets. NumPy's RandomState is frozen, so a seed means the same subsets in every
            version; torch-fidelity draws in the same way, and equal seeds give equal numbers.

    Returns:
        Mean and standard deviation over the subsets. The estimate may fall slightly below zero for equal distributions.

    Raises:
        UserError: a subset is larger than a set, or has fewer than two vectors.
    """
    check_subset(size, len(x), len(y))
    rng = np.random.RandomState(seed % 2**32)
    chosen = [[rng.choice(len(v), size, replace=False) for v in (x, y)] for _ in range(subsets)]
    rows, columns = np.swapaxes(chosen, 0, 1)
    within = sum(_kernel_sums(v, v, i, i) - _kernel_diagonals(v, i) for v, i in ((x, rows), (y, columns)))
    values = within / (size * (size - 1)) - 2 * _kernel_sums(x, y, rows, columns) / size**2
    return float(values.mean()), float(values.std())


def nearest(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], k: int) -> Int64[np.ndarray, "n k"]:
    """Indices in `y` of the k vectors that are nearest to each of `x` by Euclidean distance, nearest first."""
    return np.argsort(cdist(x, y), 1, kind="stable")[:, :k]


def check_subset(size: int, *counts: int) -> None:
    """UserError unless subsets of `size` can be drawn from sets of these sizes."""
    if not 2 <= size <= min(counts):
        raise UserError(
            f"fid.kid_subset_size = {size} with {min(counts)} images: set it to 2..{min(counts)}, or raise sample.n"
        )


def _kernel_sums(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"], i: Int64[np.ndarray, "s k"], j: Int64[np.ndarray, "s k"]
) -> Float64[np.ndarray, " s"]:
    """Sums of the kernel over all pairs of x[i] and y[j], subset by subset."""
    if len(x) * len(y) > min(i.size * j.shape[1], PAIRS):
        return np.array([_kernel(x[rows], y[columns]).sum() for rows, columns in zip(i, j, strict=True)])
    # The subsets overlap so much that fewer products are taken of all pairs, each once.
    first, second = (np.zeros((len(chosen), len(v))) for chosen, v in ((i, x), (j, y)))
    np.put_along_axis(first, i, 1, 1)
    np.put_along_axis(second, j, 1, 1)
    return (first @ _kernel(x, y) * second).sum(1)


def _kernel_diagonals(x: Float[np.ndarray, "n d"], i: Int64[np.ndarray, "s k"]) -> Float64[np.ndarray, " s"]:
    """Sums of the kernel of each of x[i] with itself."""
    return ((np.square(x.astype(np.float64)).sum(1) / x.shape[1] + 1) ** 3)[i].sum(1)


def _kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    left = a.astype(np.float64)
    k = left @ (left if b is a else b.astype(np.float64)).T  # NumPy takes half of a product with itself
    k *= 1 / a.shape[1]
    k += 1
    cube = k * k
    cube *= k
    return cube

"""Samples beside real images, neighbour by neighbour: fidelity and variety apart, copies, duplicates.

A neighbour is never the vector itself, but an equal one counts.
"""

import numpy as np
from jaxtyping import Float
from sklearn.metrics import pairwise_distances_chunked
from sklearn.neighbors import NearestNeighbors

from pofx.base.errors import UserError

K, K_DENSITY = 3, 5  # neighbours: Kynkaanniemi et al. 2019; Naeem et al. 2020
MEMORY = 256  # MiB of distances at a time
NEAR = 0.01  # share of test images that lie nearer than "near"


def evaluate(real: Float[np.ndarray, "n d"], fake: Float[np.ndarray, "m d"]) -> dict[str, float]:
    """How far two sets cover each other, where a set is the union of balls around its vectors, each as large as the
    distance to its k-th neighbour.

    Returns:
        precision: share of `fake` inside the balls of `real` (Kynkaanniemi et al. 2019, 1904.06991; k = 3).
        recall: share of `real` inside the balls of `fake`.
        density: balls of `real` that hold a vector of `fake`, over k, on average; above 1 where `fake` crowds
            (Naeem et al. 2020, 2002.09797; k = 5).
        coverage: share of the balls of `real` that hold one of `fake`.
        All rise with the number of vectors: give both sides as many.

    Raises:
        UserError: no more vectors on a side than neighbours.
    """
    if min(len(real), len(fake)) <= K_DENSITY:
        raise UserError(
            f"precision and recall need more than {K_DENSITY} images a side: raise sample.n, fid.n_reference"
        )
    radii = _neighbours(real, None, K_DENSITY)
    reach, small, large = _neighbours(fake, None, K)[:, -1:], radii[:, K - 1], radii[:, -1]
    precise = dense = 0
    recalled, nearest, start = np.zeros(len(real), bool), np.full(len(real), np.inf), 0
    for far in pairwise_distances_chunked(fake.astype(np.float64), real.astype(np.float64), working_memory=MEMORY):
        precise += (far <= small).any(1).sum()
        dense += (far <= large).sum()
        recalled |= (far <= reach[start : start + len(far)]).any(0)
        nearest = np.minimum(nearest, far.min(0))
        start += len(far)
    return {
        "precision": float(precise / len(fake)),
        "recall": float(recalled.mean()),
        "density": float(dense / (K_DENSITY * len(fake))),
        "coverage": float((nearest <= large).mean()),
    }


def copies(
    fake: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], train: Float[np.ndarray, "t d"]
) -> dict[str, float]:
    """Whether samples lie nearer to training images than images do that no model has seen.

    Returns:
        nearest_ratio: median distance of `fake` to the nearest of `train`, over that of `test`. Well below 1: copies,
            or samples of the commonest images alone. Above: samples that are unlike any image.
        copied: share of `fake` nearer to `train` than all but a hundredth of `test`: 0.01 by chance.
    """
    near, usual = (_neighbours(x, train, 1)[:, 0] for x in (fake, test))
    return {
        "nearest_ratio": float(np.median(near) / np.median(usual)),
        "copied": float((near < np.quantile(usual, NEAR)).mean()),
    }


def duplicates(fake: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"]) -> float:
    """Share of `fake` whose nearest other sample is nearer than the nearest other test image is for all but a hundredth
    of `test`: 0.01 by chance, 1 for a model that draws one image."""
    n = min(len(fake), len(test))  # of both as many: neighbours are nearer among more
    near, usual = (_neighbours(x[:n], None, 1)[:, 0] for x in (fake, test))
    return float((near < np.quantile(usual, NEAR)).mean())


def _neighbours(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"] | None, k: int) -> Float[np.ndarray, "n k"]:
    """Distances of each of `x` to its k nearest of `y`, or of the others in `x`; nearest first."""
    x, y = (v if v is None else v.astype(np.float64) for v in (x, y))
    search = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(x if y is None else y)
    return search.kneighbors(x if y is not None else None)[0]

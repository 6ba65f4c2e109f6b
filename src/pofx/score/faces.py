"""The nearest possible face to an image: the exact metric that smileys allow, since every possible image is known.

The distance is the root of the mean squared difference over all pixels and channels, in grey levels. It is searched in
two steps. On images of 16 x 16 every kind is compared at every pose of a grid: for given areas of ground, skin, white
and ink an image is linear in their colours, so that products with these areas serve all of them. The poses of the best
kinds are then refined at full size by Levenberg and Marquardt's method. The result is a bound from above: for images
that are nearly faces it is the distance to the nearest one (tests compare it with all kinds refined).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

from pofx.base.images import Images
from pofx.data import smileys
from pofx.data.smileys import COUNTS, HELD_OUT, HIGH, LOW

VALID = 8.0  # grey levels: far above test images, below what is blurred by a pixel of 32, mixed or half erased
COARSE = 16  # pixels a side of the first step
GRID = 4, 4, 2  # intervals of x, y and radius in the first step: a pixel each
CANDIDATES = 4  # kinds that are refined
STEPS = 2, 5  # of the refinement: for all candidates, and for the best one
DELTA = 0.05  # pixels, of the derivatives by differences
CHUNK = 25  # images at a time
KINDS = np.indices(COUNTS).reshape(len(COUNTS), -1).T  # (864, 5): the factors of every kind


@dataclass(frozen=True)
class Nearest:
    """The nearest face of each image."""

    kind: Int[np.ndarray, " n"]  # of 864, see smileys.COUNTS
    pose: Float64[np.ndarray, "n 3"]  # x, y and radius, in pixels of an image of 32
    error: Float64[np.ndarray, " n"]  # root mean square, in grey levels


def known(labels: Mapping[str, np.ndarray]) -> bool:
    """Whether data/labels.npz is of smileys."""
    return "factor_names" in labels and tuple(labels["factor_names"]) == smileys.FACTORS


def evaluate(draws: Sequence[Images]) -> dict[str, Any]:
    """What is measured of one set of images, or of several drawn alike; the numbers of each under <key>_seeds.

    Returns:
        face_error: median distance to the nearest face, in grey levels.
        valid: share of images nearer than VALID.
        kinds_tv: total variation between the factors of the nearest faces, of all images, and even ones; mean over the
            five factors of a kind.
        held_out: of the valid images the share of kinds that no training image has; missing where none is valid.
    """
    each = [_summary(nearest(images)) for images in draws]
    metrics: dict[str, Any] = dict(each[0])
    if len(each) > 1:
        metrics |= {f"{key}_seeds": [row[key] for row in each] for key in each[0] if all(key in row for row in each)}
    return metrics


def _summary(found: Nearest) -> dict[str, float]:
    valid = found.error < VALID
    kinds = KINDS[found.kind].T
    shares = [np.bincount(k, minlength=count) / len(k) for k, count in zip(kinds, COUNTS, strict=True)]
    apart = [np.abs(share - 1 / len(share)).sum() / 2 for share in shares]
    row = {"face_error": float(np.median(found.error)), "valid": float(valid.mean()), "kinds_tv": float(np.mean(apart))}
    return row | ({"held_out": float(np.isin(found.kind[valid], HELD_OUT).mean())} if valid.any() else {})


def nearest(images: Images) -> Nearest:
    """The nearest faces to images of 16, 32 or 64 pixels a side."""
    parts = [_nearest(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
    return Nearest(*(np.concatenate([getattr(part, key) for part in parts]) for key in ("kind", "pose", "error")))


def _nearest(images: Images) -> Nearest:
    n, target = len(images), images.astype(float)
    kind, pose = candidates(images, CANDIDATES)
    k, rows = kind.shape[1], np.repeat(np.arange(n), kind.shape[1])
    pose, error = refine(target, rows, kind.ravel(), pose.reshape(-1, 3), STEPS[0])
    best = np.arange(n) * k + error.reshape(n, k).argmin(1)
    kind, pose = kind.ravel()[best], pose[best]
    pose, error = refine(target, np.arange(n), kind, pose, STEPS[1])
    return Nearest(kind, pose, np.sqrt(error))


def candidates(images: Images, most: int) -> tuple[Int[np.ndarray, "n k"], Float64[np.ndarray, "n k 3"]]:
    """The `most` kinds that are nearest on a grid of poses, and the pose of each."""
    poses, areas, gram = bank(images.shape[-1])
    x = pooled(images.astype(np.float32)).reshape(len(images), 3, -1)
    colours = smileys.palette(KINDS[: 24 * 9 : 9]).astype(np.float32)  # of every skin and ground
    products = x.reshape(-1, COARSE**2) @ areas.reshape(-1, COARSE**2).T
    products = products.reshape(len(x), 3, -1, 4).transpose(0, 2, 3, 1)  # (n, q, 4, 3)
    far = products.reshape(-1, 12) @ (-2 * colours.reshape(24, 12).T)  # |x - face|^2 - |x|^2 = |face|^2 - 2 x face
    far = far.reshape(len(x), -1, 24)
    far += gram.reshape(-1, 16) @ (colours @ colours.transpose(0, 2, 1)).reshape(24, 16).T
    far = far.reshape(len(x), len(poses), -1)
    best = np.argpartition(far.min(1), most, 1)[:, :most]  # of head, eyes, mouth, skin and ground, in this order
    at = np.take_along_axis(far, best[:, None], 2).argmin(1)
    head, eyes, mouth, skin, ground = np.unravel_index(best, [COUNTS[i] for i in (0, 3, 4, 1, 2)])
    return np.ravel_multi_index((head, skin, ground, eyes, mouth), COUNTS), poses[at]


@cache
def bank(side: int) -> tuple[Float64[np.ndarray, "p 3"], Float32[np.ndarray, "q 4 d"], Float32[np.ndarray, "q 4 4"]]:
    """The grid of poses; areas of ground, skin, white and ink at each pose with each head, eyes and mouth, in this
    order, as images of COARSE pixels a side; and the products of these areas."""
    axes = [np.linspace(low, high, parts + 1) for low, high, parts in zip(LOW, HIGH, GRID, strict=True)]
    poses = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    shapes = np.indices((COUNTS[0], *COUNTS[3:])).reshape(3, -1)  # heads, eyes, mouths
    detail, each = min(side, 2 * COARSE), [np.tile(pose, (shapes.shape[1], 1)) for pose in poses]
    areas = np.concatenate([pooled(smileys.cover(*shapes, pose, detail)) for pose in each])
    areas = areas.reshape(-1, 4, COARSE**2).astype(np.float32)
    return poses, areas, areas @ areas.transpose(0, 2, 1)


def pooled(x: Float[np.ndarray, "n c side side"]) -> Float[np.ndarray, "n c 16 16"]:
    """Means of squares."""
    n, c, side, _ = x.shape
    return x.reshape(n, c, COARSE, side // COARSE, COARSE, side // COARSE).mean((3, 5))


def refine(
    target: Float64[np.ndarray, "n 3 side side"],
    rows: Int[np.ndarray, " m"],
    kind: Int[np.ndarray, " m"],
    pose: Float64[np.ndarray, "m 3"],
    steps: int,
) -> tuple[Float64[np.ndarray, "m 3"], Float64[np.ndarray, " m"]]:
    """Lower the distance of target[rows] to the faces of `kind` at `pose`; poses, and mean squared differences.

    Levenberg and Marquardt (1963): each step solves (J'J + damping diag J'J) step = J' residual.
    """
    head, _, _, eyes, mouth = KINDS[kind].T
    colours, side = smileys.palette(KINDS[kind]).transpose(0, 2, 1), target.shape[-1]

    def left(pose: Float64[np.ndarray, "m 3"]) -> Float64[np.ndarray, "m d"]:
        areas = smileys.cover(head, eyes, mouth, pose, side).reshape(len(rows), 4, side**2)
        return (target[rows].reshape(len(rows), 3, -1) - colours @ areas).reshape(len(rows), -1)

    residual, damping = left(pose), np.full(len(rows), 1e-2)
    error = np.square(residual).mean(1)
    for _ in range(steps):
        inwards = np.where(pose + DELTA > HIGH, -DELTA, DELTA)
        slopes = [(residual - left(pose + inwards * axis)) / (inwards @ axis)[:, None] for axis in np.eye(3)]
        jacobian = np.stack(slopes, 1)
        normal = jacobian @ jacobian.transpose(0, 2, 1)
        normal += damping[:, None, None] * normal * np.eye(3)
        step = np.linalg.solve(normal, jacobian @ residual[:, :, None])[..., 0]
        trial = np.clip(pose + step, LOW, HIGH)
        after = left(trial)
        lower = np.square(after).mean(1) < error
        pose, residual = np.where(lower[:, None], trial, pose), np.where(lower[:, None], after, residual)
        error = np.square(residual).mean(1)
        damping = np.clip(np.where(lower, damping / 5, damping * 10), 1e-6, 1e3)
    return pose, error

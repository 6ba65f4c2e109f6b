"""The default data set: one clean, antialiased face on a dark ground, RGB, from a seed; 16, 32 or 64 pixels a side.

A face is one of 864 kinds, four heads x six skins x four grounds x three pairs of eyes x three mouths, at a continuous
place and radius. Lengths are in pixels of an image of 32, whatever the side. Every face is mirror-symmetric, so that a
flipped face is a face. A tenth of the kinds, always the same, is in no training image; test images are of all kinds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from jaxtyping import Float32, Float64, Int, UInt8

KINDS = {
    "head": ("disc", "square", "triangle", "hexagon"),
    "skin": ("red", "orange", "yellow", "green", "blue", "pink"),
    "ground": ("navy", "teal", "plum", "brown"),
    "eyes": ("dots", "white", "bars"),
    "mouth": ("grin", "flat", "open"),
}
COUNTS = tuple(map(len, KINDS.values()))
FACTORS = (*KINDS, "x", "y", "radius")
LABEL = "mouth"
CLASSES = KINDS[LABEL]
SKINS = np.array([(240, 84, 79), (247, 148, 51), (250, 214, 64), (96, 200, 96), (88, 190, 240), (226, 130, 220)], float)
GROUNDS = np.array([(28, 34, 64), (24, 70, 76), (70, 36, 78), (84, 58, 44)], float)
WHITE, INK = np.array([250.0, 250, 250]), np.array([26.0, 22, 30])
LOW, HIGH = np.array([14.0, 14, 11]), np.array([18.0, 18, 13])  # of x, y and radius: the whole face is in the frame

SHUFFLED = np.random.default_rng(0).permutation(np.prod(COUNTS))  # the kinds, whatever the seed of the data
TRAINED, HELD_OUT = np.sort(SHUFFLED[len(SHUFFLED) // 10 :]), np.sort(SHUFFLED[: len(SHUFFLED) // 10])

Images = UInt8[np.ndarray, "n 3 side side"]
Factors = Float32[np.ndarray, "n 8"]
Kinds = Int[np.ndarray, "n 5"]  # indices into KINDS
Pose = Float64[np.ndarray, "n 3"]  # x, y and radius
Choice = Int[np.ndarray, " n"]
Field = Float64[np.ndarray, "n _ _"]  # a number for every pixel, or for every column, row or image


@dataclass(frozen=True)
class Smileys:
    seed: Annotated[int, Ge(0)] = 0
    n_train: Annotated[int, Ge(5)] = 20_000  # at least one in each of the five files
    n_test: Annotated[int, Ge(1)] = 4_000
    size: Literal[16, 32, 64] = 32  # pixels a side


def generate(n: int, seed: int, split: int = 0, side: int = 32) -> tuple[Images, Factors]:
    """The first `n` images of a split (0 train, 1 test) and their factors."""
    f = factors(n, seed, split)
    return render(f, side), f


def factors(n: int, seed: int, split: int) -> Factors:
    """Factors of the first `n` images of a split (0 train, 1 test); a larger `n` only adds rows.

    Columns in the order of FACTORS, the first five indices into KINDS. Kinds and poses are uniform and independent;
    those of training are never of HELD_OUT.
    """
    u = np.random.default_rng((seed, split)).uniform(size=(n, 4))
    kinds = TRAINED if split == 0 else np.arange(len(SHUFFLED))
    kind = kinds[(u[:, 0] * len(kinds)).astype(int)]
    return np.column_stack([*np.unravel_index(kind, COUNTS), LOW + (HIGH - LOW) * u[:, 1:]]).astype(np.float32)


def render(f: Factors, side: int = 32) -> Images:
    """The images of the given factors.

    In float64, and by operations that IEEE 754 rounds alike everywhere: machines agree to the byte.
    """
    return np.rint(paint(f[:, :5].astype(int), f[:, 5:].astype(float), side)).astype(np.uint8)


def paint(kinds: Kinds, pose: Pose, side: int) -> Float64[np.ndarray, "n 3 side side"]:
    """The images before rounding, in grey levels: every pixel is the mean of the colours that cover it."""
    head, _, _, eyes, mouth = kinds.T
    colours, areas = palette(kinds)[..., None, None], cover(head, eyes, mouth, pose, side)
    return sum(colours[:, k] * areas[:, k, None] for k in range(4))


def palette(kinds: Kinds) -> Float64[np.ndarray, "n 4 3"]:
    """The colours of ground, skin, white and ink."""
    _, skin, ground, _, _ = kinds.T
    return np.stack([GROUNDS[ground], SKINS[skin], np.tile(WHITE, (len(kinds), 1)), np.tile(INK, (len(kinds), 1))], 1)


def cover(head: Choice, eyes: Choice, mouth: Choice, pose: Pose, side: int) -> Float64[np.ndarray, "n 4 side side"]:
    """What share of every pixel is ground, skin, white and ink."""
    pixels, (x, y, r) = (np.arange(side) + 0.5) * (32 / side), pose.T[..., None, None]  # centres of pixels
    x, y = pixels - x, pixels[:, None] - y
    eye = np.abs(x) - EYE_X[head][:, None, None] * r, y - EYE_Y[head][:, None, None] * r, r  # both: |x| is the mirror
    lips = x, y - MOUTH_Y[head][:, None, None] * r, r
    places = (head, HEADS, (x, y, r)), (eyes, EYES, eye), (eyes, EYEBALLS, eye), (mouth, MOUTHS, lips)
    distances = (_chosen(choice, shapes, *at) for choice, shapes, at in places)
    face, pupils, balls, mouths = (np.clip(0.5 - d * (side / 32), 0, 1) for d in distances)
    white, ink = np.maximum(balls - pupils, 0), pupils + mouths
    return np.stack([1 - face, face - white - ink, white, ink], 1)


def _chosen(choice: Choice, shapes: Sequence[Callable], x: Field, y: Field, r: Field) -> Field:
    """Signed distances, negative inside, of all pixels to each row's own shape."""
    distance = np.empty(np.broadcast_shapes(x.shape, y.shape))
    for k, shape in enumerate(shapes):
        rows = choice == k
        distance[rows] = shape(x[rows], y[rows], r[rows])
    return distance


def _disc(x: Field, y: Field, radius: Field) -> Field:
    return np.sqrt(x * x + y * y) - radius


def _box(x: Field, y: Field, wide: Field, high: Field) -> Field:
    """Half as wide and as high; outside the corners it is less than the distance, which no pixel shows."""
    return np.maximum(np.abs(x) - wide, np.abs(y) - high)


def _square(x: Field, y: Field, r: Field) -> Field:
    """Of half the side 0.86 r, rounded by 0.2 r."""
    x, y = np.abs(x) - 0.66 * r, np.abs(y) - 0.66 * r
    return _disc(np.maximum(x, 0), np.maximum(y, 0), 0.2 * r) + np.minimum(np.maximum(x, y), 0)


def _triangle(x: Field, y: Field, r: Field) -> Field:
    """Corners at (0, -1) r and (+-1, 0.85) r."""
    return np.maximum((1.85 * np.abs(x) - y - r) / math.sqrt(1.85 * 1.85 + 1), y - 0.85 * r)


def _hexagon(x: Field, y: Field, r: Field) -> Field:
    """Regular, with corners at (+-1, 0) r."""
    high, slope = np.abs(y), math.sqrt(0.75)
    return np.maximum(slope * np.abs(x) + 0.5 * high, high) - slope * r


def _nothing(x: Field, y: Field, r: Field) -> Field:
    return np.full(np.broadcast_shapes(x.shape, y.shape), np.inf)


STROKE = 0.092  # half the width of a bar, of a radius of 11 a pixel
HEADS = (_disc, _square, _triangle, _hexagon)
EYES = (
    lambda x, y, r: _disc(x, y, 0.15 * r),
    lambda x, y, r: _disc(x, y, 0.11 * r),
    lambda x, y, r: _box(x, y, 0.2 * r, STROKE * r),
)
EYEBALLS = (_nothing, lambda x, y, r: _disc(x, y, 0.24 * r), _nothing)
MOUTHS = (
    lambda x, y, r: np.maximum(_disc(x, y + 0.17 * r, 0.4 * r), -y - 0.17 * r),  # the lower half of a disc
    lambda x, y, r: _box(x, y, 0.32 * r, STROKE * r),
    lambda x, y, r: _disc(x, y, 0.17 * r),
)
# Centres of the right eye and of the mouth, of each head, in radii: a triangle has room for them further down.
EYE_X, EYE_Y = np.array([0.36, 0.36, 0.27, 0.36]), np.array([-0.2, -0.2, 0.12, -0.2])
MOUTH_Y = np.array([0.4, 0.4, 0.57, 0.4])

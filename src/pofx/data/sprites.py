"""Shapes for disentanglement: one coloured, antialiased shape on a two-colour gradient, 32x32 RGB, from a seed.

Every image is a function of its factors of variation, which are saved for metrics of disentanglement. Factors are
independent and uniform, also the rotation of the disc and the ring, where it is invisible.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image, ImageDraw

SHAPES = ("disc", "square", "triangle", "star", "cross", "ring")
LABEL, CLASSES = "shape", SHAPES
FACTORS = ("shape", "hue", "size", "rotation", "x", "y", "background", "slope")
SIDE, SUPER = 32, 8  # pixels, and subpixels a pixel for the antialiasing


@dataclass(frozen=True)
class Sprites:
    seed: Annotated[int, Ge(0)] = 0
    n_train: Annotated[int, Ge(5)] = 20_000  # at least one in each of the five files
    n_test: Annotated[int, Ge(1)] = 4_000


def generate(n: int, seed: int, split: int = 0) -> tuple[UInt8[np.ndarray, "n 3 32 32"], Float32[np.ndarray, "n 8"]]:
    """The first `n` images of a split (0 train, 1 test) and their factors."""
    f = factors(n, seed, split)
    return render(f), f


def factors(n: int, seed: int, split: int) -> Float32[np.ndarray, "n 8"]:
    """Factors of the first `n` images of a split (0 train, 1 test); a larger `n` only adds rows.

    Columns in the order of FACTORS: shape 0..5, angles in radians 0..2 pi, the rest in 0..1.
    """
    f = np.random.default_rng((seed, split)).uniform(size=(n, len(FACTORS)))
    f[:, 0] = np.floor(f[:, 0] * len(SHAPES))
    f[:, [3, 7]] *= 2 * math.pi
    return f.astype(np.float32)


def render(f: Float32[np.ndarray, "n 8"]) -> UInt8[np.ndarray, "n 3 32 32"]:
    """The images of the given factors. In float64, so that another machine's last bit does not change a byte."""
    shape, hue, size, turn, cx, cy, back, slope = f.astype(np.float64).T
    radius = 6.5 + 5.5 * size
    centre = [radius + (SIDE - 2 * radius) * c for c in (cx, cy)]  # the whole shape stays in the frame
    cover = np.stack([_mask(int(s), *row) for s, *row in zip(shape, *centre, radius, turn, strict=True)])

    # A gradient along `slope`, from a dark to a lighter tone of the background's hue.
    axis = (np.arange(SIDE) - (SIDE - 1) / 2) / SIDE
    along = np.cos(slope)[:, None, None] * axis[None, None, :] + np.sin(slope)[:, None, None] * axis[None, :, None]
    dark, light = _rgb(back, 0.55, 0.25), _rgb((back + 0.08) % 1, 0.35, 0.7)
    mix = (along / math.sqrt(2) + 0.5)[:, None]
    ground = dark[:, :, None, None] * (1 - mix) + light[:, :, None, None] * mix
    ink = _rgb(hue, 0.85, 0.98)[:, :, None, None]
    image = ground + (ink - ground) * cover[:, None]
    return np.rint(image * 255).astype(np.uint8)


def _mask(shape: int, x: float, y: float, r: float, turn: float) -> Float64[np.ndarray, "32 32"]:
    """Coverage of every pixel by the shape, in 0..1."""
    sheet = Image.new("L", (SIDE * SUPER, SIDE * SUPER))
    draw = ImageDraw.Draw(sheet)
    kind = SHAPES[shape]
    if kind in ("disc", "ring"):
        draw.ellipse([(x - r) * SUPER, (y - r) * SUPER, (x + r) * SUPER, (y + r) * SUPER], fill=255)
        if kind == "ring":
            q = 0.55 * r
            draw.ellipse([(x - q) * SUPER, (y - q) * SUPER, (x + q) * SUPER, (y + q) * SUPER], fill=0)
    else:
        c, s = math.cos(turn), math.sin(turn)
        corners = [((x + r * (u * c - v * s)) * SUPER, (y + r * (u * s + v * c)) * SUPER) for u, v in OUTLINES[kind]]
        draw.polygon(corners, fill=255)
    return np.asarray(sheet.reduce(SUPER), dtype=np.float64) / 255


def _regular(n: int, *radii: float) -> list[tuple[float, float]]:
    """Corners of a regular figure with `n` points, on circles of the given radii in turn."""
    turns = [2 * math.pi * k / (n * len(radii)) for k in range(n * len(radii))]
    return [(r * math.cos(a), r * math.sin(a)) for r, a in zip(radii * n, turns, strict=True)]


def _cross(arm: float = 0.33) -> list[tuple[float, float]]:
    a, b = arm, math.sqrt(1 - arm * arm)
    return [(a, b), (a, a), (b, a), (b, -a), (a, -a), (a, -b), (-a, -b), (-a, -a), (-b, -a), (-b, a), (-a, a), (-a, b)]


OUTLINES = {"square": _regular(4, 1.0), "triangle": _regular(3, 1.0), "star": _regular(5, 1.0, 0.42), "cross": _cross()}


def _rgb(hue: Float64[np.ndarray, " n"], saturation: float, value: float) -> Float[np.ndarray, "n 3"]:
    """HSV to RGB, hue in 0..1, by the piecewise-linear form (k = (n + 6h) mod 6)."""
    k = (np.array([5.0, 3.0, 1.0])[None] + 6 * hue[:, None]) % 6
    return value * (1 - saturation * np.clip(np.minimum(k, 4 - k), 0, 1))

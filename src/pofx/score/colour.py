"""Colours of a set of images beside those of another: the cheapest alarm there is, and one that the eye overlooks."""

import numpy as np
from jaxtyping import Float64, UInt8


def means(images: UInt8[np.ndarray, "n 3 h w"]) -> Float64[np.ndarray, "n 3"]:
    """Mean colour of every image, in grey levels."""
    return images.mean((2, 3), dtype=np.float64)


def shift(x: Float64[np.ndarray, "n 3"], y: Float64[np.ndarray, "m 3"]) -> list[float]:
    """How many standard errors the mean colour of `x` lies above that of `y`, channel by channel, from the `means` of
    both: within -2..2 by chance. The same shift of colour counts for more, the more images there are."""
    error = np.sqrt(x.var(0, ddof=1) / len(x) + y.var(0, ddof=1) / len(y))
    return ((x.mean(0) - y.mean(0)) / error).tolist()


def saturated(images: UInt8[np.ndarray, "_ 3 h w"]) -> float:
    """Share of values at an end of the range, where chains that run away end up."""
    return float(((images == 0) | (images == 255)).mean())

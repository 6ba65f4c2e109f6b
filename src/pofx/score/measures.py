"""What is measured of a set of images, whoever drew them: one list for models, baselines and real images."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8

from pofx.score import colour, distances, manifold
from pofx.score.distances import Target
from pofx.score.extractor import Extractor, Fid

Images = UInt8[np.ndarray, "n 3 h w"]
Features = Float[np.ndarray, "_ d"]
Keys = tuple[str, str, str]
MOST = 10_000  # images a side of precision, recall, density and coverage: their cost is quadratic


def against_train(
    images: Images,
    features: Features,
    train: Target,
    colours: Float64[np.ndarray, "m 3"],
    keys: Keys,
    cfg: Fid,
    seed: int,
) -> dict[str, Any]:
    """Distances to training images under the names `keys`, the Frechet distance extrapolated to infinitely many images
    (where there are enough), precision, recall, density and coverage with equal numbers on both sides, the shift of
    colour against `colours` (the means of training images) and the share of saturated values."""
    size = min(cfg.kid_subset_size, len(features), len(train))
    found: dict[str, Any] = distances.compare(features, train, keys, cfg.kid_subsets, size, seed)
    if (limit := distances.extrapolated(features, train, seed)) is not None:
        inf = distances.named(keys[0], "inf")
        found |= dict(zip((inf, f"{inf}_stderr"), limit, strict=True))
    n = sides(features, train)
    found |= manifold.evaluate(train.vectors[:n], features[:n])
    return found | {
        "colour_shift": colour.shift(colour.means(images), colours),
        "saturated": colour.saturated(images),
    }


def over_seeds(
    first: dict[str, Any], further: Iterable[Features], train: Target, keys: Keys, cfg: Fid, seed: int
) -> dict[str, list[float]]:
    """Frechet distance and KID of every draw of the same row, as lists under `<key>_seeds`: those in `first`, by
    `against_train`, and those of `further` draws, against the same subsets of `train`. Nothing where there are none."""
    found = {key: [first[key]] for key in keys[:2]}
    for features in further:
        size = min(cfg.kid_subset_size, len(features), len(train))
        again = distances.compare(features, train, keys, cfg.kid_subsets, size, seed)
        for key, values in found.items():
            values.append(again[key])
    return {f"{key}_seeds": values for key, values in found.items() if len(values) > 1}


def against_test(features: Features, train: Target, test: Target, keys: Keys, cfg: Fid, seed: int) -> dict[str, Any]:
    """Distances to test images, under names of their own; and what test images are the yardstick of: copies of training
    images, duplicates among samples."""
    names = tuple(distances.named(key, "test") for key in keys)
    size = min(cfg.kid_subset_size, len(features), len(test))
    found: dict[str, Any] = distances.compare(features, test, names, cfg.kid_subsets, size, seed)
    found |= manifold.copies(features, test.vectors, train.vectors)
    return found | {"duplicates": manifold.duplicates(features, test.vectors)}


def by_metric(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Row -> metric -> value, turned into metric -> row -> value, as files of metrics have it."""
    keys = dict.fromkeys(key for found in rows.values() for key in found)
    return {key: {row: found[key] for row, found in rows.items() if key in found} for key in keys}


def sides(features: Features | Target, train: Target) -> int:
    """Images a side of precision, recall, density and coverage."""
    return min(len(features), len(train), MOST)


def protocol(
    features: Features | Target,
    train: Target,
    test: Target,
    net: Extractor,
    cfg: Fid,
    seeds: int,
    what: str = "images",
) -> dict[str, Any]:
    """How `against_train`, `against_test` and `over_seeds` measured: what stands beside every row."""
    subset = min(cfg.kid_subset_size, len(features), len(train))
    return {
        "n": len(features),
        "n_reference": len(train),
        "n_test": len(test),
        "n_manifold": sides(features, train),
        "seeds": seeds,
        "reference": f"train, {len(train):,} {what}",
        "extractor": net.name,
        "kid_subsets": cfg.kid_subsets,
        "kid_subset_size": subset,
        "kid_test_subset_size": min(subset, len(test)),
    }

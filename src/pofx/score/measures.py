"""What is measured of a set of images, whoever drew them: one list for models, baselines and real images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8

from pofx.base.images import Batches, Images
from pofx.base.progress import Bar
from pofx.score import distances, faces, manifold
from pofx.score.distances import Target
from pofx.score.extractor import Extractor, Fid

Features = Float[np.ndarray, "_ d"]
Metrics = dict[str, Any]
MOST = 10_000  # images a side of precision, recall, density and coverage: their cost is quadratic


@dataclass(frozen=True)
class Reference:
    """Training images in the features of an extractor, and how sets of images are compared with them."""

    net: Extractor
    cfg: Fid
    seed: int
    train: Target

    @property
    def batches(self) -> Batches:
        return Batches(self.cfg.batch, self.net.device)

    def features(self, images: Images, label: str) -> Features:
        """Those of `images`; `label` names the set on the progress bar."""
        return self.net.features(images, self.cfg.batch, label)

    def distances(self, features: Features, target: Target | None = None, what: str = "") -> Metrics:
        """Frechet distance, KID and KID's spread to `target`, by default the training images; `what` goes into their
        names: "test" gives fd_test_effnet."""
        target = target or self.train
        size = self.subset(len(features), len(target))
        kid = distances.kid(features, target.vectors, self.cfg.kid_subsets, size, self.seed)
        names = (distances.named(key, what) for key in self.net.keys)
        return dict(zip(names, (distances.frechet(features, target), *kid), strict=True))

    def score(self, drawn: list[tuple[Metrics, UInt8[np.ndarray, "_ 3 h w"]]]) -> None:
        """Put the distances of every set of images into its row.

        A Frechet distance of few images is far above its value for many; KID is unbiased, whatever their number.
        """
        if not drawn:
            return
        rows, images = zip(*drawn, strict=True)
        ends = np.cumsum([len(part) for part in images])[:-1]
        features = np.split(self.features(np.concatenate(images), "all settings"), ends)
        for row, vectors in Bar(list(zip(rows, features, strict=True)), desc="distances", unit="setting"):
            row |= self.distances(vectors)

    def subset(self, *counts: int) -> int:
        """Vectors in a subset of KID between sets of these sizes."""
        return min(self.cfg.kid_subset_size, *counts)

    def protocol(self, n: int, what: str = "images") -> Metrics:
        """How `distances` compares `n` images with the training images."""
        return {
            "reference": f"train, {len(self.train):,} {what}",
            "extractor": self.net.name,
            "kid_subsets": self.cfg.kid_subsets,
            "kid_subset_size": self.subset(n, len(self.train)),
        }


@dataclass(frozen=True)
class Yardstick(Reference):
    """All that samples are measured against: training images, and test images, which no model has seen."""

    test: Target
    colours: Float64[np.ndarray, "m 3"]  # `mean_colours` of training images
    smileys: bool = False  # whether images should be faces

    def row(self, draws: list[Images], features: list[Features], what: str = "images") -> Metrics:
        """All metrics of a row and, as "protocol", how they were measured.

        Args:
            draws: the images of every draw of the row, and their `features`.
            what: the reference consists of, for the record.
        """
        n, seeds = len(draws[0]), len(draws)
        metrics = self._against_train(draws[0], features[0])
        if features[0] is not self.test.vectors:  # the floor: test images themselves
            metrics |= self._against_test(features[0])
        if seeds > 1:
            each = [metrics, *map(self.distances, features[1:])]
            metrics |= {f"{key}_seeds": [row[key] for row in each] for key in self.net.keys[:2]}
        protocol = self.protocol(n, what) | {"n": n, "n_reference": len(self.train), "n_test": len(self.test)}
        protocol |= {"n_manifold": self._sides(n), "kid_test_subset_size": self.subset(n, len(self.test))}
        if self.smileys:
            metrics |= faces.evaluate(draws)
            protocol |= {"valid_below": faces.VALID}
        return metrics | {"protocol": protocol | {"seeds": seeds}}

    def _against_train(self, images: Images, features: Features) -> Metrics:
        metrics = self.distances(features)
        if (limit := distances.extrapolated(features, self.train, self.seed)) is not None:
            inf = distances.named(self.net.keys[0], "inf")
            metrics |= {inf: limit[0], f"{inf}_stderr": limit[1]}
        n = self._sides(len(features))
        metrics |= manifold.evaluate(self.train.vectors[:n], features[:n])
        shift = colour_shift(mean_colours(images), self.colours)
        return metrics | {"colour_shift": shift, "saturated": saturated(images)}

    def _against_test(self, features: Features) -> Metrics:
        metrics = self.distances(features, self.test, "test")
        metrics |= manifold.copies(features, self.test.vectors, self.train.vectors)
        return metrics | {"duplicates": manifold.duplicates(features, self.test.vectors)}

    def _sides(self, n: int) -> int:
        """Images a side of precision, recall, density and coverage."""
        return min(n, len(self.train), MOST)


def mean_colours(images: Images) -> Float64[np.ndarray, "n 3"]:
    """Mean colour of every image, in grey levels."""
    return images.mean((2, 3), dtype=np.float64)


def colour_shift(x: Float64[np.ndarray, "n 3"], y: Float64[np.ndarray, "m 3"]) -> list[float]:
    """How many standard errors the mean colour of `x` lies above that of `y`, a channel: within -2..2 by chance.

    The cheapest alarm there is, of a cast that the eye overlooks. It counts for more, the more images there are.
    """
    error = np.sqrt(x.var(0, ddof=1) / len(x) + y.var(0, ddof=1) / len(y))
    return ((x.mean(0) - y.mean(0)) / error).tolist()


def saturated(images: UInt8[np.ndarray, "_ 3 h w"]) -> float:
    """Share of values at an end of the range, where chains that run away end up."""
    return float(((images == 0) | (images == 255)).mean())


def by_metric(rows: dict[str, Metrics]) -> dict[str, Metrics]:
    """Row -> metric -> value, turned into metric -> row -> value, as files of metrics have it."""
    keys = dict.fromkeys(key for metrics in rows.values() for key in metrics)
    return {key: {row: metrics[key] for row, metrics in rows.items() if key in metrics} for key in keys}

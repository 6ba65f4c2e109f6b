"""What is measured of a set of images, whoever drew them: one list for models, baselines and real images."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, UInt8

from pofx.base.progress import Bar
from pofx.score import colour, distances, manifold
from pofx.score.batches import Batches
from pofx.score.distances import Target
from pofx.score.extractor import Extractor, Fid

Images = UInt8[np.ndarray, "n 3 h w"]
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

    def score(self, rows: list[Metrics], drawn: list[UInt8[np.ndarray, "_ 3 h w"]]) -> None:
        """Put the distances of every set of images into its row.

        A Frechet distance of few images is far above its value for many; KID is unbiased, whatever their number.
        """
        if not drawn:
            return
        ends = np.cumsum([len(images) for images in drawn])[:-1]
        features = np.split(self.features(np.concatenate(drawn), "all settings"), ends)
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
    colours: Float64[np.ndarray, "m 3"]  # means of training images

    def against_train(self, images: Images, features: Features) -> Metrics:
        """Distances to training images, the Frechet distance extrapolated to infinitely many images (where there are
        enough), precision, recall, density and coverage with equal numbers on both sides, the shift of colour and the
        share of saturated values."""
        metrics = self.distances(features)
        if (limit := distances.extrapolated(features, self.train, self.seed)) is not None:
            inf = distances.named(self.net.keys[0], "inf")
            metrics |= {inf: limit[0], f"{inf}_stderr": limit[1]}
        n = self._sides(len(features))
        metrics |= manifold.evaluate(self.train.vectors[:n], features[:n])
        shift = colour.shift(colour.means(images), self.colours)
        return metrics | {"colour_shift": shift, "saturated": colour.saturated(images)}

    def against_test(self, features: Features) -> Metrics:
        """Distances to test images; and what these are the yardstick of: copies of training images, duplicates."""
        metrics = self.distances(features, self.test, "test")
        metrics |= manifold.copies(features, self.test.vectors, self.train.vectors)
        return metrics | {"duplicates": manifold.duplicates(features, self.test.vectors)}

    def over_seeds(self, first: Metrics, further: Iterable[Features]) -> dict[str, list[float]]:
        """Frechet distance and KID of every draw of a row, as lists under `<key>_seeds`: those in `first`, and those of
        `further` draws, against the same subsets of the training images. Nothing where there are none."""
        draws = [first, *map(self.distances, further)]
        if len(draws) == 1:
            return {}
        return {f"{key}_seeds": [metrics[key] for metrics in draws] for key in self.net.keys[:2]}

    def row_protocol(self, n: int, seeds: int, what: str = "images") -> Metrics:
        """How all of the above were measured of `n` images, drawn `seeds` times: what stands beside every row."""
        protocol = self.protocol(n, what)
        protocol |= {"n": n, "n_reference": len(self.train), "n_test": len(self.test), "n_manifold": self._sides(n)}
        return protocol | {"seeds": seeds, "kid_test_subset_size": self.subset(n, len(self.test))}

    def _sides(self, n: int) -> int:
        """Images a side of precision, recall, density and coverage."""
        return min(n, len(self.train), MOST)


def by_metric(rows: dict[str, Metrics]) -> dict[str, Metrics]:
    """Row -> metric -> value, turned into metric -> row -> value, as files of metrics have it."""
    keys = dict.fromkeys(key for metrics in rows.values() for key in metrics)
    return {key: {row: metrics[key] for row, metrics in rows.items() if key in metrics} for key in keys}

"""What a run measured, as one tree: metric -> row -> value.

Training is measured by family, drawing by row (pofx.sample.rows): `edm`, and maybe `edm-ddim`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pofx.base.errors import UserError
from pofx.base.files import read_json

Metrics = dict[str, dict[str, Any]]  # metric -> row (or "floor", or one of LINES) -> value
FACES = ("face_error", "valid", "kinds_tv", "held_out")  # of smileys alone
SUMMARY = ("face_error", "valid", "bpd", "mig", "recon_psnr")  # besides the Frechet distance
TRAINING = (  # of a family: every one of its rows costs the same
    "parameters", "images_seen", "train_seconds", "train_images_per_second", "forward_gflop", "train_peak_mib",
    "sample_peak_mib", "device", "start_images",
)  # fmt: skip
LINES = {  # below the floor
    "halves": "training images (floor)",
    "gaussian": "full-covariance Gaussian",
    "pixel_gaussian": "per-pixel Gaussian",
    "pca_gaussian": "PCA-Gaussian",
}
FLOOR = "test images (floor)"
SIMPLE = ("pixel_gaussian", "pca_gaussian")  # what is behind one of them has not learned


@dataclass(frozen=True)
class Verdict:
    """Whether a row has learned.

    Attributes:
        close: the intervals of row and Gaussian, mean ± standard deviation over sampling seeds, overlap.
    """

    learned: bool
    close: bool

    def __str__(self) -> str:
        """Empty where all is well; with a question mark where it is close."""
        words = "learned" if self.learned else "not learned"
        if self.close:
            return f"{words}?"
        return "" if self.learned else words


def load(folder: Path) -> dict[str, Any]:
    """Every metrics file in `folder`, by its path: {"train": {"vae": {...}}, "reference": {...}}."""
    tree: dict[str, Any] = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    for path in sorted(folder.glob("*/*.json")):
        tree.setdefault(path.parent.name, {})[path.stem] = read_json(path)
    tree.pop("summary", None)  # made from the others
    return tree


def part(tree: dict[str, Any], *path: str) -> dict[str, Any]:
    """One metrics file of `load`.

    Raises:
        UserError: it is missing.
    """
    for name in path:
        if name not in tree:
            raise UserError(f"metrics/{'/'.join(path)}.json is missing: run `dvc repro` first")
        tree = tree[name]
    return tree


def read(models: tuple[str, ...], tree: dict[str, Any]) -> Metrics:
    """All that a run measured of its models and their rows, from `load`.

    Raises:
        UserError: a file is missing.
    """
    parts = (("train", "{}"), ("time", "train_{}"), ("time", "sample_{}"), ("fid", "{}"))
    files = [part(tree, folder, name.format(f)) for f in models for folder, name in parts]
    return merge([part(tree, "reference"), *files])


def merge(trees: Iterable[Metrics]) -> Metrics:
    """Metric files as one; every value stands in one file.

    Raises:
        ValueError: two files give the same metric of the same family.
    """
    out: Metrics = {}
    for tree in trees:
        for key, row in tree.items():
            if both := out.setdefault(key, {}).keys() & row.keys():
                raise ValueError(f"metric {key} of {', '.join(both)} stands in two files")
            out[key] |= row
    return out


def distance_keys(metrics: Metrics) -> tuple[str, str, str]:
    """Names of Frechet distance, KID and KID's spread: they name the extractor (`fid` is Inception alone)."""
    return tuple(metrics["protocol"]["floor"]["keys"])


def rows(models: tuple[str, ...], metrics: Metrics) -> dict[str, str]:
    """Every row that was scored -> its family, in the order of `models`."""
    families = {row: row.partition("-")[0] for row in metrics["protocol"]}
    return {row: f for f in models for row, owner in families.items() if owner == f}


def lines(metrics: Metrics) -> list[str]:
    """Those of LINES that the run measured, or refused with a reason."""
    return [name for name in LINES if any(name in metrics.get(key, {}) for key in ("protocol", "bpd", "refused"))]


def seeds(metrics: Metrics, key: str) -> dict[str, list[float]]:
    """Of every row with several sampling seeds, the distance `key` of each."""
    return {row: values for row, values in metrics.get(f"{key}_seeds", {}).items() if len(values) > 1}


def table(models: tuple[str, ...], metrics: Metrics, further: Iterable[str] = ()) -> pd.DataFrame:
    """One line for the floor, each of `further` and each row, one column for each metric; NaN where there is none. What
    the training of a family cost stands in each of its rows.

    Of rows with several sampling seeds the Frechet distance and FACES are means; `<metric>_spread`: their standard
    deviation.

    Raises:
        UserError: there is no family to compare.
    """
    if not models:
        raise UserError("models is empty: name at least one family")
    plain = {key: row for key, row in metrics.items() if not any(isinstance(v, dict) for v in row.values())}
    owners, fd = rows(models, metrics), distance_keys(metrics)[0]
    for key in plain.keys() & set(TRAINING):
        plain[key] = {row: plain[key][f] for row, f in owners.items() if f in plain[key]}
    for key in (fd, *(key for key in FACES if key in plain)):
        drawn = {row: pd.Series(values, dtype=float) for row, values in seeds(metrics, key).items()}
        plain[key] = plain[key] | {row: values.mean() for row, values in drawn.items()}
        plain[f"{key}_spread"] = {row: values.std() for row, values in drawn.items()}
    return pd.DataFrame(plain, index=["floor", *further, *owners])


def verdicts(models: tuple[str, ...], metrics: Metrics) -> dict[str, Verdict]:
    """Of every row; none where no Gaussian's distance was measured.

    A row has learned if its Frechet distance is at most that of the better of the SIMPLE Gaussians, which know of
    images their mean and covariance alone.
    """
    fd = distance_keys(metrics)[0]
    values = table(models, metrics, SIMPLE)
    means, spreads = values[fd], values[f"{fd}_spread"].fillna(0)
    bounds = means[[*SIMPLE]].dropna()
    if bounds.empty:
        return {}
    best = bounds.idxmin()
    out = {}
    for row in rows(models, metrics):
        ahead = bounds[best] - means[row]
        out[row] = Verdict(learned=bool(ahead >= 0), close=bool(abs(ahead) < spreads[row] + spreads[best]))
    return out


def told(row: str, found: dict[str, Verdict]) -> str:
    """The name of a row, with its verdict if there is something to say: "edm, not learned"."""
    return ", ".join(filter(None, (row, str(found.get(row, "")))))


def summary(models: tuple[str, ...], metrics: Metrics) -> Metrics:
    """The headline numbers, for `dvc metrics` and `dvc exp show`: of every row, with the first sampling seed.

    `learned` goes by the mean over sampling seeds.
    """
    out = {}
    for key in (distance_keys(metrics)[0], *SUMMARY):
        if picked := {row: metrics[key][row] for row in rows(models, metrics) if row in metrics.get(key, {})}:
            out[key] = picked
    if found := verdicts(models, metrics):
        out["learned"] = {row: verdict.learned for row, verdict in found.items()}
    return out

"""What a run measured, as one tree: metric -> row -> value.

Training is measured by family, drawing by row (pofx.sample.rows): `edm`, and maybe `edm-ddim`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from pofx.base.errors import UserError
from pofx.base.files import read_json

Metrics = dict[str, dict[str, Any]]  # metric -> row (or "floor", or one of LINES) -> value
SUMMARY = ("bpd", "mig", "recon_psnr")  # besides the Frechet distance
TRAINING = (  # of a family: every one of its rows costs the same
    "parameters", "images_seen", "train_seconds", "train_images_per_second", "forward_gflop", "train_peak_mib",
    "sample_peak_mib", "device",
)  # fmt: skip
LINES = {  # below the floor
    "halves": "training images (floor)",
    "gaussian": "full-covariance Gaussian",
    "pixel_gaussian": "per-pixel Gaussian",
    "pca_gaussian": "PCA-Gaussian",
}
FLOOR = "test images (floor)"


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

    Of rows with several sampling seeds the Frechet distance is the mean; `<distance>_spread`: their standard deviation.

    Raises:
        UserError: there is no family to compare.
    """
    if not models:
        raise UserError("models is empty: name at least one family")
    plain = {key: row for key, row in metrics.items() if not any(isinstance(v, dict) for v in row.values())}
    owners, fd = rows(models, metrics), distance_keys(metrics)[0]
    for key in plain.keys() & set(TRAINING):
        plain[key] = {row: plain[key][f] for row, f in owners.items() if f in plain[key]}
    drawn = {row: pd.Series(values) for row, values in seeds(metrics, fd).items()}
    plain[fd] = plain[fd] | {row: values.mean() for row, values in drawn.items()}
    plain[f"{fd}_spread"] = {row: values.std() for row, values in drawn.items()}
    return pd.DataFrame(plain, index=["floor", *further, *owners])


def summary(models: tuple[str, ...], metrics: Metrics) -> Metrics:
    """The headline numbers, for `dvc metrics` and `dvc exp show`: of every row, with the first sampling seed."""
    out = {}
    for key in (distance_keys(metrics)[0], *SUMMARY):
        if picked := {row: metrics[key][row] for row in rows(models, metrics) if row in metrics.get(key, {})}:
            out[key] = picked
    return out

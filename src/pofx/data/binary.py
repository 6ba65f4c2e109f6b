"""CIFAR-10's binary layout, which all data sets use, and statistics of the images.

A file is a sequence of records: a byte for the label, then the red, green and blue plane of side x side pixels, row by
row (https://www.cs.toronto.edu/~kriz/cifar.html). There is no header; meta.json beside the files has side and counts.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge
from jaxtyping import Float64, Int64, UInt8

from pofx.base.errors import UserError
from pofx.base.files import read_json

TRAIN, TEST = [f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]
FILES = {"train": TRAIN, "test": TEST}
NAMES, META = "batches.meta.txt", "meta.json"
CHANNELS = ("red", "green", "blue")
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)  # of the 50,000 training images, on [0, 1]
CIFAR10_STD = (0.2470, 0.2435, 0.2616)
Bytes = UInt8[np.ndarray, "n 3 side side"]


@dataclass(frozen=True)
class Preprocess:
    n_train: Annotated[int, Ge(1)] | None = None  # size of a random subset of the training images; None: all of them
    n_test: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class Images:
    """A data set in memory; the dictionaries' keys are "train" and "test"."""

    name: str
    images: dict[str, np.ndarray]  # uint8 (N, 3, side, side)
    labels: dict[str, np.ndarray]  # int64 (N,), indices into `classes`
    classes: list[str]
    factors: dict[str, np.ndarray]  # float32 (N, F), factors of variation; empty where there are none
    factor_names: list[str]


def record(side: int) -> int:
    """Bytes of an image and its label."""
    return 1 + 3 * side * side


def write_batch(path: Path, images: Bytes, labels: UInt8[np.ndarray, " n"]) -> None:
    # Not ndarray.tofile: its OSError on a full disk has no errno.
    path.write_bytes(np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1).tobytes())


def read_batch(path: Path, records: int, classes: int, side: int) -> tuple[Bytes, UInt8[np.ndarray, " n"]]:
    """Images and labels of one file.

    Raises:
        UserError: the file is missing, does not hold `records` images, or has a label that is not below `classes`.
    """
    again = "remove the folder and run `dvc repro download` again"
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {again}") from None
    size = record(side)
    if data.size != records * size:
        raise UserError(f"{path} has {data.size} bytes, should be {records} records of {size}: {again}")
    data = data.reshape(records, size)
    if data[:, 0].max(initial=0) >= classes:
        raise UserError(f"{path} has a label {data[:, 0].max()}, should be below {classes}: {again}")
    return data[:, 1:].reshape(-1, 3, side, side), data[:, 0]


def read(folder: Path) -> Images:
    """The data set in a folder written by `download.build`; every file is checked against side and counts in
    meta.json."""
    if not (folder / META).exists():
        raise UserError(f"{folder / META} is missing: run `dvc repro download`")
    meta = read_json(folder / META)
    classes = (folder / NAMES).read_text().split()
    images, labels = {}, {}
    for split, files in FILES.items():
        batches = [read_batch(folder / file, meta["records"][file], len(classes), meta["side"]) for file in files]
        images[split] = np.concatenate([x for x, _ in batches])
        labels[split] = np.concatenate([y for _, y in batches]).astype(np.int64)
    factors, names = {}, []
    if (folder / "factors.npz").exists():
        with np.load(folder / "factors.npz") as file:
            factors, names = {split: file[split] for split in FILES}, file["names"].tolist()
    return Images(meta["name"], images, labels, classes, factors, names)


def take(data: Images, sizes: Preprocess) -> Images:
    """The subset that `preprocess` asks for."""
    rows = {s: subset(len(y), getattr(sizes, f"n_{s}"), f"preprocess.n_{s}") for s, y in data.labels.items()}
    images, labels, factors = (
        {split: array[rows[split]] for split, array in arrays.items()}
        for arrays in (data.images, data.labels, data.factors)
    )
    return replace(data, images=images, labels=labels, factors=factors)


def subset(available: int, n: int | None, where: str) -> Int64[np.ndarray, " n"]:
    """Indices of the images to keep, the first `n` (None: all) of one fixed shuffle: files may be sorted by class.

    It does not depend on the parameter `seed`: runs with other seeds learn from the same images, and a small subset
    lies within a larger one.
    """
    n = available if n is None else n
    if not 1 <= n <= available:
        raise UserError(f"{where} = {n} should be between 1 and {available}, or null for all")
    return np.random.default_rng(0).permutation(available)[:n]


def histogram(images: UInt8[np.ndarray, "n 3 h w"]) -> Int64[np.ndarray, "3 256"]:
    """Counts of each byte value in each channel."""
    counts = np.zeros((3, 256), np.int64)
    for part in np.array_split(images, -(-len(images) // 1000)):  # bincount converts its input to int64
        counts += [np.bincount(part[:, c].reshape(-1), minlength=256) for c in range(3)]
    return counts


def moments(counts: Int64[np.ndarray, "3 256"]) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Exact mean and standard deviation of each channel on [0, 1], from `histogram`."""
    levels, share = np.arange(256) / 255, counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    return mean, np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))


def summary(data: Images) -> dict:
    """The content of metrics/data.json: name, counts, and channel statistics of the training images on [0, 1]."""
    mean, std = moments(histogram(data.images["train"]))
    if data.name == "cifar10" and len(data.images["train"]) == 50_000:
        check_cifar10(mean, std)
    return {
        "name": data.name,
        "images": {split: len(x) for split, x in data.images.items()},
        "classes": len(data.classes),
        "mean": dict(zip(CHANNELS, mean.round(6).tolist(), strict=True)),
        "std": dict(zip(CHANNELS, std.round(6).tolist(), strict=True)),
    }


def check_cifar10(mean: Float64[np.ndarray, "3"], std: Float64[np.ndarray, "3"]) -> None:
    """Raises UserError unless these are the published statistics of CIFAR-10's training images, of four decimals."""
    for what, got, known in (("mean", mean, CIFAR10_MEAN), ("standard deviation", std, CIFAR10_STD)):
        if np.abs(got - known).max() > 1e-4:
            raise UserError(
                f"the training images are not CIFAR-10: {what} {got.round(4).tolist()}, should be {list(known)}: "
                "correct data.url and data.sha256, and run `dvc repro` again"
            )

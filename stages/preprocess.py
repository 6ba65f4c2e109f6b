"""data/raw/ -> data/train.npy, data/test.npy (uint8 (N,3,32,32)), data/labels.npz and metrics/data.json."""

from pathlib import Path

import numpy as np

from stages import run  # first: puts src on the path

from pofx.base import config
from pofx.base.files import atomic, write_json, write_npy
from pofx.data import binary


def main() -> None:
    data = binary.take(binary.read(Path("data/raw")), config.section("preprocess", binary.Preprocess))
    summary = binary.summary(data)
    labels = {**data.labels, "classes": np.array(data.classes)}
    if data.factors:
        labels |= {f"factors_{split}": f for split, f in data.factors.items()}
        labels["factor_names"] = np.array(data.factor_names)
    for split, images in data.images.items():
        write_npy(Path(f"data/{split}.npy"), images)
    with atomic(Path("data/labels.npz")) as file:
        np.savez(file, **labels)
    write_json(Path("metrics/data.json"), summary)


if __name__ == "__main__":
    run(main)

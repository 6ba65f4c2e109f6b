"""data/{train,test}.npy, data/labels.npz -> plots/data/*.png, plots/samples/data.png: what the images look like."""

from pathlib import Path

import numpy as np

from stages import run  # first: puts src on the path

from pofx.base.images import save_grid
from pofx.base.progress import Bar
from pofx.report import explore


def main() -> None:
    images = {split: np.load(f"data/{split}.npy") for split in ("train", "test")}
    with np.load("data/labels.npz") as file:
        labels, classes = {split: file[split] for split in images}, file["classes"].tolist()
    for name, draw in Bar(explore.FIGURES.items(), desc="explore", unit="figure"):
        explore.save(draw(images, labels, classes), Path(f"plots/data/{name}.png"))
    save_grid(images["test"][:80], Path("plots/samples/data.png"), columns=16)  # as the samples are shown


if __name__ == "__main__":
    run(main)

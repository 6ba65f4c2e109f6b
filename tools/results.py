"""Runs worth keeping, and the pages that list them.

    python -m tools.results save NAME     keeps this run under results/NAME/
    python -m tools.results               writes docs/results.md and docs/results.html anew from all of results/

A kept run is run.json (card, metrics, curves), params.yaml, samples.npz (the first images of every row, uint8) and a
few pictures. Models and features stay with DVC: params.yaml and the revision on the card bring them back.
"""

import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pofx.base import files, provenance
from pofx.base.errors import UserError
from pofx.report import metrics, plots, tables
from stages import ROOT, run
from tools import runs

KEPT = 64  # images of a row in samples.npz
FIGURES = ("cost", "nfe", "chain")  # of plots/comparison, those that the run has
PICTURES = {  # what families show besides samples: file -> what it is
    "fid/{}/reconstructions": "test images, and below each its reconstruction",
    "energy/{}/inpainting": "a part hidden, three draws, the original",
}
USAGE = "usage: python -m tools.results [save NAME]"


def save(name: str, root: Path) -> Path:
    """Keep what a run in `root` came to as results/`name`/; an older one of that name is replaced as a whole.

    Raises:
        UserError: the name is no folder name; the run is not finished.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        raise UserError(f"{name!r} cannot name a result: use small letters, digits, dots and dashes")
    try:
        parameters = (root / "params.yaml").read_text()
        models = runs.models(parameters)
        tree = metrics.load(root / "metrics")
        got = metrics.read(models, tree)
        owners = metrics.rows(models, got)
        curves = {path.stem: columns(path) for path in sorted((root / "plots/curves").glob("*.csv"))}
        samples = {row: np.load(root / f"samples/{f}/{row}.npy", mmap_mode="r")[:KEPT] for row, f in owners.items()}
        test = np.load(root / "data/test.npy", mmap_mode="r")[:KEPT]
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing: run `dvc repro` first") from None
    target = root / "results" / name
    fresh = target.with_name(f".{name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / "params.yaml").write_text(parameters)
    made = parameters.partition("\n")[0].removeprefix("# composed by: ")
    card = run_card(got, root) | {"made": made, "dropped": {}}
    files.write_json(fresh / "run.json", {"card": card, "metrics": tree, "curves": curves})
    with zipfile.ZipFile(fresh / "samples.npz", "w", zipfile.ZIP_BZIP2) as archive:  # a fifth smaller than NumPy's own
        for row, images in samples.items():
            with archive.open(f"{row}.npy", "w") as file:
                np.lib.format.write_array(file, images)
    names = [cells["model"] for cells in tables.board(models, got)]
    strips = {"data": test} | {shown: samples[row] for shown, row in names if row in owners}
    plots.save(plots.strips(strips), fresh / "strips.png")
    if pictures := first_lines(models, root / "plots", test.shape[2]):
        plots.save(plots.sheet(pictures), fresh / "pictures.png")
    for figure in FIGURES:
        if (source := root / f"plots/comparison/{figure}.png").is_file():  # 128 colours: half the bytes, looks alike
            few = Image.open(source).quantize(128, method=Image.Quantize.FASTOCTREE)
            few.save(fresh / source.name, optimize=True)
    shutil.rmtree(target, ignore_errors=True)
    fresh.rename(target)
    return target


def run_card(got: metrics.Metrics, root: Path) -> dict[str, Any]:
    """When, where and from which code the numbers come. Seconds: all training and drawing."""
    rows, origin = got["protocol"], provenance.here(root)
    sampling = 0.0
    for row, seconds in got["sample_seconds_per_1000"].items():
        sampling += seconds * rows[row]["n"] * rows[row].get("seeds", 1) / 1000
    return {key: origin[key] for key in ("date", "system", "torch")} | {
        "device": sorted(set(got["device"].values())),  # names the threads
        "git": origin["revision"] + (", with changes" if origin["changed"] else ""),
        "seconds": round(sum(got["train_seconds"].values()) + sampling, 1),
    }


def columns(path: Path) -> dict[str, list[float | None]]:
    """A curve as columns; null where there is no number."""
    return pd.read_csv(path).astype(object).replace({np.nan: None}).to_dict("list")


def first_lines(models: tuple[str, ...], folder: Path, height: int) -> dict[str, Image.Image]:
    """The first two pairs of lines of those PICTURES that are there, of images `height` pixels high."""
    files = {f"{f}: {words}": folder / f"{path.format(f)}.png" for path, words in PICTURES.items() for f in models}
    pictures = {name: Image.open(file) for name, file in files.items() if file.is_file()}
    return {name: picture.crop((0, 0, picture.width, 4 * (height + 2) + 4)) for name, picture in pictures.items()}


def main(*words: str) -> None:
    if words and (len(words) != 2 or words[0] != "save"):
        raise UserError(USAGE)
    if words:
        print(f"kept: {save(words[1], ROOT).relative_to(ROOT)}")
    kept = [runs.Run(path.parent) for path in sorted((ROOT / "results").glob("*/run.json"))]
    for name, content in (("results.md", runs.markdown(kept)), ("results.html", runs.html(kept))):
        with files.atomic(ROOT / "docs" / name) as file:
            file.write(content.encode())
    print(f"written: docs/results.md, docs/results.html ({len(kept)} runs)")


if __name__ == "__main__":
    run(main, *sys.argv[1:])

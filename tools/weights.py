"""Weights worth keeping: a trained model in bf16, its card, and a sheet of samples that nobody chose.

    python -m tools.weights save edm weights/smileys-edm

keeps models/edm. `store.load` reads the folder like any other, and `edm.train.from: weights/smileys-edm` starts a
training from it. Parameters are the averaged ones, rounded to bf16; buffers stay as they are; a guide is left out.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pofx.base import files
from pofx.base.errors import UserError
from pofx.base.images import save_grid
from pofx.base.rng import Noise
from pofx.models import store
from pofx.models.family import Family
from stages import ROOT, run

SHEET, COLUMNS = 128, 16  # samples of sheet.png: eight rows
SEED, CHECKED = 0, 16  # images that the card describes, so that a test can draw them again
TOLD = ("date", "revision", "changed", "system", "torch")  # of metrics/time/train_<family>.json
USAGE = "usage: python -m tools.weights save FAMILY FOLDER"


def keep(source: Path, folder: Path, root: Path) -> None:
    """Keep the model in `source` as `folder`, with what the run in `root` has measured of it so far.

    Raises:
        UserError: the model does not say how many images it has seen, or the metrics are of another config.
    """
    card, model = store.card(source), store.load(source)
    name = card["family"]
    if "images" not in card["provenance"]:
        raise UserError(f"{source}/model.json does not say how many images it has seen: train {name} anew")
    kept = {"dtype": "bfloat16", "images": card["provenance"]["images"]} | _facts(name, card, root)
    if getattr(model, "guide", None) is not None:
        model.guide, model.cfg = None, dataclasses.replace(model.cfg, guide=0.0)
    for p in model.parameters():
        p.data = p.data.bfloat16()
    store.save(folder, name, model, card["train"], card["provenance"])
    kept["drawn"] = {"seed": SEED, "images": CHECKED} | drawn(store.load(folder))
    files.write_json(folder / "model.json", files.read_json(folder / "model.json") | {"kept": kept})
    if (samples := root / f"samples/{name}/{name}.npy").is_file():
        save_grid(np.load(samples, mmap_mode="r")[:SHEET], folder / "sheet.png", COLUMNS)


@torch.no_grad()
def drawn(model: Family) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of a few previews, drawn on the CPU in fp32: values on [-1, 1]."""
    images = model.preview(Noise(SEED, 0, CHECKED)).clamp(-1, 1).double()
    return {key: getattr(images, key)((0, 2, 3)).tolist() for key in ("mean", "std")}


def _facts(name: str, card: dict[str, Any], root: Path) -> dict[str, Any]:
    """Data, machine and metrics of the family's first row, as far as the files of the run are there."""
    facts: dict[str, Any] = {}
    if (path := root / "metrics/data.json").is_file():
        facts["data"] = files.read_json(path)["name"]
    if (path := root / f"metrics/time/train_{name}.json").is_file():
        cost = {key: rows[name] for key, rows in files.read_json(path).items()}
        facts |= {"machine": cost["device"], "training_seconds": cost["train_seconds"]}
        facts |= {key: cost["trained"][key] for key in TOLD}
    if (path := root / f"metrics/fid/{name}.json").is_file():
        scored = {key: rows[name] for key, rows in files.read_json(path).items() if name in rows}
        if scored["config"][name] != card["config"]:
            raise UserError(f"{path} is of another config than the model: run `dvc repro fid@{name}` first")
        protocol = scored["protocol"]
        facts["metrics"] = {key: value for key, value in scored.items() if isinstance(value, int | float)}
        facts["protocol"] = {"N": protocol["n"], "reference": protocol["reference"]}
    return facts


def main(*words: str) -> None:
    if len(words) != 3 or words[0] != "save":
        raise UserError(USAGE)
    name, folder = words[1], Path(words[2])
    store.module(name)
    for needed in (f"models/{name}/model.json", f"samples/{name}/{name}.npy"):
        if not (ROOT / needed).is_file():
            raise UserError(f"{needed} is missing: run `dvc repro` first")
    keep(ROOT / "models" / name, folder, ROOT)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"kept: {folder}, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    run(main, *sys.argv[1:])

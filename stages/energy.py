"""What one energy-based model is for: out-of-distribution scores, chains of every length, inpainting, denoising.

models/F/, features/train.npy, data/*.npy, metrics/data.json -> metrics/energy/F.json, plots/energy/F/*.png. `python -m
stages.energy FAMILY`.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

from stages import RUNS, run
from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.base.images import save_grid
from pofx.base.rng import Noise, fold
from pofx.models import store
from pofx.models.family import EnergyBased
from pofx.sample import rows, settings
from pofx.score import colour, distances, energy, extractor, measures
from pofx.score.batches import Batches

ROWS, COLUMNS, DRAWS, SIGMAS = 6, 10, 3, (0.2, 0.4)  # of the pictures
IMAGES = 64  # behind the numbers beside them


def main(name: str) -> None:
    fid, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    model = store.load(Path(f"models/{name}"), device)
    if not isinstance(model, EnergyBased):
        raise UserError(f"{name} has no energy: take it out of energy.models")
    ways = rows.rows(name, config.value(f"sample.{name}", dict), config.value(f"rows.{name}", dict))
    own = ways[name]
    # Key by key, without the list of models: another family in it does not concern this one.
    values = {"n": config.value("energy.n", int), "images": config.value("energy.images", int)}
    values |= {"chains": config.value("energy.chains", tuple[int, ...])}
    cfg = config.build(energy.Energy, {"models": [name], **values}, "energy")
    train, test = np.load("data/train.npy"), np.load("data/test.npy")
    target, n = distances.Target(np.load("features/train.npy")), min(cfg.images, len(train), len(test))
    fid = dataclasses.replace(fid, kid_subset_size=min(fid.kid_subset_size, cfg.n, len(test)))  # the same for all rows
    distances.check_subset(fid.kid_subset_size, cfg.n, len(target))
    batches = Batches(own.batch, device)

    def energies(images: np.ndarray) -> np.ndarray:
        return energy.energies(model, images, batches)

    data = files.read_json(Path("metrics/data.json"))["name"]
    scores = energy.scores(energies, test[:n], energy.outsiders(test[:n], train, data, fold(seed, "outsiders")))

    def noise(use: str, stop: int, start: int = 0) -> Noise:
        return Noise(fold(seed, use, name), start, stop, device)

    folder, images = Path(f"plots/energy/{name}"), torch.from_numpy(test[:IMAGES]).to(device)
    few = min(ROWS, len(images))
    half = model.precision == "bf16"  # the network alone, as in the stage that samples
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        noises = [noise(f"inpaint {i}", few if i else len(images)) for i in range(DRAWS)]
        filled, inpainted = energy.inpainting(model, own, images, noises)
        cleaned, restored = energy.restoring(model, own, images, SIGMAS, lambda: noise("restore", len(images)))
        lengths = energy.settings(ways, cfg.chains)
        points, drawn = settings.draw(model, lengths, cfg.n, lambda start, stop: noise("energy", stop, start))
        able = dict.fromkeys(row["row"] for row in settings.accepted(points))
        strips = {row: energy.strip(model, ways[row], noise("sample", ROWS), COLUMNS) for row in able}
    save_grid(filled, folder / "inpainting.png", columns=DRAWS + 2)
    save_grid(energy.sheet(cleaned, few), folder / "denoising.png", columns=len(cleaned))
    for row, (shown, columns) in strips.items():
        save_grid(shown, folder / f"chain_{row}.png", columns)

    real = {"row": "test images", "chain": None}  # as many as there are samples, or all
    points, drawn = [real, *points], [test[: cfg.n], *drawn]
    net = extractor.build(fid, RUNS / "weights", RUNS.parent, device)
    reference = measures.Reference(net, fid, seed, target)
    reference.score(settings.accepted(points), drawn)
    for row, images in zip(settings.accepted(points), drawn, strict=True):
        row |= {"saturated": colour.saturated(images), "energy": energies(images).mean()}
    protocol = reference.protocol(cfg.n) | {"test_images": n, "chance": energy.chance(n)}
    protocol["device"] = machine.name(device)
    record = {"n": cfg.n, "keys": net.keys, "protocol": protocol, **scores, "rows": points, "chain": own.chain}
    record |= {"inpainting": inpainted, "restoring": restored}
    files.write_json(Path(f"metrics/energy/{name}.json"), record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.energy {'|'.join(config.family_names())}")
    run(main, sys.argv[1], memory=f"lower sample.{sys.argv[1]}.batch or fid.batch")

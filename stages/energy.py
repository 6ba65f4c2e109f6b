"""What one energy-based model is for: out-of-distribution scores, chains of every length, inpainting, denoising.

models/F/, features/train.npy, data/*.npy, metrics/data.json -> metrics/energy/F.json, plots/energy/F/*.png.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

from stages import RUNS, run
from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.base.images import Batches, save_sheet
from pofx.base.rng import Noise, fold
from pofx.models import store
from pofx.models.family import EnergyBased
from pofx.sample import settings
from pofx.sample.rows import rows as ways_to_draw
from pofx.score import distances, energy, extractor, measures

ROWS, COLUMNS, DRAWS, SIGMAS = 6, 10, 3, (0.2, 0.4)  # of the pictures
IMAGES = 64  # behind the numbers beside them


def main(name: str) -> None:
    fid, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    model = store.load(Path(f"models/{name}"), device)
    if not isinstance(model, EnergyBased):
        raise UserError(f"{name} has no energy: take it out of energy.models")
    ways = ways_to_draw(name, config.value(f"sample.{name}", dict), config.value(f"rows.{name}", dict))
    own = ways[name]
    cfg = energy.Energy(  # key by key: another family in the list of models does not concern this one
        n=config.value("energy.n", int),
        images=config.value("energy.images", int),
        chains=config.value("energy.chains", tuple[int, ...]),
    )
    train, test = np.load("data/train.npy"), np.load("data/test.npy")
    target, n = distances.Target(np.load("features/train.npy")), min(cfg.images, len(train), len(test))
    fid = dataclasses.replace(fid, kid_subset_size=min(fid.kid_subset_size, cfg.n, len(test)))  # the same for all rows
    distances.check_subset(fid.kid_subset_size, cfg.n, len(target))
    batches, data = Batches(own.batch, device), files.read_json(Path("metrics/data.json"))["name"]
    sets = energy.outsiders(test[:n], train, data, fold(seed, "outsiders"))
    scores = energy.scores(model, test[:n], sets, batches)

    def noise(use: str, stop: int, start: int = 0) -> Noise:
        return Noise(fold(seed, use, name), start, stop, device)

    folder, images = Path(f"plots/energy/{name}"), torch.from_numpy(test[:IMAGES]).to(device)
    lengths = energy.settings(ways, cfg.chains)
    rows, drawn = settings.draw_all(model, lengths, cfg.n, lambda start, stop: noise("energy", stop, start))
    with machine.autocast(device, model.precision):  # the network alone, as in the stage that samples
        noises = [noise(f"inpaint {i}", min(ROWS, len(images)) if i else len(images)) for i in range(DRAWS)]
        filled, inpainted = energy.inpainting(model, own, images, noises)
        cleaned, restored = energy.restoring(model, own, images, SIGMAS, lambda: noise("restore", len(images)))
        for row in dict.fromkeys(row["row"] for row, _ in drawn):
            save_sheet(energy.strip(model, ways[row], noise("sample", ROWS), COLUMNS), folder / f"chain_{row}.png")
    save_sheet(filled, folder / "inpainting.png")
    save_sheet(cleaned[:ROWS], folder / "denoising.png")

    real = {"row": "test images", "chain": None}  # as many as there are samples, or all
    rows, drawn = [real, *rows], [(real, test[: cfg.n]), *drawn]
    net = extractor.build(fid, RUNS / "weights", RUNS.parent, device)
    reference = measures.Reference(net, fid, seed, target)
    reference.score(drawn)
    for row, shown in drawn:
        row |= {"saturated": measures.saturated(shown), "energy": energy.energies(model, shown, batches).mean()}
    protocol = reference.protocol(cfg.n) | {"test_images": n, "chance": energy.chance(n)}
    protocol["device"] = machine.name(device)
    record = {"n": cfg.n, "keys": net.keys, "protocol": protocol, **scores, "rows": rows, "chain": own.chain}
    record |= {"inpainting": inpainted, "restoring": restored}
    files.write_json(Path(f"metrics/energy/{name}.json"), record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.energy {'|'.join(config.family_names())}")
    run(main, sys.argv[1], memory=f"lower sample.{sys.argv[1]}.batch or fid.batch")

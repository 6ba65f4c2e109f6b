"""How one denoiser denoises, and its distance to the data against the number of function evaluations.

models/F/, features/train.npy, data/test.npy -> metrics/sweep/F.json, plots/denoising/F/*.png.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

from stages import RUNS, run
from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.base.images import save_sheet
from pofx.base.rng import Noise, fold
from pofx.models import store
from pofx.models.denoiser import Denoiser
from pofx.sample import settings
from pofx.sample.samplers import Sample
from pofx.score import denoising, distances, extractor, measures

ROWS, COLUMNS, LEVELS, STEPS = 6, 10, 16, 20  # of the pictures; of the errors; of the interpolation


def main(name: str) -> None:
    fid, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    model = store.load(Path(f"models/{name}"), device)
    if not isinstance(model, Denoiser):
        raise UserError(f"{name} is no denoiser, there is nothing to sweep: take it out of sweep.models")
    own = config.section(f"sample.{name}", Sample)
    cfg = denoising.Sweep(  # key by key: another family in the list of models does not concern this one
        n=config.value("sweep.n", int),
        samplers=config.value("sweep.samplers", tuple[str, ...]),
        steps=config.value("sweep.steps", tuple[int, ...]),
    )
    test, target = np.load("data/test.npy"), distances.Target(np.load("features/train.npy"))
    fid = dataclasses.replace(fid, kid_subset_size=min(fid.kid_subset_size, cfg.n))
    distances.check_subset(fid.kid_subset_size, cfg.n, len(target))
    images = torch.from_numpy(test[: own.batch]).to(device)

    def noise(use: str, stop: int, start: int = 0) -> Noise:
        return Noise(fold(seed, use, name), start, stop, device)

    folder, few = Path(f"plots/denoising/{name}"), images[: ROWS // 2]
    levels = denoising.errors(model, images, noise("errors", len(images)), LEVELS)  # a measure: in fp32
    with machine.autocast(device, model.precision):  # the network alone, as in the stage that samples
        strip, along = denoising.strip(model, own, noise("sample", ROWS), COLUMNS)  # of the first images of sample@
        noisy, shown = denoising.noisy(model, few, noise("noisy", len(few)), COLUMNS)
        between = denoising.interpolation(model, own, noise("interpolation", 2 * ROWS), COLUMNS, STEPS)
        largest, some = model.sigma_range[1], min(cfg.n, own.batch)
        with torch.no_grad():
            model.denoise(largest * noise("sweep", some).normal(*model.shape), largest)  # not timed: kernels are chosen
    points = denoising.settings(own, cfg)
    rows, drawn = settings.draw_all(model, points, cfg.n, lambda start, stop: noise("sweep", stop, start))
    for picture, sheet in {"strip": strip, "noisy": noisy, "interpolation": between}.items():
        save_sheet(sheet, folder / f"{picture}.png")

    net = extractor.build(fid, RUNS / "weights", RUNS.parent, device)
    reference = measures.Reference(net, fid, seed, target)
    reference.score(drawn)
    protocol = reference.protocol(cfg.n) | {"test_images": len(images), "device": machine.name(device)}
    record = {"n": cfg.n, "keys": net.keys, "protocol": protocol, "sigma_range": model.sigma_range, "rows": rows}
    record |= {"levels": levels, "strip": along, "noisy": shown}
    files.write_json(Path(f"metrics/sweep/{name}.json"), record)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.sweep {'|'.join(config.family_names())}")
    run(main, sys.argv[1], memory=f"lower sample.{sys.argv[1]}.batch or fid.batch")

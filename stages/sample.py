"""Draw images from one trained family: models/<family>/ -> samples/<family>/<row>.npy, a grid and the cost of each row.

Rows are the ways to draw that `sample.<family>` asks for (pofx.models.family.draws); with sample.seeds above 1 each is
drawn again from other noise, into <row>.seed1.npy and so on.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from stages import processes
from pofx.base import config, dist, files, machine
from pofx.models import family
from pofx.base.errors import UserError
from pofx.base.images import save_grid, to_uint8
from pofx.base.progress import Bar
from pofx.base.rng import BLOCK, Noise, fold

SHAPE = (3, 32, 32)


def main(name: str) -> None:
    cfg, n = config.section(f"sample.{name}", family.module(name).Sample), config.value("sample.n", int)
    rows, seed, device = family.draws(name, cfg), config.value("seed", int), machine.device()
    seeds = config.value("sample.seeds", int)
    for row in rows.values():
        if n < 1 or row.batch < 1 or row.batch % BLOCK:
            raise UserError(f"sample.{name}.batch = {row.batch} should be a multiple of {BLOCK}, and sample.n above 0")
    model = family.load(Path(f"models/{name}"), device)
    seconds, nfe = dict.fromkeys(rows, 0.0), {}
    for row, how in rows.items():
        for k, stem in enumerate(family.stems(row, seeds)):
            noise = fold(seed, "sample", name, *[k][:k])  # the first draw is the same, however many follow
            images, taken, nfe[row] = draw(model, stem, how, n, noise, device)
            seconds[row] += taken / seeds
            if not dist.first():
                continue
            files.write_npy(Path(f"samples/{name}/{stem}.npy"), images)
            save_grid(images[:80], Path(f"plots/samples/{name}/{stem}.png"), columns=16)
    cost = {
        "sample_seconds_per_1000": seconds,
        "nfe": nfe,
        "sample_peak_mib": {name: round(machine.peak_mib(device), 1)},
    }
    if dist.first():
        files.write_json(Path(f"metrics/time/sample_{name}.json"), cost)


def draw(
    model: family.Family, row: str, cfg: Any, n: int, seed: int, device: torch.device
) -> tuple[UInt8[np.ndarray, "n 3 h w"], float, float]:
    """n images, the seconds for 1,000 of them, and the evaluations of the network for a batch.

    Several processes draw every so many batches each, the same images as one would; their seconds are added up.

    Raises:
        UserError: an image is not finite.
    """
    half = model.cfg.train.precision == "bf16"  # the network alone: samplers keep images in fp32
    drawn, mine = np.zeros((n, *SHAPE), np.uint8), range(0, n, cfg.batch)[dist.rank() :: dist.world()]
    began = time.monotonic()
    with torch.no_grad(), family.counted(model.net, *model.guides()) as calls:
        for start in Bar(mine, desc=f"sample {row}", unit="batch"):
            noise = Noise(seed, start, min(n, start + cfg.batch), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                images = model.sample(noise, cfg)
            if not images.isfinite().all():
                raise UserError(f"{row} drew values that are not finite: train it longer, or change how it draws")
            drawn[start : start + len(noise)] = to_uint8(images).cpu().numpy()
        drawn = dist.assembled(drawn)
    seconds = (time.monotonic() - began) * dist.world()
    return drawn, 1000 * seconds / n, calls[0] / max(1, len(mine))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.sample {'|'.join(config.family_names())}")
    processes.run(main, sys.argv[1], memory=f"lower sample.{sys.argv[1]}.batch")

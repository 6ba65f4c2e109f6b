"""Draw images from one trained family: models/<family>/ -> samples/<family>/<row>.npy, a grid and the cost of each row.

Rows are the ways to draw that `sample.<family>` asks for (pofx.core.family.draws); with sample.seeds above 1 each is
drawn again from other noise, into <row>.seed1.npy and so on.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from stages import run
from pofx.core import config, family, files, machine
from pofx.core.errors import UserError
from pofx.core.images import save_grid, to_uint8
from pofx.core.progress import Bar
from pofx.core.rng import BLOCK, Noise, fold


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
            files.write_npy(Path(f"samples/{name}/{stem}.npy"), images)
            save_grid(images[:80], Path(f"plots/samples/{name}/{stem}.png"), columns=16)
    files.write_json(Path(f"metrics/time/sample_{name}.json"), {"sample_seconds_per_1000": seconds, "nfe": nfe})


def draw(
    model: family.Family, row: str, cfg: Any, n: int, seed: int, device: torch.device
) -> tuple[UInt8[np.ndarray, "n 3 h w"], float, float]:
    """n images, the seconds for 1,000 of them, and the evaluations of the network for a batch.

    Raises:
        UserError: an image is not finite.
    """
    half = model.cfg.train.precision == "bf16"  # the network alone: samplers keep images in fp32
    drawn = []
    began = time.monotonic()
    with torch.no_grad(), family.counted(model.net, *model.guides()) as calls:
        for start in Bar(range(0, n, cfg.batch), desc=f"sample {row}", unit="batch"):
            noise = Noise(seed, start, min(n, start + cfg.batch), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                images = model.sample(noise, cfg)
            if not images.isfinite().all():
                raise UserError(f"{row} drew values that are not finite: train it longer, or change how it draws")
            drawn.append(to_uint8(images).cpu().numpy())
    return np.concatenate(drawn), 1000 * (time.monotonic() - began) / n, calls[0] / len(drawn)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.sample {'|'.join(config.family_names())}")
    run(main, sys.argv[1])

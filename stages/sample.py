"""Draw images from one trained family: models/<family>/ -> samples/<family>.npy, a grid, the cost."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from stages import run
from pofx.core import config, family, files, machine
from pofx.core.errors import UserError
from pofx.core.images import save_grid, to_uint8
from pofx.core.progress import Bar
from pofx.core.rng import BLOCK, Noise, fold


def main(name: str) -> None:
    cfg, n = config.section(f"sample.{name}", family.module(name).Sample), config.value("sample.n", int)
    if n < 1 or cfg.batch < 1 or cfg.batch % BLOCK:
        raise UserError(f"sample.{name}.batch = {cfg.batch} should be a multiple of {BLOCK}, and sample.n above 0")
    seed, device = config.value("seed", int), machine.device()
    model = family.load(Path(f"models/{name}"), device)
    half = model.cfg.train.precision == "bf16"  # the network alone: samplers keep images in fp32
    drawn = []
    began = time.monotonic()
    with torch.no_grad(), family.counted(model.net, *model.guides()) as calls:
        for start in Bar(range(0, n, cfg.batch), desc=f"sample {name}", unit="batch"):
            noise = Noise(fold(seed, "sample", name), start, min(n, start + cfg.batch), device)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                images = model.sample(noise, cfg)
            if not images.isfinite().all():
                raise UserError(f"{name} drew values that are not finite: train it longer, or change sample.{name}")
            drawn.append(to_uint8(images).cpu().numpy())
    seconds = time.monotonic() - began
    images = np.concatenate(drawn)
    files.write_npy(Path(f"samples/{name}.npy"), images)
    save_grid(images[:80], Path(f"plots/samples/{name}.png"), columns=16)
    files.write_json(
        Path(f"metrics/time/sample_{name}.json"),
        {"sample_seconds_per_1000": {name: 1000 * seconds / n}, "nfe": {name: calls[0] / len(drawn)}},
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.sample {'|'.join(config.family_names())}")
    run(main, sys.argv[1])

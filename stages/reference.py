"""data/{train,test}.npy -> features/{train,test}.npy, metrics/reference.json: what the families are compared with.

The reference is the first `fid.n_reference` training images; the floor takes as many test images as are sampled. The
Gaussians, for bits per dimension, are fitted to all training images and measured on all test images.
"""

from pathlib import Path

import numpy as np

from stages import RUNS, run
from pofx.core import config, files, machine
from pofx.core.errors import UserError
from pofx.eval import baselines, distances, extractor


def main() -> None:
    cfg, seed = config.section("fid", extractor.Fid), config.value("seed", int)
    train, test = (np.load(f"data/{split}.npy", mmap_mode="r") for split in ("train", "test"))
    if cfg.n_reference > len(train):
        raise UserError(f"fid.n_reference = {cfg.n_reference} exceeds the {len(train)} training images: lower it")
    n = min(config.value("sample.n", int), len(test))
    distances.check_subset(cfg.kid_subset_size, n, cfg.n_reference)

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, machine.device())
    reference = net.features(train[: cfg.n_reference], cfg.batch, "train")
    floor = net.features(test[:n], cfg.batch, "test")
    row = distances.compare(floor, reference, net.keys, cfg.kid_subsets, cfg.kid_subset_size, seed)
    row["protocol"] = {"n": n, "reference": f"train, {cfg.n_reference:,} images", "keys": net.keys}

    files.write_npy(Path("features/train.npy"), reference)
    files.write_npy(Path("features/test.npy"), floor)
    tree = {key: {"floor": value} for key, value in row.items()}
    lines = baselines.evaluate(train, test)
    tree |= {key: {name: got[i] for name, got in lines.items()} for i, key in enumerate(("bpd", "bpd_stderr"))}
    files.write_json(Path("metrics/reference.json"), tree)


if __name__ == "__main__":
    run(main)

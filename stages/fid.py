"""Score one family: samples/F.npy, models/F/, features/train.npy, data/{train,test}.npy -> metrics/fid/F.json.

Also writes features/F.npy and plots/fid/F/*.png: the nearest training images of samples, and what the family's code
holds, if it has one. `python -m stages.fid FAMILY`.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from stages import RUNS, run
from pofx.core import config, family, files, machine
from pofx.core.images import save_grid, to_uint8
from pofx.eval import codes, distances, extractor, likelihood, reconstruction

SHOWN, NEIGHBOURS = 8, 5  # samples with their neighbours


def main(name: str) -> None:
    cfg, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    model = family.load(Path(f"models/{name}"), device)
    drawn, reference, test = (np.load(p) for p in (f"samples/{name}.npy", "features/train.npy", "data/test.npy"))
    test = test[: len(drawn)]
    distances.check_subset(cfg.kid_subset_size, len(drawn), len(reference))

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    features = net.features(drawn, cfg.batch, name)
    row = distances.compare(features, reference, net.keys, cfg.kid_subsets, cfg.kid_subset_size, seed)
    bits = config.section("likelihood", likelihood.Likelihood)
    row |= likelihood.evaluate(model, test, cfg.batch, device, seed, bits)
    with torch.no_grad():
        row |= model.monitor(torch.from_numpy(test).to(device))
    shown = {"neighbours": neighbours(drawn, features, reference)}
    if (exact := reconstruction.reconstruct(model, test, cfg.batch, device)) is not None:
        again = to_uint8(torch.from_numpy(exact)).numpy()
        back = net.features(again, cfg.batch, f"reconstructions of {name}")
        row |= reconstruction.evaluate(test, exact) | {f"recon_{net.keys[0]}": distances.frechet(back, reference)}
        shown |= codes.pictures(model, test, again, cfg.batch, device)
    protocol = {
        "n": len(drawn),
        "test_images": len(test),
        "bpd_images": min(bits.images, len(test)),
        "n_reference": len(reference),
        "reference": f"train, {len(reference):,} images",
    }
    protocol |= {"extractor": net.name, "kid_subsets": cfg.kid_subsets, "kid_subset_size": cfg.kid_subset_size}
    protocol |= {"traversal": codes.VALUES} if "traversals" in shown else {}
    row["protocol"] = protocol
    card = files.read_json(Path(f"models/{name}/model.json"))
    base = {card["base"]["family"]: card["base"]["config"]} if "base" in card else {}  # trained before, and part of it
    row["config"] = base | {name: card["config"], f"sample.{name}": config.value(f"sample.{name}", dict)}
    files.write_npy(Path(f"features/{name}.npy"), features)
    for picture, (images, columns) in shown.items():
        save_grid(images, Path(f"plots/fid/{name}/{picture}.png"), columns)
    files.write_json(Path(f"metrics/fid/{name}.json"), {key: {name: value} for key, value in row.items()})


def neighbours(drawn: np.ndarray, features: np.ndarray, reference: np.ndarray) -> codes.Sheet:
    """Rows of a sample and the training images that are nearest to it in the features; and their columns."""
    near = distances.nearest(features[:SHOWN], reference, NEIGHBOURS)
    train = np.load("data/train.npy", mmap_mode="r")
    rows = np.concatenate([drawn[: len(near), None], train[near]], 1)
    return rows.reshape(-1, *drawn.shape[1:]), rows.shape[1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.fid {'|'.join(config.family_names())}")
    run(main, sys.argv[1])

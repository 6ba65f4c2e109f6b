"""Score one family: samples/F.npy, models/F/, features/train.npy, data/{test.npy,labels.npz} -> metrics/fid/F.json.

Also writes features/F.npy. `python -m stages.fid FAMILY`.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from stages import RUNS, run
from pofx.core import config, family, files, machine
from pofx.eval import disentanglement, distances, extractor, likelihood, reconstruction


def main(name: str) -> None:
    cfg, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    model = family.load(Path(f"models/{name}"), device)
    drawn, reference, test = (np.load(p) for p in (f"samples/{name}.npy", "features/train.npy", "data/test.npy"))
    every, test = test, test[: len(drawn)]
    distances.check_subset(cfg.kid_subset_size, len(drawn), len(reference))

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    features = net.features(drawn, cfg.batch, name)
    row = distances.compare(features, reference, net.keys, cfg.kid_subsets, cfg.kid_subset_size, seed)
    bits = config.section("likelihood", likelihood.Likelihood)
    row |= likelihood.evaluate(model, test, cfg.batch, device, seed, bits)
    with torch.no_grad():
        row |= model.monitor(torch.from_numpy(test).to(device))
    row |= reconstruction.evaluate(model, test, cfg.batch, device)
    with np.load("data/labels.npz") as labels:
        if "factors_test" in labels:  # the true ones, of a data set that is drawn
            truth = labels["factors_test"], labels["factor_names"].tolist()
            row |= disentanglement.evaluate(model, every, *truth, cfg.batch, device, seed)
    protocol = {
        "n": len(drawn),
        "test_images": len(test),
        "bpd_images": min(bits.images, len(test)),
        "reference": f"train, {len(reference):,} images",
    }
    protocol |= {"extractor": net.name, "kid_subsets": cfg.kid_subsets, "kid_subset_size": cfg.kid_subset_size}
    row["protocol"] = protocol
    card = files.read_json(Path(f"models/{name}/model.json"))
    base = {card["base"]["family"]: card["base"]["config"]} if "base" in card else {}  # trained before, and part of it
    row["config"] = base | {name: card["config"], f"sample.{name}": config.value(f"sample.{name}", dict)}
    files.write_npy(Path(f"features/{name}.npy"), features)
    files.write_json(Path(f"metrics/fid/{name}.json"), {key: {name: value} for key, value in row.items()})


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.fid {'|'.join(config.family_names())}")
    run(main, sys.argv[1])

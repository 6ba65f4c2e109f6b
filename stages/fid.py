"""Score one family: samples/F/, models/F/, features/{train,test}.npy, data/ -> metrics/fid/F.json.

Also writes features/F/ and plots/fid/F/*.png: the nearest training images of samples, and what the family's code holds,
if it has one. Distances belong to each row (a way to draw, see pofx.core.family.draws), all else to the model, and
stands in the family's first row alone. Of further draws of a row (sample.seeds) Frechet distance and KID alone are
measured. `python -m stages.fid FAMILY`.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages import RUNS, run
from pofx.core import config, family, files, machine
from pofx.core.images import save_grid, to_uint8
from pofx.eval import codes, colour, disentanglement, distances, extractor, likelihood, measures, reconstruction

SHOWN, NEIGHBOURS = 8, 5  # samples with their neighbours


def main(name: str) -> None:
    cfg, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    ways = family.draws(name, config.section(f"sample.{name}", family.module(name).Sample))
    bits = config.section("likelihood", likelihood.Likelihood)
    model = family.load(Path(f"models/{name}"), device)
    reference, unseen = np.load("features/train.npy"), np.load("features/test.npy")
    every, colours = np.load("data/test.npy"), colour.means(np.load("data/train.npy", mmap_mode="r"))
    seeds, drawn = config.value("sample.seeds", int), {row: np.load(f"samples/{name}/{row}.npy") for row in ways}
    n = len(drawn[name])
    test = every[:n]
    distances.check_subset(cfg.kid_subset_size, n, len(reference))

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    protocol = {"n": n, "n_reference": len(reference), "reference": f"train, {len(reference):,} images"}
    protocol |= {"n_test": len(unseen), "n_manifold": measures.sides(drawn[name], reference), "seeds": seeds}
    protocol |= {"extractor": net.name, "kid_subsets": cfg.kid_subsets, "kid_subset_size": cfg.kid_subset_size}
    card = files.read_json(Path(f"models/{name}/model.json"))
    base = {card["base"]["family"]: card["base"]["config"]} if "base" in card else {}  # trained before, and part of it
    rows: dict[str, dict[str, Any]] = {}
    for row, how in ways.items():
        features = net.features(drawn[row], cfg.batch, row)
        rows[row] = measures.against_train(drawn[row], features, reference, colours, net.keys, cfg, seed)
        rows[row] |= measures.against_test(features, reference, unseen, net.keys, cfg, seed)
        others = family.stems(row, seeds)[1:]
        again = (net.features(np.load(f"samples/{name}/{stem}.npy"), cfg.batch, stem) for stem in others)
        rows[row] |= measures.over_seeds(rows[row], again, reference, net.keys, cfg, seed)
        told = {key: value for key, value in dataclasses.asdict(how).items() if key != "also"}
        rows[row] |= {"protocol": protocol, "config": base | {name: card["config"], f"sample.{name}": told}}
        files.write_npy(Path(f"features/{name}/{row}.npy"), features)
        if row == name:
            shown = {"neighbours": neighbours(drawn[row], features, reference)}

    rows[name] |= likelihood.evaluate(model, test, cfg.batch, device, seed, bits)
    with torch.no_grad():
        rows[name] |= model.monitor(torch.from_numpy(test).to(device))
    own = protocol | {"test_images": len(test), "bpd_images": min(bits.images, len(test))}
    if (exact := reconstruction.reconstruct(model, test, cfg.batch, device)) is not None:
        again = to_uint8(torch.from_numpy(exact)).numpy()
        back = net.features(again, cfg.batch, f"reconstructions of {name}")
        rows[name] |= reconstruction.evaluate(test, exact)
        rows[name] |= {f"recon_{net.keys[0]}": distances.frechet(back, reference)}
        shown |= codes.pictures(model, test, again, cfg.batch, device)
    with np.load("data/labels.npz") as labels:
        if "factors_test" in labels:  # the true ones, of a data set that is drawn
            truth = labels["factors_test"], labels["factor_names"].tolist()
            rows[name] |= disentanglement.evaluate(model, every, *truth, cfg.batch, device, seed)
    rows[name]["protocol"] = own | ({"traversal": codes.VALUES} if "traversals" in shown else {})
    for picture, (images, columns) in shown.items():
        save_grid(images, Path(f"plots/fid/{name}/{picture}.png"), columns)
    files.write_json(Path(f"metrics/fid/{name}.json"), measures.by_metric(rows))


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

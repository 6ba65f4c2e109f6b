"""Score one family: samples/F/, models/F/, features/{train,test}.npy, data/ -> metrics/fid/F.json.

Also writes features/F/ and plots/fid/F/*.png: the nearest training images of samples, and what the family's code holds,
if it has one. Distances belong to each row (a way to draw, see pofx.models.family.draws), all else to the model, and
stands in the family's first row alone. Of further draws of a row (sample.seeds) Frechet distance and KID alone are
measured. `python -m stages.fid FAMILY`.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from stages import RUNS, processes
from pofx.base import config, dist, files, machine
from pofx.models import family
from pofx.base.images import save_grid
from pofx.base.rng import fold
from pofx.score import codes, colour, cost, distances, extractor, likelihood, measures, probe, trained

SHOWN, NEIGHBOURS = 8, 5  # samples with their neighbours


def main(name: str) -> None:
    cfg, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    ways = family.draws(name, config.section(f"sample.{name}", family.module(name).Sample))
    bits = config.section("likelihood", likelihood.Likelihood)
    model = family.load(Path(f"models/{name}"), device)
    reference, unseen = (distances.Target(np.load(f"features/{split}.npy")) for split in ("train", "test"))
    train, every = np.load("data/train.npy", mmap_mode="r"), np.load("data/test.npy")
    colours = colour.means(train)
    seeds, drawn = config.value("sample.seeds", int), {row: np.load(f"samples/{name}/{row}.npy") for row in ways}
    n = len(drawn[name])
    distances.check_subset(cfg.kid_subset_size, n, len(reference))

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    stems = {row: family.stems(row, seeds) for row in ways}
    features = {
        stem: net.features(np.load(f"samples/{name}/{stem}.npy"), cfg.batch, stem)
        for row in ways
        for stem in stems[row]
    }
    back = trained.returned(model, every[:n], net, cfg.batch)
    if not dist.first():
        return  # the features take longest, the rest is one process's
    card = files.read_json(Path(f"models/{name}/model.json"))
    base = {card["base"]["family"]: card["base"]["config"]} if "base" in card else {}  # trained before, and part of it
    rows: dict[str, dict[str, Any]] = {}
    for row, how in ways.items():
        rows[row] = measures.against_train(drawn[row], features[row], reference, colours, net.keys, cfg, seed)
        rows[row] |= measures.against_test(features[row], reference, unseen, net.keys, cfg, seed)
        further = [features[stem] for stem in stems[row][1:]]
        rows[row] |= measures.over_seeds(rows[row], further, reference, net.keys, cfg, seed)
        rows[row] |= cost.gflop(model, how, device)
        told = {key: value for key, value in dataclasses.asdict(how).items() if key != "also"}
        protocol = measures.protocol(features[row], reference, unseen, net, cfg, seeds)
        rows[row] |= {"protocol": protocol, "config": base | {name: card["config"], f"sample.{name}": told}}
        files.write_npy(Path(f"features/{name}/{row}.npy"), features[row])
        if row == name:
            shown = {"neighbours": neighbours(drawn[row], features[row], reference.vectors, train)}

    found, told, pictures = trained.evaluate(model, every[:n], back, net, reference, bits, cfg.batch, seed)
    with np.load("data/labels.npz") as labels:
        given = (train, every), dict(labels), config.section("probe", probe.Probe), cfg.batch, device, seed
    random = family.untrained(Path(f"models/{name}"), fold(seed, "init"), device)
    known, probed = trained.understanding(model, random, *given)
    rows[name] |= found | known | {"protocol": rows[name]["protocol"] | told | probed}
    shown |= pictures
    for picture, (images, columns) in shown.items():
        save_grid(images, Path(f"plots/fid/{name}/{picture}.png"), columns)
    files.write_json(Path(f"metrics/fid/{name}.json"), measures.by_metric(rows))


def neighbours(drawn: np.ndarray, features: np.ndarray, reference: np.ndarray, train: np.ndarray) -> codes.Sheet:
    """Rows of a sample and the training images that are nearest to it in the features; and their columns."""
    near = distances.nearest(features[:SHOWN], reference, NEIGHBOURS)
    rows = np.concatenate([drawn[: len(near), None], train[near]], 1)
    return rows.reshape(-1, *drawn.shape[1:]), rows.shape[1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.fid {'|'.join(config.family_names())}")
    processes.run(main, sys.argv[1], memory="lower fid.batch")

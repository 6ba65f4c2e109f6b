"""Score one family: samples/F/, models/F/, features/{train,test}.npy, data/ -> metrics/fid/F.json.

Also writes features/F/ and plots/fid/F/*.png: the nearest training images of samples, and what the family's code holds,
if it has one. Distances belong to each row (a way to draw, see pofx.models.family.draws), all else to the model, and
stands in the family's first row alone. Of further draws of a row (sample.seeds) Frechet distance and KID alone are
measured. `python -m stages.fid FAMILY`.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from stages import RUNS, processes
from pofx.base import config, dist, files, machine
from pofx.models import family
from pofx.base.images import save_grid
from pofx.base.rng import fold
from pofx.score import codes, colour, cost, distances, extractor, likelihood, measures, probe, trained
from pofx.score.distances import Target
from pofx.score.measures import Metrics

SHOWN, NEIGHBOURS = 8, 5  # samples with their neighbours


def main(name: str) -> None:
    cfg, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    ways = family.draws(name, config.section(f"sample.{name}", family.module(name).Sample))
    bits = config.section("likelihood", likelihood.Likelihood)
    model = family.load(Path(f"models/{name}"), device)
    train, test = np.load("data/train.npy", mmap_mode="r"), np.load("data/test.npy")
    reference, unseen = (Target(np.load(f"features/{split}.npy")) for split in ("train", "test"))
    seeds, drawn = config.value("sample.seeds", int), {row: np.load(f"samples/{name}/{row}.npy") for row in ways}
    n = len(drawn[name])
    distances.check_subset(cfg.kid_subset_size, n, len(reference))

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    yardstick = measures.Yardstick(net, cfg, seed, reference, unseen, colour.means(train))
    stems = {row: family.stems(row, seeds) for row in ways}
    features = {
        stem: yardstick.features(np.load(f"samples/{name}/{stem}.npy"), stem) for row in ways for stem in stems[row]
    }
    back = trained.returned(model, test[:n], yardstick)
    if not dist.first():
        return  # the features take longest, the rest is one process's
    card = files.read_json(Path(f"models/{name}/model.json"))
    base = {card["base"]["family"]: card["base"]["config"]} if "base" in card else {}  # trained before, and part of it
    rows: dict[str, Metrics] = {}
    for row, how in ways.items():
        rows[row] = yardstick.against_train(drawn[row], features[row]) | yardstick.against_test(features[row])
        rows[row] |= yardstick.over_seeds(rows[row], (features[stem] for stem in stems[row][1:]))
        rows[row] |= cost.gflop(model, how, device)
        rows[row]["protocol"] = yardstick.row_protocol(n, seeds)
        own = {key: value for key, value in dataclasses.asdict(how).items() if key != "also"}
        rows[row]["config"] = base | {name: card["config"], f"sample.{name}": own}
        files.write_npy(Path(f"features/{name}/{row}.npy"), features[row])

    metrics, protocol, pictures = trained.evaluate(model, test[:n], back, yardstick, bits)
    with np.load("data/labels.npz") as labels:
        data = trained.Labelled(train, test, dict(labels))
    random = family.untrained(Path(f"models/{name}"), fold(seed, "init"), device)
    understood, probed = trained.understanding(model, random, data, config.section("probe", probe.Probe), yardstick)
    rows[name] |= metrics | understood
    rows[name]["protocol"] |= protocol | probed
    pictures["neighbours"] = neighbours(drawn[name], features[name], reference.vectors, train)
    for picture, (images, columns) in pictures.items():
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

"""Score one family: samples/F/, models/F/, features/{train,test}.npy, data/ -> metrics/fid/F.json.

Also writes features/F/ and plots/fid/F/*.png: the nearest training images of samples, and what the family's code holds,
if it has one. Distances belong to each row (a way to draw, see pofx.sample.rows), all else to the model, and
stands in the family's first row alone. Of further draws of a row (sample.seeds) Frechet distance and KID alone are
measured. `python -m stages.fid FAMILY`.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from stages import RUNS, processes
from pofx.base import config, dist, files, machine
from pofx.base.images import save_grid
from pofx.base.rng import fold
from pofx.models import store
from pofx.models.family import Coded
from pofx.sample import rows
from pofx.score import codes, colour, cost, distances, extractor, likelihood, measures, probe, trained
from pofx.score.distances import Target
from pofx.score.measures import Metrics

SHOWN, NEIGHBOURS = 8, 5  # samples with their neighbours


def main(name: str) -> None:
    cfg, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    ways = rows.rows(name, config.value(f"sample.{name}", dict), config.value(f"rows.{name}", dict))
    bits = config.section("likelihood", likelihood.Likelihood)
    model = store.load(Path(f"models/{name}"), device)
    train, test = np.load("data/train.npy", mmap_mode="r"), np.load("data/test.npy")
    reference, unseen = (Target(np.load(f"features/{split}.npy")) for split in ("train", "test"))
    seeds, drawn = config.value("sample.seeds", int), {row: np.load(f"samples/{name}/{row}.npy") for row in ways}
    n = len(drawn[name])
    distances.check_subset(cfg.kid_subset_size, n, len(reference))

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    yardstick = measures.Yardstick(net, cfg, seed, reference, unseen, colour.means(train))
    stems = {row: rows.stems(row, seeds) for row in ways}
    features = {
        stem: yardstick.features(np.load(f"samples/{name}/{stem}.npy"), stem) for row in ways for stem in stems[row]
    }
    back = trained.returned(model, test[:n], yardstick) if isinstance(model, Coded) else None
    if not dist.first():
        return  # the features take longest, the rest is one process's
    card = store.card(Path(f"models/{name}"))
    base = {card["base"]["family"]: card["base"]["config"]} if "base" in card else {}  # trained before, and part of it
    scores: dict[str, Metrics] = {}
    for row, how in ways.items():
        scores[row] = yardstick.against_train(drawn[row], features[row]) | yardstick.against_test(features[row])
        scores[row] |= yardstick.over_seeds(scores[row], (features[stem] for stem in stems[row][1:]))
        scores[row] |= cost.gflop(model, how, device)
        scores[row]["protocol"] = yardstick.row_protocol(n, seeds)
        scores[row]["config"] = base | {name: card["config"], f"sample.{name}": dataclasses.asdict(how)}
        files.write_npy(Path(f"features/{name}/{row}.npy"), features[row])

    metrics, protocol, pictures = trained.evaluate(model, test[:n], back, yardstick, bits)
    with np.load("data/labels.npz") as labels:
        data = trained.Labelled(train, test, dict(labels))
    random = store.untrained(Path(f"models/{name}"), fold(seed, "init"), device)
    understood, probed = trained.understanding(model, random, data, config.section("probe", probe.Probe), yardstick)
    scores[name] |= metrics | understood
    scores[name]["protocol"] |= protocol | probed
    pictures["neighbours"] = neighbours(drawn[name], features[name], reference.vectors, train)
    for picture, (images, columns) in pictures.items():
        save_grid(images, Path(f"plots/fid/{name}/{picture}.png"), columns)
    files.write_json(Path(f"metrics/fid/{name}.json"), measures.by_metric(scores))


def neighbours(drawn: np.ndarray, features: np.ndarray, reference: np.ndarray, train: np.ndarray) -> codes.Sheet:
    """Rows of a sample and the training images that are nearest to it in the features; and their columns."""
    near = distances.nearest(features[:SHOWN], reference, NEIGHBOURS)
    sheet = np.concatenate([drawn[: len(near), None], train[near]], 1)
    return sheet.reshape(-1, *drawn.shape[1:]), sheet.shape[1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.fid {'|'.join(config.family_names())}")
    processes.run(main, sys.argv[1], memory="lower fid.batch")

"""Score one family: samples/F/, models/F/, features/{train,test}.npy, data/ -> metrics/fid/F.json.

Also writes features/F/ and plots/fid/F/*.png: the nearest training images of samples, and pictures of a code, if there
is one. Distances belong to each row of samples/F/rows.json, all else to the model: it stands in the first row.
What was measured of the same images or the same model is not measured again, unless FRESH=1.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from stages import FRESH, RUNS, processes
from pofx.base import config, dist, files, machine, provenance
from pofx.base.images import Sheet, save_sheet
from pofx.base.memo import Entry, Memo
from pofx.base.rng import fold
from pofx.models import store
from pofx.models.family import Featured, Latent
from pofx.score import disentanglement, distances, extractor, faces, likelihood, measures, probe, trained
from pofx.score.distances import Target
from pofx.score.measures import Yardstick

SHOWN, NEIGHBOURS = 8, 5  # samples with their neighbours
# Code that decides what is measured.
CODE = ("stages", *(f"src/pofx/{room}" for room in ("base", "data", "models", "score")))
INPUTS = ("data/train.npy", "data/test.npy", "data/labels.npz", "features/train.npy", "features/test.npy")


def main(name: str) -> None:
    cfg, seed, device = config.section("fid", extractor.Fid), config.value("seed", int), machine.device()
    settings = config.section("likelihood", likelihood.Likelihood), config.section("probe", probe.Probe)
    model, samples = Path(f"models/{name}"), Path(f"samples/{name}")
    ways, card = files.read_json(samples / "rows.json"), store.card(model)
    train, drawn = np.load("data/train.npy", mmap_mode="r"), np.load(samples / f"{name}.npy")
    reference, unseen = (Target(np.load(f"features/{split}.npy")) for split in ("train", "test"))
    distances.check_subset(cfg.kid_subset_size, len(drawn), len(reference))
    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, device)
    with np.load("data/labels.npz") as file:
        smileys = faces.known(file)
    yardstick = Yardstick(net, cfg, seed, reference, unseen, measures.mean_colours(train), smileys)

    shared = [*map(Path, INPUTS)], seed, cfg, len(drawn), machine.name(device), provenance.code_hash(*CODE)
    memo = Memo(RUNS / "memo/fid" / name, *shared, fresh=FRESH)
    rows, features = {}, {}
    for row, how in ways.items():
        paths = [samples / f"{stem}.npy" for stem in how["stems"]]
        arrays, rows[row] = memo(partial(of_row, paths, yardstick), *paths)
        features[row] = arrays["features"]
    weights = model / "model.safetensors", model / "model.json"
    sheets, itself = memo(partial(of_model, model, len(drawn), yardstick, *settings), *weights, *settings)
    if not dist.first():
        return

    base = {card["base"]["family"]: card["base"]["config"]} if "base" in card else {}  # trained before, and part of it
    for row, how in ways.items():
        rows[row]["config"] = base | {name: card["config"], f"sample.{name}": how["sample"]}
        files.write_npy(Path(f"features/{name}/{row}.npy"), features[row])
    rows[name] |= itself["metrics"] | {"protocol": rows[name]["protocol"] | itself["protocol"]}
    sheets["neighbours"] = neighbours(drawn, features[name], reference.vectors, train)
    for picture, sheet in sheets.items():
        save_sheet(sheet, Path(f"plots/fid/{name}/{picture}.png"))
    files.write_json(Path(f"metrics/fid/{name}.json"), measures.by_metric(rows))
    memo.prune()


def of_row(paths: list[Path], yardstick: Yardstick) -> Entry:
    """The features of the first of a row's draws, and what is measured of all."""
    draws = [np.load(path, mmap_mode="r") for path in paths]
    features = [yardstick.features(images, path.stem) for images, path in zip(draws, paths, strict=True)]
    metrics = yardstick.row(draws, features) if dist.first() else {}  # the features take longest
    return {"features": features[0]}, metrics


def of_model(folder: Path, n: int, yardstick: Yardstick, bits: likelihood.Likelihood, probing: probe.Probe) -> Entry:
    """Pictures of the code of the model in `folder`, what is measured of it, of `n` test images, and how."""
    device, train, test = yardstick.net.device, np.load("data/train.npy", mmap_mode="r"), np.load("data/test.npy")
    model, random = store.load(folder, device), store.untrained(folder, fold(yardstick.seed, "init"), device)
    metrics, protocol, pictures = trained.evaluate(model, test[:n], yardstick, bits)
    if not dist.first():
        return {}, {}
    with np.load("data/labels.npz") as file:
        labels = dict(file)
    if isinstance(model, Latent) and "factors_test" in labels:
        factors = disentanglement.classes(labels["factors_test"], labels["factor_names"].tolist())
        if scores := disentanglement.evaluate(model, test, factors, yardstick.batches, yardstick.seed):
            metrics, protocol = metrics | scores, protocol | {"factor_images": len(test)}
    if isinstance(model, Featured):
        scores, how = probe.evaluate(model, random, probe.take(probing, train, test, labels), yardstick.batches)
        metrics, protocol = metrics | scores, protocol | how
    return pictures, {"metrics": metrics, "protocol": protocol}


def neighbours(drawn: np.ndarray, features: np.ndarray, reference: np.ndarray, train: np.ndarray) -> Sheet:
    """Rows of a sample and the training images that are nearest to it in the features."""
    near = distances.nearest(features[:SHOWN], reference, NEIGHBOURS)
    return np.concatenate([drawn[: len(near), None], train[near]], 1)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.fid {'|'.join(config.family_names())}")
    processes.run(main, sys.argv[1], memory="lower fid.batch")

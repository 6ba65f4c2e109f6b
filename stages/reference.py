"""What the families are compared with: data/ -> features/{train,test}.npy, metrics/reference.json.

The reference is the first `fid.n_reference` training images. Two floors: as many test images as are sampled against it
("floor"), and one half of it against the other ("halves"). Gaussians fitted to all training images are the baselines.
With sample.seeds above 1 they are drawn from again, and further test images are scored for the floor if there are
enough. "pixels" is a linear probe of the images themselves.
"""

import dataclasses
from pathlib import Path

import numpy as np

from stages import RUNS, run
from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.base.rng import fold
from pofx.score import baselines, distances, extractor, faces, measures, probe
from pofx.score.distances import Target
from pofx.score.measures import Metrics


def main() -> None:
    cfg, seed = config.section("fid", extractor.Fid), config.value("seed", int)
    train, test = (np.load(f"data/{split}.npy", mmap_mode="r") for split in ("train", "test"))
    if cfg.n_reference > len(train):
        raise UserError(f"fid.n_reference = {cfg.n_reference} exceeds the {len(train)} training images: lower it")
    asked, seeds = config.value("sample.n", int), config.value("sample.seeds", int)
    n, half = min(asked, len(test)), min(asked, cfg.n_reference // 2)
    distances.check_subset(cfg.kid_subset_size, n, cfg.n_reference)

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, machine.device())
    reference = Target(net.features(train[: cfg.n_reference], cfg.batch, "train"))
    floor = Target(net.features(test[:n], cfg.batch, "test"))
    with np.load("data/labels.npz") as file:
        labels = dict(file)
    colours = measures.mean_colours(train)
    yardstick = measures.Yardstick(net, cfg, seed, reference, floor, colours, faces.known(labels))
    fit = seeds if seeds * n <= len(test) else 1  # other test images stand for other draws, where there are enough
    parts = [test[k * n : (k + 1) * n] for k in range(fit)]
    others = [yardstick.features(part, f"test, part {k}") for k, part in enumerate(parts[1:], 2)]
    rows: dict[str, Metrics] = {"floor": yardstick.row(parts, [floor.vectors, *others])}
    rows["floor"]["protocol"]["keys"] = net.keys

    one, other = reference.vectors[:half], reference.vectors[half : 2 * half]
    halves = dataclasses.replace(yardstick, train=Target(other), colours=yardstick.colours[half : 2 * half])
    rows["halves"] = halves.row([train[:half]], [one], "other images")

    gaussians = baselines.Gaussians(train)
    noises = [fold(seed, "baselines"), *(fold(seed, "baselines", k) for k in range(1, seeds))]
    for name in gaussians.spreads:
        draws = [gaussians.draw(name, asked, noise) for noise in noises]
        rows[name] = yardstick.row(draws, [yardstick.features(images, name) for images in draws])
    for name, (bits, error) in gaussians.bits(test).items():
        rows[name] |= {"bpd": bits, "bpd_stderr": error}
        rows[name]["protocol"]["bpd_images"] = len(test)
    for name, reason in gaussians.refused.items():
        rows[name] = {"refused": reason}

    task = probe.take(config.section("probe", probe.Probe), train, test, labels)
    accuracy, protocol = probe.pixels(task)
    rows["pixels"] = accuracy | {"protocol": {"n": protocol["probe_test"]} | protocol}

    files.write_npy(Path("features/train.npy"), reference.vectors)
    files.write_npy(Path("features/test.npy"), floor.vectors)
    files.write_json(Path("metrics/reference.json"), measures.by_metric(rows))


if __name__ == "__main__":
    run(main, memory="lower fid.batch")

"""What the families are compared with: data/ -> features/{train,test}.npy, metrics/reference.json.

The reference is the first `fid.n_reference` training images. Two floors: as many test images as are sampled against it
("floor"), and as many of it against as many others of it ("halves"). Gaussians fitted to all training images are the
baselines: as many images as are sampled, and bits per dimension of all test images. With sample.seeds above 1 the
Gaussians are drawn from again, and further test images are scored in the floor's place if there are enough. "pixels" is
a linear probe of the images themselves.
"""

from pathlib import Path
from typing import Any

import numpy as np

from stages import RUNS, run
from pofx.base import config, files, machine
from pofx.base.errors import UserError
from pofx.base.rng import fold
from pofx.score import baselines, colour, distances, extractor, measures, probe


def main() -> None:
    cfg, seed = config.section("fid", extractor.Fid), config.value("seed", int)
    train, test = (np.load(f"data/{split}.npy", mmap_mode="r") for split in ("train", "test"))
    if cfg.n_reference > len(train):
        raise UserError(f"fid.n_reference = {cfg.n_reference} exceeds the {len(train)} training images: lower it")
    asked, seeds = config.value("sample.n", int), config.value("sample.seeds", int)
    n, half = min(asked, len(test)), min(asked, cfg.n_reference // 2)
    distances.check_subset(cfg.kid_subset_size, n, cfg.n_reference)

    net = extractor.build(cfg, RUNS / "weights", RUNS.parent, machine.device())
    reference = distances.Target(net.features(train[: cfg.n_reference], cfg.batch, "train"))
    floor = distances.Target(net.features(test[:n], cfg.batch, "test"))
    colours = colour.means(train)
    one, other = reference.vectors[:half], distances.Target(reference.vectors[half : 2 * half])
    fit = seeds if seeds * n <= len(test) else 1  # other test images stand for other draws, where there are enough
    rows: dict[str, dict[str, Any]] = {
        "floor": measures.against_train(test[:n], floor.vectors, reference, colours, net.keys, cfg, seed)
        | {"protocol": measures.protocol(floor, reference, floor, net, cfg, fit) | {"keys": net.keys}},
        "halves": measures.against_train(train[:half], one, other, colours[half : 2 * half], net.keys, cfg, seed)
        | measures.against_test(one, other, floor, net.keys, cfg, seed)
        | {"protocol": measures.protocol(one, other, floor, net, cfg, 1, "other images")},
    }
    parts = (net.features(test[k * n : (k + 1) * n], cfg.batch, f"test, part {k + 1}") for k in range(1, fit))
    rows["floor"] |= measures.over_seeds(rows["floor"], parts, reference, net.keys, cfg, seed)

    gaussians = baselines.Gaussians(train)
    for name, images in gaussians.draw(asked, fold(seed, "baselines")).items():
        features = net.features(images, cfg.batch, name)
        rows[name] = measures.against_train(images, features, reference, colours, net.keys, cfg, seed)
        rows[name] |= measures.against_test(features, reference, floor, net.keys, cfg, seed)
        others = (gaussians.draw(asked, fold(seed, "baselines", k), name)[name] for k in range(1, seeds))
        parts = (net.features(images, cfg.batch, name) for images in others)
        rows[name] |= measures.over_seeds(rows[name], parts, reference, net.keys, cfg, seed)
        rows[name] |= {"protocol": measures.protocol(features, reference, floor, net, cfg, seeds)}
    for name, (bits, error) in gaussians.bits(test).items():
        rows[name] |= {"bpd": bits, "bpd_stderr": error}
        rows[name]["protocol"]["bpd_images"] = len(test)
    for name, reason in gaussians.refused.items():
        rows[name] = {"refused": reason}

    with np.load("data/labels.npz") as labels:
        task = probe.take(config.section("probe", probe.Probe), train, test, labels)
    accuracy, told = probe.pixels(task)
    rows["pixels"] = accuracy | {"protocol": {"n": told["probe_test"]} | told}

    files.write_npy(Path("features/train.npy"), reference.vectors)
    files.write_npy(Path("features/test.npy"), floor.vectors)
    files.write_json(Path("metrics/reference.json"), measures.by_metric(rows))


if __name__ == "__main__":
    run(main, memory="lower fid.batch")

"""What a comparison by quality needs: images to learn from, our model of them, and what its samples are measured by."""

import re
import shlex
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from pofx.base import config, machine
from pofx.base.images import Images
from pofx.base.rng import Noise, fold
from pofx.data import binary, download
from pofx.models import store
from pofx.models.family import Family
from pofx.sample import settings as drawing
from pofx.sample.rows import rows
from pofx.score import distances, extractor
from pofx.score.measures import Reference
from pofx.train.config import Train, settings
from pofx.train.pool import Pool
from stages import ROOT, RUNS
from tools import compose

RESULTS = ROOT / "benchmarks/results"
Parameters = dict[str, Any]  # of params.yaml


def parameters(*words: str) -> Parameters:
    """Those that presets make, `words` as for tools.compose."""
    return YAML(typ="safe").load(compose.text(list(words)))


def ours(name: str, tree: Parameters) -> tuple[Any, Train, Any]:
    """Config, training settings and Sample of a family."""
    cfg = config.build(store.module(name).Config, config.untrained(tree[name]), name)
    return cfg, settings(name, tree), rows(name, tree["sample"][name], {})[name]


def preset(name: str, *words: str) -> tuple[Any, Train, Any]:
    """Config, training settings and Sample of a family, by presets."""
    return ours(name, parameters(*words))


def slug(text: str) -> str:
    """As a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


class Task:
    """Training images, and a denoiser that learns them.

    Attributes:
        words: of the presets, as for tools.compose.
        images: uint8 (N, 3, h, w), of training.
        cfg, train, sample: of the family.
    """

    def __init__(self, words: list[str], scratch: Path, family: str = "edm"):
        tree = parameters(*words)
        source, raw = config.build(download.Data, tree["data"], "data"), scratch / "raw"
        download.build(source, raw, RUNS / "download", RUNS.parent)
        data = binary.take(binary.read(raw), config.build(binary.Preprocess, tree["preprocess"], "preprocess"))
        self.words, self.data, self.images = shlex.join(words), data.name, data.images["train"]
        self.device, self.scratch, self.seed, self.family = machine.device(), scratch, tree["seed"], family
        self.cfg, asked, self.sample = ours(family, tree)
        self.train = asked.on(self.device)
        self.precision = self.train.precision
        self.dtype = machine.arithmetic(self.device, self.precision)["dtype"]
        self.fid = config.build(extractor.Fid, tree["fid"], "fid")

    def pool(self, train: Train) -> Pool:
        """The training images in batches."""
        images = torch.from_numpy(self.images).to(self.device)
        return Pool(images, train.batch, self.seed, train.flip, train.validation)

    def model(self, pool: Pool, train: Train) -> Family:
        """A model that is to be trained by `train`, as `stages.train` makes it."""
        torch.manual_seed(fold(self.seed, "init"))
        model = store.create(self.family, self.cfg, tuple(self.images.shape[1:]), Path("models")).to(self.device)
        model.prepare(pool.images, train.batch // train.accumulate)
        model.precision = self.precision
        return model

    def draw(self, model: Family, n: int) -> Images:
        """n images from a model with its averaged weights, in eval mode."""
        noise = partial(Noise, fold(self.seed, "sample", self.family), device=self.device)
        return drawing.draw(model, self.sample, n, noise, f"{n:,} images")[0]

    @cached_property
    def reference(self) -> Reference:
        """The first training images in the features of the extractor: test images decide nothing here."""
        net = extractor.build(self.fid, RUNS / "weights", RUNS.parent, self.device)
        vectors = net.features(self.images[: self.fid.n_reference], self.fid.batch, "train")
        return Reference(net, self.fid, self.seed, distances.Target(vectors))

    def features(self, images: Images) -> np.ndarray:
        """Of the extractor, (n, d)."""
        return self.reference.features(images, "samples")

    def score(self, features: np.ndarray) -> dict[str, float]:
        """Distances of these vectors to the reference: fd, kid, and its standard deviation over subsets."""
        found = self.reference.distances(features)
        return {key: found[name] for key, name in zip(("fd", "kid", "kid_std"), self.reference.net.keys, strict=True)}


def size(model: Family) -> int:
    """Parameters that are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)

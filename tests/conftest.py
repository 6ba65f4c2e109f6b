"""What several test files share: the families at their default setting, small images to train on, one thread."""

import dataclasses
from functools import cache

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pofx.base import config
from pofx.data.sprites import generate
from pofx.models import family
from pofx.train.pool import Pool
from pofx.train.state import Slot
from tools import compose


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Sums over threads depend on their number: with one, golden numbers and bitwise claims hold on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sprites() -> torch.Tensor:
    """(128, 3, 32, 32) uint8."""
    return torch.from_numpy(generate(128, seed=7)[0])


@pytest.fixture(params=config.family_names())
def name(request) -> str:
    """Every family, by file name: a new one is under test without a change here."""
    return request.param


@cache
def defaults(*words: str) -> dict:
    """The parameters as committed in conf/, whatever params.yaml is at the moment; `words` as for tools.compose."""
    return YAML(typ="safe").load(compose.text(list(words)))


def small(name: str, *words: str, **train):
    """The module of a family and its default config, or that of a preset, with a budget for tests."""
    module = family.module(name)
    cfg = config.build(module.Config, defaults(*words)[name], name)
    cheap = {"n_sigmas": 4, "timesteps": 40, "levels": 4, "buffer": 128}
    cheap |= {"chain": 2} if getattr(cfg, "chain", 0) else {}
    cfg = dataclasses.replace(cfg, **{k: v for k, v in cheap.items() if hasattr(cfg, k)})
    budget = {
        "images": 32,
        "accumulate": 1,
        "batch": 8,
        "rows": 4,
        "warmup": 0,
        "save_seconds": 0.0,
        "memory_mib": 0,
        "preview_rows": 0,
        "validation": 0,
        "patience": 0,
        "rollbacks": 0,
    } | train
    return module, dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, **budget))


def build(module, cfg, seed: int = 0):
    base = [build(*small(module.Model.needs))] if module.Model.needs else []  # untrained: enough for every contract
    torch.manual_seed(seed)
    return module.Model(cfg, *base)


def pool(images: torch.Tensor, cfg, seed: int = 0) -> Pool:
    return Pool(images, cfg.train.batch, seed, cfg.train.flip, cfg.train.validation)


def slot(folder, stage: str = "train") -> Slot:
    return Slot(folder, stage, ["test"])


def weights(model) -> dict[str, np.ndarray]:
    return {k: v.numpy().copy() for k, v in model.state_dict().items()}

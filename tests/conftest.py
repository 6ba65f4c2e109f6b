"""What several test files share: the families at their default setting, small images to train on, one thread."""

import dataclasses
import os
from functools import cache

import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from pofx.base import config
from pofx.base.machine import Precision
from pofx.data.sprites import generate
from pofx.models import store
from pofx.train.config import Train, settings
from pofx.train.pool import Pool
from pofx.train.state import Slot
from tools import compose

SHAPE = (3, 32, 32)  # of the images below
LONGEST = (
    "test_pipeline", "test_families", "test_processes", "test_reruns", "test_rows", "test_parallel", "test_memo",
    "test_slices",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest go first, so that two workers end at about the same time."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True, scope="session")
def threads():
    """Sums over threads depend on their number: one by default, as in `make test`, or TEST_THREADS."""
    torch.set_num_threads(int(os.environ.get("TEST_THREADS", "1")))


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
    """The parameters as presets/ make them, whatever params.yaml is at the moment; `words` as for tools.compose."""
    return YAML(typ="safe").load(compose.text(list(words)))


def small(name: str, *words: str):
    """The module of a family and its default config, or that of a preset, at sizes for tests."""
    module = store.module(name)
    cfg = config.build(module.Config, config.untrained(defaults(*words)[name]), name)
    cheap = {"n_sigmas": 4, "timesteps": 40}
    cheap |= {"chain": 2} if getattr(cfg, "chain", 0) else {}
    cfg = dataclasses.replace(cfg, **{key: value for key, value in cheap.items() if hasattr(cfg, key)})
    if name == "ebm":
        few = {"contrast": dataclasses.replace(cfg.contrast, buffer=128)}
        few |= {"recovery": dataclasses.replace(cfg.recovery, levels=4)}
        cfg = dataclasses.replace(cfg, **few)
    return module, cfg


def budget(name: str, *words: str, **changes) -> Train:
    """How the family, or its preset, trains, for 32 images without anything beside."""
    short = {
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
        "precision": "fp32",  # numbers are compared, whatever the machine
    }
    return dataclasses.replace(settings(name, defaults(*words)), **(short | changes))


def build(module, cfg, seed: int = 0, shape: tuple[int, int, int] = SHAPE):
    needs = getattr(module, "NEEDS", None)
    base = [build(*small(needs), shape=shape)] if needs else []  # untrained: enough for every contract
    torch.manual_seed(seed)
    return module.Model(cfg, shape, *base)


def pool(images: torch.Tensor, cfg: Train, seed: int = 0) -> Pool:
    return Pool(images, cfg.batch, seed, cfg.flip, cfg.validation)


def slot(folder, stage: str = "train", precision: Precision = "fp32") -> Slot:
    return Slot(folder, stage, ["test"], precision)


def weights(model) -> dict[str, np.ndarray]:
    return {k: v.numpy().copy() for k, v in model.state_dict().items()}

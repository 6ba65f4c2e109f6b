"""Every preset as large as it is: its model is built and takes one step of the optimiser; chains are cut short."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import SHAPE, defaults

from pofx.base import config
from pofx.base.images import to_model
from pofx.models import store
from pofx.models.family import Family
from pofx.train.config import settings

FAMILIES = config.family_names()
PRESETS = sorted(path.stem for path in (Path(__file__).resolve().parents[1] / "presets").glob("*-*.yaml"))
CASES = [(word.partition("-")[0], scale, word) for word in PRESETS for scale in ("laptop", "paper")]
CASES += [(name, scale) for scale in ("hour", "gpu", "paper") for name in FAMILIES] + [("edm", "night")]
# Their networks at `gpu` are those at `paper`, and too large to build for nothing.
CASES = [case for case in CASES if case not in [(name, "gpu") for name in ("ncsn", "ddpm", "edm")]]


def build(name: str, *words: str) -> Family:
    module = store.module(name)
    cfg = config.build(module.Config, config.untrained(defaults(*words)[name]), name)
    if getattr(cfg, "chain", 0):
        cfg = dataclasses.replace(cfg, chain=2)
    base = store.needs(name)
    return module.Model(cfg, SHAPE, *([build(base, *words)] if base else []))


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_a_preset_is_built_and_takes_a_step(case, sprites, tmp_path: Path):
    name, *words = case
    plan = settings(name, defaults(*words))
    torch.manual_seed(0)
    model = build(name, *words).train()
    model.fetch(tmp_path, tmp_path)
    loss = model(to_model(sprites[:2]))["loss"].mean()
    loss.backward()
    moved = [p for p in model.parameters() if p.grad is not None and p.grad.any()]
    before = [p.detach().clone() for p in moved]
    torch.optim.Adam(moved, lr=plan.lr, betas=plan.betas, fused=True).step()
    assert loss.isfinite() and moved
    assert all((p != old).any() and p.isfinite().all() for p, old in zip(moved, before, strict=True))


def test_the_denoisers_have_one_network_at_gpu_and_paper():
    for name in ("ncsn", "ddpm", "edm"):
        assert defaults("gpu")[name]["net"] == defaults("paper")[name]["net"]

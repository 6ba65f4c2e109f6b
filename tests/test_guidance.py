"""Autoguidance: the formula, which weights the guide has and since when, what it costs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import budget, build, defaults, pool, slot, small

from pofx.base import config
from pofx.base.errors import UserError
from pofx.base.rng import Noise
from pofx.models import store
from pofx.models.denoiser import Denoiser, DenoiserConfig
from pofx.sample.cost import counted
from pofx.sample.drawing import draw, guided
from pofx.sample.samplers import Sample
from pofx.train import loop
from pofx.train.loop import Run

NAMES = [name for name in config.family_names() if isinstance(build(*small(name)), Denoiser)]


class Shrink(Denoiser):
    """D(x, sigma) = w x."""

    sigma_range = (0.1, 10.0)

    def __init__(self, guide: float):
        super().__init__(DenoiserConfig(guide=guide), (3, 8, 8), torch.nn.Conv2d(3, 3, 1, groups=3, bias=False))

    def forward(self, x):
        raise NotImplementedError

    def denoise(self, x, sigma, net=None):
        return (net or self.net)(x)


@torch.no_grad()
def test_the_guide_is_left_behind_by_the_weight():
    model = Shrink(0.5)
    model.net.weight.fill_(0.5)
    model.keep()
    model.net.weight.fill_(0.7)
    x = torch.ones(1, 3, 2, 2)
    for weight, want in ((1.0, 0.7), (2.0, 0.9), (3.0, 1.1)):
        torch.testing.assert_close(guided(model, weight)(x, 1.0), want * x)


def test_guidance_without_a_guide_is_refused():
    with pytest.raises(UserError, match="above 0 under guide"):
        guided(Shrink(0.0), 2.0)
    assert guided(model := Shrink(0.0), 1.0) == model.denoise


@pytest.mark.parametrize("name", NAMES)
def test_a_guide_of_the_whole_training_is_refused(name):
    with pytest.raises(UserError, match=rf"{name}\.guide = 1\.0 should be below 1"):
        config.build(store.module(name).Config, {"guide": 1.0}, name)


def test_every_evaluation_is_counted():
    model, cfg = Shrink(0.5), Sample(sampler="ddim", steps=5, spacing="geometric")
    with torch.no_grad():
        for guidance, cost in ((1.0, 5), (2.0, 10)):
            with counted(model.networks()) as calls:
                draw(model, Noise(0, 0, 1), replace(cfg, guidance=guidance))
            assert calls[0] == cost


@pytest.mark.parametrize("name", NAMES)
def test_the_average_of_its_moment_is_kept(name, sprites, tmp_path):
    module, cfg = small(name)
    plan, asked = budget(name), []  # 32 images in batches of 8
    model, state = build(module, replace(cfg, guide=0.5)), slot(tmp_path)
    with state, pytest.raises(loop.Stopped):
        run = Run(0, state, stop=lambda: asked.append(0) or len(asked) == 2)
        loop.train(model, pool(sprites, plan), plan, run)
    with state:
        saved = state.load("cpu")
    named = [key for key, p in model.named_parameters() if p.requires_grad]
    average = dict(zip(named, saved["ema"]["shadow"], strict=True))
    for key, value in saved["model"].items():
        if key.startswith("guide.") and (own := key.replace("guide.", "net.", 1)) in average:
            np.testing.assert_array_equal(value, average[own])
    kept = {k: v.clone() for k, v in saved["model"].items() if k.startswith("guide.")}
    assert kept

    with state:
        loop.train(model, pool(sprites, plan), plan, Run(0, state))
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in kept.items())  # once, and never again
    assert any(not torch.equal(after[k.replace("guide.", "net.", 1)], v) for k, v in kept.items())


def test_early_stopping_counts_rows_from_the_guide_on(sprites, tmp_path, monkeypatch):
    """The validation loss rises from the first row: the best weights are those of the moment of the guide."""
    module, cfg = small("edm")
    plan = budget("edm", images=64, rows=8, validation=16, patience=2)
    model, asked = build(module, replace(cfg, guide=0.45)), []  # kept in the fourth of eight steps, a row each
    monkeypatch.setattr(model, "validate", lambda x: asked.append(0) or torch.full((len(x),), float(len(asked))))
    untrained = {k: v.clone() for k, v in model.guide.state_dict().items()}
    with slot(tmp_path) as state:
        curve = loop.train(model, pool(sprites, plan), plan, Run(0, state)).curve
    assert [row["images"] for row in curve] == [8, 16, 24, 32, 40, 48]
    assert all(torch.equal(v, model.net.state_dict()[k]) for k, v in model.guide.state_dict().items())
    assert any(not torch.equal(v, untrained[k]) for k, v in model.guide.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_guide_changes_draws_and_no_weight(name, sprites, tmp_path):
    """Training does not see it: the same losses, the same weights, with and without."""
    models = []
    for share in (0.0, 0.5):
        module, cfg = small(name)
        plan, model = budget(name), build(module, replace(cfg, guide=share))
        with slot(tmp_path / str(share)) as state:
            loop.train(model, pool(sprites, plan), plan, Run(0, state))
        models.append(model)
    plain, other = models
    held = other.state_dict()
    assert all(torch.equal(held[k], v) for k, v in plain.state_dict().items())
    own = config.build(Sample, defaults()["sample"][name] | {"steps": 3, "spacing": "karras"}, name)
    with torch.no_grad():
        one, two, three = (
            draw(m, Noise(0, 0, 2), replace(own, guidance=w)) for m, w in ((plain, 1.0), (other, 1.0), (other, 2.0))
        )
    assert torch.equal(one, two)
    assert not torch.allclose(two, three)

"""A denoiser guided by its earlier self: the formula, what is kept and when, what it costs."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import build, defaults, pool, slot, small
from test_samplers import settings

from pofx.base import config
from pofx.base.errors import UserError
from pofx.base.rng import Noise
from pofx.models import family
from pofx.models.denoiser import Denoiser
from pofx.train import loop

NAMES = [name for name in config.family_names() if issubclass(family.module(name).Model, Denoiser)]


class Shrink(Denoiser):
    """D(x, sigma) = w x."""

    sigma_range, ladder = (0.1, 10.0), None

    def __init__(self, guide: float):
        super().__init__(torch.nn.Conv2d(3, 3, 1, groups=3, bias=False), guide, 100)

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
        torch.testing.assert_close(model.guided(weight)(x, 1.0), want * x)


def test_guidance_without_a_guide_is_refused():
    with pytest.raises(UserError, match="above 0 under guide"):
        Shrink(0.0).guided(2.0)
    with pytest.raises(UserError, match=r"guide = 1.0 should lie in \[0, 1\)"):
        Shrink(1.0)


def test_every_evaluation_is_counted():
    model, cfg = Shrink(0.5), settings("ddim", steps=5, spacing="geometric")
    with torch.no_grad():
        for guidance, cost in ((1.0, 5), (2.0, 10)):
            with family.counted(model.net, *model.guides()) as calls:
                model.sample(Noise(0, 0, 1), dataclasses.replace(cfg, guidance=guidance))
            assert calls[0] == cost


@pytest.mark.parametrize("name", NAMES)
def test_the_average_of_its_moment_is_kept(name, sprites, tmp_path):
    module, cfg = small(name)  # 32 images in batches of 8
    cfg = dataclasses.replace(cfg, guide=0.5)
    model, state = build(module, cfg), slot(tmp_path)
    asked = []
    with state, pytest.raises(loop.Stopped):
        loop.train(model, pool(sprites, cfg), cfg.train, loop.Run(0, state, lambda: asked.append(0) or len(asked) == 2))
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
        loop.train(model, pool(sprites, cfg), cfg.train, loop.Run(0, state))
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in kept.items())  # once, and never again
    assert any(not torch.equal(after[k.replace("guide.", "net.", 1)], v) for k, v in kept.items())


def test_early_stopping_counts_rows_from_the_guide_on(sprites, tmp_path, monkeypatch):
    """The loss of images held out rises from the first row: the best weights are those of the moment of the guide."""
    module, cfg = small("edm", images=64, rows=8, validation=16, patience=2)
    cfg = dataclasses.replace(cfg, guide=0.45)  # kept in the fourth of eight steps, a row each
    model, asked = build(module, cfg), []
    monkeypatch.setattr(model, "validate", lambda x: asked.append(0) or torch.full((len(x),), float(len(asked))))
    untrained = {k: v.clone() for k, v in model.guide.state_dict().items()}
    with slot(tmp_path) as state:
        curve = loop.train(model, pool(sprites, cfg), cfg.train, loop.Run(0, state))[0]
    assert [row["images"] for row in curve] == [8, 16, 24, 32, 40, 48]
    assert all(torch.equal(v, model.net.state_dict()[k]) for k, v in model.guide.state_dict().items())
    assert any(not torch.equal(v, untrained[k]) for k, v in model.guide.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_a_guide_changes_draws_and_no_weight(name, sprites, tmp_path):
    """Training does not see it: the same losses, the same weights, with and without."""
    models = []
    for share in (0.0, 0.5):
        module, cfg = small(name)
        cfg = dataclasses.replace(cfg, guide=share)
        model = build(module, cfg)
        with slot(tmp_path / str(share)) as state:
            loop.train(model, pool(sprites, cfg), cfg.train, loop.Run(0, state))
        models.append(model)
    plain, guided = models
    held = guided.state_dict()
    assert all(torch.equal(held[k], v) for k, v in plain.state_dict().items())
    own = config.build(module.Sample, defaults()["sample"][name] | {"steps": 3, "spacing": "karras"}, name)
    with torch.no_grad():
        one, two, three = (
            m.sample(Noise(0, 0, 2), dataclasses.replace(own, guidance=w))
            for m, w in ((plain, 1.0), (guided, 1.0), (guided, 2.0))
        )
    assert torch.equal(one, two)
    assert not torch.allclose(two, three)

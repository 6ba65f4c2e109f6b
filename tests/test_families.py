"""The contract of `pofx.models.family.Family`, for every family."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build, defaults, pool, slot, small, weights
from ruamel.yaml import YAML

from pofx.base import config
from pofx.base.images import to_model, to_uint8
from pofx.base.rng import Noise
from pofx.models import family
from pofx.train.loop import train
from tools import compose


@pytest.fixture
def model(name):
    return build(*small(name))


def draw(name, batch=64):
    cfg = config.build(family.module(name).Sample, defaults()["sample"][name], f"sample.{name}")
    short = {"chain": 3, "steps": 4, "step_size": None, "batch": batch}
    return type(cfg)(**{k: short.get(k, getattr(cfg, k)) for k in cfg.__dataclass_fields__})


def test_loss_is_one_finite_number_an_image(model, sprites):
    for mode in (True, False):
        terms = model.train(mode)(to_model(sprites[:6]))
        assert terms["loss"].shape == (6,)
        assert terms["loss"].dtype == torch.float32
        assert all(v.shape in ((6,), ()) and v.float().isfinite().all() for v in terms.values())


def test_alarms_and_warnings_say_what_they_mean(model, sprites):
    terms = model.train()(to_model(sprites[:6]))
    for prefix, meanings in (("alarm_", model.alarms), ("warn_", model.warnings)):
        assert {key.removeprefix(prefix) for key in terms if key.startswith(prefix)} == meanings.keys()
    assert not model.alarms.keys() & model.warnings.keys()
    assert all(terms[key].dtype == torch.bool for key in terms if key.startswith(("alarm_", "warn_")))


def test_eval_changes_no_state(model, sprites):
    before = weights(model.eval())
    with torch.no_grad():
        model(to_model(sprites[:6]))
    after = weights(model)
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_every_parameter_gets_a_gradient(model, sprites):
    for step in range(2):  # zero-initialised layers hide those before them until they have moved once
        model.train()(to_model(sprites[:8]))["loss"].mean().backward()
        if step == 0:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01 * torch.randn_like(p))
            model.zero_grad()
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    assert learned and not [n for n, p in learned if p.grad is None or not p.grad.abs().sum() > 0]


def test_samples_depend_on_the_noise_alone(model, name):
    model.eval()
    with torch.no_grad():
        draws = []
        for state in (1, 2):
            torch.manual_seed(state)  # the global generator must not matter
            draws.append(model.sample(Noise(5, 0, 4), draw(name)))
        other = model.sample(Noise(6, 0, 4), draw(name))
    assert draws[0].shape == (4, 3, 32, 32)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], other)
    assert draws[0].isfinite().all()


def test_samples_do_not_depend_on_the_batch_size(model, name):
    model.eval()
    with torch.no_grad():
        together = to_uint8(model.sample(Noise(5, 0, 70), draw(name))).short()
        apart = torch.cat([to_uint8(model.sample(Noise(5, a, b), draw(name))).short() for a, b in ((0, 64), (64, 70))])
    # The kernels that a batch size selects round differently: a grey level here and there may tip over.
    assert (together - apart).abs().max() <= 1
    assert (together != apart).float().mean() < 0.01


def test_saved_and_loaded_is_the_same_model(model, name, sprites, tmp_path):
    _, cfg = small(name)
    family.save_model(tmp_path / name, name, cfg, model, {"seed": 0})
    again = family.load(tmp_path / name)
    before, after = weights(model), weights(again)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        draws = [m.eval().sample(Noise(0, 0, 2), draw(name)) for m in (model, again)]
    # Also what config determines is restored; the loaded model's memory layout may differ, and so its last digits.
    assert torch.allclose(*draws, atol=1e-3)


def test_training_learns(name, sprites, tmp_path):
    """On eight images the loss falls."""
    module, cfg = small(name, images=1200, lr=2e-3, rows=20, ema_half_life=0, flip=False)
    model = build(module, cfg)
    with slot(tmp_path) as held:
        curve, *_ = train(model, pool(sprites[:8], cfg), cfg.train, 0, held)
    first, last = curve[0]["loss"], np.mean([row["loss"] for row in curve[-3:]])
    assert last < first - 0.2 * abs(first)


PRESETS = ["vae=beta", "vae=resnet", "vae=dfc", "ebm=igebm", "ebm=icd", "ncsn=v1", "ncsn=fifty", "ncsn=v2", "ddpm=wide"]


@pytest.mark.parametrize("word", PRESETS)
def test_presets_train_and_draw_at_laptop_scale(word, sprites, tmp_path):
    name = word.partition("=")[0]
    tree = YAML(typ="safe").load(compose.text([word, "scale=laptop"]))
    module = family.module(name)
    cfg = config.build(module.Config, tree[name], name)
    cfg = replace(cfg, train=replace(cfg.train, images=32, batch=16, rows=2, preview_rows=0, warmup=0))
    model = build(module, cfg)
    model.fetch(tmp_path, tmp_path)
    with slot(tmp_path) as held:
        curve, *_ = train(model, pool(sprites, cfg), cfg.train, 0, held)
    assert np.isfinite([row["loss"] for row in curve]).all()
    with torch.no_grad():
        drawn = model.sample(Noise(0, 0, 2), config.build(module.Sample, tree["sample"][name], f"sample.{name}"))
    assert drawn.shape == (2, 3, 32, 32) and drawn.isfinite().all()


def test_samples_of_a_half_precision_network_are_those_of_the_full_one(sprites):
    """The network alone is in bf16, the sampler's state is not: errors stay near a grey level and do not build up."""
    module, cfg = small("edm")
    model = build(module, cfg).eval()
    with torch.no_grad():
        full = model.sample(Noise(5, 0, 4), draw("edm"))
        with torch.autocast("cpu", torch.bfloat16):
            half = model.sample(Noise(5, 0, 4), draw("edm"))
    assert half.dtype == torch.float32
    assert (full - half).square().mean().sqrt() < 0.02 * full.std()


def test_models_do_not_share_state(name, sprites):
    module, cfg = small(name)
    one, two = build(module, cfg), build(module, cfg)
    keep = copy.deepcopy(two.state_dict())
    one.train()(to_model(sprites[:8]))["loss"].mean().backward()
    assert all(torch.equal(keep[k], v) for k, v in two.state_dict().items())

"""The contract of `pofx.models.family.Family`, for every family and three sizes of images."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import budget, build, defaults, pool, slot, small, weights

from pofx.base.images import Batches, to_model, to_uint8
from pofx.base.rng import Noise
from pofx.models import store
from pofx.sample import drawing
from pofx.sample.rows import rows
from pofx.score.likelihood import Likelihood, evaluate
from pofx.train.loop import Run, train

SHAPES = [(3, 16, 16), (3, 32, 32), (3, 64, 64)]


@pytest.fixture
def model(name):
    return build(*small(name))


def draw(name):
    """How the first row of the family is drawn, in few steps."""
    cfg = rows(name, defaults()["sample"][name], {})[name]
    short = {"chain": 3, "steps": 4, "batch": 64}
    return replace(cfg, **{key: value for key, value in short.items() if hasattr(cfg, key)})


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_size_of_image_trains_and_draws(name, shape):
    model = build(*small(name), shape=shape)
    images = torch.randint(0, 256, (8, *shape), dtype=torch.uint8)
    model.prepare(images, 8)
    terms = model.train()(to_model(images))
    assert terms["loss"].shape == (8,) and terms["loss"].isfinite().all()
    terms["loss"].mean().backward()
    model.eval()
    with torch.no_grad():
        for drawn in (drawing.draw(model, Noise(5, 0, 2), draw(name)), model.preview(Noise(5, 0, 2))):
            assert drawn.shape == (2, *shape) and drawn.isfinite().all()


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
            draws.append(drawing.draw(model, Noise(5, 0, 4), draw(name)))
        other = drawing.draw(model, Noise(6, 0, 4), draw(name))
    assert draws[0].shape == (4, 3, 32, 32)
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], other)
    assert draws[0].isfinite().all()


def test_samples_do_not_depend_on_the_batch_size(model, name):
    model.eval()
    with torch.no_grad():
        together, *parts = (
            to_uint8(drawing.draw(model, Noise(5, first, last), draw(name))).short()
            for first, last in ((0, 70), (0, 64), (64, 70))
        )
        apart = torch.cat(parts)
    # The kernels that a batch size selects round differently: a grey level here and there may tip over.
    assert (together - apart).abs().max() <= 1
    assert (together != apart).float().mean() < 0.01


def test_saved_and_loaded_is_the_same_model(model, name, tmp_path):
    store.save(tmp_path / name, name, model, {"precision": "bf16", "channels_last": True}, {"seed": 0})
    again = store.load(tmp_path / name)
    before, after = weights(model), weights(again)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert (again.cfg, again.shape, again.precision) == (model.cfg, model.shape, "bf16")
    with torch.no_grad():
        draws = [drawing.draw(m.eval(), Noise(0, 0, 2), draw(name)) for m in (model, again)]
    # Also what config determines is restored; the loaded model's memory layout may differ, and so its last digits.
    assert torch.allclose(*draws, atol=1e-3)


def test_training_learns(name, sprites, tmp_path):
    """On eight images the loss falls."""
    model, cfg = build(*small(name)), budget(name, images=1200, lr=2e-3, rows=20, ema_half_life=0, flip=False)
    with slot(tmp_path) as held:
        curve, *_ = train(model, pool(sprites[:8], cfg), cfg, Run(0, held))
    first, last = curve[0]["loss"], np.mean([row["loss"] for row in curve[-3:]])
    assert last < first - 0.2 * abs(first)


def test_samples_of_a_half_precision_network_are_those_of_the_full_one(sprites):
    """The network alone is in bf16, the sampler's state is not: errors stay near a grey level and do not build up."""
    module, cfg = small("edm")
    model = build(module, cfg).eval()
    with torch.no_grad():
        full = drawing.draw(model, Noise(5, 0, 4), draw("edm"))
        with torch.autocast("cpu", torch.bfloat16):
            half = drawing.draw(model, Noise(5, 0, 4), draw("edm"))
    assert half.dtype == torch.float32
    assert (full - half).square().mean().sqrt() < 0.02 * full.std()


def test_bits_do_not_depend_on_the_precision_of_drawing(name, sprites, tmp_path):
    """The same weights, loaded for either."""
    model, found = build(*small(name)), []
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))  # zeros would hide what the layers before them say
    few = Likelihood(images=8, importance=3, terms=5, ode_steps=2)
    for precision in ("fp32", "bf16"):
        store.save(tmp_path, name, model, {"precision": precision, "channels_last": True}, {})
        batches = Batches(64, torch.device("cpu"))
        found.append(evaluate(store.load(tmp_path), sprites[:8].numpy(), batches, few, 0))
    assert "bpd" in found[0] or name in ("ebm", "ncsn")
    assert found[1] == pytest.approx(found[0], abs=0.01)


def test_codes_that_are_drawn_are_not_rounded(name):
    """The state of a sampler: what the network is given is the same under autocast."""
    model, given = build(*small(name)).eval(), []
    model.net.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    way = replace(draw(name), prior="mixture") if name == "vae" else draw(name)
    for half in (False, True):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            drawing.draw(model, Noise(5, 0, 2), way)
    assert torch.equal(given[0], given[len(given) // 2])
    assert all(x.dtype != torch.bfloat16 for x in given)


def test_models_do_not_share_state(name, sprites):
    module, cfg = small(name)
    one, two = build(module, cfg), build(module, cfg)
    keep = copy.deepcopy(two.state_dict())
    one.train()(to_model(sprites[:8]))["loss"].mean().backward()
    assert all(torch.equal(keep[k], v) for k, v in two.state_dict().items())

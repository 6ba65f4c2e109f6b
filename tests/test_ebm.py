"""Energy-based models: chains against solved cases, both objectives, the guards, how they draw."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import budget, build, defaults, pool, slot, small
from torch import nn

from pofx.base import config
from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.base.rng import Noise
from pofx.models.ebm import chains, contrast, ebm
from pofx.models.ebm.chains import Chains
from pofx.train import loop
from pofx.train.loop import Run

CONTRAST, CHAINS, APPROXIMATE = ["ebm-igebm"], ["ebm.chain=2"], []


class Quadratic(nn.Module):
    """E(x) = |x|^2 / 2: its Langevin dynamics are an autoregression that can be solved."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x, t=None):
        return self.scale * 0.5 * x.square().flatten(1).sum(1)


def own(cfg: ebm.Config, **change) -> ebm.Config:
    """With other settings of its objective."""
    return replace(cfg, **{cfg.objective: replace(getattr(cfg, cfg.objective), **change)})


def quadratic(*words: str, scale: float = 1.0, **change) -> Chains:
    module, cfg = small("ebm", *words)
    model = build(module, own(cfg, **change))
    model.net = Quadratic(scale)
    return model


def draw(*words: str, **change) -> ebm.Sample:
    return replace(config.build(ebm.Sample, defaults(*words)["sample"]["ebm"], "sample.ebm"), **change)


# --- chains of the contrast


def test_chains_have_the_variance_of_the_energy():
    """Step a on the gradient, noise sqrt(2a): variance 1 / (1 - a/2). In units small enough not to clamp."""
    a, unit = 0.1, 0.05
    model = quadratic(*CONTRAST, step_size=a, noise=math.sqrt(2 * a) * unit, grad_clip=1e9)
    torch.manual_seed(0)
    x, _ = model._langevin(torch.zeros(32, 3, 32, 32), 120, torch.randn_like)
    assert (x.std() / unit).item() == pytest.approx(math.sqrt(1 / (1 - a / 2)), rel=0.01)


def test_chains_stay_in_range_clip_their_steps_and_leave_no_gradient():
    model = quadratic(*CONTRAST, step_size=1.0, noise=0.0, grad_clip=0.1)
    start = torch.full((2, 3, 32, 32), 0.95)
    moved, energy = model._langevin(start, 1, torch.randn_like)
    assert torch.allclose(moved, start - 0.1)
    assert torch.allclose(energy, model.net(start))
    assert model._langevin(torch.full_like(start, 3.0), 1, torch.randn_like)[0].max() == 1
    assert model.net.scale.grad is None
    assert model.net.scale.requires_grad
    assert not any(t.requires_grad for t in model._langevin(start, 2, torch.randn_like))


@pytest.mark.parametrize("words", [CONTRAST, CHAINS])
def test_memory_does_not_grow_with_the_chain(words):
    """No graph outlives a step: each step's input is a leaf, which holds no earlier one."""
    model, held = quadratic(*words), []
    whole = model.net.forward

    def watch(x, t=None):
        f, depth = x.grad_fn, 0
        while f is not None:
            f, depth = f.next_functions[0][0] if f.next_functions else None, depth + 1
        held.append(depth <= 3)  # centred, scaled
        return whole(x)

    model.net.forward, x = watch, torch.zeros(1, 3, 32, 32)
    if words is CONTRAST:
        model._langevin(x, 5, torch.randn_like)
    else:
        model._conditional(x, torch.zeros(1, dtype=torch.int64), 5, torch.randn_like)
    assert held == [True] * 5


def test_energy_does_not_depend_on_batch_mates_or_mode(sprites):
    model, x = build(*small("ebm", *CONTRAST)), to_model(sprites[:8])
    with torch.no_grad():
        for _ in range(20):  # power iterations settle
            model.net.train()(x)
        trained = model.net(x)
        model.net.eval()
        assert torch.allclose(model.net(x), trained, rtol=1e-3, atol=1e-4)
        assert torch.allclose(torch.cat([model.net(x[:1]), model.net(x[1:])]), model.net(x), rtol=1e-4, atol=1e-5)


def test_the_buffer_takes_back_the_chains_it_started(sprites):
    module, cfg = small("ebm", *CONTRAST)
    model = build(module, own(cfg, fresh=0.0, buffer=64))
    before = model.buffer.clone()
    model.train()(to_model(sprites[:8]))
    changed = (before != model.buffer).flatten(1).any(1)
    assert changed.sum() == 8


def test_energies_of_scales_add_up(sprites):
    module, cfg = small("ebm", "ebm-icd")
    net, x = build(module, cfg).net.eval(), to_model(sprites[:2])
    parts, seen = [], x
    with torch.no_grad():
        for tower in net.towers:
            parts.append(tower(seen, None))
            seen = nn.functional.avg_pool2d(seen, 2)
        assert len(parts) == cfg.net.scales > 1
        assert torch.allclose(net(x), sum(parts))


def test_the_last_step_is_taught_to_go_downhill():
    """E = s|x|^2 / 2, a step a: by way of the step alone s|x (1 - as)|^2 / 2 has the slope -as (1 - as) |x|^2."""
    a, s, x = 0.1, 2.0, torch.full((3, 3, 32, 32), 0.5)
    model = quadratic("ebm-icd", scale=s, step_size=a, noise=0.0, grad_clip=1e9, kl=1.0, entropy=0.0)
    moved, extra = model._last_step(x)
    assert torch.allclose(moved, x * (1 - a * s)) and not moved.requires_grad
    assert torch.allclose(extra, s * moved.square().flatten(1).sum(1) / 2)
    (slope,) = torch.autograd.grad(extra.mean(), model.net.scale)
    assert slope.item() == pytest.approx(-a * s * (1 - a * s) * x[0].square().sum().item(), rel=1e-4)


def test_the_entropy_term_drives_chains_away_from_the_buffer():
    """All of the buffer is grey, images are not: a weaker energy leaves them further from it."""
    model = quadratic("ebm-icd", step_size=0.1, noise=0.0, grad_clip=1e9, kl=0.0, entropy=1.0)
    model.buffer.fill_(128)
    _, extra = model._last_step(torch.full((3, 3, 32, 32), 0.5))
    (slope,) = torch.autograd.grad(extra.mean(), model.net.scale)
    assert slope > 0


def test_augmented_images_are_images(sprites):
    torch.manual_seed(0)
    x = to_model(sprites)
    changed = contrast.augmented(x)
    assert changed.shape == x.shape and changed.abs().max() <= 1
    assert ((changed - x).flatten(1).abs().amax(1) > 0.05).all()
    flat = contrast.augmented(torch.zeros(64, 3, 32, 32)).flatten(2)
    assert (flat == flat[..., :1]).all() and 0.1 < flat.abs().max() <= 0.2, "a colour stays one colour"


# --- recovery: with a network that is nothing, the energies are those of N(0, sigma_data^2), exactly


def test_the_gradient_of_the_energy_denoises_a_gaussian():
    model, d = quadratic(scale=0.0), 0.5
    for sigma in (0.03, 0.5, 10.0):
        x = sigma * torch.randn(4, 3, 32, 32)
        _, slope = chains.slope(lambda at, level=sigma: model.level_energy(at, torch.full((4, 1, 1, 1), level)), x)
        assert torch.allclose(x - sigma**2 * slope, x * d**2 / (d**2 + sigma**2), atol=1e-4)
    torch.manual_seed(0)
    assert model(d * torch.randn(256, 3, 32, 32))["loss"].mean().item() == pytest.approx(1, rel=0.02)


def test_the_energy_of_an_image_is_that_among_noise_as_strong_as_the_data():
    model, x = quadratic(scale=0.0, levels=40), torch.full((2, 3, 32, 32), 0.5)
    level = min(model.sigmas.tolist(), key=lambda sigma: abs(math.log(sigma / 0.5)))
    assert 0.45 < level < 0.55
    assert model.energy(x).tolist() == pytest.approx([x[0].square().sum().item() / 2 / (level**2 + 0.25)] * 2)


@pytest.mark.parametrize("step", [1.0, 0.3])
def test_chains_draw_from_the_conditional(step):
    """Of y ~ N(0, d^2 + sigma^2) given x = y + s z, of variance V and mean x V / s^2. Each step is an autoregression of
    factor 1 - c v / V and noise c (2 - c) v: where V = v, at small noise levels, its variance is V."""
    model, d, n, c = quadratic(scale=0.0, levels=40, step=step), 0.5, 64, step
    for level in (2, 20, 36):
        sigma, above = model.sigmas[level].item(), model.sigmas[level + 1].item()
        s2, prior = above**2 - sigma**2, d**2 + sigma**2
        v, variance = 1 / (1 / s2 + 1 / sigma**2), 1 / (1 / s2 + 1 / prior)
        torch.manual_seed(0)
        y = model._conditional(torch.full((n, 3, 32, 32), 0.7), torch.full((n,), level), 40, torch.randn_like)
        stationary = c * (2 - c) * v / (1 - (1 - c * v / variance) ** 2)
        assert y.mean().item() == pytest.approx(0.7 * variance / s2, abs=0.01 * above)
        assert y.var().item() == pytest.approx(stationary, rel=0.02)
        assert level < 36 or stationary == pytest.approx(variance, rel=0.01)


@pytest.mark.parametrize("chain", [1, 2, 4])
def test_drawing_level_by_level_gives_the_data(chain):
    """From the largest noise to the data's spread; forty levels leave an error of some percent of it."""
    model = quadratic(scale=0.0, levels=40, step=1.0)
    with torch.no_grad():
        drawn = model.sample(Noise(0, 0, 64), draw(chain=chain))
    assert drawn.std().item() == pytest.approx(0.5, rel=0.1)


def test_chains_in_training_teach_to_denoise(sprites, tmp_path):
    """The normal approximation's error is no part of that loss, and falls with it."""
    module, cfg = small("ebm", *CHAINS)
    cfg = own(replace(cfg, chain=4), levels=12, step=0.5)
    plan = budget("ebm", images=320, rows=10, flip=False, ema_half_life=0)
    model, x = build(module, cfg), to_model(sprites[:32])

    def error() -> float:
        torch.manual_seed(1)
        with torch.no_grad():
            return model.eval()(x.repeat(4, 1, 1, 1))["loss"].mean().item()

    before = error()
    with slot(tmp_path) as held:
        loop.train(model, pool(sprites[:32], plan), plan, Run(0, held))
    assert error() < 0.98 * before


# --- both


def test_contrast_tells_data_from_noise(sprites, tmp_path):
    plan = budget("ebm", *CONTRAST, images=160, lr=1e-3, rows=20, ema_half_life=0, flip=False)
    model = build(*small("ebm", *CONTRAST))
    with slot(tmp_path) as held:
        loop.train(model, pool(sprites[:8], plan), plan, Run(0, held))
    with torch.no_grad():
        data, noise = model.net(to_model(sprites[:8])), model.net(2 * torch.rand(8, 3, 32, 32) - 1)
    assert data.mean() < noise.mean()


@pytest.mark.parametrize("words", [CONTRAST, ["ebm-icd"], CHAINS])
def test_an_interrupted_run_goes_on_bit_for_bit(words, sprites, tmp_path):
    """The buffer, and the running spread of the gap, are part of the state."""
    plan = budget("ebm", *words)
    whole, parted, other = (build(*small("ebm", *words), seed) for seed in (0, 0, 1))
    with slot(tmp_path / "whole") as held:
        one, *_ = loop.train(whole, pool(sprites, plan), plan, Run(0, held))
    with slot(tmp_path / "parted") as held:
        asked = iter([False, True])
        with pytest.raises(loop.Stopped):
            loop.train(parted, pool(sprites, plan), plan, Run(0, held, stop=lambda: next(asked)))
        two, *_ = loop.train(other, pool(sprites, plan), plan, Run(0, held))
    left, right = whole.state_dict(), other.state_dict()
    assert one == two and left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert left["watched"][2] == plan.images // plan.batch


def test_buffer_and_noise_are_two_ways_to_draw():
    model = build(*small("ebm", *CONTRAST)).eval()
    with torch.no_grad():
        rows = [model.sample(Noise(0, 0, 4), draw(*CONTRAST, start=start, chain=0)) for start in ("buffer", "noise")]
        assert torch.equal(rows[0], to_model(model.buffer[:4])) and not torch.equal(*rows)
        with pytest.raises(UserError, match=r"exceeds ebm.contrast.buffer = 128"):
            model.sample(Noise(0, 128, 130), draw(*CONTRAST, start="buffer"))
        with pytest.raises(UserError, match=r"keeps no replay buffer: set sample.ebm.start=noise"):
            build(*small("ebm")).sample(Noise(0, 0, 2), draw(start="buffer"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*CONTRAST, "ebm.chain=0"], "chain = 0 should be at least 1"),
        (["ebm.chain=-1"], r"ebm\.chain = -1 should be at least 0"),
        (["ebm.recovery.sigma_min=30"], r"ebm\.recovery\.sigma_min = 30\.0 should be below sigma_max"),
        (["ebm.recovery.levels=1"], r"ebm\.recovery\.levels = 1 should be at least 2"),
        (["ebm.recovery.step=1.5"], r"ebm\.recovery\.step = 1\.5 should be at most 1"),
        (["ebm.recovery.step=0"], r"ebm\.recovery\.step = 0\.0 should be above 0"),
        (["ebm.contrast.fresh=2"], r"ebm\.contrast\.fresh = 2\.0 should be at most 1"),
        (["ebm.contrast.kl=-1"], r"ebm\.contrast\.kl = -1\.0 should be at least 0"),
        (["ebm.net.multipliers=[]"], r"ebm\.net\.multipliers = \[\] should have 1 or more entries"),
        (["ebm.net.channels=0"], r"ebm\.net\.channels = 0 should be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        defaults(*words)


def test_a_replay_buffer_below_a_batch_is_refused(sprites):
    module, cfg = small("ebm", *CONTRAST)
    model = build(module, own(cfg, buffer=4)).train()
    with pytest.raises(UserError, match=r"ebm\.contrast\.buffer = 4 should hold at least a batch \(8\)"):
        model(to_model(sprites[:8]))


def test_what_takes_second_derivatives_says_so():
    """PyTorch does not compile them; the loop refuses."""
    cases = [(APPROXIMATE, True), (CHAINS, False), (CONTRAST, False), (["ebm-icd"], True)]
    assert [(words, build(*small("ebm", *words)).second_order) for words, _ in cases] == cases


# --- guards


def test_a_gap_is_a_fault_once_it_stays_outside_its_spread():
    model = build(*small("ebm", *CONTRAST)).train()
    gaps = np.random.default_rng(0).normal(size=300)
    assert not any(model.outside(torch.tensor(float(gap))) for gap in gaps)
    fired = [bool(model.outside(torch.tensor(20.0 + k))) for k in range(100)]
    assert fired == [False] * 99 + [True]
    assert not model.outside(torch.tensor(0.0)), "back within"


def test_a_loss_that_stays_that_of_nothing_is_a_fault_after_a_thousand_steps():
    model = build(*small("ebm")).train()
    assert not any(model._idle(torch.tensor(0.9)) for _ in range(999))
    assert model._idle(torch.tensor(0.9)) and not model.eval()._idle(torch.tensor(0.9))
    model.train()
    assert not [model._idle(torch.tensor(0.3)) for _ in range(200)][-1], "it learns after all"


def test_warnings_of_saturated_and_of_equal_chains(sprites):
    module, cfg = small("ebm", *CONTRAST)
    model, x = build(module, own(cfg, fresh=0.0, noise=0.0)).train(), to_model(sprites[:8])
    terms = model(x)
    assert not terms["warn_saturated"] and not terms["warn_alike"] and terms["diversity"] > 0.5
    model.buffer.fill_(255)
    terms = model(x)
    assert terms["warn_alike"] and terms["diversity"] < 0.1
    steep = own(cfg, step_size=1e4, grad_clip=1e9)
    assert build(module, steep).train()(x)["warn_saturated"]


def test_chains_that_climb_are_a_warning(sprites):
    model = build(*small("ebm", *CONTRAST)).train()
    model.own = replace(model.own, step_size=-1.0)
    assert model(to_model(sprites[:8]))["warn_uphill"]


@pytest.mark.parametrize(("words", "guard"), [(CONTRAST, "energy"), (APPROXIMATE, "denoising")])
def test_a_learning_rate_far_too_high_is_brought_down_and_ends_with_the_reason(words, guard, sprites, tmp_path, capsys):
    """Here one roll-back does not bring it down far enough."""
    plan = budget("ebm", *words, images=160, rows=20, lr=1.0, rollbacks=1, clip=1e9)
    model = build(*small("ebm", *words))
    with slot(tmp_path) as held, pytest.raises(UserError) as error:
        loop.train(model, pool(sprites, plan), plan, Run(0, held))
    assert model.alarms[guard] in str(error.value) or "not finite" in str(error.value)
    assert "learning rate 0.3, roll-backs left: 0" in capsys.readouterr().err

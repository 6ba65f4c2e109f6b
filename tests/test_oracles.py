"""Cases whose answers can be derived on paper."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import build, small
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pofx.core import noise
from pofx.core.errors import UserError
from pofx.core.images import to_model, to_uint8
from pofx.core.rng import BLOCK, Noise, fold
from pofx.core.samplers import annealed_langevin, consistent_annealed
from pofx.families.ebm import Model as Ebm
from pofx.nn.unet import UNet

D = 3 * 32 * 32


# --- noise levels and samplers


def test_technique4_gives_the_published_step_size():
    levels = noise.geometric(50.0, 0.01, 232)
    assert noise.technique4(levels[0] / levels[1], 5) * 0.01**2 == pytest.approx(6.18e-6, abs=0.01e-6)
    assert noise.technique4(levels[0] / levels[1], 1) * 0.01**2 == pytest.approx(7.11e-6, abs=0.01e-6)


def test_levels_are_geometric():
    levels = noise.geometric(50.0, 0.01, 232)
    assert len(levels) == 232
    assert (levels[0], levels[-1]) == pytest.approx((50, 0.01))
    assert levels[:-1] / levels[1:] == pytest.approx(1.03756, abs=1e-5)


def langevin(denoise, levels, steps, eta, n=4096, dim=4, final=True):
    return annealed_langevin(denoise, Noise(0, 0, n), (dim,), list(levels), steps, eta, final)


def test_annealed_langevin_draws_from_a_gaussian():
    """x0 ~ N(m, s^2): D(x; sigma) = (s^2 x + sigma^2 m) / (s^2 + sigma^2), the score (D - x) / sigma^2."""
    m, s = 0.3, 0.5
    levels = noise.geometric(10.0, 0.01, 200)
    eta = noise.technique4(levels[0] / levels[1], 20)
    x = langevin(lambda x, sigma: (s**2 * x + sigma**2 * m) / (s**2 + sigma**2), levels, 20, eta, n=2048)
    assert x.mean().item() == pytest.approx(m, abs=0.02)
    assert x.std().item() == pytest.approx(s, rel=0.02)


def test_annealed_langevin_ends_at_a_point_mass():
    levels = noise.geometric(10.0, 0.01, 100)
    x = langevin(lambda x, sigma: torch.full_like(x, 0.7), levels, 3, 0.1, n=64)
    assert (x - 0.7).abs().max() < 1e-4


def test_final_step_is_the_denoised_mean_and_its_absence_leaves_the_last_noise():
    levels = noise.geometric(10.0, 0.1, 100)
    left = langevin(lambda x, sigma: torch.zeros_like(x), levels, 5, 0.1, final=False)
    g, decay, q = levels[0] / levels[1], 0.9**10, 0.2 / (1 - 0.81)
    variance = (1 - decay) * q / (1 - decay * g**2)  # of the level's own, where the ladder settles
    assert left.std().item() == pytest.approx(0.1 * math.sqrt(variance), rel=0.02)
    assert langevin(lambda x, sigma: torch.zeros_like(x), levels, 5, 0.1).abs().max() == 0


@pytest.mark.parametrize("eta", [None, 0.3])
def test_consistent_sampling_leaves_exactly_the_noise_of_the_level(eta):
    levels = noise.geometric(10.0, 0.1, 20)  # ratio 0.785: valid steps lie in 0.215..1.785
    for last in (5, 20):
        x = consistent_annealed(
            lambda x, sigma: torch.zeros_like(x), Noise(0, 0, 4096), (16,), list(levels[:last]), eta, False
        )
        assert x.std().item() == pytest.approx(levels[last - 1], rel=0.01)


def test_consistent_sampling_draws_from_a_gaussian():
    m, s = 0.3, 0.5
    x = consistent_annealed(
        lambda x, sigma: (s**2 * x + sigma**2 * m) / (s**2 + sigma**2),
        Noise(0, 0, 4096), (4,), list(noise.geometric(10.0, 0.01, 200)), None, True,
    )  # fmt: skip
    assert x.mean().item() == pytest.approx(m, abs=0.02)
    assert x.std().item() == pytest.approx(s, rel=0.02)


@pytest.mark.parametrize(("sampler", "step_size"), [("consistent", 1e-5), ("consistent", 1.0), ("langevin", 5e-4)])
def test_a_step_outside_the_range_of_validity_is_refused(sampler, step_size):
    module, cfg = small("ncsn")
    model = build(module, replace(cfg, sigma_min=0.02, n_sigmas=50))
    with pytest.raises(UserError, match=r"sample.ncsn.step_size = .* should lie between"):
        model.sample(Noise(0, 0, 1), module.Sample(64, sampler, 1, step_size, True))


def test_a_network_that_returns_zero_scores_half_a_dimension(sprites):
    module, cfg = small("ncsn")
    model = build(module, replace(cfg, gaussian_skip=False, weighting="dsm"))
    model.net = Zero()
    torch.manual_seed(0)
    loss = model(to_model(sprites))["loss"]
    assert loss.mean().item() == pytest.approx(D / 2, rel=0.01)


def test_gaussian_skip_alone_is_the_score_of_a_gaussian():
    module, cfg = small("ncsn")
    model = build(module, replace(cfg, gaussian_skip=True))
    model.net = Zero()
    x, sigma = torch.randn(4, 3, 32, 32), 0.7
    assert torch.allclose(model.denoise(x, sigma), 0.25 / (0.25 + sigma**2) * x, atol=1e-6)


def test_ncsn_samples_data_of_one_image(sprites):
    """With the exact denoiser of a data set of one image, the model's own sampler returns that image."""
    module, cfg = small("ncsn")
    model = build(module, cfg)
    image = to_model(sprites[:1])
    model.denoise = lambda x, sigma: image.expand_as(x)
    for sampler in ("langevin", "consistent"):
        drawn = model.sample(Noise(0, 0, 3), module.Sample(64, sampler, 1, None, True))
        assert torch.equal(to_uint8(drawn), sprites[:1].expand(3, -1, -1, -1))


class Zero(nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)


# --- VAE


def vae(**change):
    module, cfg = small("vae")
    return build(module, replace(cfg, **change))


def test_likelihood_is_the_sum_over_pixels_of_the_log_density():
    model = vae(likelihood="gaussian", sigma=0.3)
    x, m = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    want = torch.distributions.Normal(m, 0.3).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(model.log_likelihood(x, m), want, rtol=1e-3)
    assert torch.allclose(model.log_likelihood(torch.cat([x, x], 3), torch.cat([m, m], 3)), 2 * want, rtol=1e-3)


def test_kl_and_beta_enter_the_loss_as_sums(sprites):
    x = to_model(sprites[:4])
    model = vae(beta=1.0, kl_warmup=0, latent=64)
    model.encode = lambda x: (torch.full((len(x), 64), 0.5), torch.full((len(x), 64), -1.0))
    terms = model.train()(x)
    want = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.5, math.exp(-0.5)), torch.distributions.Normal(0.0, 1.0)
    )
    assert terms["kl"].tolist() == pytest.approx([64 * want.item()] * 4, rel=1e-4)
    assert torch.allclose(terms["loss"], terms["kl"] - terms["log_px"])
    model.cfg = replace(model.cfg, beta=10.0)
    again = model.train()(x)
    assert torch.allclose(again["loss"], 10 * again["kl"] - again["log_px"])


def test_kl_warms_up_with_the_images_seen(sprites):
    model = vae(beta=2.0, kl_warmup=16).train()
    betas = []
    for _ in range(4):
        betas.append(float(model.beta()))
        model(to_model(sprites[:8]))
    assert betas == [0.0, 1.0, 2.0, 2.0]
    assert model.eval().beta() == 2.0


def test_bits_per_dimension_of_a_known_density():
    """A linear-Gaussian model at its optimum: the bound equals log N(x; 0, (1 + s^2) I), whatever the draw of z."""
    s, half = 0.6, 3 * 4 * 4
    model = vae(likelihood="gaussian", sigma=s, latent=half).eval()
    mean, var = 1 / (1 + s**2), s**2 / (1 + s**2)  # posterior of z given x = z + s e
    model.encode = lambda x: (mean * x.flatten(1), torch.full((len(x), half), math.log(var)))
    model.net = nn.Unflatten(1, (3, 4, 4))
    torch.manual_seed(0)
    x = torch.randn(4000, 3, 4, 4) * math.sqrt(1 + s**2)
    bpd = model(x)["bpd"].mean().item()
    entropy = 0.5 * math.log(2 * math.pi * math.e * (1 + s**2)) / math.log(2)
    assert bpd == pytest.approx(entropy - math.log2(2 / 255), abs=0.01)


def test_extreme_codes_and_flat_images_stay_finite(sprites):
    model = vae()
    with torch.no_grad():
        model.encoder.layers[-1].bias[model.cfg.latent :] = 1e4
        model.width.fill_(-1e4)
    terms = model.train()(torch.ones(2, 3, 32, 32))
    assert all(v.isfinite().all() for v in terms.values())
    assert model.log_sigma().item() == pytest.approx(-6)


# --- EBM


class Quadratic(nn.Module):
    """E(x) = |x|^2 / 2: its Langevin dynamics are an autoregression that can be solved."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * 0.5 * x.square().flatten(1).sum(1)


def chain_model(**change) -> Ebm:
    module, cfg = small("ebm")
    model = build(module, replace(cfg, **change))
    model.net = Quadratic()
    return model


def test_chains_have_the_variance_of_the_energy():
    """Step a on the gradient, noise sqrt(2a): variance 1 / (1 - a/2). In units small enough not to clamp."""
    a, unit = 0.1, 0.05
    model = chain_model(step_size=a, noise=math.sqrt(2 * a) * unit, grad_clip=1e9)
    torch.manual_seed(0)
    x, _ = model._langevin(torch.zeros(32, 3, 32, 32), 120)
    assert (x.std() / unit).item() == pytest.approx(math.sqrt(1 / (1 - a / 2)), rel=0.01)


def test_chains_stay_in_range_clip_their_steps_and_leave_no_gradient():
    model = chain_model(step_size=1.0, noise=0.0, grad_clip=0.1)
    start = torch.full((2, 3, 32, 32), 0.95)
    moved, energy = model._langevin(start, 1)
    assert torch.allclose(moved, start - 0.1)
    assert torch.allclose(energy, model.net(start))
    assert model._langevin(torch.full_like(start, 3.0), 1)[0].max() == 1
    assert model.net.scale.grad is None
    assert model.net.scale.requires_grad
    assert not any(t.requires_grad for t in model._langevin(start, 2))


def test_energy_does_not_depend_on_batch_mates_or_mode(sprites):
    module, cfg = small("ebm")
    model, x = build(module, cfg), to_model(sprites[:8])
    with torch.no_grad():
        for _ in range(20):  # power iterations settle
            model.net.train()(x)
        trained = model.net(x)
        model.net.eval()
        assert torch.allclose(model.net(x), trained, rtol=1e-3, atol=1e-4)
        assert torch.allclose(torch.cat([model.net(x[:1]), model.net(x[1:])]), model.net(x), rtol=1e-4, atol=1e-5)


def test_the_buffer_takes_back_the_chains_it_started(sprites):
    module, cfg = small("ebm")
    model = build(module, replace(cfg, fresh=0.0, buffer=64, chain=2))
    before = model.buffer.clone()
    model.train()(to_model(sprites[:8]))
    changed = (before != model.buffer).flatten(1).any(1)
    assert changed.sum() == 8


def test_memory_does_not_grow_with_the_chain():
    """No graph outlives a step: each step's input is a leaf."""
    model, depths = chain_model(step_size=0.1), []
    whole = model.net.forward

    def watch(x):
        depths.append(x.is_leaf)
        return whole(x)

    model.net.forward = watch
    model._langevin(torch.zeros(1, 3, 32, 32), 5)
    assert depths == [True] * 5


# --- networks, numbers, values


def test_unet_at_the_ddpm_setting_has_the_published_size_and_cost():
    net = UNet(128, (1, 2, 2, 2), blocks=2, attention=(16,), patch=1, dropout=0.1)
    assert sum(p.numel() for p in net.parameters()) == 35_746_307
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert counter.get_total_flops() == pytest.approx(12.4e9, rel=0.02)


def test_bytes_survive_the_round_trip():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(to_model(x)), x)
    assert (to_model(x).min(), to_model(x).max()) == (-1, 1)
    assert to_uint8(torch.full((1, 3, 2, 2), 7.0)).unique().tolist() == [255]


def test_noise_is_a_function_of_the_image_index():
    whole = Noise(1, 0, 3 * BLOCK).normal(5)
    assert torch.equal(Noise(1, BLOCK, 2 * BLOCK).normal(5), whole[BLOCK : 2 * BLOCK])
    assert torch.equal(Noise(1, 0, 10).normal(5), whole[:10])
    assert not torch.equal(Noise(2, 0, 10).normal(5), whole[:10])
    assert whole.std().item() == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="multiple of 64"):
        Noise(1, 10, 20)


def test_seeds_fold_to_the_same_number_on_every_machine():
    assert fold(0, "epoch", 3) == 2259207091418452794
    assert fold(0, "epoch", 3) != fold(0, "epoch", 4)

"""Cases whose answers can be derived on paper."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import SHAPE, build, small
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pofx.base.images import to_model, to_uint8
from pofx.models import layers
from pofx.models.pixels import gaussian
from pofx.models.unet import Dense, Inverted, UNet

D = 3 * 32 * 32


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
    model.posterior = lambda x: (torch.full((len(x), 64), 0.5), torch.full((len(x), 64), -1.0))
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
    model.posterior = lambda x: (mean * x.flatten(1), torch.full((len(x), half), math.log(var)))
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
    assert gaussian.log_sigma(model.width).item() == pytest.approx(-6)


# --- networks, numbers, values


@pytest.mark.parametrize(
    ("preset", "parameters", "tolerance", "flop"),
    [("ddpm-ho2020", 35_746_307, 0, 12.4e9), ("ddpm-wide", 32.6e6, 0.01, None)],
)
def test_presets_of_ddpm_have_the_published_size_and_cost(preset, parameters, tolerance, flop):
    _, cfg = small("ddpm", preset, "paper")
    with torch.device("meta"):
        net = UNet(cfg.net, SHAPE, "step")
        with FlopCounterMode(display=False) as counter:
            net(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(parameters, rel=tolerance)
    assert flop is None or counter.get_total_flops() == pytest.approx(flop, rel=0.02)


@pytest.mark.parametrize(("kind", "last", "reach"), [(Inverted, "narrow", 1), (Dense, "conv2", 2)])
def test_a_block_sees_its_neighbours_alone(kind, last, reach):
    """Each position is normed by itself, so what lies beyond its 3x3 convolutions is not even felt by a statistic."""
    torch.manual_seed(0)
    block = kind(8, 8, 4, 0.0)
    x, e = torch.randn(1, 8, 6, 6), torch.randn(1, 4)
    assert torch.equal(block(x, e), x)  # the branch starts as nothing
    torch.nn.init.normal_(getattr(block, last).weight)
    far = x.clone()
    far[..., 5, 5] = 100.0
    moved = (block(far, e) - block(x, e)).abs().amax((0, 1)) > 0
    assert moved[5 - reach :, 5 - reach :].all() and moved.sum() == (1 + reach) ** 2
    assert not torch.allclose(block(x, e), block(x, e + 1))


def test_layer_norm_is_its_formula():
    x = torch.randn(2, 5, 3, 4)
    want = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(layers.LayerNorm()(x), want, atol=1e-5)


@pytest.mark.parametrize(("causal", "keys"), [(False, 9), (True, 6)])
def test_attention_is_the_same_by_products_and_fused(causal, keys):
    q, k, v = torch.randn(2, 3, 6, 4), torch.randn(2, 3, keys, 4), torch.randn(2, 3, keys, 4)
    by_products = layers.products(q, k, v, causal)
    assert torch.allclose(by_products, layers.fused(q, k, v, causal), atol=1e-6)
    assert torch.equal(by_products, layers.attend(q, k, v, causal)), "on a CPU"
    assert not causal or torch.allclose(by_products[:, :, 0], v[:, :, 0], atol=1e-6), "the first query sees one key"


def test_bytes_survive_the_round_trip():
    x = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(to_uint8(to_model(x)), x)
    assert (to_model(x).min(), to_model(x).max()) == (-1, 1)
    assert to_uint8(torch.full((1, 3, 2, 2), 7.0)).unique().tolist() == [255]

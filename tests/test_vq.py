"""Vector quantisation and the prior of its codes: the codebook by hand, causality bit for bit, lengths of codes."""

import math
from dataclasses import asdict, replace

import pytest
import torch
from conftest import SHAPE, budget, build, pool, slot, small
from torch import nn

from pofx.base.images import Batches, to_model
from pofx.base.rng import Noise
from pofx.models import store
from pofx.models.vqprior.causal import PixelCNN, Transformer
from pofx.models.vqprior.vqprior import Config
from pofx.models.vqvae.codebook import Codebook, perplexity
from pofx.score.likelihood import Likelihood, evaluate
from pofx.train.loop import Run, train

D = 3 * 32 * 32
NETWORKS = ("transformer", "pixelcnn")


def vqvae(images=None, **change):
    module, cfg = small("vqvae")
    model = build(module, replace(cfg, **({"channels": 8, "blocks": 1, "codes": 16, "dim": 4} | change)))
    if images is not None:
        model.prepare(images, 8)
    return model


def vqprior(network="transformer", base=None):
    module, cfg = small("vqprior")
    torch.manual_seed(1)
    return module.Model(replace(cfg, network=network, width=16, layers=2), SHAPE, base or vqvae())


def network(name, size=16):
    """With a last layer that is not zero, as after training."""
    torch.manual_seed(2)
    cfg = Config(name, width=16, layers=3, heads=4, dropout=0.5)
    net = Transformer(size, 64, cfg) if name == "transformer" else PixelCNN(size, (8, 8), cfg)
    nn.init.normal_(net.head.weight)
    return net.eval()


# --- codebook


def test_codes_follow_by_the_published_averages():
    book = Codebook(3, 2, decay=0.9, revive=0.0)
    book.codes.copy_(torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]))
    book.counts.copy_(torch.tensor([2.0, 1.0, 1.0]))
    book.sums.copy_(book.counts[:, None] * book.codes)
    z = torch.tensor([[0.5, 0.5], [5.0, 1.0], [3.0, 0.0]])
    nearest = book.nearest(z)
    assert nearest.tolist() == [0, 1, 1]
    book.follow(z, nearest)
    counts = [0.9 * 2 + 0.1 * 1, 0.9 * 1 + 0.1 * 2, 0.9 * 1]
    sums = [[0.1 * 0.5, 0.1 * 0.5], [0.9 * 4 + 0.1 * 8, 0.1 * 1], [0.0, 0.9 * 4]]
    whole = sum(counts)
    smooth = [(n + 1e-5) / (whole + 3e-5) * whole for n in counts]
    want = torch.tensor([[s / n for s in row] for row, n in zip(sums, smooth, strict=True)])
    assert torch.allclose(book.counts, torch.tensor(counts))
    assert torch.allclose(book.sums, torch.tensor(sums))
    assert torch.allclose(book.codes, want, rtol=1e-6)


def test_a_code_that_is_not_used_starts_anew_from_a_vector():
    book = Codebook(4, 2, decay=0.5, revive=0.1)
    book.start(torch.randn(100, 2), 100)
    book.codes[3] = book.sums[3] = 1e3
    book.counts[3] = 1.0
    steps = 0
    while book.codes[3].norm() > 10:
        z = torch.randn(100, 2)
        book.follow(z, book.nearest(z))
        steps += 1
    assert steps == 1  # 0.5 is below a tenth of an even share of 25
    assert (z - book.codes[3]).norm(dim=1).min() < 1e-4
    never = Codebook(4, 2, decay=0.5, revive=0.0)
    never.codes[3] = never.sums[3] = 1e3
    for _ in range(5):
        never.follow(z, never.nearest(z))
    assert never.codes[3].norm() > 1e3


def test_kmeans_finds_well_separated_means():
    torch.manual_seed(3)
    means = 10 * torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    which = torch.arange(300) % 3
    z = means[which] + 0.1 * torch.randn(300, 2)
    book = Codebook(3, 2, 0.99, 0.1)
    book.codes.zero_()
    z = torch.cat([z, torch.cat([means, means])])  # so that any draw of three may start in one heap
    book.start(z, 30, rounds=30)
    spread = torch.cdist(z, book.codes).amin(1).square().mean()
    assert spread < 0.1 * z.var(0).sum()
    assert book.counts.sum().item() == pytest.approx(30)


def test_perplexity_counts_the_codes_in_use():
    assert perplexity(torch.tensor([5.0, 5.0, 0.0, 5.0])).item() == pytest.approx(3)
    assert perplexity(torch.tensor([7.0, 0.0])).item() == pytest.approx(1)


def test_a_step_moves_the_used_codes_alone_and_eval_moves_none(sprites):
    x = to_model(sprites[:1])
    model = vqvae(sprites, codes=64, revive=0.0)
    before = model.book.codes.clone()
    model.eval()(x)
    assert torch.equal(model.book.codes, before)
    used = torch.zeros(len(before), dtype=torch.bool)
    used[model.encode(x).unique()] = True
    assert 1 < used.sum() < len(used), "codes of both kinds are needed here"
    model.train()(x)["loss"].mean().backward()
    moved = (model.book.codes - before).norm(dim=1) / before.norm(dim=1)
    assert (moved[used] > 1e-5).all() and (moved[~used] < 1e-5).all()  # the smoothing moves all, by some 1e-6


def test_the_gradient_passes_straight_through_and_not_into_the_codes(sprites):
    model = vqvae(sprites, commitment=0.0)
    x = to_model(sprites[:4])
    seen = {}
    model.encoder.register_forward_hook(lambda _, __, z: z.register_hook(lambda g: seen.update(encoder=g)) and None)
    model.net.register_forward_pre_hook(lambda _, e: e[0].register_hook(lambda g: seen.update(decoder=g)) and None)
    model.train()(x)["loss"].sum().backward()
    assert seen["encoder"].abs().sum() > 0 and torch.equal(seen["encoder"], seen["decoder"])
    assert not any(b.requires_grad for b in model.book.buffers()) and not list(model.book.parameters())


def test_half_precision_chooses_the_same_codes(sprites):
    model = vqvae(sprites, codes=64).eval()
    x = to_model(sprites[:16])
    z = torch.randn(4096, 4)
    full = model.book.nearest(z), model.encode(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model.book.nearest(z), model.encode(x)
    assert all(torch.equal(a, b) for a, b in zip(full, half, strict=True))


def test_bits_per_dimension_of_known_residuals(sprites):
    """A decoder that misses by what it claims, sigma: log2(sqrt(2 pi e) sigma) - log2(bin), and log2 K bits a code."""
    model, s = vqvae(sprites, sigma=0.3).eval(), 0.3
    x = torch.zeros(64, 3, 32, 32)
    torch.manual_seed(0)
    model.net.forward = lambda e: s * torch.randn(len(e), 3, 32, 32)
    terms = model(x)
    want = 0.5 * math.log2(2 * math.pi * math.e * s**2) - math.log2(2 / 255) + 64 * math.log2(16) / D
    assert terms["bpd"].mean().item() == pytest.approx(want, abs=0.01)


# --- prior


@pytest.mark.parametrize("name", NETWORKS)
def test_a_code_changes_nothing_before_it(name):
    net = network(name)
    torch.manual_seed(0)
    codes = torch.randint(16, (2, 63))
    before = net(codes)
    assert before.shape == (2, 64, 16)
    for i in (0, 7, 8, 30, 62):
        other = codes.clone()
        other[:, i] = (other[:, i] + 1) % 16
        after = net(other)
        assert torch.equal(after[:, : i + 1], before[:, : i + 1])
        later = (after != before).any(2)[:, i + 1 :]
        assert later.any() and (name == "pixelcnn" or later[:, 0].all())


@pytest.mark.parametrize("name", NETWORKS)
def test_all_codes_before_are_seen(name):
    """In one backward pass: the last logits depend on every code, but in a PixelCNN on those in its field alone."""
    net, codes = network(name), torch.randint(16, (1, 63))
    seen = {}
    net.embed.register_forward_hook(lambda _, __, h: h.register_hook(lambda g: seen.update(g=g)) and None)
    net(codes)[:, -1].logsumexp(1).sum().backward()
    touched = seen["g"].abs().sum(2)[0] > 0
    assert touched.all() if name == "transformer" else touched[[62, 61, 57, 55, 54, 47]].all()


def test_cached_logits_are_those_of_the_whole():
    net, codes, cache = network("transformer"), torch.randint(16, (3, 63)), {}
    steps = [net(codes[:, :n], cache) for n in range(64)]
    assert all(s.shape == (3, 1, 16) for s in steps)
    assert torch.allclose(torch.cat(steps, 1), net(codes), atol=1e-5)


def test_a_shorter_map_has_the_same_logits():
    for name in NETWORKS:
        net, codes = network(name), torch.randint(16, (3, 63))
        assert torch.allclose(net(codes[:, :20]), net(codes)[:, :21], atol=1e-5)


def test_an_untrained_prior_pays_log_k_for_every_code(sprites):
    for name in NETWORKS:
        model = vqprior(name, vqvae(sprites)).eval()
        terms = model(to_model(sprites[:4]))
        assert terms["loss"].tolist() == pytest.approx([64 * math.log(16)] * 4, rel=1e-5)
        assert terms["bpd_prior"].tolist() == pytest.approx([64 * 4 / D] * 4, rel=1e-5)
        torch.manual_seed(0)
        ours = model(to_model(sprites[:4]))
        torch.manual_seed(0)
        alone = model.base(to_model(sprites[:4]))
        assert torch.allclose(ours["bpd"], alone["bpd"], rtol=1e-5)  # the same codes, the same decoder
        assert torch.allclose(ours["bpd"], ours["bpd_prior"] + ours["bpd_decoder"])


def test_codes_are_drawn_at_their_probabilities():
    model = vqprior()
    share = torch.tensor([0.5, 0.25, 0.125, 0.125] + 12 * [0.0])
    model.net.forward = lambda codes, cache: share.log().expand(len(codes), 1, 16)
    drawn = model.draw(Noise(0, 0, 200).uniform(64))
    assert torch.bincount(drawn.flatten(), minlength=16) / drawn.numel() == pytest.approx(share, abs=0.02)
    assert model.draw(torch.tensor([[0.0, 0.6, 1 - 2**-24]])).tolist() == [[0, 1, 3]]


def test_the_autoencoder_stays_as_it_is_and_goes_along(sprites, tmp_path):
    model = vqprior(base=vqvae(sprites))
    before = {k: v.clone() for k, v in model.base.state_dict().items()}
    plan = budget("vqprior")
    with slot(tmp_path) as held:
        train(model, pool(sprites, plan), plan, Run(0, held))
    assert model.net.head.weight.abs().sum() > 0
    assert all(torch.equal(v, before[k]) for k, v in model.base.state_dict().items())
    store.save(tmp_path / "vqprior", "vqprior", model, asdict(plan), {})
    again = store.load(tmp_path / "vqprior")
    assert again.base.cfg == model.base.cfg and not again.base.training
    codes = again.base.encode(to_model(sprites[:4]))
    assert torch.allclose(again.code_length(codes), model.eval().code_length(codes), rtol=1e-5)


def test_a_model_is_built_on_the_trained_one_it_needs(sprites, tmp_path):
    base = vqvae(sprites)
    store.save(tmp_path / "vqvae", "vqvae", base, asdict(budget("vqvae")), {})
    model = store.create("vqprior", small("vqprior")[1], SHAPE, tmp_path)
    assert torch.equal(model.base.book.codes, base.book.codes)
    assert not any(p.requires_grad for p in model.base.parameters())
    assert {p.data_ptr() for p in model.base.parameters()}.isdisjoint(p.data_ptr() for p in base.parameters())


def test_usage_is_counted_over_all_images(sprites):
    model = vqvae(sprites).eval()
    got = model.monitor(sprites)
    counts = torch.bincount(model.encode(to_model(sprites)).flatten(), minlength=16)
    assert got["codes_used"] == pytest.approx((counts > 0).float().mean().item())
    assert got["perplexity"] == pytest.approx(perplexity(counts.float()).item(), rel=1e-5)
    assert got["code_counts"] == sorted(counts.tolist(), reverse=True)
    assert vqprior(base=model).monitor(sprites) == got


def test_the_score_tells_codes_from_pixels(sprites):
    model, cfg = vqprior(base=vqvae(sprites)), Likelihood(images=20, importance=1, terms=None, ode_steps=1)
    row = evaluate(model, sprites[:30].numpy(), Batches(8, torch.device("cpu")), cfg, 0)
    assert row["bpd"] == pytest.approx(row["bpd_prior"] + row["bpd_decoder"], rel=1e-6)
    assert row["bpd_prior"] == pytest.approx(64 * 4 / D, rel=1e-6)  # untrained
    assert row["test_loss"] == pytest.approx(64 * math.log(16), rel=1e-6)

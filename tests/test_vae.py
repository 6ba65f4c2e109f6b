"""Variants of the VAE: likelihoods, prices of the KL term, importance weighting, features, monitors, presets."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHAPE, build, defaults, small
from torch import nn
from torch.distributions import MultivariateNormal

import pofx.base.torchvision_compat  # noqa: F401  (before torchvision)
from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.base.images import Batches, to_model
from pofx.base.rng import Noise
from pofx.models.pixels import logistic
from pofx.models.vae import perceptual as networks
from pofx.models.vae.perceptual import Perceptual
from pofx.models.vae.vae import Config, Features
from pofx.models.vae.vae import Sample as Draw
from pofx.score import likelihood
from pofx.train.config import settings

SMALL = {"channels": (8, 8, 8), "latent": 8}


def vae(**change):
    module, cfg = small("vae")
    return build(module, replace(cfg, **change))


def features(**change) -> dict:
    return {"alpha": 1.0} | change


def gradients(model, x) -> torch.Tensor:
    torch.manual_seed(0)
    model.train()(x)["loss"].mean().backward()
    return torch.cat([p.grad.flatten() for p in model.encoder.parameters()])


# --- every variant learns


@pytest.mark.parametrize("arch", ["dense", "conv", "resnet"])
@pytest.mark.parametrize("kind", ["gaussian", "sigma_vae", "logistic"])
def test_variants_are_whole(arch, kind, sprites):
    """Losses and samples finite, shapes right, every parameter reached by the gradient."""
    model, x = vae(arch=arch, likelihood=kind, mixtures=2, **SMALL), to_model(sprites[:4])
    for p in model.parameters():  # zero-initialised layers would hide those before them
        p.data.add_(0.01 * torch.randn_like(p))
    terms = model.train()(x)
    terms["loss"].mean().backward()
    assert all(v.isfinite().all() for v in terms.values()) and terms["loss"].shape == (4,)
    model.seen.fill_(10**6)  # past the warm-up, where the code has a price
    model.train()(x)["loss"].mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        again, drawn = model.eval().reconstruct(x), model.sample(Noise(0, 0, 3), Draw(batch=64, prior="normal"))
    assert again.shape == x.shape and drawn.shape == (3, 3, 32, 32) and drawn.isfinite().all()


def test_half_a_batch_of_codes_is_no_matter_of_its_size(sprites):
    model, x = vae(arch="resnet", **SMALL).eval(), to_model(sprites[:4])
    assert torch.allclose(model.reconstruct(x)[:2], model.reconstruct(x[:2]), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"free_bits": 0.1, "capacity": 1.0}, "choose one"),
        ({"free_bits": 0.1, "importance": 2}, "choose one"),
        ({"importance": 0}, r"vae\.importance = 0 should be at least 1"),
        ({"perceptual": features(layers=[16])}, "layers of efficientnet_lite0, 0 to 15"),
        ({"perceptual": features(layers=[])}, "layers"),
        ({"perceptual": features(backbone="vgg19", layers=[37])}, "layers of vgg19, 0 to 36"),
        ({"perceptual": features(backbone="vgg16")}, "vgg16"),
    ],
)
def test_values_that_make_no_sense_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        config.build(Config, config.untrained(defaults()["vae"]) | change, "vae")


# --- discretised logistics


LEVELS = torch.arange(256) / 127.5 - 1


def raw(k: int, side: int = 1, scale: float = 1.0) -> torch.Tensor:
    torch.manual_seed(0)
    return scale * torch.randn(1, 10 * k, side, side)


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_probabilities_of_the_grey_levels_sum_to_one(channel, scale):
    """Of one channel, the other two being certain: far above the range, hence white."""
    parameters = raw(3, scale=scale).double()
    means, log_scales = parameters[:, 3:12].unflatten(1, (3, 3)), parameters[:, 12:21].unflatten(1, (3, 3))
    for other in {0, 1, 2} - {channel}:
        means[:, other], log_scales[:, other] = 100.0, 0.0
    x = torch.ones(256, 3, 1, 1).double()
    x[:, channel, 0, 0] = LEVELS
    nats = logistic.log_prob(x, parameters.expand(256, -1, -1, -1))
    assert nats.exp().sum().item() == pytest.approx(1, abs=1e-6)
    assert logistic.log_prob(x.float(), parameters.expand(256, -1, -1, -1).float()).isfinite().all()


def test_one_component_by_hand():
    """Mean 0 and scale 1 in every channel, no dependence: black has the mass below -1 + 1/255, grey 127 of a bin."""
    parameters = torch.zeros(1, 10, 1, 1)
    black, white = (torch.full((1, 3, 1, 1), v) for v in (-1.0, 1.0))
    tail = 3 * math.log(1 / (1 + math.exp(1 - 1 / 255)))
    assert logistic.log_prob(black, parameters).item() == pytest.approx(tail, rel=1e-5)
    assert logistic.log_prob(white, parameters).item() == pytest.approx(tail, rel=1e-5)
    grey = torch.full((1, 3, 1, 1), 127 / 127.5 - 1)
    low, high = (1 / (1 + math.exp(-edge)) for edge in (126.5 / 127.5 - 1, 127.5 / 127.5 - 1))
    assert logistic.log_prob(grey, parameters).item() == pytest.approx(3 * math.log(high - low), rel=1e-4)


def test_channels_depend_on_those_before_them():
    """coefficients tanh(c): green's mean moves by tanh(c) red, blue's by red and green; means follow the same chain."""
    parameters = torch.zeros(1, 10, 1, 1)
    parameters[:, 7:] = torch.atanh(torch.tensor([0.5, -0.25, 0.8]))[None, :, None, None]
    parameters[:, 4:7] = -3.0
    parameters[:, 1] = 0.6
    assert logistic.mean(parameters).flatten().tolist() == pytest.approx([0.6, 0.3, -0.15 + 0.24], abs=1e-6)
    x = torch.tensor([0.2, 0.4, 0.6])[None, :, None, None]
    moved = torch.zeros(1, 10, 1, 1)
    moved[:, 4:7] = -3.0
    moved[:, 1:4] = torch.tensor([0.6, 0.1, -0.05 + 0.32])[None, :, None, None]
    assert torch.allclose(logistic.log_prob(x, parameters), logistic.log_prob(x, moved), rtol=1e-5)


def test_doubling_the_image_doubles_the_term():
    model, x, out = vae(likelihood="logistic", mixtures=2), to_model(torch.randint(256, (2, 3, 4, 4)).byte()), raw(2, 4)
    one = model.log_likelihood(x, out.expand(2, -1, -1, -1))
    two = model.log_likelihood(torch.cat([x, x], 3), torch.cat([out, out], 3).expand(2, -1, -1, -1))
    assert torch.allclose(two, 2 * one, rtol=1e-5)


def test_bits_of_a_uniform_decoder_are_eight():
    """A logistic so wide that its density over [-1, 1] is flat, the ends taken out, has 8 bits a dimension."""
    parameters = torch.zeros(1, 10, 4, 4)
    parameters[:, 4:7] = 8.0
    x = torch.full((1, 3, 4, 4), 1 / 255)
    nats = logistic.log_prob(x, parameters).item() / 48
    assert nats == pytest.approx(math.log(2 / 255 / (4 * math.exp(8))), rel=1e-4)
    model = vae(likelihood="logistic", mixtures=1, **SMALL).eval()
    terms = model(x.expand(2, 3, 4, 4).repeat(1, 1, 8, 8))
    want = (terms["kl"] - terms["log_px"]) / (3072 * math.log(2))
    assert torch.allclose(terms["bpd"], want), "a probability of grey levels: no bin's volume to add"


# --- the price of the KL term


def test_free_bits_by_hand():
    """Units with means of 0.1, 0.9 and 0.5 nats over the batch, 0.4 free: max(0.4, 0.1) + 0.9 + 0.5."""
    model = vae(beta=2.0, kl_warmup=0, free_bits=0.4)
    units = torch.tensor([[0.0, 1.0, 0.2], [0.2, 0.8, 0.8]], requires_grad=True)
    price = model.train().price(units)
    assert price.tolist() == pytest.approx([2 * 1.8] * 2)
    price.mean().backward()
    assert units.grad[:, 0].tolist() == [0, 0] and units.grad[:, 1].tolist() == [1, 1]


def test_capacity_by_hand():
    """beta |KL - C|, C growing to 6 nats over 20 images."""
    model = vae(beta=10.0, kl_warmup=20, capacity=6.0)
    units = torch.tensor([[1.0, 3.0], [4.0, 5.0]])
    for seen, want in ((0, [40, 90]), (10, [10, 60]), (20, [20, 30]), (40, [20, 30])):
        model.train().seen.fill_(seen)
        assert model.price(units).tolist() == pytest.approx(want)
    assert model.eval().price(units).tolist() == pytest.approx([20, 30])


def test_beta_reaches_the_gradient(sprites):
    """And enters it linearly."""
    x = to_model(sprites[:4])
    none, one, ten = (gradients(vae(beta=beta, kl_warmup=0, **SMALL), x) for beta in (0.0, 1.0, 10.0))
    assert (ten - none).norm() > 1e-3 * none.norm()
    assert (ten - none - 10 * (one - none)).norm() < 0.01 * (ten - none).norm()


# --- importance weighting


SIDE, CODE, NOISE = 2, 4, 0.5  # 12 dimensions
DIMS = 3 * SIDE**2


class Linear(nn.Module):
    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, z):
        return (z @ self.matrix.T).unflatten(1, (3, SIDE, SIDE))


def linear_gaussian(wide: float, shift: float = 0.0, **change):
    """p(x|z) = N(W z, s^2 I), the columns of W orthonormal; q is the true posterior only if wide = 1 and shift = 0."""
    model = vae(likelihood="gaussian", sigma=NOISE, latent=CODE, **change).eval()
    torch.manual_seed(1)
    w = torch.linalg.qr(torch.randn(DIMS, CODE))[0]
    variance = NOISE**2 / (1 + NOISE**2)
    log_var = math.log(wide**2 * variance)
    model.net = Linear(w)
    model.posterior = lambda x: (x.flatten(1) @ w / (1 + NOISE**2) + shift, torch.full((len(x), CODE), log_var))
    model.dequantised = lambda x: x
    exact = MultivariateNormal(torch.zeros(DIMS), w @ w.T + NOISE**2 * torch.eye(DIMS))
    torch.manual_seed(2)
    x = exact.sample((64,))
    return model, x.unflatten(1, (3, SIDE, SIDE)), exact.log_prob(x) + DIMS * math.log(2 / 255)


def test_the_weighted_bound_lies_between_elbo_and_likelihood_and_tends_to_it():
    model, x, exact = linear_gaussian(wide=1.5, shift=0.2)
    torch.manual_seed(0)
    nats = {k: -likelihood.weighted(model, x, k, 256, 0) * DIMS * math.log(2) for k in (1, 10, 5000)}
    means = [nats[k].mean().item() for k in (1, 10, 5000)]
    assert means[0] < means[1] < means[2] < exact.mean().item() + 0.02
    assert means[2] == pytest.approx(exact.mean().item(), abs=0.02) and means[0] < exact.mean().item() - 0.3
    elbo = torch.stack([-model(x)["bpd"] for _ in range(200)]).mean().item() * DIMS * math.log(2)
    assert elbo == pytest.approx(nats[1].mean().item(), abs=1.0)


def test_weights_of_the_true_posterior_are_all_the_likelihood():
    model, x, exact = linear_gaussian(wide=1.0)
    assert torch.allclose(model.log_weights(x, 3), exact.expand(3, -1), atol=1e-3)


def test_training_on_k_codes_is_the_bound_of_burda(sprites):
    model, x, exact = linear_gaussian(wide=1.5, shift=0.2, beta=1.0, kl_warmup=0, importance=50)
    torch.manual_seed(0)
    loss = model.train()(x)["loss"] - DIMS * math.log(2 / 255)
    torch.manual_seed(0)
    want = model.log_weights(x, 50).logsumexp(0) - math.log(50)
    assert torch.allclose(-loss, want, atol=1e-3)
    assert (-loss).mean() < exact.mean() + 0.05


def test_evaluation_states_both_bounds(sprites):
    model, images = vae(**SMALL), sprites[:6].numpy()
    cfg = likelihood.Likelihood(images=4, importance=20, terms=None, ode_steps=1)
    batches = Batches(3, torch.device("cpu"))
    row = likelihood.evaluate(model, images, batches, cfg, 0)
    parts = ["bpd_prior", "bpd_decoder"]
    assert list(row) == ["test_loss", "bpd", "bpd_stderr", "bpd_iw", "bpd_iw_stderr", *parts]
    assert row["bpd"] == pytest.approx(sum(row[part] for part in parts)) and row["bpd_prior"] > 0
    assert row["bpd_iw"] < row["bpd"] and row == likelihood.evaluate(model, images, batches, cfg, 0)


# --- monitors


def test_monitor_of_a_known_posterior(sprites, capsys):
    """Twenty units, of which one moves by +-1 over the images and one has a constant mean of 2."""
    model = vae(latent=20)

    def posterior(x):
        mean, sign = torch.zeros(len(x), 20), torch.arange(len(x)) % 2 * 2.0 - 1
        mean[:, 3], mean[:, 5] = sign, 2.0
        return mean, torch.zeros_like(mean)

    model.posterior = posterior
    row = model.monitor(sprites[:64])
    assert row["active_units"] == 1 and row["kl_units"][:3] == [2.0, 0.5, 0.0] and len(row["kl_units"]) == 20
    assert row["code_mean_largest"] == pytest.approx(2)
    assert (row["code_std_smallest"], row["code_std_largest"]) == pytest.approx((1, math.sqrt(2)))
    assert "1 of 20 units" in capsys.readouterr().err


def test_a_code_in_use_is_no_warning(sprites, capsys):
    model = vae(**SMALL)
    model.posterior = lambda x: (x.flatten(1)[:, 1000:1008], torch.zeros(len(x), 8))
    model.monitor(sprites)
    assert not capsys.readouterr().err


# --- ex-post density


def test_the_mixture_is_that_of_the_codes(sprites):
    """Codes in two clusters of unequal size: draws have their moments, also after saving; before, they are N(0, I)."""
    model, images = vae(components=2, **SMALL).eval(), sprites.repeat(16, 1, 1, 1)

    def posterior(x):
        mean = torch.full((len(x), 8), 2.0)
        mean[: len(x) // 4] = -1.0
        return mean, torch.full_like(mean, 2 * math.log(0.3))

    noise = Noise(0, 0, 4096)
    assert torch.allclose(model.mixture.draw(noise), Noise(0, 0, 4096).normal(8))
    model.posterior = posterior
    torch.manual_seed(0)
    with torch.no_grad():
        model.finish(images)
    again = vae(components=2, **SMALL)
    again.load_state_dict(model.state_dict())
    z = again.mixture.draw(Noise(0, 0, 4096))
    assert torch.equal(z, model.mixture.draw(Noise(0, 0, 4096)))
    low = z.mean(1) < 0.5
    assert low.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert z[low].mean().item() == pytest.approx(-1, abs=0.03) and z[~low].mean().item() == pytest.approx(2, abs=0.03)
    assert z[~low].std(0).mean().item() == pytest.approx(0.3, abs=0.02)


def test_no_mixture_is_drawn_that_was_not_asked_for():
    with pytest.raises(UserError, match=r"vae\.components above 0.*~rows\.vae\.mixture"):
        vae(components=0, **SMALL).sample(Noise(0, 0, 2), Draw(batch=64, prior="mixture"))
    model = vae(components=3, **SMALL).eval()
    one, two = (model.sample(Noise(0, 0, 4), Draw(batch=64, prior=p)) for p in ("normal", "mixture"))
    assert torch.allclose(one, two, atol=1e-6), "not fitted yet: N(0, I)"


# --- features


@pytest.fixture(scope="module")
def perceptual() -> Perceptual:
    return Perceptual(networks.efficientnet_lite0(), (4, 0), 64)


def test_features_of_the_same_image_are_no_loss(perceptual, sprites):
    x = to_model(sprites[:2])
    assert perceptual(x, x).tolist() == [0, 0]
    y = (x + 0.1 * torch.randn_like(x)).requires_grad_()
    loss = perceptual(x, y)
    loss.sum().backward()
    assert (loss > 0).all() and y.grad.abs().flatten(1).sum(1).min() > 0
    assert (y.grad != 0).float().mean() > 0.9, "every pixel matters"


def test_features_are_compared_at_places_of_which_none_is_preferred(perceptual, sprites, monkeypatch):
    """Both images are moved alike, and anew every time."""
    moves, whole = [], perceptual.features
    monkeypatch.setattr(perceptual, "features", lambda x, shift: moves.append(shift) or whole(x, shift))
    torch.manual_seed(0)
    for _ in range(20):
        perceptual(to_model(sprites[:1]), to_model(sprites[1:2]))
    assert moves[::2] == moves[1::2] and len(set(moves)) > 10
    assert {0, 7} <= {part for move in moves for part in move} <= set(range(8))
    still, moved = (whole(to_model(sprites[:1]), shift)[0] for shift in ((0, 0), (4, 2)))
    assert torch.allclose(moved[:, :, 4:-2, 3:-2], still[:, :, 2:-2, 2:-2], atol=1e-4), (
        "by half as much at half the side"
    )


def test_features_are_the_networks_own(perceptual, sprites):
    """Layers, shapes and the input's range: those with which the extractor of the distances sees its bytes."""
    shallow, deep = perceptual.features(to_model(sprites[:2]))
    assert shallow.shape == (2, 16, 32, 32) and deep.shape == (2, 40, 8, 8)
    inputs = []
    handle = perceptual.net[0][0].register_forward_pre_hook(lambda _, got: inputs.append(got[0]))
    perceptual.features(to_model(sprites[:2]))
    handle.remove()
    bytes_ = nn.functional.interpolate((sprites[:2].float() - 127) / 128, (64, 64), mode="bilinear")
    assert torch.allclose(inputs[0], bytes_, atol=1e-5)


def test_the_backbone_is_frozen_and_not_the_models(sprites):
    term = config.build(Features, features(layers=[0], side=32), "perceptual")
    plain, model = vae(**SMALL), vae(perceptual=term, **SMALL)
    assert model.perceptual is None, "what samples and scores does without"
    model.fetch(Path("unused"), Path("unused"))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    x = to_model(sprites[:4])
    before = [p.clone() for p in model.perceptual.net.parameters()]
    torch.manual_seed(0)
    terms = model.train()(x)
    terms["loss"].mean().backward()
    assert not any(m.training for m in model.perceptual.net.modules())
    assert not any(p.requires_grad or p.grad is not None for p in model.perceptual.net.parameters())
    assert all(torch.equal(*pair) for pair in zip(before, model.perceptual.net.parameters(), strict=True))
    torch.manual_seed(0)
    alone = plain.train()(x)
    assert torch.allclose(terms["loss"], alone["loss"] + terms["features"], rtol=1e-5)
    torch.manual_seed(0)
    scored = model.eval()(x)
    torch.manual_seed(0)
    assert all(torch.equal(scored[key], value) for key, value in plain.eval()(x).items())


@pytest.fixture(scope="module")
def vgg19(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file as torchvision's, with random weights (and of the classifier only a stub)."""
    from torchvision.models import vgg

    torch.manual_seed(0)
    net = vgg.make_layers(vgg.cfgs["E"])
    state = {f"features.{key}": value for key, value in net.state_dict().items()} | {"classifier.0.bias": torch.ones(1)}
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path, state


def test_vgg19_is_torchvisions_with_its_inputs_normalised(vgg19, sprites):
    path, state = vgg19
    net = Perceptual(networks.vgg19(path), (11, 1, 0, 6), 48)
    x = sprites[:2].float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    big = nn.functional.interpolate((x - mean) / std, (48, 48), mode="bilinear")
    conv = nn.functional.conv2d(big, state["features.0.weight"], state["features.0.bias"], padding=1)
    got = net.features(to_model(sprites[:2]))
    assert [f.shape[1:] for f in got] == [(64, 48, 48), (64, 48, 48), (128, 24, 24), (256, 12, 12)]
    assert torch.allclose(got[0], conv, atol=1e-5) and conv.min() < 0, "not overwritten by the ReLU after it"
    assert torch.allclose(got[1], conv.relu(), atol=1e-5)


def test_vgg19_is_fetched_for_training_alone_and_checked(vgg19, sprites, tmp_path):
    path, _ = vgg19
    given = {"backbone": "vgg19", "layers": [1, 6], "side": 32, "weights": path.as_uri(), "sha256": files.digest(path)}

    def model(**change):
        return vae(perceptual=config.build(Features, features(**given | change), "perceptual"), **SMALL)

    good, cache = model(sha256=given["sha256"][:8].upper()), tmp_path / "cache"
    good.fetch(cache, tmp_path)
    assert not cache.exists(), "a local file is used where it lies"
    x = to_model(sprites[:2])
    terms = good.train()(x)
    terms["loss"].mean().backward()
    assert (terms["features"] > 0).all() and "features" not in good.eval()(x)
    assert good.state_dict().keys() == vae(**SMALL).state_dict().keys()
    (tmp_path / "text.pth").write_text("no weights")
    text = {"weights": "text.pth", "sha256": files.digest(tmp_path / "text.pth")}
    torch.save({"features.0.weight": torch.ones(1)}, tmp_path / "other.pth")
    other = {"weights": "other.pth", "sha256": files.digest(tmp_path / "other.pth")}
    for change, says in (
        ({"sha256": "0" * 64}, r"has sha256 .* not 0{64} \(vae\.perceptual\.sha256\)"),
        ({"sha256": "dcbb"}, r"vae\.perceptual\.sha256 = 'dcbb' should be 8 to 64 hex digits"),
        ({"weights": None}, r"vae\.perceptual\.weights is null.*vgg19-dcbb9e9d"),
        ({"weights": "missing.pth"}, "there is no file"),
        (text, "does not hold torchvision's weights"),
        (other, "does not hold torchvision's weights"),
    ):
        with pytest.raises(UserError, match=says) as error:
            model(**change).fetch(cache, tmp_path)
        assert "\n" not in str(error.value)


# --- presets


@pytest.mark.parametrize(
    ("words", "parameters"),
    [((), 2_328_973), (("vae-beta",), 6_369_540), (("vae-resnet",), 11_276_420), (("vae-dfc",), 11_276_420)],
)
def test_presets_have_their_sizes(words, parameters):
    sizes = []
    for scale in ("paper", "gpu", "laptop"):
        module, cfg = small("vae", scale, "cifar10", *words)
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in module.Model(cfg, SHAPE).parameters()))
    assert sizes[:2] == [parameters] * 2 and 300_000 < sizes[2] < 800_000


def test_presets_keep_their_identity_at_every_scale():
    for scale in ("laptop", "gpu", "paper"):
        beta, resnet, dfc = (small("vae", scale, "cifar10", f"vae-{word}")[1] for word in ("beta", "resnet", "dfc"))
        assert (beta.arch, beta.beta, len(beta.channels)) == ("conv", 1.0, 4)
        assert (resnet.arch, resnet.perceptual.alpha, dfc.arch) == ("resnet", 0.0, "resnet")
        assert (dfc.perceptual.alpha, dfc.perceptual.layers[0], dfc.beta) == (0.5, 0, 0.1)
    words = ("vae-beta", "paper", "cifar10")
    beta, train = small("vae", *words)[1], settings("vae", defaults(*words))
    assert (beta.channels, beta.latent, beta.beta) == ((64, 128, 256, 512), 128, 1.0)
    assert (train.lr, train.batch, train.images) == (1e-4, 128, 150 * 50000)


def test_importance_weights_leave_a_probability():
    """log_weights of a discrete model are of probabilities: with a code that is ignored, those of the pixels."""
    model = vae(likelihood="logistic", mixtures=1, **SMALL).eval()
    model.posterior = lambda x: (torch.zeros(len(x), 8), torch.zeros(len(x), 8))
    model.net = nn.Sequential(nn.Linear(8, 40), nn.Unflatten(1, (10, 2, 2)))
    nn.init.zeros_(model.net[0].weight)
    nn.init.zeros_(model.net[0].bias)
    x = to_model(torch.randint(256, (3, 3, 2, 2)).byte())
    assert torch.allclose(model.log_weights(x, 4), logistic.log_prob(x, torch.zeros(3, 10, 2, 2)).expand(4, 3))

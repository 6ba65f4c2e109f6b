"""Centred data and the start from their Gaussian, against what can be derived on paper."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import SHAPE, budget, build, small
from torch import nn

from pofx.base import config, rng
from pofx.base.errors import UserError
from pofx.base.images import to_model
from pofx.base.rng import Noise
from pofx.models import ddpm, store
from pofx.models.denoiser import Denoiser, DenoiserConfig, from_denoised
from pofx.models.ebm import ebm
from pofx.models.moments import LowRank, Measured
from pofx.sample.drawing import choose_levels, draw, follow
from pofx.sample.samplers import SAMPLERS, Sample
from pofx.score import likelihood

NAMES = [name for name in config.family_names() if isinstance(build(*small(name)), Measured)]
SHIFT = torch.tensor([-0.6, 0.1, 0.3]).view(3, 1, 1)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def awake(name: str, **change):
    """A model whose network has a say: at first its last layer is nothing."""
    module, cfg = small(name)
    model = build(module, replace(cfg, **change)).eval()
    torch.manual_seed(0)
    for p in model.parameters():
        p.add_(0.1 * torch.randn_like(p))
    return model


# --- what is measured


def test_all_denoisers_and_the_energy_at_noise_levels_know_their_data():
    assert NAMES == ["ddpm", "ebm", "edm", "ncsn"]


@pytest.mark.parametrize("name", NAMES)
def test_mean_and_spread_are_those_of_the_training_images(name, sprites):
    model, x = build(*small(name)), to_model(sprites).double()
    noted = model.prepare(sprites, 8)
    mean = x.mean((0, 2, 3)).view(3, 1, 1)
    assert torch.allclose(model.mean.double(), mean, atol=1e-7)
    assert noted["sigma_data"] == model.sigma_data.item() == pytest.approx((x - mean).square().mean().sqrt().item())
    assert {"mean", "sigma_data"} <= model.state_dict().keys()


@pytest.mark.parametrize("name", NAMES)
def test_published_models_are_not_centred(name, sprites):
    module, cfg = small(name)
    off = {"centre": False, "sigma_data": 0.7}
    cfg = replace(cfg, recovery=replace(cfg.recovery, **off)) if name == "ebm" else replace(cfg, **off)
    model = build(module, cfg)
    assert model.sigma_data.item() == pytest.approx(0.7), "before images are seen, too"
    model.prepare(sprites, 8)
    assert not model.mean.any() and model.sigma_data.item() == pytest.approx(0.7)


PUBLISHED = {"ddpm-ho2020": 1.0, "ddpm-wide": 1.0, "ncsn-v1": 0.5, "ncsn-v2": 0.5, "ncsn-fifty": 0.5}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_keep_the_published_formulas(preset):
    _, cfg = small(preset.partition("-")[0], preset)
    assert (cfg.centre, cfg.sigma_data) == (False, PUBLISHED[preset])


def test_without_centring_the_spread_is_about_zero(sprites):
    module, cfg = small("edm")
    model = build(module, replace(cfg, centre=False))
    model.prepare(sprites, 8)
    assert model.sigma_data.item() == pytest.approx(to_model(sprites).double().square().mean().sqrt().item())


def test_images_of_one_colour_are_refused():
    with pytest.raises(UserError, match="all training images are of one colour"):
        build(*small("edm")).prepare(torch.full((4, *SHAPE), 9, dtype=torch.uint8), 4)


# --- what follows from it


@pytest.mark.parametrize("sigma", [0.05, 0.6, 20.0])
@pytest.mark.parametrize("name", NAMES)
def test_the_network_sees_mean_zero_and_variance_one(name, sigma):
    model, seen = build(*small(name)), []
    model.mean.copy_(SHIFT)
    model.sigma_data.fill_(0.3)
    model.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    x = SHIFT + 0.3 * torch.randn(16, *SHAPE) + sigma * torch.randn(16, *SHAPE)
    if name == "ebm":
        model.level_energy(x, torch.full((16, 1, 1, 1), sigma))
    else:
        model.denoise(x, sigma)
    assert seen[0].mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=0.03)
    assert seen[0].std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_what_ddpm_predicts_is_of_data_of_unit_variance(prediction):
    """With the best answer a network can give of Gaussian data, the denoiser is theirs; answers have no other scale."""
    module, cfg = small("ddpm")
    model, s, sigma = build(module, replace(cfg, prediction=prediction)), 0.3, 0.8
    model.mean.copy_(SHIFT)
    model.sigma_data.fill_(s)

    class Best(nn.Module):
        def forward(self, x, t):
            wide = sigma / s
            y = x * (1 + wide**2) ** 0.5
            return from_denoised(prediction, y / (1 + wide**2), y, wide)

    model.net, x = Best(), torch.randn(4, *SHAPE)
    assert torch.allclose(model.denoise(x, sigma), SHIFT + s**2 / (s**2 + sigma**2) * (x - SHIFT), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_shifted_data_are_the_same_model_shifted(name, sprites):
    """Loss, energy, preview and samples of images about another mean."""
    model, x = awake(name), to_model(sprites[:6])

    def facts(shift):
        model.mean.fill_(0.0).add_(shift)
        torch.manual_seed(1)
        with rng.per_image(Noise(0, 0, 6)):
            yield model(x + shift)["loss"]
        yield model.preview(Noise(0, 0, 2)) - shift
        if name == "ebm":
            yield model.energy(x + shift)
            yield model.sample(Noise(0, 0, 2), ebm.Sample(chain=1)) - shift
        else:
            yield model.denoise(x + shift, 0.5) - shift
            for sampler in SAMPLERS:
                yield draw(model, Noise(0, 0, 2), Sample(sampler=sampler, steps=6)) - shift

    for zero, other in zip([*facts(torch.zeros(3, 1, 1))], [*facts(SHIFT)], strict=True):
        assert torch.allclose(zero, other, rtol=1e-3, atol=1e-3 * zero.abs().max().item())


class Known(Denoiser):
    """The exact denoiser of N(mean, covariance), images of 3x4x4."""

    def __init__(self, mean, covariance, cfg: DenoiserConfig, sigma_range=(0.01, 80.0), levels=None):
        super().__init__(cfg, (3, 4, 4), nn.Identity())
        self.centre, self.covariance = mean, covariance
        self.sigma_range, self.levels = sigma_range, levels

    def forward(self, x):
        raise NotImplementedError

    def denoise(self, x, sigma, net=None):
        eye = torch.eye(len(self.covariance), dtype=self.covariance.dtype)
        gain = torch.linalg.solve(self.covariance + sigma**2 * eye, self.covariance)
        return self.centre + ((x - self.centre).flatten(1) @ gain).view_as(x)


def test_bits_of_centred_models_start_from_noise_about_the_mean():
    """The flow of N(m, s^2) data with m in the model costs what that of N(0, s^2) costs; as does the chain's bound."""
    m, s, eye = SHIFT.expand(3, 4, 4), 0.1, torch.eye(48)
    x = (0.1 * torch.randn(8, 3, 4, 4)).clamp(-0.3, 0.3)
    costs = []
    for shift in (torch.zeros(3, 1, 1), SHIFT):
        model = Known(m * shift.any(), s**2 * eye, DenoiserConfig(guide=0.0), (0.01, 2.0), np.array([2.0, 0.3, 0.01]))
        model.mean.copy_(shift)
        costs.append((likelihood.flow(model, x + shift, 16, 8, 0), likelihood.bound(model, x + shift, None, 8, 0)))
    assert torch.allclose(costs[0][0], costs[1][0], atol=1e-3)
    assert torch.allclose(costs[0][1], costs[1][1], atol=0.1), "grey levels fall elsewhere in their bins"
    model.mean.zero_()
    assert (likelihood.flow(model, x + shift, 16, 8, 0) - costs[1][0]).mean() > 0.01
    assert (likelihood.bound(model, x + shift, None, 8, 0) - costs[1][1]).abs().mean() > 0.01


# --- older files


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_format_2_is_not_centred_and_draws_what_it_drew(name, tmp_path):
    model = awake(name)
    store.save(tmp_path, name, model, asdict(budget(name)), {})
    card = json.loads((tmp_path / "model.json").read_text())
    part = card["config"]["recovery"] if name == "ebm" else card["config"]
    del part["centre"], part["sigma_data"]
    (tmp_path / "model.json").write_text(json.dumps(card | {"format": 2}))
    tensors = {key: value for key, value in model.state_dict().items() if key not in ("mean", "sigma_data")}
    store.save_file(tensors, tmp_path / "model.safetensors")
    again = store.load(tmp_path)
    assert (again.cfg.recovery if name == "ebm" else again.cfg).centre is False
    assert not again.mean.any() and again.sigma_data == (1.0 if name == "ddpm" else 0.5)
    assert torch.allclose(again.preview(Noise(0, 0, 1)), model.preview(Noise(0, 0, 1)), atol=1e-3)


def test_a_file_of_today_without_its_mean_is_refused(tmp_path):
    model = build(*small("edm"))
    store.save(tmp_path, "edm", model, asdict(budget("edm")), {})
    store.save_file({k: v for k, v in model.state_dict().items() if k != "mean"}, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match="mean"):
        store.load(tmp_path)


def test_an_untrained_model_knows_its_data(tmp_path, sprites):
    model = build(*small("edm"))
    model.prepare(sprites, 8)
    store.save(tmp_path, "edm", model, asdict(budget("edm")), {})
    other = store.untrained(tmp_path, seed=3)
    assert torch.equal(other.mean, model.mean) and other.sigma_data == model.sigma_data
    assert not torch.equal(other.net.first.weight, model.net.first.weight)


# --- the start from a Gaussian


def spectrum(k: int, rest: float):
    """A covariance of 48 dimensions: k large variances, the others `rest`."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(48, 48, dtype=torch.float64))[0]
    values = torch.full((48,), rest, dtype=torch.float64)
    values[:k] = torch.linspace(2.0, 0.5, k)
    return (axes * values) @ axes.T


def known(mean, covariance, k: int) -> Known:
    """With the Gaussian in place of one that was fitted."""
    model = Known(mean, covariance, DenoiserConfig(guide=0.0, gaussian=k)).double()
    values, axes = torch.linalg.eigh(covariance)
    model.gaussian.mean.copy_(mean)
    model.gaussian.axes.copy_(axes[:, -k:].T)
    model.gaussian.variances.copy_(values[-k:])
    model.gaussian.rest.copy_(values[:-k].mean())
    return model


def spread(f) -> torch.Tensor:
    """J J' of a map from 48 standard normal numbers to images that is affine: the covariance of its images."""
    z = torch.cat([torch.zeros(1, 48, dtype=torch.float64), torch.eye(48, dtype=torch.float64)]).view(-1, 3, 4, 4)
    x = f(z).flatten(1)
    return (x[1:] - x[0]).T @ (x[1:] - x[0])


@pytest.mark.parametrize("sigma", [0.0, 0.5, 20.0])
def test_the_start_has_the_covariance_of_noisy_data(sigma):
    covariance = spectrum(5, 0.04)
    gaussian = known(SHIFT.expand(3, 4, 4).double(), covariance, 5).gaussian
    got = spread(lambda z: gaussian.noisy(z, sigma))
    assert torch.allclose(got, covariance + sigma**2 * torch.eye(48, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(gaussian.noisy(torch.zeros(1, 3, 4, 4).double(), sigma), SHIFT.double().expand(3, 4, 4))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp", "ddim"])
def test_of_gaussian_data_few_steps_from_their_gaussian_are_enough(sampler):
    """From sigma 2, where noise is no stronger than data: exact by the start from their Gaussian, far off without."""
    covariance = spectrum(5, 0.04)
    model = known(SHIFT.expand(3, 4, 4).double(), covariance, 5)
    model.mean.copy_(SHIFT)

    def drawn(start, steps):
        cfg = Sample(sampler=sampler, steps=steps, sigma_max=2.0, start=start)
        return spread(lambda z: follow(model, model.denoise, Noise(0, 0, len(z)), cfg, z))

    off = {start: (drawn(start, 200) - covariance).norm() / covariance.norm() for start in ("gaussian", "noise")}
    assert off["gaussian"] < (0.02 if sampler == "ddim" else 1e-3) and off["noise"] > 0.2
    assert (drawn("gaussian", 12) - covariance).norm() / covariance.norm() < (0.25 if sampler == "ddim" else 0.05)


def test_the_components_are_those_of_the_images():
    """Images of three large variances, on the grey levels: the axes, the rest, the mean."""
    torch.manual_seed(0)
    axes = torch.linalg.qr(torch.randn(48, 48))[0]
    std = torch.full((48,), 0.05)
    std[:3] = torch.tensor([0.9, 0.7, 0.5])
    x = SHIFT.expand(3, 4, 4) / 2 + ((torch.randn(6000, 48) * std) @ axes.T).view(-1, 3, 4, 4)
    images = ((x + 1) * 127.5).round().clamp(0, 255).byte()
    gaussian = LowRank(3, (3, 4, 4))
    gaussian.fit(images)
    y = to_model(images).flatten(1).double()
    values, vectors = torch.linalg.eigh(torch.cov(y.T, correction=0))
    assert gaussian.variances.double().tolist() == pytest.approx(values[-3:].flip(0).tolist(), rel=1e-4)
    assert gaussian.rest.item() == pytest.approx(values[:-3].mean().item(), rel=1e-3)
    assert (gaussian.axes.double() @ vectors[:, -3:].flip(1)).abs() == pytest.approx(np.eye(3), abs=1e-3)
    assert torch.allclose(gaussian.mean.flatten().double(), y.mean(0), atol=1e-5)


def test_finding_components_draws_no_random_number_of_training(sprites):
    module, cfg = small("edm")
    model = build(module, replace(cfg, gaussian=8))
    torch.manual_seed(5)
    model.prepare(sprites, 8)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    again = build(module, replace(cfg, gaussian=8), seed=1)
    again.prepare(sprites, 8)
    assert torch.equal(model.gaussian.axes, again.gaussian.axes)
    assert draw(model, Noise(0, 0, 2), Sample(steps=3, sigma_max=5.0, start="gaussian")).isfinite().all()


def test_a_start_that_the_model_does_not_have_is_refused(sprites):
    model = build(*small("edm"))
    with pytest.raises(UserError, match="train with gaussian = 64"):
        draw(model, Noise(0, 0, 1), Sample(steps=3, start="gaussian"))
    with pytest.raises(UserError, match="gaussian = 64 principal components need more than 20 images"):
        LowRank(64, SHAPE).fit(sprites[:20])


def test_sampling_may_start_at_a_smaller_level():
    eye, cfg = torch.eye(48), DenoiserConfig(guide=0.0)
    free = Known(torch.zeros(3, 4, 4), eye, cfg)
    for spacing in ("karras", "geometric"):
        levels = choose_levels(free, Sample(steps=5, sigma_max=7.0, spacing=spacing))
        assert len(levels) == 5 and (levels[0], levels[-1]) == pytest.approx((7.0, 0.01))
    chain = ddpm.preserving("linear", 1000)
    trained = Known(torch.zeros(3, 4, 4), eye, cfg, (chain[-1], chain[0]), chain)
    assert choose_levels(trained, Sample(sigma_max=5.0)) == chain[chain <= 5.0].tolist()
    some = choose_levels(trained, Sample(sigma_max=5.0, steps=7, spacing="uniform"))
    assert len(some) == 7 and some[0] == pytest.approx(chain[chain <= 5.0][0])
    for bad in (200.0, 1e-4):
        with pytest.raises(UserError, match=r"sigma_max = .* should lie between 0\.0\d+ and 157"):
            choose_levels(trained, Sample(sigma_max=bad))
    assert Sample(sigma_max=5.0, start="gaussian").by("ddim", 4).sigma_max == 5.0

"""Noise levels, samplers and denoisers, against what can be derived on paper."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build, small
from torch import nn

from pofx.base import config
from pofx.base.errors import UserError
from pofx.base.images import to_model, to_uint8
from pofx.base.rng import Noise
from pofx.models import family
from pofx.models import schedules as noise
from pofx.sample import samplers
from pofx.sample.samplers import SAMPLERS, Sample

D = 3 * 32 * 32


# --- noise levels


def test_technique4_gives_the_published_step_size():
    levels = noise.geometric(50.0, 0.01, 232)
    assert noise.technique4(levels[0] / levels[1], 5) * 0.01**2 == pytest.approx(6.18e-6, abs=0.01e-6)
    assert noise.technique4(levels[0] / levels[1], 1) * 0.01**2 == pytest.approx(7.11e-6, abs=0.01e-6)


def test_levels_are_geometric():
    levels = noise.geometric(50.0, 0.01, 232)
    assert len(levels) == 232
    assert (levels[0], levels[-1]) == pytest.approx((50, 0.01))
    assert levels[:-1] / levels[1:] == pytest.approx(1.03756, abs=1e-5)


def test_overlap_of_the_published_ladders():
    """Technique 2: 232 levels overlap by 0.567, some 219 would by a half, the ten levels of 2019 not at all."""
    for count, largest, want in ((232, 50.0, 0.567), (219, 50.0, 0.5), (964, 50.0, 0.99), (10, 1.0, 0.0)):
        levels = noise.geometric(largest, 0.01, count)
        assert noise.overlap(levels[0] / levels[1], D) == pytest.approx(want, abs=0.005)


def test_karras_levels_are_the_published_grid():
    want = [
        80,
        57.6,
        40.8,
        28.4,
        19.4,
        12.9,
        8.40,
        5.32,
        3.26,
        1.92,
        1.09,
        0.585,
        0.296,
        0.140,
        0.060,
        0.023,
        0.0075,
        0.002,
    ]
    assert noise.karras(80.0, 0.002, 18, 7.0) == pytest.approx(want, rel=0.02)


def test_the_linear_chain_spans_the_published_noise():
    """alphabar_T = 4.04e-5; as variance exploding noise 0.01 .. 157; the prior term is 8e-6 bits a dimension."""
    levels = noise.preserving("linear", 1000)
    assert (levels[0], levels[-1]) == pytest.approx((157, 0.01), rel=0.01)
    assert 1 / (1 + levels[0] ** 2) == pytest.approx(4.04e-5, rel=0.01)
    assert np.all(np.diff(levels) < 0)


def test_the_cosine_chain_keeps_half_of_the_signal_near_the_middle():
    levels = noise.preserving("cosine", 1000)[::-1]
    assert np.all(np.diff(levels) > 0) and np.isfinite(levels).all()
    kept = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert 1 / (1 + levels[499] ** 2) == pytest.approx(kept, rel=1e-6)


def test_spaced_levels_run_along_the_ladder():
    ladder = noise.preserving("linear", 1000)
    assert noise.spaced(ladder, "uniform", 1000) == pytest.approx(ladder)
    for spacing in ("uniform", "quadratic"):
        levels = noise.spaced(ladder, spacing, 4)
        assert (levels[0], levels[-1]) == pytest.approx((ladder[0], ladder[-1]))
    assert noise.spaced(ladder, "uniform", 4)[1] == pytest.approx(ladder[::-1][666])
    assert noise.spaced(ladder, "quadratic", 4)[1] == pytest.approx(ladder[::-1][444])
    assert np.all(np.diff(noise.spaced(ladder, "quadratic", 400)) < 0), "no level twice"


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score"])
def test_predictions_and_denoised_images_are_two_names_for_one_thing(kind):
    torch.manual_seed(0)
    x0, z = torch.randn(2, 64, dtype=torch.float64)
    for sigma in (0.01, 1.0, 157.0):
        x = x0 + sigma * z
        want = {"eps": z, "x0": x0, "v": (z - sigma * x0) / math.sqrt(1 + sigma**2), "score": -z / sigma}[kind]
        told = noise.from_denoised(kind, x0, x, sigma)
        assert torch.allclose(told, want, rtol=1e-8)
        assert torch.allclose(noise.to_denoised(kind, told, x, sigma), x0, atol=1e-8)


# --- samplers


def settings(sampler: str, **change) -> Sample:
    plain = {"batch": 64, "guidance": 1.0, "steps": None, "spacing": "uniform", "rho": 7.0, "denoise": True,
             "clip": False, "eta": 0.0, "variance": "small", "churn": 0.0, "langevin_steps": 1, "step_size": None,
             "snr": 0.16}  # fmt: skip
    return Sample(**plain | {"sampler": sampler} | change)


def down(denoise, levels, cfg: Sample, n=2048, shape=(16,)):
    """The sampler of `cfg` from pure noise down `levels`."""
    noise = Noise(0, 0, n)
    sigmas = [*map(float, levels), *([0.0] if cfg.denoise else [])]
    return SAMPLERS[cfg.sampler](denoise, noise, sigmas[0] * noise.normal(*shape), sigmas, cfg)


def gaussian(x, sigma, m=0.3, s=0.5):
    """x0 ~ N(m, s^2): D(x; sigma) = (s^2 x + sigma^2 m) / (s^2 + sigma^2)."""
    return (s**2 * x + sigma**2 * m) / (s**2 + sigma**2)


def point(x, sigma):
    """x0 = 0.7."""
    return torch.full_like(x, 0.7)


EDM = noise.karras(80.0, 0.002, 40, 7.0)
LINEAR = noise.preserving("linear", 1000)
WAYS = {  # sampler, its levels, and how far its steps leave the standard deviation off
    "heun": (settings("heun"), EDM, 0.01),
    "heun with churn": (settings("heun", churn=10.0), noise.karras(80.0, 0.002, 60, 7.0), 0.02),
    "dpmpp": (settings("dpmpp"), EDM, 0.01),
    "ddim": (settings("ddim"), noise.spaced(LINEAR, "uniform", 200), 0.02),
    "ddim quadratic": (settings("ddim"), noise.spaced(LINEAR, "quadratic", 200), 0.02),
    "ddim with noise": (settings("ddim", eta=0.5), noise.spaced(LINEAR, "uniform", 400), 0.02),
    "ancestral small": (settings("ancestral"), LINEAR, 0.01),
    "ancestral large": (settings("ancestral", variance="large"), LINEAR, 0.01),
    "langevin": (settings("langevin", langevin_steps=10), noise.geometric(10.0, 0.01, 200), 0.05),
    "consistent": (settings("consistent"), noise.geometric(10.0, 0.01, 200), 0.02),
    "predictor_corrector": (settings("predictor_corrector"), noise.geometric(10.0, 0.01, 200), 0.02),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_sampler_draws_from_a_gaussian(way):
    cfg, levels, tolerance = WAYS[way]
    x = down(gaussian, levels, cfg)
    assert x.mean().item() == pytest.approx(0.3, abs=0.01)
    assert x.std().item() == pytest.approx(0.5, rel=tolerance)


def test_twenty_steps_leave_second_order_samplers_within_five_percent():
    for sampler in ("heun", "dpmpp"):
        for largest, smallest in ((80.0, 0.002), (157.0, 0.01)):
            x = down(gaussian, noise.karras(largest, smallest, 20, 7.0), settings(sampler))
            assert x.std().item() == pytest.approx(0.5, rel=0.05)


def test_second_order_samplers_are_of_second_order():
    """Twice the steps, a quarter of the error (a half for ddim): against the exact solution of the flow."""

    def error(sampler: str, n: int) -> float:
        levels = noise.geometric(10.0, 0.01, n)
        cfg, x = settings(sampler, denoise=False), torch.full((1, 1), 10.0, dtype=torch.float64)
        got = SAMPLERS[sampler](lambda x, sigma: gaussian(x, sigma, 0.0), Noise(0, 0, 1), x, levels.tolist(), cfg)
        return abs(got.item() - 10.0 * math.sqrt((0.5**2 + 0.01**2) / (0.5**2 + 10.0**2)))

    for sampler, order in (("heun", 2), ("dpmpp", 2), ("ddim", 1)):
        assert math.log2(error(sampler, 81) / error(sampler, 161)) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("way", WAYS)
def test_every_sampler_ends_at_a_point_mass(way):
    cfg, levels, _ = WAYS[way]
    assert (down(point, levels, cfg, n=64) - 0.7).abs().max() < 1e-4


@pytest.mark.parametrize("way", [w for w in WAYS if w not in ("langevin", "ancestral large")])
def test_without_the_last_step_the_noise_of_the_last_level_is_left(way):
    """Around one data point a sampler that is consistent has exactly the noise of the level at every level."""
    cfg, levels, _ = WAYS[way]
    left = down(point, levels[:-3], replace(cfg, denoise=False))
    stir = 1.06 if way == "predictor_corrector" else 1  # q = 2 eta / (1 - (1 - eta)^2) of the corrector, 2 eta = 0.1
    assert left.mean().item() == pytest.approx(0.7, abs=0.02 * levels[-4])
    assert left.std().item() == pytest.approx(levels[-4], rel=0.02 * stir)


def test_langevin_without_the_last_step_leaves_what_the_ladder_settles_at():
    levels = noise.geometric(10.0, 0.1, 100)
    left = down(point, levels, settings("langevin", langevin_steps=5, step_size=0.1 * 0.05**2, denoise=False))
    g, decay, q = levels[0] / levels[1], 0.9**10, 0.2 / (1 - 0.81)
    variance = (1 - decay) * q / (1 - decay * g**2)  # of the level's own
    assert left.std().item() == pytest.approx(0.1 * math.sqrt(variance), rel=0.02)


def test_consistent_sampling_leaves_exactly_the_noise_of_the_level_at_any_valid_step():
    levels = noise.geometric(10.0, 0.1, 20)  # ratio 0.785: valid steps lie in 0.215..1.785
    for last in (5, 20):
        eta = 0.3 * (levels[last - 1] / 2) ** 2
        left = down(point, levels[:last], settings("consistent", step_size=eta, denoise=False))
        assert left.std().item() == pytest.approx(levels[last - 1], rel=0.01)


def test_ddim_in_two_steps_by_hand():
    """Two levels, sigma 2 then 1, then 0; D(x, sigma) = x / (1 + sigma^2), the data N(0, 1); eta 0 and 1/2.

    From x = 5: D = 1, so x' = 1 + (1/2) 4 = 3, D = 3/2. With eta 1/2 the fresh noise is 1/2 (1/2) sqrt(3) = sqrt(3)/4
    and the old one keeps sqrt(1 - 3/16) / 2 = sqrt(13)/8: x' = 1 + sqrt(13)/2 + sqrt(3)/4 z.
    """
    x = torch.full((1, 1), 5.0)
    unit = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731
    assert SAMPLERS["ddim"](unit, Noise(0, 0, 1), x, [2.0, 1.0, 0.0], settings("ddim")).item() == pytest.approx(1.5)
    z = Noise(0, 0, 1).normal(1).item()
    got = SAMPLERS["ddim"](unit, Noise(0, 0, 1), x, [2.0, 1.0, 0.0], settings("ddim", eta=0.5)).item()
    assert got == pytest.approx((1 + math.sqrt(13) / 2 + math.sqrt(3) / 4 * z) / 2)


def test_the_chain_of_ddpm_by_hand():
    """One step from alphabar 0.2 to 0.6: mean and variances of Ho et al. 2020, eq. 7, in their own coordinates."""
    before, after = 0.2, 0.6  # alphabar_t, alphabar_t-1
    sigmas = [math.sqrt((1 - a) / a) for a in (before, after)]
    x_t, x0, beta = 0.9, 0.4, 1 - before / after
    mean = math.sqrt(after) * beta / (1 - before) * x0 + math.sqrt(before / after) * (1 - after) / (1 - before) * x_t
    z = Noise(0, 0, 1).normal(1).item()
    for variance, spread in (("small", (1 - after) / (1 - before) * beta), ("large", beta)):
        start = torch.full((1, 1), x_t / math.sqrt(before))
        cfg = settings("ancestral", variance=variance, denoise=False)
        x = SAMPLERS["ancestral"](lambda x, sigma: torch.full_like(x, x0), Noise(0, 0, 1), start, sigmas, cfg)
        assert x.item() * math.sqrt(after) == pytest.approx(mean + math.sqrt(spread) * z, rel=1e-5)


def test_ddim_with_all_its_noise_is_the_ancestral_chain():
    one = down(gaussian, EDM, settings("ddim", eta=1.0), n=8)
    assert torch.allclose(one, down(gaussian, EDM, settings("ancestral"), n=8), atol=1e-5)


def test_dpmpp_is_exact_where_the_denoised_image_is_linear_in_log_sigma():
    """D = a - b log sigma: its value half a step ahead is what the extrapolation says."""
    a, b = 0.5, 0.2
    levels = [4.0, 2.0, 1.0]  # the second step is the first of second order
    x = torch.full((1, 1), 3.0)
    denoise = lambda x, sigma: torch.full_like(x, a - b * math.log(sigma))  # noqa: E731
    d0, d1 = (a - b * math.log(s) for s in levels[:2])
    first = d0 + 0.5 * (3.0 - d0)
    ahead = d1 + 0.5 * (d1 - d0)  # extrapolated by half of an equal step
    got = SAMPLERS["dpmpp"](denoise, Noise(0, 0, 1), x, levels, settings("dpmpp", denoise=False))
    assert got.item() == pytest.approx(ahead + 0.5 * (first - ahead))


def test_evaluations_of_each_sampler():
    """The cost that docs and the sweep speak of: n levels, with the last denoising step."""
    want = {
        "ancestral": 10,
        "ddim": 10,
        "dpmpp": 10,
        "heun": 19,
        "langevin": 31,
        "consistent": 10,
        "predictor_corrector": 37,
    }
    net = Point()
    for sampler, cost in want.items():
        with family.counted(net) as calls:
            down(net, noise.geometric(10.0, 0.1, 10), settings(sampler, langevin_steps=3), n=1)
        assert calls[0] == cost, sampler


def test_denoised_images_are_clipped_when_asked():
    wild = lambda x, sigma: torch.full_like(x, 3.0)  # noqa: E731
    for clip, want in ((True, 1.0), (False, 3.0)):
        cfg = settings("ddim", steps=5, spacing="geometric", clip=clip)
        assert samplers.draw(wild, Noise(0, 0, 2), cfg, (0.01, 10.0), None).unique().tolist() == [want]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sampler": "ancestral", "variance": "large"}, "fewer than 250 steps"),
        ({"sampler": "consistent", "step_size": 1e-5}, r"step_size = .* should lie between"),
        ({"sampler": "consistent", "step_size": 1.0}, r"step_size = .* should lie between"),
        ({"sampler": "langevin", "step_size": 5e-4}, r"step_size = .* should lie between"),
    ],
)
def test_what_is_known_to_fail_is_refused_with_the_reason(change, says):
    ladder = noise.geometric(60.0, 0.04, 50)
    with pytest.raises(UserError, match=says):
        samplers.draw(point, Noise(0, 0, 1), settings(**change), (0.04, 60.0), ladder)


def test_a_continuum_has_no_ladder_to_count_along():
    with pytest.raises(UserError, match="say how many steps"):
        samplers.draw(point, Noise(0, 0, 1), settings("heun"), (0.002, 80.0), None)
    with pytest.raises(UserError, match="take karras"):
        samplers.draw(point, Noise(0, 0, 1), settings("heun", steps=5), (0.002, 80.0), None)


@pytest.mark.parametrize("change", [{"steps": 1}, {"eta": 1.5}, {"rho": 0.5}, {"langevin_steps": 0}, {"snr": 0.0}])
def test_settings_out_of_range_are_refused_by_name(change):
    (key,) = change
    with pytest.raises(ValueError, match=f"^{key} = "):
        settings("ddim", **change)


# --- denoisers

DENOISERS = [name for name in config.family_names() if hasattr(family.module(name).Model, "denoise")]


@pytest.mark.parametrize("name", DENOISERS)
def test_every_sampler_draws_from_every_denoiser(name, sprites):
    """With the exact denoiser of a data set of one image in its place, each sampler returns that image."""
    module, cfg = small(name)
    model = build(module, cfg)
    image = to_model(sprites[:1])
    model.denoise = lambda x, sigma: image.expand_as(x)
    for sampler in SAMPLERS:
        drawn = model.sample(Noise(0, 0, 3), settings(sampler, steps=8, spacing="karras"))
        assert torch.equal(to_uint8(drawn), sprites[:1].expand(3, -1, -1, -1)), sampler


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_leaves_an_image_without_noise_as_it_is(name, sprites):
    """At the smallest level an untrained network has next to no say: D(x, sigma) is within some sigma of x."""
    model = build(*small(name)).eval()
    smallest, x = model.sigma_range[0], to_model(sprites[:2])
    with torch.no_grad():
        assert (model.denoise(x, smallest) - x).abs().max() < 10 * smallest


@pytest.mark.parametrize("name", DENOISERS)
def test_the_loss_is_the_error_of_the_denoiser(name, sprites):
    """With a network whose answers make D the clean images, the loss is zero."""
    module, cfg = small(name)
    model = build(module, cfg)
    x = to_model(sprites[:4])
    seen = {}

    class Exact(nn.Module):
        def forward(self, noisy, t):
            return seen["answer"](noisy, t)

    model.net = Exact()
    sigmas = torch.tensor(model.ladder.copy(), dtype=torch.float64) if model.ladder is not None else None

    def answer(noisy, t):
        """What the network has to say for D to be `x`, from its own two inputs."""
        if name == "ddpm":
            sigma = sigmas.flip(0)[t.long()].view(-1, 1, 1, 1)
            return noise.from_denoised(cfg.prediction, x, noisy * (1 + sigma**2).sqrt(), sigma).float()
        sigma = (4 * t).exp().view(-1, 1, 1, 1)
        total = (sigma**2 + 0.25).sqrt()
        return (x - 0.25 / total**2 * noisy * total) / (sigma * 0.5 / total)

    seen["answer"] = answer
    assert model(x)["loss"].mean().item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_ddpm_denoises_alike_whatever_it_predicts(prediction, sprites):
    module, cfg = small("ddpm")
    model = build(module, replace(cfg, prediction=prediction))
    x0, sigma = to_model(sprites[:2]), float(model.ladder[7])
    x = x0 + sigma * torch.randn_like(x0)
    model.net = Given(noise.from_denoised(prediction, x0, x, sigma))
    assert torch.allclose(model.denoise(x, sigma), x0, atol=1e-4)
    assert model.net.t.tolist() == pytest.approx([len(model.ladder) - 1 - 7] * 2)


def test_a_network_that_returns_zero_scores_half_a_dimension(sprites):
    module, cfg = small("ncsn")
    model = build(module, replace(cfg, output="noise", weighting="dsm"))
    model.net = Zero()
    torch.manual_seed(0)
    loss = model(to_model(sprites))["loss"]
    assert loss.mean().item() == pytest.approx(D / 2, rel=0.01)


@pytest.mark.parametrize("name", ["ncsn", "edm"])
def test_the_skip_alone_is_the_denoiser_of_a_gaussian(name):
    model = build(*small(name))
    model.net = Zero()
    x, sigma = torch.randn(4, 3, 32, 32), 0.7
    assert torch.allclose(model.denoise(x, sigma), 0.25 / (0.25 + sigma**2) * x, atol=1e-6)


@pytest.mark.parametrize(
    ("output", "want"), [("score", 0.7**2), ("noise", 0.7), ("residual", 0.7 * 0.5 / math.sqrt(0.74))]
)
def test_ncsn_outputs_at_their_scale(output, want):
    module, cfg = small("ncsn")
    model = build(module, replace(cfg, output=output))
    model.net = Given(torch.ones(1, 3, 32, 32))
    assert torch.allclose(model.denoise(torch.zeros(1, 3, 32, 32), 0.7), torch.full((1, 3, 32, 32), want))


def test_ncsn_checks_its_ladder_against_the_data(sprites, capsys):
    module, cfg = small("ncsn")
    far = np.array([[0], [255]], np.uint8)[:, :, None, None] * np.ones((2, 3, 32, 32), np.uint8)
    noted = build(module, replace(cfg, sigma_max=55.0, n_sigmas=232)).prepare(torch.from_numpy(far))
    assert noted["largest_distance"] == pytest.approx(math.sqrt(D)) and noted["overlap"] > 0.5
    assert capsys.readouterr().err == ""
    build(module, replace(cfg, sigma_max=1.0, n_sigmas=10)).prepare(torch.from_numpy(far))
    told = capsys.readouterr().err
    assert "sigma_max = 1 is far below the largest distance" in told and "overlap by C = 0.00" in told


def test_edm_draws_its_noise_from_the_published_density(sprites):
    module, cfg = small("edm")
    model, seen = build(module, cfg), []
    model.net = Given(torch.zeros(1))
    torch.manual_seed(0)
    for _ in range(40):
        model(to_model(sprites[:64]))
        seen.append(4 * model.net.t)
    logs = torch.cat(seen)
    assert logs.mean().item() == pytest.approx(cfg.log_mean, abs=0.1)
    assert logs.std().item() == pytest.approx(cfg.log_std, rel=0.05)


class Point(nn.Module):
    def forward(self, x, sigma):
        return point(x, sigma)


class Given(nn.Module):
    """A network with one answer."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, t):
        self.t = t
        return self.answer.to(x).expand_as(x)


class Zero(nn.Module):
    def forward(self, x, t):
        return torch.zeros_like(x)

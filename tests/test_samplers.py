"""Noise schedules, samplers and denoisers, against what can be derived on paper."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import build, small
from torch import nn

from pofx.base import config
from pofx.base.errors import UserError
from pofx.base.images import to_model, to_uint8
from pofx.base.rng import Noise
from pofx.models import ddpm, denoiser
from pofx.models.denoiser import Denoiser, DenoiserConfig
from pofx.models.ebm import chains
from pofx.models.ncsn.ncsn import overlap
from pofx.sample import spacing
from pofx.sample.cost import counted
from pofx.sample.drawing import draw
from pofx.sample.rows import rows
from pofx.sample.samplers import READS, SAMPLERS, Sample

D = 3 * 32 * 32


# --- noise schedules


def test_technique4_gives_the_published_step_size():
    levels = np.geomspace(50.0, 0.01, 232)
    assert spacing.technique4(levels[0] / levels[1], 5) * 0.01**2 == pytest.approx(6.18e-6, abs=0.01e-6)
    assert spacing.technique4(levels[0] / levels[1], 1) * 0.01**2 == pytest.approx(7.11e-6, abs=0.01e-6)


def test_levels_are_geometric():
    levels = np.geomspace(50.0, 0.01, 232)
    assert len(levels) == 232
    assert (levels[0], levels[-1]) == pytest.approx((50, 0.01))
    assert levels[:-1] / levels[1:] == pytest.approx(1.03756, abs=1e-5)


def test_overlap_of_the_published_schedules():
    """Technique 2: 232 levels overlap by 0.567, some 219 would by a half, the ten levels of 2019 not at all."""
    for count, largest, want in ((232, 50.0, 0.567), (219, 50.0, 0.5), (964, 50.0, 0.99), (10, 1.0, 0.0)):
        levels = np.geomspace(largest, 0.01, count)
        assert overlap(levels[0] / levels[1], D) == pytest.approx(want, abs=0.005)


def test_karras_levels_are_the_published_grid():
    want = [80, 57.6, 40.8, 28.4, 19.4, 12.9, 8.40, 5.32, 3.26, 1.92, 1.09, 0.585, 0.296, 0.140, 0.060, 0.023, 0.0075,
            0.002]  # fmt: skip
    assert spacing.karras(80.0, 0.002, 18, 7.0) == pytest.approx(want, rel=0.02)


def test_the_linear_chain_spans_the_published_noise():
    """alphabar_T = 4.04e-5; as variance exploding noise 0.01 .. 157; the prior term is 8e-6 bits a dimension."""
    levels = ddpm.preserving("linear", 1000)
    assert (levels[0], levels[-1]) == pytest.approx((157, 0.01), rel=0.01)
    assert 1 / (1 + levels[0] ** 2) == pytest.approx(4.04e-5, rel=0.01)
    assert np.all(np.diff(levels) < 0)


def test_the_cosine_chain_keeps_half_of_the_signal_near_the_middle():
    levels = ddpm.preserving("cosine", 1000)[::-1]
    assert np.all(np.diff(levels) > 0) and np.isfinite(levels).all()
    kept = math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert 1 / (1 + levels[499] ** 2) == pytest.approx(kept, rel=1e-6)


def test_levels_by_index_run_along_those_that_were_trained_on():
    trained = ddpm.preserving("linear", 1000)
    assert spacing.by_index(trained, "uniform", 1000) == pytest.approx(trained)
    for way in ("uniform", "quadratic"):
        levels = spacing.by_index(trained, way, 4)
        assert (levels[0], levels[-1]) == pytest.approx((trained[0], trained[-1]))
    assert spacing.by_index(trained, "uniform", 4)[1] == pytest.approx(trained[::-1][666])
    assert spacing.by_index(trained, "quadratic", 4)[1] == pytest.approx(trained[::-1][444])
    assert np.all(np.diff(spacing.by_index(trained, "quadratic", 400)) < 0), "no level twice"


@pytest.mark.parametrize("kind", ["eps", "x0", "v", "score", "scaled_score"])
def test_predictions_and_denoised_images_are_two_names_for_one_thing(kind):
    torch.manual_seed(0)
    x0, z = torch.randn(2, 64, dtype=torch.float64)
    for sigma in (0.01, 1.0, 157.0):
        x = x0 + sigma * z
        v = (z - sigma * x0) / math.sqrt(1 + sigma**2)
        want = {"eps": z, "x0": x0, "v": v, "score": -z / sigma, "scaled_score": -z}[kind]
        target = denoiser.from_denoised(kind, x0, x, sigma)
        assert torch.allclose(target, want, rtol=1e-8)
        assert torch.allclose(denoiser.to_denoised(kind, target, x, sigma), x0, atol=1e-8)


# --- samplers


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


class Oracle(Denoiser):
    """The denoiser `f` of a distribution that is known."""

    def __init__(self, f, sigma_range, levels=None):
        super().__init__(DenoiserConfig(guide=0.0), (3, 4, 4), nn.Identity())
        self.f, self.sigma_range, self.levels = f, sigma_range, levels

    def forward(self, x):
        raise NotImplementedError

    def denoise(self, x, sigma, net=None):
        return self.f(x, sigma)


EDM = spacing.karras(80.0, 0.002, 40, 7.0)
LINEAR = ddpm.preserving("linear", 1000)
WAYS = {  # sampler, its levels, and how far its steps leave the standard deviation off
    "heun": (Sample(sampler="heun"), EDM, 0.01),
    "heun with churn": (Sample(sampler="heun", churn=10.0), spacing.karras(80.0, 0.002, 60, 7.0), 0.02),
    "heun with some churn": (
        Sample(sampler="heun", churn=20.0, churn_min=0.05, churn_max=2.0),
        spacing.karras(80.0, 0.002, 120, 7.0),
        0.02,
    ),
    "dpmpp": (Sample(sampler="dpmpp"), EDM, 0.01),
    "ddim": (Sample(sampler="ddim"), spacing.by_index(LINEAR, "uniform", 200), 0.02),
    "ddim quadratic": (Sample(sampler="ddim"), spacing.by_index(LINEAR, "quadratic", 200), 0.02),
    "ddim with noise": (Sample(sampler="ddim", eta=0.5), spacing.by_index(LINEAR, "uniform", 400), 0.02),
    "ancestral small": (Sample(sampler="ancestral"), LINEAR, 0.01),
    "ancestral large": (Sample(sampler="ancestral", variance="large"), LINEAR, 0.01),
    "langevin": (Sample(sampler="langevin", langevin_steps=10), np.geomspace(10.0, 0.01, 200), 0.05),
    "consistent": (Sample(sampler="consistent"), np.geomspace(10.0, 0.01, 200), 0.02),
    "predictor_corrector": (Sample(sampler="predictor_corrector"), np.geomspace(10.0, 0.01, 200), 0.02),
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
            x = down(gaussian, spacing.karras(largest, smallest, 20, 7.0), Sample(sampler=sampler))
            assert x.std().item() == pytest.approx(0.5, rel=0.05)


def test_second_order_samplers_are_of_second_order():
    """Twice the steps, a quarter of the error (a half for ddim): against the exact solution of the flow."""

    def error(sampler: str, n: int) -> float:
        levels = np.geomspace(10.0, 0.01, n)
        cfg, x = Sample(sampler=sampler, denoise=False), torch.full((1, 1), 10.0, dtype=torch.float64)
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


def test_langevin_without_the_last_step_leaves_what_its_levels_settle_at():
    levels = np.geomspace(10.0, 0.1, 100)
    left = down(point, levels, Sample(sampler="langevin", langevin_steps=5, step_size=0.1 * 0.05**2, denoise=False))
    g, decay, q = levels[0] / levels[1], 0.9**10, 0.2 / (1 - 0.81)
    variance = (1 - decay) * q / (1 - decay * g**2)  # of the level's own
    assert left.std().item() == pytest.approx(0.1 * math.sqrt(variance), rel=0.02)


@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_langevin_dynamics_have_the_documented_variance(sigma):
    """x + alpha score + sqrt(2 alpha) z for a Gaussian of variance V: an autoregression of variance V / (1 - alpha/2V).

    With noise sqrt(alpha), as printed in 2019 beside steps of alpha / 2, half of that would be left.
    """
    epsilon, total = 0.3 * (sigma / 2) ** 2, 0.5**2 + sigma**2  # images on [0, 1] as published, and on [-1, 1]
    alpha = 4 * epsilon
    cfg = Sample(sampler="langevin", langevin_steps=100, step_size=epsilon, denoise=False)
    left = down(gaussian, [sigma], cfg)
    assert left.var().item() == pytest.approx(total / (1 - alpha / (2 * total)), rel=0.03)
    assert left.mean().item() == pytest.approx(0.3, abs=0.03 * sigma)


def test_a_langevin_step_by_hand():
    """alpha_i = epsilon sigma_i^2 / sigma_L^2, at two levels. Images on [0, 1] have twice the score of [-1, 1]."""
    epsilon, x, z = 0.05, 1.4, Noise(0, 0, 1)
    want = x / 2
    for sigma in (2.0, 1.0):
        alpha, score = epsilon * sigma**2, 2 * (gaussian(torch.tensor(2 * want), sigma).item() - 2 * want) / sigma**2
        want = want + alpha * score + math.sqrt(2 * alpha) * z.normal(1).item()
    cfg = Sample(sampler="langevin", step_size=epsilon, denoise=False)
    got = SAMPLERS["langevin"](gaussian, Noise(0, 0, 1), torch.full((1, 1), x), [2.0, 1.0], cfg)
    assert got.item() / 2 == pytest.approx(want, rel=1e-5)


def test_consistent_sampling_leaves_exactly_the_noise_of_the_level_at_any_valid_step():
    levels = np.geomspace(10.0, 0.1, 20)  # ratio 0.785: valid steps lie in 0.215..1.785
    for last in (5, 20):
        eta = 0.3 * (levels[last - 1] / 2) ** 2
        left = down(point, levels[:last], Sample(sampler="consistent", step_size=eta, denoise=False))
        assert left.std().item() == pytest.approx(levels[last - 1], rel=0.01)


def test_ddim_in_two_steps_by_hand():
    """Two levels, sigma 2 then 1, then 0; D(x, sigma) = x / (1 + sigma^2), the data N(0, 1); eta 0 and 1/2.

    From x = 5: D = 1, so x' = 1 + (1/2) 4 = 3, D = 3/2. With eta 1/2 the fresh noise is 1/2 (1/2) sqrt(3) = sqrt(3)/4
    and the old one keeps sqrt(1 - 3/16) / 2 = sqrt(13)/8: x' = 1 + sqrt(13)/2 + sqrt(3)/4 z.
    """
    x = torch.full((1, 1), 5.0)
    unit = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731
    plain, stirred = (
        SAMPLERS["ddim"](unit, Noise(0, 0, 1), x, [2.0, 1.0, 0.0], Sample(sampler="ddim", eta=eta)).item()
        for eta in (0.0, 0.5)
    )
    assert plain == pytest.approx(1.5)
    z = Noise(0, 0, 1).normal(1).item()
    assert stirred == pytest.approx((1 + math.sqrt(13) / 2 + math.sqrt(3) / 4 * z) / 2)


def test_the_stochastic_sampler_of_edm_by_hand():
    """Algorithm 2 of the paper, line by line: S_churn 1 over three steps, gamma 1/3, from S_tmin to S_tmax alone."""
    times, s_noise, gamma = [4.0, 2.0, 1.0, 0.0], 1.5, 1 / 3
    unit = lambda x, sigma: x / (1 + sigma**2)  # noqa: E731
    z, x = Noise(0, 0, 1), 5.0
    for t, after in pairwise(times):
        hat, wide = t, x
        if 1.5 <= t <= 3.0:
            hat = t + gamma * t
            wide = x + math.sqrt(hat**2 - t**2) * s_noise * z.normal(1).item()
        d = (wide - unit(wide, hat)) / hat
        x = wide + (after - hat) * d
        if after:
            x = wide + (after - hat) * (d / 2 + (x - unit(x, after)) / after / 2)
    cfg = Sample(sampler="heun", churn=1.0, churn_min=1.5, churn_max=3.0, churn_noise=s_noise)
    got = SAMPLERS["heun"](unit, Noise(0, 0, 1), torch.full((1, 1), 5.0), times, cfg)
    assert got.item() == pytest.approx(x, rel=1e-5)


def test_the_chain_of_ddpm_by_hand():
    """One step from alphabar 0.2 to 0.6: mean and variances of Ho et al. 2020, eq. 7, in their own coordinates."""
    before, after = 0.2, 0.6  # alphabar_t, alphabar_t-1
    sigmas = [math.sqrt((1 - a) / a) for a in (before, after)]
    x_t, x0, beta = 0.9, 0.4, 1 - before / after
    mean = math.sqrt(after) * beta / (1 - before) * x0 + math.sqrt(before / after) * (1 - after) / (1 - before) * x_t
    z = Noise(0, 0, 1).normal(1).item()
    for variance, spread in (("small", (1 - after) / (1 - before) * beta), ("large", beta)):
        start = torch.full((1, 1), x_t / math.sqrt(before))
        cfg = Sample(sampler="ancestral", variance=variance, denoise=False)
        x = SAMPLERS["ancestral"](lambda x, sigma: torch.full_like(x, x0), Noise(0, 0, 1), start, sigmas, cfg)
        assert x.item() * math.sqrt(after) == pytest.approx(mean + math.sqrt(spread) * z, rel=1e-5)


def test_ddim_with_all_its_noise_is_the_ancestral_chain():
    one = down(gaussian, EDM, Sample(sampler="ddim", eta=1.0), n=8)
    assert torch.allclose(one, down(gaussian, EDM, Sample(sampler="ancestral"), n=8), atol=1e-5)


def test_dpmpp_is_exact_where_the_denoised_image_is_linear_in_log_sigma():
    """D = a - b log sigma: its value half a step ahead is what the extrapolation says."""
    a, b = 0.5, 0.2
    levels = [4.0, 2.0, 1.0]  # the second step is the first of second order
    x = torch.full((1, 1), 3.0)
    denoise = lambda x, sigma: torch.full_like(x, a - b * math.log(sigma))  # noqa: E731
    d0, d1 = (a - b * math.log(s) for s in levels[:2])
    first = d0 + 0.5 * (3.0 - d0)
    ahead = d1 + 0.5 * (d1 - d0)  # extrapolated by half of an equal step
    got = SAMPLERS["dpmpp"](denoise, Noise(0, 0, 1), x, levels, Sample(sampler="dpmpp", denoise=False))
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
        several = {"langevin_steps": 3} if "langevin_steps" in READS[sampler] else {}
        with counted([net]) as calls:
            down(net, np.geomspace(10.0, 0.1, 10), Sample(sampler=sampler, **several), n=1)
        assert calls[0] == cost, sampler


def test_denoised_images_are_clipped_when_asked():
    wild = lambda x, sigma: torch.full_like(x, 3.0)  # noqa: E731
    for clip, want in ((True, 1.0), (False, 3.0)):
        cfg = Sample(sampler="ddim", steps=5, spacing="geometric", clip=clip)
        assert draw(Oracle(wild, (0.01, 10.0)), Noise(0, 0, 2), cfg).unique().tolist() == [want]


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
    model = Oracle(point, (0.04, 60.0), np.geomspace(60.0, 0.04, 50))
    with pytest.raises(UserError, match=says):
        draw(model, Noise(0, 0, 1), Sample(**change))


def test_a_continuum_has_no_levels_to_count_along():
    model = Oracle(point, (0.002, 80.0))
    with pytest.raises(UserError, match="say how many steps"):
        draw(model, Noise(0, 0, 1), Sample())
    with pytest.raises(UserError, match="use karras"):
        draw(model, Noise(0, 0, 1), Sample(steps=5, spacing="uniform"))


@pytest.mark.parametrize(
    ("change", "bound"),
    [
        ({"steps": 1}, "at least 2"),
        ({"eta": 1.5}, "at most 1"),
        ({"rho": 0.5}, "at least 1"),
        ({"langevin_steps": 0}, "at least 1"),
        ({"snr": 0.0}, "above 0"),
        ({"step_size": 0.0}, "above 0"),
        ({"guidance": 0.5}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(change, bound):
    (key,) = change
    with pytest.raises(UserError, match=rf"^sample\.edm\.{key} = .* should be {bound}"):
        config.build(Sample, change, "sample.edm")


SPECIAL = {"variance": "large", "eta": 0.5, "churn": 10.0, "churn_min": 0.1, "churn_max": 50.0, "churn_noise": 1.003,
           "langevin_steps": 5, "step_size": 1e-5, "snr": 0.2}  # fmt: skip


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("key", SPECIAL)
def test_a_setting_that_the_sampler_does_not_read_is_refused_by_name(key, sampler):
    change = {"sampler": sampler, key: SPECIAL[key]}
    if key in READS[sampler]:
        assert getattr(Sample(**change), key) == SPECIAL[key]
        return
    users = ", ".join(name for name in SAMPLERS if key in READS[name])
    with pytest.raises(ValueError, match=rf"^{key} is not read by {sampler} \(by {users}\)"):
        Sample(**change)
    with pytest.raises(UserError, match=rf"^rows\.edm\.fast\.{key} is not read by {sampler}"):
        rows("edm", {}, {"fast": change})


@pytest.mark.parametrize("way", ["uniform", "quadratic", "geometric"])
def test_rho_is_refused_where_the_levels_are_not_karras(way):
    assert Sample(steps=5, rho=5.0).rho == 5.0
    with pytest.raises(ValueError, match=f"^rho is not read by spacing {way}"):
        Sample(steps=5, rho=5.0, spacing=way)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_reads_what_it_says(sampler):
    """By the attributes that it asks for."""
    asked = set()

    class Watched(Sample):
        def __getattribute__(self, key):
            asked.add(key)
            return super().__getattribute__(key)

    cfg = Watched(sampler=sampler, **{key: SPECIAL[key] for key in READS[sampler] - {"step_size"}})
    asked.clear()
    SAMPLERS[sampler](gaussian, Noise(0, 0, 1), torch.ones(1, 2), [4.0, 3.0, 2.0, 0.0], cfg)
    assert asked & SPECIAL.keys() == READS[sampler]
    assert SPECIAL.keys() == set().union(*READS.values())


# --- denoisers

DENOISERS = [name for name in config.family_names() if isinstance(build(*small(name)), Denoiser)]


@pytest.mark.parametrize("name", DENOISERS)
def test_every_sampler_draws_from_every_denoiser(name, sprites):
    """With the exact denoiser of a data set of one image in its place, each sampler returns that image."""
    module, cfg = small(name)
    model = build(module, cfg)
    image = to_model(sprites[:1])
    model.denoise = lambda x, sigma: image.expand_as(x)
    for sampler in SAMPLERS:
        drawn = draw(model, Noise(0, 0, 3), Sample(sampler=sampler, steps=8))
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
    sigmas = torch.tensor(model.levels.copy(), dtype=torch.float64) if model.levels is not None else None

    def answer(noisy, t):
        """What the network has to say for D to be `x`, from its own two inputs."""
        if name == "ddpm":
            sigma = sigmas.flip(0)[t.long()].view(-1, 1, 1, 1)
            return denoiser.from_denoised(cfg.prediction, x, noisy * (1 + sigma**2).sqrt(), sigma).float()
        sigma = (4 * t).exp().view(-1, 1, 1, 1)
        total = (sigma**2 + 0.25).sqrt()
        return (x - 0.25 / total**2 * noisy * total) / (sigma * 0.5 / total)

    seen["answer"] = answer
    assert model(x)["loss"].mean().item() == pytest.approx(0, abs=0.05)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_ddpm_denoises_alike_whatever_it_predicts(prediction, sprites):
    module, cfg = small("ddpm")
    model = build(module, replace(cfg, prediction=prediction))
    x0, sigma = to_model(sprites[:2]), float(model.levels[7])
    x = x0 + sigma * torch.randn_like(x0)
    model.net = Given(denoiser.from_denoised(prediction, x0, x, sigma))
    assert torch.allclose(model.denoise(x, sigma), x0, atol=1e-4)
    assert model.net.t.tolist() == pytest.approx([len(model.levels) - 1 - 7] * 2)


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


def test_one_preconditioning_for_edm_and_residual_ncsn():
    """The same network, the same denoiser."""
    edm, (module, cfg) = build(*small("edm")), small("ncsn")
    ncsn = build(module, replace(cfg, output="residual"))
    torch.manual_seed(0)
    for p in edm.net.parameters():  # the last layer starts as zeros
        p.data.add_(0.1 * torch.randn_like(p))
    ncsn.net = edm.net
    x = torch.randn(4, 3, 32, 32)
    for sigma in (0.05, 0.7, 20.0):
        one, two = edm.denoise(sigma * x, sigma), ncsn.denoise(sigma * x, sigma)
        assert torch.equal(one, two)
        assert not torch.allclose(one, 0.25 / (0.25 + sigma**2) * sigma * x, atol=1e-3 * sigma), "the network has a say"


@pytest.mark.parametrize("sigma", [0.05, 0.7, 20.0])
def test_the_denoiser_of_recovery_has_the_same_preconditioning(sigma):
    """x - sigma^2 dE/dx = c_skip x + c_out F, with F the negative gradient of its network."""
    model = build(*small("ebm")).requires_grad_(False)
    torch.manual_seed(0)
    for p in model.net.parameters():  # as after training: at first the network has next to no say
        p.add_(0.1 * torch.randn_like(p))

    class Fall(nn.Module):
        def forward(self, x, t):
            return -chains.slope(lambda at: model.net(at, t), x)[1]

    x, wide = sigma * torch.randn(3, 3, 32, 32), torch.full((3, 1, 1, 1), sigma)
    _, slope = chains.slope(lambda at: model.level_energy(at, wide), x)
    want = denoiser.precondition(Fall(), x, wide)
    assert torch.allclose(x - sigma**2 * slope, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())
    assert not torch.allclose(want, 0.25 / (0.25 + sigma**2) * x, atol=1e-3), "the network has a say"


def test_previews_have_about_the_spread_of_the_data():
    """Sixteen Euler steps lose up to a fifth of it."""
    for smallest, largest in ((0.002, 80.0), (0.01, 157.0), (0.04, 60.0)):
        shown = Oracle(gaussian, (smallest, largest)).preview(Noise(0, 0, 512))
        assert shown.shape == (512, 3, 4, 4)
        assert shown.mean().item() == pytest.approx(0.3, abs=0.03)
        assert shown.std().item() == pytest.approx(0.5, rel=0.25)


@pytest.mark.parametrize(
    ("output", "want"), [("score", 0.7**2), ("noise", 0.7), ("residual", 0.7 * 0.5 / math.sqrt(0.74))]
)
def test_ncsn_outputs_at_their_scale(output, want):
    module, cfg = small("ncsn")
    model = build(module, replace(cfg, output=output))
    model.net = Given(torch.ones(1, 3, 32, 32))
    assert torch.allclose(model.denoise(torch.zeros(1, 3, 32, 32), 0.7), torch.full((1, 3, 32, 32), want))


def test_ncsn_checks_its_noise_levels_against_the_data(sprites, capsys):
    module, cfg = small("ncsn")
    far = np.array([[0], [255]], np.uint8)[:, :, None, None] * np.ones((2, 3, 32, 32), np.uint8)
    metrics = build(module, replace(cfg, sigma_max=55.0, n_sigmas=232)).prepare(torch.from_numpy(far), 8)
    assert metrics["largest_distance"] == pytest.approx(math.sqrt(D)) and metrics["overlap"] > 0.5
    assert capsys.readouterr().err == ""
    build(module, replace(cfg, sigma_max=1.0, n_sigmas=10)).prepare(torch.from_numpy(far), 8)
    warned = capsys.readouterr().err
    assert "sigma_max = 1 is far below the largest distance" in warned and "overlap by C = 0.00" in warned


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

"""Bits per dimension against densities known in closed form: Gaussians, mixtures, the chain's bound on paper."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import build, small
from scipy.integrate import solve_ivp
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from pofx.base import config, rng
from pofx.base.errors import UserError
from pofx.base.images import Batches, to_model
from pofx.base.rng import Noise
from pofx.models import ddpm
from pofx.models.denoiser import Denoiser, DenoiserConfig
from pofx.models.family import Bounded, ImportanceWeighted
from pofx.score import likelihood
from pofx.score.likelihood import BIN, Likelihood

CPU = torch.device("cpu")
BATCHES = Batches(4, CPU)
LINEAR = ddpm.preserving("linear", 1000)
S = 0.2  # standard deviation of the Gaussian data
ENTROPY = 0.5 * math.log2(2 * math.pi * math.e * S**2) - math.log2(BIN)  # bits per dimension on the grey levels


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def gaussian(s: float, m: float = 0.0):
    """The exact denoiser of N(m, s^2) data."""
    return lambda x, sigma: (s**2 * x + sigma**2 * m) / (s**2 + sigma**2)


class Known(Denoiser):
    """A denoiser that is a function."""

    def __init__(self, function, levels: np.ndarray):
        super().__init__(DenoiserConfig(guide=0.0), (3, 8, 8), nn.Identity())
        self.function, self.levels, self.sigma_range = function, levels, (float(levels[-1]), float(levels[0]))

    def forward(self, x):
        raise NotImplementedError

    def denoise(self, x, sigma, net=None):
        return self.function(x, sigma)


def grey(n: int, shape=(3, 8, 8)) -> torch.Tensor:
    """N(0, S^2) on the grey levels."""
    torch.manual_seed(0)
    return ((S * torch.randn(n, *shape) + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def rising(low: float, high: float, steps: int) -> list[float]:
    return np.geomspace(low, high, steps + 1).tolist()


def bits(nats: torch.Tensor, dims: int) -> torch.Tensor:
    return -nats / (dims * math.log(2))


def all_signs(dims: int) -> torch.Tensor:
    """Every probe there is: the mean over them is the trace itself, for any Jacobian."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=dims)), dtype=torch.float64)


def log_density(denoise, sigmas, x: torch.Tensor) -> torch.Tensor:
    """likelihood.log_density with the exact trace."""
    probes = all_signs(x.shape[1])
    rows = likelihood.log_density(
        denoise, sigmas, x.repeat_interleave(len(probes), 0), probes.repeat(len(x), 1)
    )  # the path does not depend on the probe
    return rows.view(len(x), -1).mean(1)


# --- the probability flow


@pytest.mark.parametrize("s", [0.01, 0.05, 0.2, 0.5, 2.0])
@pytest.mark.parametrize("sigma_range", [(0.002, 80.0), (0.02, 60.0)])
def test_flow_of_gaussian_data_is_the_exact_log_likelihood(s, sigma_range):
    torch.manual_seed(0)
    m, wide = 0.3, math.hypot(s, sigma_range[0])
    x = m + wide * torch.randn(64, 16, dtype=torch.float64)
    want = Normal(m, wide).log_prob(x).sum(1)
    for steps, error in ((12, 0.02), (16, 0.007), (24, 0.002)):
        got = likelihood.log_density(gaussian(s, m), rising(*sigma_range, steps), x, torch.ones_like(x))
        assert bits(got - want, 16).abs().mean() < error


class Mixture:
    """Three Gaussians in three dimensions: the score is not linear, its Jacobian not diagonal."""

    means = torch.tensor([[0.8, 0.3, -0.5], [-0.6, 0.5, 0.1], [0.0, -0.9, 0.6]], dtype=torch.float64)
    widths = torch.tensor([0.1, 0.3, 0.05], dtype=torch.float64)
    parts = Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64))

    def density(self, sigma: float) -> MixtureSameFamily:
        variance = (self.widths**2 + sigma**2)[:, None, None] * torch.eye(3, dtype=torch.float64)
        return MixtureSameFamily(self.parts, MultivariateNormal(self.means, variance))

    def denoise(self, x, sigma):
        share = (self.parts.logits + self.density(sigma).component_distribution.log_prob(x[:, None])).softmax(1)
        kept = (self.widths**2 / (self.widths**2 + sigma**2))[:, None]
        return (share[:, :, None] * (self.means + kept * (x[:, None] - self.means))).sum(1)


def test_flow_of_a_mixture_is_exact_and_of_fourth_order():
    torch.manual_seed(0)
    mixture = Mixture()
    x = mixture.density(0.002).sample((100,))
    want = mixture.density(0.002).log_prob(x)
    errors = [bits(log_density(mixture.denoise, rising(0.002, 80.0, n), x) - want, 3) for n in (12, 24, 48)]
    for error, each in zip(errors, (0.03, 0.003, 0.002), strict=True):  # N(0, 80^2) in place of the end costs 0.001
        assert error.abs().mean() < each
    first, second, third = (error.mean().abs() for error in errors)
    assert second < first / 8 and third < second / 8


def test_the_steps_are_as_good_as_an_adaptive_solver():
    """The paper's RK45 at tolerance 1e-5, one image at a time, with the same probe."""
    torch.manual_seed(0)
    mixture, probe = Mixture(), torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)
    gaps, calls = [], []
    for x in mixture.density(0.002).sample((12,)):

        def slope(time, state):
            with torch.enable_grad():
                y = torch.from_numpy(state[None, :3].copy()).requires_grad_()
                d = mixture.denoise(y, math.exp(time))
                (back,) = torch.autograd.grad(d, y, probe)
            return np.append((y - d).detach().numpy(), 3 - (back * probe).sum().item())

        ends = math.log(0.002), math.log(80)
        adaptive = solve_ivp(slope, ends, np.append(x.numpy(), 0.0), method="RK45", rtol=1e-5, atol=1e-5)
        want = Normal(0.0, 80.0).log_prob(torch.from_numpy(adaptive.y[:3, -1])).sum() + adaptive.y[3, -1]
        got = likelihood.log_density(mixture.denoise, rising(0.002, 80.0, 24), x[None], probe)
        gaps.append(bits(got - want, 3).abs().item())
        calls.append(adaptive.nfev)
    assert np.mean(gaps) < 0.005
    assert np.mean(calls) > 4 * 24


def test_the_probe_is_unbiased_for_a_jacobian_off_the_diagonal():
    root = torch.tensor([[0.4, 0.0, 0.0], [0.3, 0.2, 0.0], [-0.2, 0.3, 0.1]], dtype=torch.float64)
    covariance, eye = root @ root.T, torch.eye(3, dtype=torch.float64)

    def denoise(x, sigma):
        return x @ torch.linalg.solve(covariance + sigma**2 * eye, covariance)

    torch.manual_seed(0)
    exact = MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance + 0.01**2 * eye)
    x, sigmas = exact.sample((20,)), rising(0.01, 60.0, 24)
    assert bits(log_density(denoise, sigmas, x) - exact.log_prob(x), 3).abs().max() < 0.003
    many = x[:1].expand(4000, 3)
    rows = likelihood.log_density(denoise, sigmas, many, torch.randint_like(many, 2) * 2 - 1)
    assert rows.std() > 0.5, "one probe is not the trace"
    assert (rows.mean() - exact.log_prob(x[0])).abs() < 4 * rows.std() / math.sqrt(4000)


def test_flow_dequantises_and_does_not_depend_on_the_batch():
    x, model = grey(64), Known(gaussian(S), np.array([80.0, 0.002]))
    runs = [likelihood.flow(model, x, 16, batch, 1) for batch in (64, 10)]
    assert torch.allclose(*runs, atol=1e-4)
    assert torch.allclose(likelihood.flow(model, x[:20], 16, 20, 1), runs[0][:20], atol=1e-4), "nor on other images"
    assert runs[0].mean().item() == pytest.approx(ENTROPY, abs=4 * runs[0].std().item() / 8 + 0.001)


# --- the variational bound


def bound(denoise, levels, x, terms=None, batch=32, seed=1) -> tuple[float, float]:
    """Mean over the images, and its standard error."""
    rows = likelihood.bound(Known(denoise, levels), x, terms, batch, seed)
    return rows.mean().item(), rows.std().item() / math.sqrt(len(x))


def clipped_posterior(levels: np.ndarray) -> np.ndarray:
    """Variances of p(x_{t-1}|x_t), t = 1..T, word by word as openai/guided-diffusion computes them from beta_t."""
    alphas_cumprod = 1 / (1 + levels[::-1] ** 2)
    alphas_cumprod_prev = np.append(1.0, alphas_cumprod[:-1])
    betas = 1 - alphas_cumprod / alphas_cumprod_prev
    posterior_variance = betas * (1.0 - alphas_cumprod_prev) / (1.0 - alphas_cumprod)
    return np.append(posterior_variance[1], posterior_variance[1:])


@pytest.mark.parametrize("levels", [LINEAR, ddpm.preserving("cosine", 50), np.array([3.0, 0.5, 0.1])])
def test_the_last_variance_is_that_of_the_published_codes(levels):
    want, beta_1 = clipped_posterior(levels), levels[-1] ** 2 / (1 + levels[-1] ** 2)
    assert likelihood.last_variance(levels) == pytest.approx(want[0], rel=1e-9)
    assert want[0] == pytest.approx(want[1]) and want[0] < beta_1


def test_the_bound_ends_with_that_variance():
    """A denoiser that is off by a constant, of which the last step alone sees the variance: beta_1 costs otherwise."""
    x, levels, off = grey(3), np.array([0.3, 0.2, 0.1]), 0.05
    got = likelihood.bound(Known(lambda noisy, sigma: (x - off).clamp(-1, 1), levels), x, None, 3, 0)
    v, kept = levels**2, 1 / (1 + levels[0] ** 2)
    dims = x[0].numel()
    steps = 0.5 * (1 / v[2] - 1 / v[0]) * (x - (x - off).clamp(-1, 1)).double().square().flatten(1).sum(1)
    noisy = Normal(math.sqrt(kept) * x.double(), math.sqrt(1 - kept))
    prior = kl_divergence(noisy, Normal(0.0, 1.0)).flatten(1).sum(1)
    last = likelihood.decoder(x, (x - off).clamp(-1, 1), math.sqrt(clipped_posterior(levels)[0])).flatten(1).sum(1)
    assert torch.allclose(got, (prior + steps - last) / (dims * math.log(2)), rtol=1e-5)


def on_paper(levels: np.ndarray) -> float:
    """The bound, in bits per dimension, of N(0, S^2) data with the exact denoiser, whose squared error is known."""
    v = levels**2
    error = S**2 * v / (S**2 + v)
    steps = (0.5 * (1 / v[1:] - 1 / v[:-1]) * error[:-1]).sum()
    kept = 1 / (1 + v[0])
    prior = 0.5 * (kept * S**2 + (1 - kept) - 1 - math.log(1 - kept))
    # E -log of the bin's probability: over x0 - D ~ N(0, error), under N(0, beta~_2)
    off = torch.linspace(-8, 0, 4001, dtype=torch.float64) * math.sqrt(error[-1])  # the lower tail, which is exact
    std = math.sqrt(clipped_posterior(levels)[0])
    low, high = (torch.special.erfc(-(off + edge) / std / math.sqrt(2)) / 2 for edge in (-BIN / 2, BIN / 2))
    cost = -(high - low).log()
    weight = Normal(0.0, math.sqrt(error[-1])).log_prob(off).exp()
    return (prior + steps + ((cost * weight).sum() / weight.sum()).item()) / math.log(2)


@pytest.mark.parametrize("terms", [5, 20, None])
def test_bound_of_gaussian_data_is_that_on_paper(terms):
    mean, error = bound(gaussian(S), LINEAR, grey(64), terms)
    assert error < 0.05
    assert mean == pytest.approx(on_paper(LINEAR), abs=4 * error)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_bound_comes_nearer_to_the_entropy_with_more_steps(schedule):
    """The gap comes from the first steps: noise doubles there, and the small variance costs half of (r - 1 - log r)
    nats where the noise variance grows by r."""
    gaps = [on_paper(ddpm.preserving(schedule, n)) - ENTROPY for n in (100, 1000, 4000)]
    assert 1.5 > gaps[0] > gaps[1] + 0.2 > gaps[2] + 0.3 > 0.3


def test_a_useless_denoiser_has_a_finite_and_larger_bound():
    mean, _ = bound(lambda x, sigma: torch.zeros_like(x), LINEAR, grey(8))
    assert 100 < mean < math.inf


def test_the_prior_term_is_the_divergence_from_a_standard_normal():
    """A denoiser that knows the image leaves only the two ends; a short levels makes the first one large."""
    x, levels = grey(4), np.array([2.0, 0.5, 0.1])
    got = likelihood.bound(Known(lambda noisy, sigma: x, levels), x, None, 4, 0)
    kept = 1 / (1 + levels[0] ** 2)
    noisy = Normal(math.sqrt(kept) * x.double(), math.sqrt(1 - kept))
    std = math.sqrt(clipped_posterior(levels)[0])
    nats = kl_divergence(noisy, Normal(0.0, 1.0)) - likelihood.decoder(x, x, std)
    assert torch.allclose(got, nats.flatten(1).sum(1) / (x[0].numel() * math.log(2)))
    assert (nats > 0).all()


@pytest.mark.parametrize("mean", [-1.0, -0.403, 0.003, 1.0])
@pytest.mark.parametrize("std", [0.003, 0.01, 0.3])
def test_the_decoder_is_a_distribution_over_grey_levels(mean, std):
    x = to_model(torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(256, 3, 1, 1))
    rows = likelihood.decoder(x, torch.full_like(x, mean), std)
    assert rows.isfinite().all(), "no grey level is impossible"
    assert rows.exp().sum(0).flatten().tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    if std < 0.1:  # a wide one leaves most to the open ends
        assert rows[:, 0, 0, 0].argmax() == round((mean + 1) * 127.5)


def test_weights_of_the_terms_have_expectation_one():
    share = np.array([0.5, 0.3, 0.15, 0.04, 0.01])
    weights = likelihood.stratified(share, Noise(0, 0, 20_000), 4)
    assert np.allclose((weights * share[:, None] * 4).sum(0), 4), "so many terms for every image"
    assert weights.mean(1) == pytest.approx(np.ones(5), abs=0.25)
    assert (weights[0] == 1).all(), "half of the strata lie on the first level"
    assert all((likelihood.stratified(share, Noise(0, 0, 3), terms) == 1).all() for terms in (None, 5))


def test_the_standard_error_is_that_of_repeated_measurements():
    """Images are independent of each other, though many share an evaluation."""
    x, levels = grey(1, (3, 2, 2)).expand(8, 3, 2, 2), np.geomspace(50.0, 0.05, 40)
    runs = torch.stack([likelihood.bound(Known(gaussian(S), levels), x, 3, 8, seed) for seed in range(200)])
    stated = runs.std(1).square().mean().sqrt() / math.sqrt(8)
    assert runs.mean(1).std().item() == pytest.approx(stated.item(), rel=0.2)


# --- evaluate


class Stub:
    """A family whose forward gives `bpd`."""

    def setup(self, bad: float = 0.0):
        self.bad, self.sizes, self.weight = bad, [], nn.Parameter(torch.ones(()))
        return self

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled() and x.min() >= -1 and x.max() <= 1
        self.sizes.append(len(x))
        loss = x.mean((1, 2, 3)) + 0.1 * rng.batch(torch.randn, len(x)) + self.bad
        return {"loss": loss, "extra": loss.sum(), "bpd": loss + 5}

    def preview(self, noise):
        raise NotImplementedError


class Plain(Stub, Bounded):
    pass


class Weighted(Stub, ImportanceWeighted):
    def log_weights(self, x, k):
        return rng.batch(torch.randn, k, len(x), dim=1) + x.mean((1, 2, 3))


class Gaussian(Stub, Known):
    """Its denoiser is that of N(0, S^2)."""

    def denoise(self, x, sigma, net=None):
        assert not self.training
        return self.weight * super().denoise(x, sigma)


CHAIN = ddpm.preserving("linear", 100)


def stub(kind: str | None, **change):
    if kind in ("bounded", "weighted"):
        return (Plain if kind == "bounded" else Weighted)(None, (3, 8, 8)).setup(**change)
    model = Gaussian(gaussian(S), CHAIN if kind == "bound" else np.array([60.0, 0.01])).setup(**change)
    model.likelihood = kind
    return model


CFG = Likelihood(images=6, importance=3, terms=5, ode_steps=8)


def pictures(n: int) -> np.ndarray:
    return ((grey(n) + 1) * 127.5).round().byte().numpy()


def test_test_loss_is_a_mean_over_all_images_and_bits_over_the_first():
    x, model = pictures(10), stub("bounded").train()
    got = likelihood.evaluate(model, x, BATCHES, CFG, 3)
    assert model.sizes == [4, 4, 2]
    assert got["test_loss"] == pytest.approx(x.mean() / 127.5 - 1, abs=0.2)
    first = likelihood.evaluate(stub("bounded"), x, BATCHES, Likelihood(20, 3, None, 1), 3)
    assert first["test_loss"] == got["test_loss"] and first["bpd"] == pytest.approx(got["test_loss"] + 5, abs=1e-5)
    assert got["bpd"] != first["bpd"]
    assert 0.01 < got["bpd_stderr"] < 0.2


KINDS = ["bounded", "weighted", "bound", "flow"]


@pytest.mark.parametrize("kind", KINDS)
def test_bits_repeat_and_have_an_error(kind):
    x = pictures(10)
    got = likelihood.evaluate(stub(kind), x, BATCHES, CFG, 3)
    also = ["bpd_iw", "bpd_iw_stderr"] if kind == "weighted" else []
    assert list(got) == ["test_loss", "bpd", "bpd_stderr", *also]
    torch.manual_seed(7)
    assert got == likelihood.evaluate(stub(kind), x, BATCHES, CFG, 3)
    assert got["bpd"] != likelihood.evaluate(stub(kind), x, BATCHES, CFG, 4)["bpd"]
    if kind == "flow":
        assert got["bpd"] == pytest.approx(ENTROPY, abs=4 * got["bpd_stderr"] + 0.1)
    if kind == "bound":
        assert got["bpd"] == pytest.approx(on_paper(CHAIN), abs=4 * got["bpd_stderr"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_decides_nothing(kind):
    x, cfg = pictures(70), Likelihood(images=66, importance=3, terms=5, ode_steps=8)
    one, other = (likelihood.evaluate(stub(kind), x, Batches(size, CPU), cfg, 3) for size in (25, 64))
    assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_the_batch_decides_nothing_of_any_family(name, sprites):
    """Every family draws its random numbers through pofx.base.rng, in evaluation too."""
    model, cfg = build(*small(name)), Likelihood(images=26, importance=3, terms=2, ode_steps=1)
    one, other = (likelihood.evaluate(model, sprites[:28].numpy(), Batches(n, CPU), cfg, 3) for n in (25, 64))
    assert one == pytest.approx(other, rel=1e-3, abs=1e-3)


def test_the_batch_decides_nothing_of_a_replay_buffer(sprites):
    module, cfg = small("ebm")
    model = build(module, replace(cfg, objective="contrast", chain=2))
    one, other = (likelihood.evaluate(model, sprites[:28].numpy(), Batches(n, CPU), CFG, 3) for n in (25, 64))
    assert one == pytest.approx(other, rel=1e-4, abs=1e-4)


def test_no_likelihood_is_an_honest_blank():
    assert list(likelihood.evaluate(stub(None), pictures(3), BATCHES, CFG, 0)) == ["test_loss"]


def test_a_diverged_model_is_a_user_error():
    with pytest.raises(UserError, match="loss on test images is not finite"):
        likelihood.evaluate(stub(None, bad=float("nan")), pictures(3), BATCHES, CFG, 0)
    rough = stub("flow")
    rough.weight.fill_(float("inf"))
    with pytest.raises(UserError, match="bits per dimension are not finite"):
        likelihood.evaluate(rough, pictures(3), BATCHES, CFG, 0)


@pytest.mark.parametrize("change", [{"images": 1}, {"importance": 0}, {"terms": 0}, {"ode_steps": 0}])
def test_values_out_of_range_are_refused(change):
    (key,) = change
    good = {"images": 2, "importance": 1, "terms": None, "ode_steps": 1}
    with pytest.raises(UserError, match=f"likelihood.{key} = . should be at least"):
        config.build(Likelihood, good | change, "likelihood")

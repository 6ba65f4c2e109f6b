"""The sweep and the pictures of denoisers, on a denoiser that is known on paper."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from pofx.base import config
from pofx.base.errors import UserError
from pofx.base.images import to_uint8
from pofx.base.rng import Noise
from pofx.models import ddpm
from pofx.models.denoiser import Denoiser, DenoiserConfig
from pofx.sample import drawing, settings
from pofx.sample.samplers import Sample
from pofx.score import denoising, distances
from pofx.score.extractor import Extractor, Fid
from pofx.score.measures import Reference

MEAN, STD = 0.2, 0.3
OWN = Sample(batch=64, steps=4, spacing="geometric")
SHAPE = (3, 16, 24)
CPU = torch.device("cpu")


class Gaussian(Denoiser):
    """Data N(MEAN, STD^2), a pixel: D = (s^2 x + sigma^2 m) / (s^2 + sigma^2)."""

    sigma_range = (0.01, 20.0)

    def __init__(self, levels: np.ndarray | None = None):
        super().__init__(DenoiserConfig(guide=0.0), SHAPE, nn.Identity())
        self.levels = levels

    def forward(self, x):
        raise NotImplementedError

    def denoise(self, x, sigma, net=None):
        return (STD**2 * self.net(x) + sigma**2 * MEAN) / (STD**2 + sigma**2)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """64 of that data, bytes."""
    return to_uint8(MEAN + STD * Noise(1, 0, 64).normal(*SHAPE))


def test_levels_are_at_equal_ratios_or_those_of_training():
    free = denoising.levels(Gaussian(), 8)
    assert np.allclose(np.diff(np.log(free)), math.log(2000) / 7) and free[0] == 0.01
    trained = np.geomspace(20.0, 0.01, 5)
    assert np.allclose(denoising.levels(Gaussian(trained), 16), trained[::-1])
    assert set(denoising.levels(Gaussian(ddpm.preserving("linear", 1000)), 8)) <= set(ddpm.preserving("linear", 1000))


def test_strip_shows_estimates_along_the_sampler_and_ends_with_its_sample():
    model, drawn = Gaussian(), OWN.by("ddim", 20)
    rows, sigmas = denoising.strip(model, drawn, Noise(0, 0, 3), 6)
    assert rows.shape == (3, 6, *SHAPE) and rows.dtype == np.uint8
    assert sigmas[0] == pytest.approx(20.0) and sigmas == sorted(sigmas, reverse=True) and len(sigmas) == 5
    assert np.array_equal(rows[:, -1], to_uint8(drawing.draw(model, Noise(0, 0, 3), drawn)).numpy())
    assert np.ptp(rows[:, 0].astype(int)) <= 12  # at large noise every estimate is nearly the mean
    assert "denoise" not in vars(model), "the model is left as it was"


@pytest.mark.parametrize(("steps", "columns"), [(2, 2), (3, 3)])
def test_a_strip_has_no_more_columns_than_evaluations(steps, columns):
    picture, sigmas = denoising.strip(Gaussian(), OWN.by("ddim", steps), Noise(0, 0, 2), 10)
    assert picture.shape[:2] == (2, columns) and len(sigmas) == columns - 1


def test_a_sampler_that_fails_leaves_the_model_as_it_was():
    model = Gaussian()
    with pytest.raises(UserError):
        denoising.strip(model, OWN.by("consistent", 4, step_size=1e9), Noise(0, 0, 1), 4)
    assert "denoise" not in vars(model)


def test_noisy_images_stand_above_what_is_made_of_them(images):
    picture, sigmas = denoising.noisy(Gaussian(), images[:2], Noise(0, 0, 2), 8)
    rows = picture.reshape(2, 2, 8, *SHAPE)
    assert sigmas == sorted(sigmas) and len(sigmas) == 8
    noisy, clean = rows[:, 0, 0].astype(int), images[:2].numpy().astype(int)
    assert np.abs(noisy - clean).mean() < 3  # with the least noise
    assert np.abs(rows[:, 1, -1].astype(int) - 127.5 * (1 + MEAN)).max() < 3  # with the most: the mean
    assert ((rows[:, 0] > 0) & (rows[:, 0] < 255)).mean((0, 2, 3, 4)).min() > 0.8  # noise is scaled to be seen


def test_interpolation_goes_from_one_sample_to_another():
    model, shared = Gaussian(), Noise(0, 0, 4)
    picture = denoising.interpolation(model, OWN, shared, 5, 20).reshape(2, 5, *SHAPE)
    ends = to_uint8(drawing.draw(model, Noise(0, 0, 4), OWN.by("ddim", 20))).numpy()
    assert np.abs(picture[:, 0].astype(int) - ends[:2]).max() <= 1
    assert np.abs(picture[:, -1].astype(int) - ends[2:]).max() <= 1
    spread = picture.std((0, 2, 3, 4))
    assert np.allclose(spread, spread.mean(), rtol=0.03)  # the middle is no blend


def test_errors_are_those_of_the_best_linear_denoiser(images):
    rows = denoising.errors(Gaussian(), images, Noise(2, 0, 64), 16)
    assert len(rows) == 16
    for row in rows:
        want = 1 / (1 / STD**2 + 1 / row["sigma"] ** 2)
        assert row["mse"] == pytest.approx(want, rel=0.02)
        assert row["linear_mse"] == pytest.approx(want, rel=0.02)
        assert row["eps_mse"] == pytest.approx(row["mse"] / row["sigma"] ** 2)
        assert row["linear_eps_mse"] == pytest.approx(row["linear_mse"] / row["sigma"] ** 2)


CFG = denoising.Sweep(models=("stub",), n=100, samplers=("ddim", "heun", "consistent"), steps=(3, 6))


def drawn_at(model: Denoiser, own: Sample, cfg: denoising.Sweep):
    return settings.draw_all(model, denoising.settings(own, cfg), cfg.n, partial(Noise, 0))


def test_every_sampler_at_every_number_of_steps_beside_the_own_setting():
    own = Sample(batch=64, sampler="langevin", spacing="geometric", step_size=0.1, clip=True, denoise=False)
    points = denoising.settings(own, CFG)
    assert [(name["own"], p.sampler, p.steps, p.denoise) for name, p in points[:3]] == [
        (True, "langevin", None, True),
        (True, "langevin", None, False),
        (False, "ddim", 3, True),
    ]
    assert len(points) == 2 + 3 * 2
    assert points[0][1].step_size == 0.1
    assert all(p.step_size is None and p.clip and p.spacing == "geometric" for name, p in points if not name["own"])


def test_evaluations_are_counted_and_noise_is_shared():
    rows, drawn = drawn_at(Gaussian(), OWN, CFG)
    nfe = {(r["sampler"], r["steps"]): r["nfe"] for r in rows if not r["own"]}
    assert nfe == {("ddim", 3): 3, ("ddim", 6): 6, ("heun", 3): 5, ("heun", 6): 11,
                   ("consistent", 3): 3, ("consistent", 6): 6}  # fmt: skip
    assert [r["nfe"] for r in rows if r["own"]] == [7, 6]  # the last step goes from the smallest level to none
    assert len(drawn) == len(rows) and all(d.shape == (100, *SHAPE) and d.dtype == np.uint8 for _, d in drawn)
    alike = np.corrcoef(drawn[2][1].ravel(), drawn[5][1].ravel())[0, 1]  # ddim and heun go from the same noise
    assert alike > 0.95
    assert all(r["seconds_per_1000"] > 0 for r in rows)


def test_a_refused_point_is_a_blank_with_its_reason():
    own = replace(OWN, sampler="ancestral", variance="large")
    rows, drawn = drawn_at(Gaussian(), own, replace(CFG, samplers=("ddim",)))
    assert [("refused" in r) for r in rows] == [True, True, False, False] and len(drawn) == 2
    assert "250 steps" in rows[0]["refused"] and "nfe" not in rows[0]


def test_images_that_are_not_finite_are_a_blank():
    model = Gaussian()
    model.denoise = lambda x, sigma: x / 0
    rows, drawn = drawn_at(model, OWN, CFG)
    assert not drawn and {r["refused"] for r in rows} == {
        "images are not finite: train the model longer, or change how it draws"
    }
    reference(np.zeros((4, 3), np.float32)).score(drawn)
    assert all("fd" not in r for r in rows)


class Spreads(nn.Module):
    def forward(self, x):
        return x.float().std((2, 3))


FID = Fid("efficientnet_lite0", None, "0" * 8, 200, 64, 3, 500)
SPREADS = Extractor("spread of each colour", ("fd", "kid", "kid_std"), 3, Spreads(), CPU)


def reference(features: np.ndarray) -> Reference:
    return Reference(SPREADS, FID, 0, distances.Target(features))


def test_distances_stand_in_the_rows_that_were_drawn():
    real = to_uint8(MEAN + STD * Noise(9, 0, 200).normal(*SHAPE)).numpy()
    rows, drawn = drawn_at(Gaussian(), OWN, CFG)
    rows.insert(1, {"own": False, "sampler": "x", "steps": 2, "denoise": True, "refused": "why"})
    reference(SPREADS.features(real, 64, "real")).score(drawn)
    assert "fd" not in rows[1]
    assert all({"fd", "kid", "kid_std"} <= row.keys() for row in rows[:1] + rows[2:])
    far = {row["steps"]: row["fd"] for row in rows if row["sampler"] == "ddim"}
    assert far[6] < far[3]  # coarse steps lose variance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "sweep.n = 1 "),
        ({"samplers": ["ddmi"]}, "sweep.samplers names 'ddmi'"),
        ({"steps": [5, 1]}, r"sweep.steps\[1\] = 1 "),
        ({"step": [5]}, "did you mean steps"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_in_one_line(change, message):
    good = {"models": ["ddpm"], "n": 10, "samplers": ["ddim"], "steps": [5]}
    with pytest.raises(UserError, match=message):
        config.build(denoising.Sweep, good | change, "sweep")

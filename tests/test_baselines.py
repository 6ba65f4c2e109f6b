"""The Gaussians beside the floor, against SciPy's densities."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pofx.score import baselines

D = 3


@pytest.fixture
def images():
    """Training and test images of one pixel, whose channels go together."""
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_normal([90, 128, 160], [[400, 350, 0], [350, 400, 30], [0, 30, 90]], 900)
    return np.split(drawn.clip(0, 255).round().astype(np.uint8).reshape(-1, 3, 1, 1), [600])


def expected(train: np.ndarray, test: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Bits a dimension of every test image; noise of +-sqrt(1/12) has the moments that a quadratic form asks for."""
    corners = [np.array(signs) / math.sqrt(12) for signs in itertools.product((-1, 1), repeat=D)]
    density = multivariate_normal(train.mean(0), covariance)
    return -np.mean([density.logpdf(test + corner) for corner in corners], 0) / (D * math.log(2))


def test_closed_forms_are_scipys(images):
    train, test = (x.reshape(-1, D).astype(float) for x in images)
    covariance = np.cov(train.T, bias=True) + np.eye(D) / 12
    wants = {"gaussian": covariance, "pixel_gaussian": np.diag(covariance.diagonal())}
    got = baselines.Gaussians(images[0]).bits(images[1])
    assert list(got) == list(wants)
    for name, matrix in wants.items():
        bits = expected(train, test, matrix)
        assert got[name] == pytest.approx((bits.mean(), bits.std(ddof=1) / math.sqrt(len(bits))), rel=1e-9), name
    assert got["gaussian"][0] < got["pixel_gaussian"][0] - 0.3


def draws(gaussians: baselines.Gaussians, n: int, seed: int) -> dict[str, np.ndarray]:
    return {name: gaussians.draw(name, n, seed) for name in gaussians.spreads}


def test_chunks_make_no_difference(images, monkeypatch):
    train, test = images
    bits, drawn = (whole := baselines.Gaussians(train)).bits(test), draws(whole, 100, 0)
    monkeypatch.setattr(baselines, "CHUNK", 70)
    monkeypatch.setattr(baselines, "EXACT", 70)
    parts = baselines.Gaussians(train)
    assert all(parts.bits(test)[name] == pytest.approx(want, rel=1e-12) for name, want in bits.items())
    assert all(np.abs(parts.draw(name, 100, 0).astype(int) - x).max() <= 1 for name, x in drawn.items())


def test_images_of_one_colour_stay_finite():
    """Without spread the bits are those of the dequantisation noise under a Gaussian of its own variance."""
    flat = np.full((20, 3, 2, 2), 7, np.uint8)
    (full, _), (pixels, _) = baselines.Gaussians(flat).bits(flat).values()
    assert full == pytest.approx(pixels) == pytest.approx(0.5 * math.log2(2 * math.pi * math.e / 12))


def test_images_drawn_have_the_moments_of_the_data(images):
    gaussians = baselines.Gaussians(images[0])
    drawn, (mean, covariance) = draws(gaussians, 20_000, 1), baselines.moments(images[0])
    assert list(drawn) == ["gaussian", "pixel_gaussian", "pca_gaussian"]
    for name, x in drawn.items():
        assert x.shape == (20_000, 3, 1, 1) and x.dtype == np.uint8
        got = baselines.moments(x)
        assert got[0] == pytest.approx(mean, abs=0.5), name
        values, vectors = np.linalg.eigh(covariance)
        wants = {"gaussian": covariance, "pixel_gaussian": np.diag(covariance.diagonal())}
        wants["pca_gaussian"] = (vectors[:, 1:] * values[1:]) @ vectors[:, 1:].T  # two directions of three
        assert np.abs(got[1] - wants[name]).max() < 12, name
    assert all(np.array_equal(gaussians.draw(name, 30, 1), x[:30]) for name, x in drawn.items())


def test_fewer_images_than_dimensions_are_refused_with_the_reason():
    """A covariance of the noise alone, in the directions that no image has, would cost hundreds of bits."""
    rng = np.random.default_rng(0)
    for n, refused in ((60, ["gaussian", "pca_gaussian"]), (100, ["gaussian"]), (200, [])):
        images = rng.integers(0, 256, (n, 3, 8, 8), dtype=np.uint8)
        gaussians = baselines.Gaussians(images)
        assert list(gaussians.refused) == refused
        assert list(gaussians.bits(images)) == ["gaussian", "pixel_gaussian"][len(refused) > 0 :]
        assert set(draws(gaussians, 4, 0)) == {"gaussian", "pixel_gaussian", "pca_gaussian"} - set(refused)
    few = baselines.Gaussians(images[:60]).refused
    assert few["gaussian"] == "60 training images are not more than its 192 dimensions"

"""The Gaussians beside the floor, against SciPy's densities."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pofx.eval import baselines

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
    got = baselines.evaluate(*images)
    assert list(got) == list(wants)
    for name, matrix in wants.items():
        bits = expected(train, test, matrix)
        assert got[name] == pytest.approx((bits.mean(), bits.std(ddof=1) / math.sqrt(len(bits))), rel=1e-9), name
    assert got["gaussian"][0] < got["pixel_gaussian"][0] - 0.3


def test_chunks_make_no_difference(images, monkeypatch):
    whole = baselines.evaluate(*images)
    monkeypatch.setattr(baselines, "CHUNK", 70)
    assert all(baselines.evaluate(*images)[name] == pytest.approx(bits, rel=1e-12) for name, bits in whole.items())


def test_images_of_one_colour_and_fewer_images_than_pixels_stay_finite():
    """Without spread the bits are those of the dequantisation noise under a Gaussian of its own variance."""
    flat = np.full((2, 3, 8, 8), 7, np.uint8)
    (full, _), (pixels, _) = baselines.evaluate(flat, flat).values()
    assert full == pixels == pytest.approx(0.5 * math.log2(2 * math.pi * math.e / 12))

"""What comes back of a code: PSNR and SSIM against values on paper and scikit-image's."""

import math

import numpy as np
import pytest
import torch
from conftest import build, small
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pofx.base.images import Batches, to_model
from pofx.score import codes

BATCHES = Batches(4, torch.device("cpu"))


@pytest.fixture
def images(sprites) -> np.ndarray:
    return sprites[:6].numpy()


def exact(images: np.ndarray) -> np.ndarray:
    return to_model(torch.from_numpy(images)).numpy()


def test_a_constant_error_has_the_psnr_of_its_size(images):
    """An error of 0.1 on a range of 2 has 20 log10(20) dB; SSIM is 1 for equal images and falls with the error."""
    x = exact(images)
    rows = {error: codes.evaluate(images, x - error * np.sign(x)) for error in (1e-4, 0.1, 0.9)}
    assert rows[0.1]["recon_psnr"] == pytest.approx(20 * math.log10(20), abs=0.01)
    assert rows[1e-4]["recon_ssim"] == pytest.approx(1, abs=1e-3)
    assert rows[0.9]["recon_ssim"] < rows[0.1]["recon_ssim"] < 1


def test_psnr_and_ssim_are_those_of_scikit_image_on_the_unit_range(images, monkeypatch):
    monkeypatch.setattr(codes, "PART", 4)
    x = exact(images)
    y = (0.9 * x + 0.1 * np.random.default_rng(0).normal(size=x.shape)).clip(-1, 1).astype(np.float32)
    pairs = list(zip((x + 1) / 2, (y + 1) / 2, strict=True))
    window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    want = [structural_similarity(a, b, data_range=1.0, channel_axis=0, **window) for a, b in pairs]
    assert codes.ssim(x, y) == pytest.approx(np.array(want), rel=1e-4, abs=1e-5)
    want = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in pairs]
    assert codes.psnr(x, y) == pytest.approx(np.array(want), rel=1e-4)


def test_psnr_is_that_of_the_pixels_asked_for():
    x, y, where = np.zeros((2, 3, 8, 8)), np.zeros((2, 3, 8, 8)), np.zeros((2, 1, 8, 8), bool)
    y[:, :, :, 4:], where[:, :, :, 4:] = 0.2, True
    assert codes.psnr(x, y, where) == pytest.approx([20, 20])  # 4 / 0.2^2 = 100
    assert codes.psnr(x, y) == pytest.approx(2 * [20 + 10 * np.log10(2)])


def test_ssim_of_flat_images_is_that_on_paper():
    """(2 a b + c1) / (a^2 + b^2 + c1) with c1 = 0.01^2 of grey levels a and b on [0, 1]: no mean is negative."""
    a, b = 0.4, 0.2
    x, y = (np.full((2, 3, 16, 24), 2 * level - 1, np.float32) for level in (a, b))
    want = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    assert codes.ssim(x, y) == pytest.approx([want, want], rel=1e-3)


def test_sharpness_is_a_share_of_the_originals(images):
    flat, steep = (codes.evaluate(images, k * exact(images)) for k in (0.5, 0.9))
    assert flat["recon_sharpness"] == pytest.approx(0.5) and steep["recon_sharpness"] == pytest.approx(0.9)


def test_reconstructions_are_images(images):
    again = codes.reconstruct(build(*small("vae")).eval(), images, BATCHES)
    assert again.shape == images.shape and np.abs(again).max() <= 1

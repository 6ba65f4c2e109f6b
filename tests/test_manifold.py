"""Precision, recall, density, coverage, copies and duplicates against brute force and other people's code; colours."""

import contextlib
import io

import numpy as np
import pytest
import torch
from test_distances import features

from pofx.base.errors import UserError
from pofx.score import manifold, measures


def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(x[:, None] - y).sum(2))


def radius(x: np.ndarray, k: int) -> np.ndarray:
    return np.sort(distance(x, x), 1)[:, k]  # the first is the distance to itself


def brute_force(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """Word by word as the papers have it."""
    far = distance(fake, real)
    inside = far <= radius(real, 5)
    return {
        "precision": np.mean([(row <= radius(real, 3)).any() for row in far]),
        "recall": np.mean([(column <= radius(fake, 3)).any() for column in far.T]),
        "density": inside.sum() / (5 * len(fake)),
        "coverage": inside.any(0).mean(),
    }


@pytest.mark.parametrize(("n", "m", "shift"), [(80, 80, 0.1), (120, 60, 0.0), (60, 90, 0.4)])
def test_manifolds_agree_with_brute_force(n, m, shift, monkeypatch):
    real, fake = features(n, 12, 0), features(m, 12, 1, shift)
    want, got = brute_force(real, fake), manifold.evaluate(real, fake)
    assert list(got) == list(want) and got == pytest.approx(want, rel=1e-12)
    assert got["precision"] > 0 and 0 < got["coverage"] < 1
    monkeypatch.setattr(manifold, "MEMORY", 8 * 7 * n / 2**20)  # seven rows at a time
    assert manifold.evaluate(real, fake) == got


def test_manifolds_agree_with_prdc_and_torch_fidelity():
    prdc = pytest.importorskip("prdc")
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = features(150, 12, 0), features(150, 12, 1, 0.1)
    got = manifold.evaluate(real, fake)
    with contextlib.redirect_stdout(io.StringIO()):
        wants = [prdc.compute_prdc(real, fake, k) for k in (3, 5)]
    assert got == pytest.approx({key: wants[key in ("density", "coverage")][key] for key in got}, rel=1e-9)
    tensors = torch.from_numpy(fake), torch.from_numpy(real)  # samples come first
    want = prc_features_to_metric(*tensors, prc_neighborhood=3, prc_batch_size=40, verbose=False)
    assert (got["precision"], got["recall"]) == (pytest.approx(want["precision"]), pytest.approx(want["recall"]))


def test_a_collapsed_set_is_precise_and_recalls_nothing():
    real = features(200, 8, 0)
    got = manifold.evaluate(real, real[:1] + 1e-3 * features(200, 8, 1))
    assert got["precision"] == 1 and got["recall"] < 0.05 and got["coverage"] < 0.2


def test_fresh_vectors_of_the_same_kind_cover_each_other():
    got = manifold.evaluate(features(500, 4, 0), features(500, 4, 1))
    assert min(got["precision"], got["recall"], got["coverage"]) > 0.85 and got["density"] == pytest.approx(1, abs=0.1)


def test_too_few_images_for_neighbours():
    with pytest.raises(UserError, match=r"more than 5 images a side"):
        manifold.evaluate(features(50, 4, 0), features(5, 4, 1))


def test_copies_are_found_among_fresh_vectors():
    train, test, fake = (features(n, 10, seed) for n, seed in ((300, 0), (400, 1), (200, 2)))
    fresh = manifold.copies(fake, test, train)
    assert fresh["nearest_ratio"] == pytest.approx(1, abs=0.1) and fresh["copied"] < 0.05
    fake[:80] = train[:80] + 1e-6
    usual, near = distance(test, train).min(1), distance(fake, train).min(1)
    want = {"nearest_ratio": np.median(near) / np.median(usual), "copied": (near < np.quantile(usual, 0.01)).mean()}
    assert manifold.copies(fake, test, train) == pytest.approx(want, rel=1e-9) and want["copied"] >= 0.4


def test_duplicates_are_counted_with_their_twins():
    test, fake = features(400, 10, 1), features(200, 10, 2)
    assert manifold.duplicates(fake, test) < 0.05
    assert manifold.duplicates(test, test) == pytest.approx(0.01, abs=0.006)
    fake[:30] = fake[30:60]
    assert 0.3 <= manifold.duplicates(fake, test) < 0.35
    assert manifold.duplicates(np.repeat(fake[:1], 200, 0), test) == 1


def test_a_cast_of_colour_is_told_from_chance():
    rng = np.random.default_rng(0)
    x, y = (rng.integers(0, 256, (n, 3, 1, 1), dtype=np.uint8) for n in (400, 900))
    z = measures.colour_shift(measures.mean_colours(x), measures.mean_colours(y))
    assert len(z) == 3 and np.abs(z).max() < 3
    x[:, 0] = np.minimum(x[:, 0].astype(int) + 40, 255)
    red = measures.colour_shift(measures.mean_colours(x), measures.mean_colours(y))
    a, b = x[:, 0].ravel().astype(float), y[:, 0].ravel().astype(float)
    assert red[0] == pytest.approx((a.mean() - b.mean()) / np.hypot(a.std(ddof=1) / 20, b.std(ddof=1) / 30))
    assert red[0] > 5 and red[1:] == z[1:]


def test_saturated_values_are_those_at_both_ends():
    assert measures.saturated(np.full((2, 3, 4, 4), [0, 1, 254, 255], np.uint8)) == 0.5

"""Distances between sets of features against closed forms and against other people's code."""

import warnings
from importlib.metadata import version

import numpy as np
import pytest
import scipy.linalg
import torch

import pofx.base.torchvision_compat  # noqa: F401  (before torch_fidelity and pytorch_fid, which import torchvision)
from pofx.base.errors import UserError
from pofx.score import distances


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Correlated, non-negative vectors, as pooled activations are."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) / np.sqrt(d)
    return np.maximum(rng.normal(size=(n, d)) @ mix + 0.3 + shift, 0)


@pytest.mark.parametrize("n", [50, 400])  # fewer and more vectors than dimensions
def test_frechet_of_a_set_to_itself_is_zero(n):
    x = features(n, 100, 0)
    assert abs(distances.frechet(x, distances.Target(x))) < 1e-9 * x.var(0).sum()


def whitened(n: int, d: int, seed: int) -> np.ndarray:
    """Vectors with mean exactly 0 and covariance exactly 1."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(0)
    return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T


def test_frechet_of_shifted_gaussians_is_the_squared_shift():
    shift = np.linspace(-1, 2, 8)
    assert distances.frechet(whitened(300, 8, 0), distances.Target(whitened(500, 8, 1) + shift)) == pytest.approx(
        np.square(shift).sum(), rel=1e-10
    )


def test_frechet_of_diagonal_gaussians():
    a, b = np.linspace(0.5, 3, 8), np.linspace(2, 0.1, 8)
    got = distances.frechet(whitened(300, 8, 0) * np.sqrt(a), distances.Target(whitened(500, 8, 1) * np.sqrt(b)))
    assert got == pytest.approx(np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-10)


def statistics(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), np.cov(x, rowvar=False)


def test_frechet_is_symmetric_and_agrees_with_sqrtm():
    x, y = features(300, 64, 0), features(1000, 64, 1, shift=0.1)
    (m, s), (k, t) = statistics(x), statistics(y)
    want = np.square(m - k).sum() + np.trace(s) + np.trace(t) - 2 * np.trace(scipy.linalg.sqrtm(s @ t)).real
    assert distances.frechet(x, distances.Target(y)) == pytest.approx(want, rel=1e-8)
    assert distances.frechet(y, distances.Target(x)) == pytest.approx(want, rel=1e-8)


@pytest.mark.parametrize(("n", "dead", "copied"), [(50, 0, 0), (50, 40, 0), (300, 40, 0), (300, 0, 30)])
def test_frechet_of_singular_covariances(n, dead, copied):
    """With fewer vectors than dimensions, dimensions that never fire, or that say the same: the nuclear norm of Y'X is
    the same trace."""
    x, y = features(n, 100, 0), features(350, 100, 1, shift=0.1)
    x[:, :dead] = 0
    x[:, :copied] = x[:, copied : 2 * copied] * (1 + 1e-9)
    a, b = ((v - v.mean(0)) / np.sqrt(len(v) - 1) for v in (x, y))
    want = (
        np.square(x.mean(0) - y.mean(0)).sum()
        + np.square(a).sum()
        + np.square(b).sum()
        - 2 * scipy.linalg.svdvals(a @ b.T).sum()
    )
    assert distances.frechet(x, distances.Target(y)) == pytest.approx(want, rel=1e-7)


@pytest.mark.parametrize("subsets", [5, 20, 30])  # the kernel subset by subset, in part, and of all pairs at once
def test_distances_agree_with_torch_fidelity(subsets):
    """On the same features and the same choice of subsets (torch_fidelity imports torchvision: after the shim)."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = features(300, 64, 0), features(500, 64, 1, shift=0.1)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    want = fid_statistics_to_metric(*map(fid_features_to_statistics, tensors), verbose=False)[
        "frechet_inception_distance"
    ]
    assert distances.frechet(x, distances.Target(y)) == pytest.approx(want, rel=1e-6)

    want = kid_features_to_metric(*tensors, kid_subsets=subsets, kid_subset_size=100, rng_seed=7, verbose=False)
    mean, std = distances.kid(x, y, subsets, 100, 7)
    assert mean == pytest.approx(want["kernel_inception_distance_mean"], rel=1e-9)
    assert std == pytest.approx(want["kernel_inception_distance_std"], rel=1e-6)


@pytest.mark.skipif(
    tuple(map(int, version("scipy").split(".")[:2])) >= (1, 18), reason="pytorch-fid needs scipy < 1.18"
)
def test_frechet_agrees_with_pytorch_fid():
    from pytorch_fid.fid_score import calculate_frechet_distance

    x, y = features(300, 64, 0), features(500, 64, 1, shift=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # sqrtm(disp=...)
        want = calculate_frechet_distance(*statistics(x), *statistics(y))
    assert distances.frechet(x, distances.Target(y)) == pytest.approx(want, rel=1e-6)


def test_kid_is_unbiased_and_tells_sets_apart():
    x, y = features(2000, 32, 0), features(2000, 32, 1)
    mean, std = distances.kid(x, y, 20, 500, 0)
    assert abs(mean) < 3 * std
    far, _ = distances.kid(x, features(2000, 32, 1, shift=0.5), 20, 500, 0)
    assert far > 10 * std


def test_kid_is_a_function_of_its_seed():
    x, y = features(200, 16, 0), features(300, 16, 1)
    assert distances.kid(x, y, 3, 50, 1) == distances.kid(x, y, 3, 50, 1) != distances.kid(x, y, 3, 50, 2)


@pytest.mark.parametrize("size", [1, 51])
def test_kid_subsets_that_cannot_be_drawn(size):
    with pytest.raises(UserError, match=r"fid\.kid_subset_size"):
        distances.kid(features(50, 8, 0), features(90, 8, 1), 2, size, 0)


def test_one_image_has_no_frechet_distance():
    with pytest.raises(UserError, match="two images"):
        distances.frechet(features(1, 8, 0), distances.Target(features(90, 8, 1)))


def test_nearest_finds_a_planted_duplicate_and_then_the_next():
    y = features(60, 20, 0)
    x = np.stack([y[17], y[40] + 1e-3, features(1, 20, 5)[0]])
    near = distances.nearest(x, y, 5)
    assert near.shape == (3, 5) and near[0, 0] == 17 and near[1, 0] == 40
    far = np.square(x[:, None] - y).sum(2)
    assert np.array_equal(near, far.argsort(1)[:, :5])


def test_names_of_other_distances_keep_the_extractor():
    names = {("fd_effnet", "inf"): "fd_inf_effnet", ("kid_effnet_std", "test"): "kid_test_effnet_std"}
    names |= {("fid", "test"): "fid_test", ("kid_std", "test"): "kid_test_std"}
    assert {key: distances.named(*key) for key in names} == names


@pytest.mark.parametrize("shift", [0.0, 0.2])
def test_extrapolation_is_nearer_to_many_vectors_than_few_are(shift):
    """Against the distance of as many vectors as nobody draws."""
    y = distances.Target(features(3000, 64, 1))
    want = distances.frechet(features(50_000, 64, 0, shift), y)
    x = features(200, 64, 2, shift)
    got, error = distances.extrapolated(x, y, 0)
    assert abs(got - want) < 0.5 * abs(distances.frechet(x, y) - want) and error > 0
    assert (got, error) == distances.extrapolated(x, y, 0) != distances.extrapolated(x, y, 1)


def test_too_few_vectors_are_not_extrapolated():
    assert distances.extrapolated(features(63, 32, 0), distances.Target(features(90, 32, 1)), 0) is None
    assert distances.extrapolated(features(64, 32, 0), distances.Target(features(90, 32, 1)), 0) is not None

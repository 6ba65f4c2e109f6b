"""MIG and DCI of codes that are known to be good or bad."""

import numpy as np
import pytest
import torch

from pofx.base.images import Batches
from pofx.data import sprites
from pofx.models.family import Latent
from pofx.score import disentanglement

N = 1200
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def factors() -> np.ndarray:
    return sprites.factors(N, seed=3, split=0)


class Coder(Latent):
    """Gives the codes of the images in their turn."""

    def __init__(self, codes: np.ndarray):
        super().__init__(None, (3, 4, 4))
        self.codes, self.at = torch.from_numpy(codes).float(), 0

    def posterior(self, x):
        part = self.codes[self.at : self.at + len(x)]
        self.at += len(x)
        return part, torch.zeros_like(part)

    def decode(self, code):
        raise NotImplementedError

    def forward(self, x):
        raise NotImplementedError

    def preview(self, noise):
        raise NotImplementedError


def score(codes: np.ndarray, factors: np.ndarray) -> dict[str, float]:
    images = np.zeros((len(codes), 3, 4, 4), np.uint8)
    names = list(sprites.FACTORS)
    return disentanglement.evaluate(Coder(codes), images, disentanglement.classes(factors, names), Batches(500, CPU), 0)


def test_the_scores_tell_a_perfect_code_from_a_rotated_one_and_from_noise(factors):
    rng = np.random.default_rng(0)
    seen = [i for i, name in enumerate(sprites.FACTORS) if name != "rotation"]
    truth = (factors[:, seen] - factors[:, seen].mean(0)) / factors[:, seen].std(0)
    idle = rng.normal(size=(N, 2))
    turned = truth @ np.linalg.qr(rng.normal(size=(len(seen), len(seen))))[0]
    perfect, rotated, noise = (score(c, factors) for c in (np.hstack([truth, idle]), turned, rng.normal(size=(N, 7))))
    assert list(perfect) == ["mig", "dci_disentanglement", "dci_completeness", "dci_informativeness"]
    assert min(perfect.values()) > 0.93
    assert rotated["mig"] < 0.1 and max(rotated[f"dci_{k}"] for k in ("disentanglement", "completeness")) < 0.2
    assert 0.1 < rotated["dci_informativeness"] < 0.6, "all is there, and hard to read"
    assert max(noise.values()) < 0.05


def test_a_factor_in_two_units_has_no_gap_and_a_unit_of_two_factors_is_not_disentangled():
    a, b = (np.random.default_rng(i).integers(4, size=N) for i in range(2))
    classes = np.stack([a, b], 1)
    apart = np.stack([a, b], 1).astype(float)
    twice = np.stack([a, a, b], 1).astype(float)
    both = (4 * a + b)[:, None].astype(float)
    assert disentanglement.mig(apart, classes) == pytest.approx(1, abs=0.01)
    assert disentanglement.mig(twice, classes) == pytest.approx(0.5, abs=0.01)
    got = disentanglement.dci(both, classes, 0)
    assert got["dci_disentanglement"] < 0.1 and got["dci_informativeness"] > 0.95


def test_the_rotation_does_not_count(factors):
    other = factors.copy()
    other[:, sprites.FACTORS.index("rotation")] = 0
    codes = np.random.default_rng(0).normal(size=(N, 3))
    assert score(codes, factors) == score(codes, other)


def test_nothing_is_said_of_few_images(factors):
    assert score(np.zeros((9, 2)), factors[:9]) == {}

"""Random numbers are functions of a seed and an index."""

import pytest
import torch

from pofx.base import rng
from pofx.base.rng import BLOCK, Noise, fold


def test_noise_is_a_function_of_the_image_index():
    whole = Noise(1, 0, 3 * BLOCK).normal(5)
    assert torch.equal(Noise(1, BLOCK, 2 * BLOCK).normal(5), whole[BLOCK : 2 * BLOCK])
    assert torch.equal(Noise(1, 0, 10).normal(5), whole[:10])
    assert not torch.equal(Noise(2, 0, 10).normal(5), whole[:10])
    assert whole.std().item() == pytest.approx(1, abs=0.1)
    assert torch.equal(torch.cat([Noise(1, a, b).normal(5) for a, b in ((0, 25), (25, 50), (50, 130))]), whole[:130])
    with pytest.raises(ValueError, match="there is none"):
        Noise(1, 10, 10)


def test_an_image_is_given_its_own_numbers_whatever_the_batch():
    def numbers(size: int) -> list[torch.Tensor]:
        parts = []
        for start in range(0, 100, size):
            n = min(size, 100 - start)
            with rng.per_image(Noise(3, start, start + n)):
                x = torch.empty(n, 2, 3)
                drawn = rng.randn_like(x), rng.rand_like(x), rng.randint(9, n), rng.batch(torch.rand, 4, n, dim=1)
            parts.append(drawn)
        return [torch.cat(rows, dim) for rows, dim in zip(zip(*parts, strict=True), (0, 0, 0, 1), strict=True)]

    for one, other in zip(numbers(100), numbers(7), strict=True):
        assert torch.equal(one, other)


def test_outside_of_the_block_numbers_are_the_global_generators():
    with rng.per_image(Noise(3, 0, 5)), pytest.raises(ValueError, match="6 images were asked for, 5 have"):
        rng.randint(9, 6)
    torch.manual_seed(0)
    before = torch.randn(3)
    torch.manual_seed(0)
    assert torch.equal(rng.batch(torch.randn, 3), before)


def test_seeds_fold_to_the_same_number_on_every_machine():
    assert fold(0, "epoch", 3) == 2259207091418452794
    assert fold(0, "epoch", 3) != fold(0, "epoch", 4)

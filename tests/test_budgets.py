"""Budgets from counted operations."""

import pytest
import torch
from conftest import SHAPE, defaults
from torch.nn.attention import SDPBackend, sdpa_kernel

from pofx.base import config
from pofx.sample.cost import Counter
from tools import budgets


@pytest.mark.parametrize("name", ["edm", "ebm"])
def test_a_step_of_training_is_three_times_its_loss(name):
    """Against a count of both passes, of a network whose convolutions are dense. The loss of the EBM has a gradient."""
    model = budgets.build(name, defaults("edm.net.block=residual"), SHAPE)
    with sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        model(torch.zeros(4, *SHAPE))["loss"].mean().backward()
    assert budgets.gflop(model) == pytest.approx(counter.total / 4 / 1e9, rel=0.1)


def test_minutes_and_images_are_two_ways_to_say_the_same():
    lines = budgets.table([], minutes=2.0, rate=80.0)
    assert [line["family"] for line in lines] == config.family_names()
    for line in lines:
        assert line["images in 2 min"] / line["budget"] == pytest.approx(2.0 / line["minutes for it"], rel=0.01)

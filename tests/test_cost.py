"""What drawing costs, against counts by hand; the peak of a process's memory."""

import dataclasses
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import build, defaults, small
from torch import Tensor, nn

from pofx.base import machine
from pofx.base.rng import Noise
from pofx.models.ebm.network import EnergyConfig
from pofx.models.family import Sampled
from pofx.sample import cost, drawing
from pofx.sample.cost import counted
from pofx.sample.rows import rows

CPU = torch.device("cpu")
CONV, DEPTHWISE, LINEAR = 10 * 10 * 8 * 6 * 9, 10 * 10 * 8 * 9, 7 * 5  # multiplications
ATTENTION = 2 * (3 * 16 * 16 * 4)  # queries with keys, and weights with values, in three heads of four


class Net(nn.Module):
    """A convolution, one for every channel apart, a linear layer and attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.apart = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.linear = nn.Linear(7, 5)

    def forward(self, n: int) -> Tensor:
        q = torch.randn(n, 3, 16, 4)
        F.scaled_dot_product_attention(q, q, q)
        self.linear(torch.randn(n, 7))
        return self.apart(self.conv(torch.randn(n, 6, 10, 10)))


class Toy(Sampled):
    """Draws as a function of its network and the noise says."""

    def __init__(self, net: nn.Module, way):
        super().__init__(None, (3, 2, 2))
        self.net, self.way = net.requires_grad_(False), way

    def forward(self, x):
        raise NotImplementedError

    def preview(self, noise):
        raise NotImplementedError

    def sample(self, noise, cfg):
        self.way(self.net, len(noise))
        return torch.zeros(len(noise), *self.shape)


def test_a_network_is_counted_as_by_hand():
    model = Toy(Net(), lambda net, n: [net(n) for _ in range(3)])
    flops = cost.gflop(model, None, CPU)
    one = 2 * (CONV + DEPTHWISE + LINEAR + ATTENTION) / 1e9
    assert flops["forward_gflop"] == pytest.approx(one, rel=1e-12)
    assert flops["sample_gflop"] == pytest.approx(3 * one, rel=1e-12)
    assert not model.net._forward_hooks and not model.net._forward_pre_hooks


def test_what_is_not_the_network_counts_for_the_draw_alone():
    """A gradient with respect to the input costs as much as the way there; a matrix product beside it costs too."""

    def way(net, n):
        torch.randn(n, 11) @ torch.randn(11, 13)
        with torch.enable_grad():
            x = torch.randn(n, 7, requires_grad=True)
            return torch.autograd.grad(net(x).sum(), x)

    flops = cost.gflop(Toy(nn.Linear(7, 5), way), None, CPU)
    assert flops["forward_gflop"] == pytest.approx(2 * LINEAR / 1e9, rel=1e-12)
    assert flops["sample_gflop"] == pytest.approx(2 * (2 * LINEAR + 11 * 13) / 1e9, rel=1e-12)


def test_a_draw_without_the_network_has_no_forward_pass():
    assert cost.gflop(Toy(Net(), lambda net, n: torch.zeros(n)), None, CPU) == {"sample_gflop": 0.0}


def test_chains_that_start_at_a_leaf_are_counted():
    module, cfg = small("ebm")
    few = EnergyConfig(channels=8, patch=4)
    cfg = dataclasses.replace(cfg, objective="contrast", chain=1, net=few)
    flops = cost.gflop(build(module, cfg).eval(), module.Sample(chain=3), CPU)
    assert 1.9 * 3 < flops["sample_gflop"] / flops["forward_gflop"] < 2.1 * 3


def test_every_family_is_counted(name):
    module, cfg = small(name)
    model = build(module, cfg).eval()
    how = rows(name, defaults()["sample"][name], {})[name]
    with torch.no_grad(), counted([model.net]) as calls:
        drawing.draw(model, Noise(0, 0, 1), how)
    flops = cost.gflop(model, how, CPU)
    assert flops["forward_gflop"] > 0 and calls[0] > 0
    inside = flops["forward_gflop"] * calls[0]
    outside = {"vqprior": 1.0001, "ebm": 1.9}.get(name, 1.0)  # the decoder; gradients
    assert flops["sample_gflop"] > 0.999 * outside * inside
    assert flops == cost.gflop(model, how, CPU), "it is a count, not a measurement"


def test_the_peak_of_a_gpu_is_that_of_its_tensors(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    assert machine.peak_mib(torch.device("cuda")) == 3.0


def test_the_peak_is_of_this_process_alone():
    """On Linux the peak that getrusage gives a process is that of the parent which started it, if larger."""
    held = torch.zeros(2**28, dtype=torch.uint8) + 1
    script = "import torch; from pofx.base import machine; print(machine.peak_mib(torch.device('cpu')))"
    source = Path(__file__).resolve().parents[1] / "src"
    own, theirs = (
        machine.peak_mib(CPU),
        float(subprocess.check_output([sys.executable, "-c", script], text=True, env={"PYTHONPATH": str(source)})),
    )
    assert own > len(held) / 2**20 + 100
    assert 20 < theirs < own - 0.9 * len(held) / 2**20 + 100


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_not_handed_back_to_the_kernel():
    script = """if True:
        import resource, torch
        from pofx.base import machine
        machine.device()
        for _ in range(3):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(8):
                torch.ones(2**24)  # 64 MiB, more than glibc ever keeps by itself: 16,384 pages
            print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    source = Path(__file__).resolve().parents[1] / "src"
    faults = subprocess.check_output([sys.executable, "-c", script], text=True, env={"PYTHONPATH": str(source)})
    assert int(faults.split()[-1]) < 1000, "every tensor's pages are cleared anew"


def test_a_machine_is_named_with_its_threads(monkeypatch):
    for threads, said in ((1, ", 1 thread"), (2, ", 2 threads")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert machine.name(CPU).endswith(said)

"""Which parameters Muon trains, and that it is the published one."""

import copy

import pytest
import torch
from conftest import budget, build, pool, slot, small, weights
from torch import nn

from pofx.models.family import outer, stacked
from pofx.train import loop
from pofx.train.config import Train
from pofx.train.loop import Run
from pofx.train.optimiser import Muon, Optimiser, hidden, orthogonal

UNET = {"net.embed.1", "net.first", "net.last.2"}
LEFT_TO_ADAM = {  # family, and preset -> layers with weights of two dimensions or more, but depthwise ones
    "vae": {"encoder.layers.1", "net.layers.12"},
    "vae vae-resnet": {"encoder.layers.0", "net.layers.13"},
    "vqvae": {"encoder.layers.1", "net.layers.9"},
    "vqprior": {"net.embed", "net.place", "net.head"},
    "vqprior vqprior.network=pixelcnn": {"net.embed", "net.head"},
    "ebm": {"net.towers.0.embed.1", "net.towers.0.first.1", "net.towers.0.last"},
    "ncsn": UNET,
    "ncsn ncsn-v1": {"net.embed.1", "net.first", "net.last.conv"},
    "ncsn ncsn-v2": {"net.first", "net.last.conv"},
    "ddpm": UNET,
    "ddpm ddpm-ho2020 gpu": UNET,
    "edm": UNET,
    "edm edm.net.block=inverted": {"net.embed.1", "net.first", "net.last.0"},
}


@pytest.mark.parametrize("case", LEFT_TO_ADAM)
def test_hidden_matrices_are_muons_and_all_else_is_adams(case):
    name, *words = case.split()
    model = build(*small(name, *words))
    found = hidden(model)
    left = {key for key, p in model.named_parameters() if p.requires_grad and p.ndim > 1 and p not in found}
    depthwise = {f"{key}.weight" for key, layer in model.named_modules() if getattr(layer, "groups", 1) > 1}
    assert {key.removesuffix(".weight") for key in left - depthwise} == LEFT_TO_ADAM[case]
    assert all(p.ndim > 1 and p.requires_grad for p in found)
    assert sum(p.numel() for p in found) > 0.8 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    names = {p: key for key, p in model.named_parameters()}
    assert all((count == 3) == names[p].endswith("qkv.weight") for p, count in found.items())


def test_weights_under_a_spectral_norm_are_adams():
    assert hidden(build(*small("ebm", "ebm-igebm"))) == {}


def reference(x: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz as published, in float64."""
    x = x.double() / x.double().norm()
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x + (-4.7750 * s + 2.0315 * s @ s) @ x
    return x


@pytest.mark.parametrize("shape", [(1, 24, 24), (3, 16, 90), (2, 90, 16)])
@pytest.mark.parametrize("smallest", [1.0, 1e-4], ids=["even", "ill-conditioned"])
def test_matrices_become_orthogonal_as_published(shape, smallest):
    torch.manual_seed(0)
    x = torch.randn(shape) * torch.logspace(0, torch.tensor(smallest).log10(), shape[2])
    exact = torch.stack([reference(one) for one in x])
    assert (orthogonal(x) - exact).norm() < 2e-3 * exact.norm()
    assert (orthogonal(x.bfloat16()) - exact).norm() < 0.05 * exact.norm()


def test_nothing_learned_is_no_step():
    assert torch.equal(orthogonal(torch.zeros(2, 4, 6)), torch.zeros(2, 4, 6))


def step(optimiser: torch.optim.Optimizer, weights: list[nn.Parameter], steps: int = 5) -> None:
    """Steps of `optimiser`; the elements of all weights get the same gradients, in whatever shapes they are."""
    generator = torch.Generator().manual_seed(1)
    sizes = [w.numel() for w in weights]
    for _ in range(steps):
        for w, gradient in zip(weights, torch.randn(sum(sizes), generator=generator).split(sizes), strict=True):
            w.grad = gradient.view(w.shape)
        optimiser.step()


@pytest.mark.parametrize(("half", "tolerance"), [(True, 1e-3), (False, 0.05)], ids=["bf16", "fp32 against bf16"])
def test_muon_is_torchs(half, tolerance):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for shape in [(8, 6, 3, 3), (20, 12), (8, 6, 3, 3), (12, 20)]]
    theirs = [nn.Parameter(w.detach().flatten(1).clone()) for w in ours]
    start = [w.detach().clone() for w in theirs]
    step(Muon(dict.fromkeys(ours, 1), 0.02, half), ours)
    step(torch.optim.Muon(theirs, 0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), theirs)
    for one, other, first in zip(ours, theirs, start, strict=True):
        assert (one.flatten(1) - other).norm() < tolerance * (other - first).norm()


def test_stacked_matrices_are_trained_as_if_each_were_alone():
    torch.manual_seed(0)
    whole = nn.Parameter(torch.randn(12, 6, 1, 1))
    parts = [nn.Parameter(part.clone()) for part in whole.detach().chunk(3)]
    step(Muon({whole: 3}, 0.02, False), [whole])
    step(Muon(dict.fromkeys(parts, 1), 0.02, False), parts)
    assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.unused = outer(nn.Linear(4, 8)), stacked(nn.Linear(8, 24), 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.qkv(self.first(x)).square().mean()


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_both_parts_step_at_the_rate_given_and_go_on_from_a_saved_state(optimizer):
    torch.manual_seed(0)
    net, x = Net(), torch.randn(5, 4)
    cfg = Train(optimizer=optimizer)
    optimiser = Optimiser(net, cfg)

    def take(net, optimiser, rate):
        net(x).backward()
        optimiser.step(rate)
        return [p.detach().clone() for p in net.parameters()]

    before = take(net, optimiser, 0.1)
    assert all(torch.equal(p, q) for p, q in zip(before, take(net, optimiser, 0.0), strict=True))
    again = copy.deepcopy(net)
    other = Optimiser(again, cfg)
    other.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    after = take(net, optimiser, 0.1)
    assert all(torch.equal(p, q) for p, q in zip(after, take(again, other, 0.1), strict=True))
    moved = [not torch.equal(p, q) for p, q in zip(before, after, strict=True)]
    assert moved == [True] * 4 + [False] * 2, "all but what has no gradient"


@pytest.mark.parametrize("name", ["edm", "vqprior"])
def test_a_run_with_muon_that_is_interrupted_equals_an_undisturbed_one_bitwise(name, sprites, tmp_path):
    def run(folder, stop=lambda: False):
        model, train = build(*small(name)), budget(name, optimizer="muon", rollbacks=1)
        with slot(folder) as held:
            curve, *_ = loop.train(model, pool(sprites, train), train, Run(0, held, stop))
        return curve, weights(model)

    whole, asked = run(tmp_path / "whole"), iter([False, True])
    with pytest.raises(loop.Stopped, match="16 of 32 images"):
        run(tmp_path / "parts", stop=lambda: next(asked))
    again = run(tmp_path / "parts")
    assert whole[0] == again[0]
    assert all((value == again[1][key]).all() for key, value in whole[1].items())


def test_weight_decay_with_muon_is_refused():
    with pytest.raises(ValueError, match=r"weight_decay = 0\.1 is Adam's: muon has none, set it to 0"):
        Train(optimizer="muon", weight_decay=0.1)

"""The network of NCSN: its size and cost, the norm by its formula, and what an output may depend on."""

import pytest
import torch
from conftest import SHAPE
from torch.utils.flop_counter import FlopCounterMode

from pofx.base.errors import UserError
from pofx.models.ncsn.refinenet import EMBEDDING, InstanceNormPlus, Refine, RefineNet

BOTH = pytest.mark.parametrize("conditional", [False, True])


def net(conditional: bool, channels: int = 8, patch: int = 2) -> RefineNet:
    torch.manual_seed(0)
    return RefineNet(channels, conditional, patch, SHAPE)


def batch(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 3, 32, 32), torch.linspace(-1, 1, n)


@BOTH
def test_at_width_128_it_has_the_published_size_and_cost(conditional):
    """Conditioning adds a twentieth of the parameters and next to no cost."""
    model = net(conditional, 128, patch=1)
    count = sum(p.numel() for p in model.parameters())
    assert count == pytest.approx(31.2e6, rel=0.01) if conditional else count == 29_694_083
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32), torch.zeros(1))
    assert counter.get_total_flops() == pytest.approx(19.8e9, rel=0.02)


# --- the norm


@BOTH
def test_the_norm_is_its_formula(conditional):
    torch.manual_seed(0)
    norm, c = InstanceNormPlus(4, conditional), 4
    with torch.no_grad():
        norm.start.copy_(torch.randn(3 * c))
    x, e = 2 * torch.randn(2, c, 3, 5) + torch.arange(4.0).view(1, c, 1, 1), torch.randn(2, EMBEDDING)
    got = norm(x, e if conditional else None)
    for i in range(2):
        affine = norm.start + norm.vary.weight @ e[i] if conditional else norm.start
        mu = torch.stack([x[i, k].mean() for k in range(c)])
        for k in range(c):
            own = (x[i, k] - mu[k]) / (((x[i, k] - mu[k]) ** 2).mean() + 1e-5).sqrt()
            v = ((mu - mu.mean()) ** 2).sum() / (c - 1)
            plus = (mu[k] - mu.mean()) / (v + 1e-5).sqrt()
            want = affine[k] * (own + affine[c + k] * plus) + affine[2 * c + k]
            assert torch.allclose(got[i, k], want, atol=1e-5)


@BOTH
def test_the_norm_starts_as_published(conditional):
    torch.manual_seed(0)
    norm, c = InstanceNormPlus(512, conditional), 512
    ones, zeros = norm.start[: 2 * c], norm.start[2 * c :]
    assert (ones.mean().item(), ones.std().item()) == pytest.approx((1, 0.02), abs=2e-3)
    assert not zeros.any()
    if conditional:
        assert not norm.vary.weight[2 * c :].any()


def test_scales_start_as_far_apart_over_the_levels_as_published():
    model = net(True, 32)
    e = model.embed(torch.linspace(-1, 1.15, 10))  # sigma from 0.02 to 100
    varied = model.last.norm.vary(e)[:, : 2 * 32]
    assert varied.std(0).mean().item() == pytest.approx(0.02, rel=0.25)


@BOTH
@pytest.mark.parametrize("value", [0.0, 1.0, 1e4])
def test_flat_maps_stay_finite(conditional, value):
    """All channels the same number: neither the maps nor their means have a spread to divide by."""
    norm = InstanceNormPlus(4, conditional)
    x = torch.full((2, 4, 3, 3), value, requires_grad=True)
    out = norm(x, torch.ones(2, EMBEDDING) if conditional else None)
    out.square().sum().backward()
    assert out.abs().max() < 1e-2
    assert all(g.isfinite().all() for g in [x.grad, *(p.grad for p in norm.parameters())])


@BOTH
def test_flat_images_stay_finite(conditional):
    x = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 32, 32)
    assert net(conditional)(x, torch.zeros(3)).isfinite().all()


# --- what an output depends on


@BOTH
def test_only_the_conditional_network_sees_the_noise_level(conditional):
    model, (x, t) = net(conditional), batch()
    assert torch.equal(model(x, t), model(x, t + 0.5)) != conditional
    same = model(x[:1].expand_as(x), t)
    assert torch.allclose(same[0], same[2], atol=1e-5) != conditional


@BOTH
def test_an_image_does_not_depend_on_its_batch_mates(conditional):
    model, (x, t) = net(conditional), batch()
    whole = model(x, t)
    for i in range(3):
        assert torch.allclose(model(x[i : i + 1], t[i : i + 1])[0], whole[i], atol=1e-5)


@BOTH
def test_every_output_sees_the_whole_image(conditional):
    """The dilated stages and the norms reach from corner to corner."""
    model, (x, t) = net(conditional), batch(1)
    x.requires_grad_()
    model(x, t)[0, :, 0, 0].sum().backward()
    assert x.grad[0, :, -1, -1].abs().min() > 0


# --- shapes, formats, gradients


@BOTH
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_any_patch_keeps_the_shape(conditional, patch):
    x, t = batch(2)
    assert net(conditional, patch=patch)(x, t).shape == x.shape


def test_a_patch_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"net\.patch = 32: a RefineNet divides the side by 64"):
        RefineNet(8, False, 32, SHAPE)


@BOTH
def test_every_parameter_gets_a_gradient(conditional):
    model, (x, t) = net(conditional), batch()
    model(x, t).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@BOTH
def test_channels_last_is_the_same_network(conditional):
    model, (x, t) = net(conditional), batch()
    want = model(x, t)
    model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    assert torch.allclose(model(x, t), want, atol=1e-4)
    formats = set()
    hooks = [m.register_forward_hook(lambda _, __, y: formats.add(y.is_contiguous(memory_format=torch.channels_last)))
             for m in model.modules() if isinstance(m, InstanceNormPlus | Refine)]  # fmt: skip
    model(x, t)
    assert hooks
    assert formats == {True}


@BOTH
def test_bf16_autocast_stays_close(conditional):
    model, (x, t) = net(conditional), batch()
    want = model(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        got = model(x, t)
    got.float().square().mean().backward()
    assert (got.float() - want).square().mean() < 0.05**2 * want.square().mean()
    assert all(p.grad.isfinite().all() for p in model.parameters())

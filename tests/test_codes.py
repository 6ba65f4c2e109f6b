"""Pictures of codes, on a linear code that is known on paper; ways between points."""

import numpy as np
import pytest
import torch
from conftest import build, small

from pofx.base.images import Batches, to_model, to_uint8
from pofx.models.family import Latent
from pofx.models.features import active, kl
from pofx.sample.interpolation import lerp, slerp
from pofx.score import codes

CPU = torch.device("cpu")
SCALE = 8.0  # standard deviations of the prior in a pixel's one


class Linear(Latent):
    """Unit i of four is SCALE times pixel i of the red plane, and back."""

    def posterior(self, x):
        return SCALE * x[:, 0, 0, :4], torch.tensor([0.0, -4.0, -2.0, -10.0]).expand(len(x), 4)

    def decode(self, z):
        x = z.new_zeros(len(z), *self.shape)
        x[:, 0, 0, :4] = z / SCALE
        return x

    def forward(self, x):
        raise NotImplementedError

    def preview(self, noise):
        raise NotImplementedError


LINEAR = Linear(None, (3, 32, 32))


def shown_codes(picture: np.ndarray) -> torch.Tensor:
    """What Linear decoded, up to the rounding to bytes."""
    return SCALE * to_model(torch.from_numpy(picture))[..., 0, 0, :4]


@pytest.fixture
def images() -> np.ndarray:
    """Units 0 to 2 are in use, unit 3 belongs to a constant pixel; the KLs fall in the order 1, 2, 0."""
    x = torch.zeros(24, 3, 32, 32)
    x[:, 0, 0, :3] = 0.02 + 0.1 * torch.from_numpy(np.random.default_rng(0).normal(size=(24, 3))).clamp(-2, 2)
    x[:4, 0, 0, :3] = torch.tensor([[0.2, 0.2, 0.2], [0.2, -0.2, -0.2]]).repeat(2, 1)  # pairs at a wide angle
    x[:, 0, 0, 3] = 0.1
    return to_uint8(x).numpy()


def test_a_unit_that_does_not_move_is_not_in_use(images):
    mean, log_var = codes.posterior(LINEAR, images, Batches(7, CPU))
    assert mean.shape == log_var.shape == (24, 4)
    assert active(mean).tolist() == [True, True, True, False]
    assert kl(mean, log_var).mean(0).argmax() == 3, "but it has the largest KL"


def test_kl_is_that_of_the_library():
    mean, log_var = torch.randn(2, 5, 3)
    q = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    prior = torch.distributions.Normal(0.0, 1.0)
    assert torch.allclose(kl(mean, log_var), torch.distributions.kl_divergence(q, prior), atol=1e-6)


def test_a_traversal_moves_one_unit_alone_and_the_largest_kl_comes_first(images):
    values = [-2.0, 0.0, 1.0]
    mean, log_var = codes.posterior(LINEAR, images, Batches(24, CPU))
    got = shown_codes(codes.traversals(LINEAR, mean, log_var, values, 10))
    for row, unit in enumerate((1, 2, 0)):
        want = mean[0].repeat(3, 1)
        want[:, unit] = torch.tensor(values)
        assert torch.allclose(got[row], want, atol=SCALE / 255 + 1e-5), unit
    assert codes.traversals(LINEAR, mean, log_var, values, 2).shape[:2] == (2, 3)


def test_a_collapsed_code_has_no_traversals(images):
    same = images[:1].repeat(6, 0)
    mean, log_var = codes.posterior(LINEAR, same, Batches(6, CPU))
    assert len(codes.traversals(LINEAR, mean, log_var, [0.0], 10)) == 0
    shown = codes.pictures(LINEAR, same, same, Batches(6, CPU))
    assert {name: sheet.shape[1] for name, sheet in shown.items()} == {"reconstructions": 6, "interpolations": 12}


def test_interpolations_start_and_end_at_codes_between_their_images(images):
    mean, _ = codes.posterior(LINEAR, images, Batches(24, CPU))
    picture = codes.interpolations(LINEAR, mean, images, 2, 7).reshape(2, 2, 7, 3, 32, 32)
    for pair in range(2):
        for way in range(2):
            assert np.array_equal(picture[pair, way, 0], images[2 * pair])
            assert np.array_equal(picture[pair, way, -1], images[2 * pair + 1])
        code = shown_codes(picture[pair, :, 1:-1])
        ends = mean[2 * pair : 2 * pair + 2]
        assert torch.allclose(code[:, [0, -1]], ends.expand(2, 2, 4), atol=SCALE / 255 + 1e-5)
        assert torch.allclose(code[0, 2], ends.mean(0), atol=SCALE / 255 + 1e-5), "the straight line"
        assert code[1, 2].norm() > code[0, 2].norm() + 0.1, "the arc keeps away from the middle"
    assert codes.interpolations(LINEAR, mean[:3], images[:3], 5, 7).shape[:2] == (2, 7)


def test_reconstructions_stand_below_their_images(images):
    picture = codes.reconstructions(images, 255 - images, 5, 3).reshape(3, 2, 5, 3, 32, 32)
    assert np.array_equal(picture[:, 0].reshape(15, 3, 32, 32), images[:15])
    assert np.array_equal(picture[:, 1], 255 - picture[:, 0])
    assert codes.reconstructions(images, images, 10, 3).shape[:2] == (4, 10), "whole rows"


@pytest.mark.parametrize("name", ["vae", "vqvae", "vqprior"])
def test_a_family_has_the_pictures_of_its_code(name, sprites):
    model, few = build(*small(name)).eval(), sprites[:5].numpy()
    shown = codes.pictures(model, few, few, Batches(2, CPU))
    gaussian = {"interpolations"} if name == "vae" else set()
    assert set(shown) - {"traversals"} == {"reconstructions"} | gaussian
    for sheet in shown.values():
        assert sheet.dtype == np.uint8 and sheet.size > 0


# --- ways between points


@pytest.mark.parametrize("shape", [(5,), (3, 32, 32)])
def test_points_at_equal_angles_keep_the_length_and_meet_the_ends(shape):
    a, b = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(0))
    a, b = (v / v.flatten(1).norm(dim=1).view(-1, *[1] * len(shape)) for v in (a, b))
    between = slerp(a, b, torch.linspace(0, 1, 5))
    assert between.shape == (4, 5, *shape)
    assert torch.allclose(between[:, 0], a, atol=1e-5) and torch.allclose(between[:, -1], b, atol=1e-5)
    flat = between.flatten(2)
    assert torch.allclose(flat.norm(dim=2), torch.ones(4, 5), atol=1e-5)
    steps = (flat[:, 1:] * flat[:, :-1]).sum(2).acos()
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), atol=1e-3)
    straight = lerp(a, b, torch.linspace(0, 1, 5))
    assert (
        torch.allclose(straight[:, 2], (a + b) / 2, atol=1e-6) and (straight[:, 2].flatten(1).norm(dim=1) < 0.99).all()
    )


@pytest.mark.parametrize("b", [[4.0], [-2.0]])
def test_between_parallel_points_there_is_the_straight_line(b):
    between = slerp(torch.tensor([[2.0]]), torch.tensor([b]), torch.linspace(0, 1, 3))
    assert between.flatten().tolist() == [2.0, (2 + b[0]) / 2, b[0]]

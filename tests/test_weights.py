"""Kept weights: each folder of weights/ draws what its card says, and a model is kept without loss that matters."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import budget, build, pool, slot, small
from safetensors.torch import load_file

from pofx.base import config, files
from pofx.base.errors import UserError
from pofx.models import store
from pofx.train import loop
from tools import weights

KEPT = Path(__file__).resolve().parents[1] / "weights"
MIB = 36  # of all kept weights together: they are in git


@pytest.mark.parametrize("folder", sorted(KEPT.glob("*")), ids=lambda folder: folder.name)
def test_kept_weights_draw_what_their_card_says(folder):
    kept, got = files.read_json(folder / "model.json")["kept"], weights.drawn(store.load(folder))
    for key in ("mean", "std"):
        assert got[key] == pytest.approx(kept["drawn"][key], abs=0.02), "values on [-1, 1]"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json", "sheet.png"}
    assert {"data", "images", "machine", "dtype", "metrics", "protocol"} <= kept.keys()


def test_kept_weights_are_small():
    assert sum(path.stat().st_size for path in KEPT.rglob("*") if path.is_file()) <= MIB * 2**20


@pytest.fixture
def run(tmp_path, sprites) -> Path:
    """A run with a model of EDM that has trained on 32 images, scored and sampled."""
    module, cfg = small("edm", "edm.net.channels=8", "edm.net.attention=[]")
    train, model = budget("edm"), build(module, cfg)
    with slot(tmp_path / "runs") as held:
        loop.train(model, pool(sprites, train), train, loop.Run(0, held))
    store.save(tmp_path / "models/edm", "edm", model, config.tree(train), {"seed": 0, "images": 32})
    card = store.card(tmp_path / "models/edm")
    scores = {"fd_effnet": 12.5, "config": {"edm": card["config"]}, "protocol": {"n": 64, "reference": "train, 64"}}
    files.write_json(tmp_path / "metrics/fid/edm.json", {k: {"edm": v, "edm-guided": v} for k, v in scores.items()})
    cost = {"device": "a processor", "train_seconds": 1.5, "trained": dict.fromkeys(weights.TOLD, "known")}
    files.write_json(tmp_path / "metrics/time/train_edm.json", {k: {"edm": v} for k, v in cost.items()})
    files.write_json(tmp_path / "metrics/data.json", {"name": "sprites"})
    files.write_npy(tmp_path / "samples/edm/edm.npy", sprites.numpy())
    return tmp_path


def test_a_model_is_kept_in_bf16(run):
    weights.keep(run / "models/edm", folder := run / "weights/small", run)
    before, after = (load_file(path / "model.safetensors") for path in (run / "models/edm", folder))
    parameters = dict(store.load(folder).named_parameters())
    assert set(after) == {key for key in before if not key.startswith("guide.")} != set(before)
    for key, value in after.items():
        assert value.dtype == (torch.bfloat16 if key in parameters else before[key].dtype)
        torch.testing.assert_close(value.to(before[key].dtype), before[key], rtol=0.004, atol=0)
    assert all(p.dtype == torch.float32 for p in parameters.values())
    kept = files.read_json(folder / "model.json")["kept"]
    want = {"images": 32, "data": "sprites", "machine": "a processor", "training_seconds": 1.5, "dtype": "bfloat16"}
    want |= {"metrics": {"fd_effnet": 12.5}, "protocol": {"N": 64, "reference": "train, 64"}, "revision": "known"}
    assert {key: kept[key] for key in want} == want
    test_kept_weights_draw_what_their_card_says(folder)
    original = weights.drawn(store.load(run / "models/edm"))
    assert kept["drawn"]["std"] == pytest.approx(original["std"], abs=0.01) and np.min(original["std"]) > 0.1


def test_other_weights_draw_something_else(run):
    """The test above can fail."""
    weights.keep(run / "models/edm", folder := run / "weights/small", run)
    model = store.load(folder)
    with torch.no_grad():
        for p in model.net.parameters():
            p.mul_(2)
    drawn, kept = weights.drawn(model), files.read_json(folder / "model.json")["kept"]["drawn"]
    assert max(abs(a - b) for key in ("mean", "std") for a, b in zip(drawn[key], kept[key], strict=True)) > 0.02


def test_a_training_goes_on_from_kept_weights(run):
    """Though they have no guide and the training has one."""
    weights.keep(run / "models/edm", run / "weights/small", run)
    module, cfg = small("edm", "edm.net.channels=8", "edm.net.attention=[]")
    model = build(module, cfg, seed=1)
    start = store.start("edm", model, run, "weights/small")
    assert start["images"] == 32 and cfg.guide > 0
    for key, value in load_file(run / "weights/small/model.safetensors").items():
        assert torch.equal(model.state_dict()[key], value.float())


def test_every_family_can_be_kept(name, tmp_path):
    """One that rests on another with that one inside; what is no parameter, such as a codebook, as it was."""
    model = build(*small(name))
    store.save(tmp_path / "models" / name, name, model, config.tree(budget(name)), {"images": 32})
    weights.keep(tmp_path / "models" / name, tmp_path / "weights", tmp_path)
    kept, buffers = store.load(tmp_path / "weights"), dict(model.named_buffers())
    for key, value in kept.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key], rtol=0 if key in buffers else 0.004, atol=0)


def test_what_cannot_be_kept_is_refused(run):
    files.write_json(path := run / "metrics/fid/edm.json", files.read_json(path) | {"config": {"edm": {"edm": {}}}})
    with pytest.raises(UserError, match="another config than the model"):
        weights.keep(run / "models/edm", run / "weights/small", run)
    assert not (run / "weights").exists()
    with pytest.raises(UserError, match="usage"):
        weights.main("save", "edm")

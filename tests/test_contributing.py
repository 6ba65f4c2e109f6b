"""CONTRIBUTING.md's example of a family: put into a copy of the project as the page says, trained and drawn from."""

import importlib
import inspect
import math
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import conftest
import pytest
import test_families as contract
import torch
from conftest import pool, slot
from ruamel.yaml import YAML

import pofx.families
from pofx.base import config
from pofx.base.images import to_model
from pofx.base.rng import Noise
from pofx.models import family
from pofx.train.loop import train
from tools import compose, deps

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
NAME = "marginals"
FILE = f"src/pofx/families/{NAME}.py"


def block(head: str) -> str:
    """The code block of the page whose first line is the comment `head`, without that line."""
    found = re.findall(rf"^```\w+\n# {re.escape(head)}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"{len(found)} blocks begin with {head!r}"
    return found[0]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What params.yaml is made of once the example is in; until the test ends the project is the copy."""
    for name in ("src", "stages", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / FILE).write_text(block(FILE))
    path = tmp_path / "conf/config.yaml"
    text, named = re.subn(r"(?m)^models: \[(.*)\]$", rf"models: [\1, {NAME}]", path.read_text())
    assert named == 1
    own, draw = block("conf/config.yaml, before sample:"), block("conf/config.yaml, at the end of sample:")
    path.write_text(text.replace("\nsample:\n", f"\n{own}\nsample:\n").replace("\nfid:\n", f"{draw}\nfid:\n"))

    families = (tmp_path / FILE).parent
    monkeypatch.setattr(config, "FAMILIES", families)
    monkeypatch.setattr(pofx.families, "__path__", [*pofx.families.__path__, str(families)])
    monkeypatch.setattr(compose, "CONF", tmp_path / "conf")
    monkeypatch.setattr(deps, "ROOT", tmp_path)
    importlib.invalidate_caches()
    tree = YAML(typ="safe").load(compose.text([]))  # checked as a whole
    for module in (conftest, contract):
        monkeypatch.setattr(module, "defaults", lambda *words: tree)
    yield tree
    sys.modules.pop(f"pofx.families.{NAME}", None)
    vars(pofx.families).pop(NAME, None)


def test_the_example_trains_and_draws(params, sprites, tmp_path):
    assert NAME in config.family_names() and params["models"][-1] == NAME
    module = family.module(NAME)
    assert Path(module.__file__) == tmp_path / FILE
    cfg = config.build(module.Config, params[NAME], NAME)
    cfg = replace(cfg, train=replace(cfg.train, images=6400, lr=5e-2))  # a third of its steps, longer ones
    torch.manual_seed(0)
    model = family.create(NAME, cfg, tmp_path)
    with slot(tmp_path) as held:
        curve, _, events = train(model, pool(sprites, cfg), cfg.train, 0, held)
    assert len(curve) == cfg.train.rows and curve[-1]["loss"] < curve[0]["loss"] - 0.5 and not events

    family.save_model(tmp_path / NAME, NAME, cfg, model, {"seed": 0})
    again = family.load(tmp_path / NAME)
    x = to_model(torch.cat([sprites, sprites.flip(3)]))
    best = torch.distributions.Normal(x.mean(0), x.std(0))
    exact = -best.log_prob(x).mean().item() / math.log(2) + math.log2(255 / 2)
    with torch.no_grad():
        assert (again.density().mean - best.mean).abs().mean() < 0.05
        assert again(x)["bpd"].mean().item() == pytest.approx(exact, abs=0.05)
        (rows,) = family.draws(NAME, config.build(module.Sample, params["sample"][NAME], NAME)).values()
        drawn = again.sample(Noise(0, 0, 300), rows)
        assert drawn.shape == (300, 3, 32, 32)
        assert ((drawn.mean(0) - best.mean) / best.stddev).abs().mean() < 0.2
        assert torch.equal(again.sample(Noise(0, 0, 1), replace(rows, temperature=0.0))[0], again.density().mean)


def test_the_example_keeps_the_contract(params, sprites, tmp_path):
    """Every test of tests/test_families.py that finds families by themselves, called by hand."""
    called = 0
    for test in (f for key, f in vars(contract).items() if key.startswith("test_")):
        wanted = set(inspect.signature(test).parameters)
        if wanted & {"model", "name"}:
            called += 1
            (folder := tmp_path / test.__name__).mkdir()
            model = conftest.build(*conftest.small(NAME)) if "model" in wanted else None
            have = {"model": model, "name": NAME, "sprites": sprites, "tmp_path": folder}
            test(**{key: have[key] for key in wanted})
    assert called >= 9


def test_the_stage_of_the_example_is_filled_in(params):
    text = deps.renewed(f"stages:\n{block('dvc.yaml, at the end')}")
    stage = YAML(typ="safe").load(text)["stages"][f"train_{NAME}"]
    assert {FILE, "src/pofx/models/pixels/gaussian.py", "stages/train.py", "data/train.npy"} <= set(stage["deps"])
    assert stage["params"] == [NAME, "seed"]
    whole = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]["train_vae"]
    assert str(stage["outs"] + stage["plots"]) == str(whole["outs"] + whole["plots"]).replace("vae", NAME)

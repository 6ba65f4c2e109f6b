"""CONTRIBUTING.md's example of a family: its blocks put into a copy of the project, its commands run there."""

import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import pofx.models
from pofx.base import config
from pofx.base.images import to_model
from pofx.base.rng import Noise
from pofx.models import store

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
NAME = "marginals"
FILE = f"src/pofx/models/{NAME}.py"


def block(head: str) -> str:
    """The code block of the page whose first line is the comment `head`, without that line."""
    found = re.findall(rf"^```\w+\n# {re.escape(head)}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"{len(found)} blocks begin with {head!r}"
    return found[0]


def replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
    return text.replace(old, new)


def run(command: str, folder: Path) -> str:
    """What the command prints in the copy, in this Python's environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PATH": path}
    done = subprocess.run(command, shell=True, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the example's blocks in their places."""
    root = tmp_path_factory.mktemp("project")
    for name in ("src", "stages", "presets", "tools", "tests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("params.yaml", "dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    (root / FILE).write_text(block(FILE))

    presets = root / "presets/default.yaml"
    text, named = re.subn(r"(?m)^models: \[(.*?)\]", rf"models: [\1, {NAME}]", presets.read_text())
    assert named == 1
    draw = block("presets/default.yaml, under sample:")
    text = replaced(text, "\nsample:\n", f"\n{block('presets/default.yaml, before sample:')}\nsample:\n{draw}")
    presets.write_text(replaced(text, "\nrows:\n", f"\nrows:\n{block('presets/default.yaml, under rows:')}"))
    dag = root / "dvc.yaml"
    dag.write_text(replaced(dag.read_text(), "\n  sample:\n", f"\n{block('dvc.yaml, before sample:')}\n  sample:\n"))
    run("python -m tools.compose", root)
    return root


def test_the_commands_of_the_page_pass(project):
    """All commands but the last: the golden losses are recorded, the contract holds, the stage lists what it reads."""
    commands = re.search(r"(?m)^```sh\n(python -m tools\.compose\b.*?)^```$", PAGE, re.DOTALL)[1].splitlines()
    assert commands[-1] == "make repro"
    printed = [run(command, project) for command in commands[:-1]]
    passed = [int(count[1]) for text in printed if (count := re.search(r"(\d+) passed", text))]
    assert len(passed) == 2 and passed[1] >= 12


def test_the_example_trains_and_draws(project, sprites, monkeypatch):
    (project / "data").mkdir()
    np.save(project / "data/train.npy", sprites.numpy())
    run(f"python -m tools.compose {NAME}.train.images=6400 {NAME}.train.lr=5e-2", project)  # fewer, longer steps
    run(f"python -m stages.train {NAME}", project)

    models = project / "src/pofx/models"
    monkeypatch.setattr(config, "MODELS", models)
    monkeypatch.setattr(pofx.models, "__path__", [*pofx.models.__path__, str(models)])
    importlib.invalidate_caches()
    model = store.load(project / "models" / NAME)
    x = to_model(torch.cat([sprites, sprites.flip(3)]))
    best = torch.distributions.Normal(x.mean(0), x.std(0))
    exact = -best.log_prob(x).mean().item() / math.log(2) + math.log2(255 / 2)
    sample = store.module(NAME).Sample
    with torch.no_grad():
        assert (model.density().mean - best.mean).abs().mean() < 0.05
        assert model(x)["bpd"].mean().item() == pytest.approx(exact, abs=0.05)
        drawn = model.sample(Noise(0, 0, 300), sample())
        assert drawn.shape == (300, *sprites.shape[1:])
        assert ((drawn.mean(0) - best.mean) / best.stddev).abs().mean() < 0.2
        assert torch.equal(model.sample(Noise(0, 0, 1), sample(temperature=0.0))[0], model.density().mean)

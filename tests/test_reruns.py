"""What an edit reruns, asked of DVC itself: the real dvc.yaml and source, with a stub in the place of every stage.

A stub writes its stage's outputs as a hash of all that dvc.yaml says it reads. Comments change no output, but for those
of a family's code, whose hash goes into its model; timings differ in every run; the output of check never does.
"""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from test_dag import ROOT, entries, resolved

STUB = """
import hashlib, json, pathlib, re, sys
name = sys.argv[1]
stage = json.loads(pathlib.Path("stubs.json").read_text())[name]
params = json.loads(pathlib.Path("params.yaml").read_text())
log = pathlib.Path("log")
if name == "check" and "bach" in params["fid"]:
    sys.exit("unknown key")
log.open("a").write(name + "\\n")

def read(path):
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    text = "".join(p.read_text() for p in files if p.suffix != ".pyc")
    code = path.parts[0] in ("src", "stages") and not name.startswith("train_")
    return re.sub("(?m)^#.*\\n", "", text) if code else text

def value(key):
    node = params
    for part in key.split("."):
        node = node[part]
    return node

inputs = [] if name == "check" else [read(pathlib.Path(d)) for d in stage["deps"]] + [value(k) for k in stage["params"]]
for out in map(pathlib.Path, stage["outs"]):
    file = out if out.suffix else out / "content"
    file.parent.mkdir(parents=True, exist_ok=True)
    run = log.read_text() if "time" in out.parts else ""
    file.write_text(hashlib.sha256(json.dumps([str(out), inputs, run]).encode()).hexdigest())
"""
# A few families and parameters: DVC's files of locks are YAML, and most of the time goes into reading them.
FAMILIES = ("vae", "ebm", "ncsn", "edm")
PARAMS: dict[str, Any] = {
    "seed": 0,
    "models": ["vae", "ncsn", "edm"],
    "train": {"lr": 1e-3},
    "sample": {"n": 64, "seeds": 1} | {family: {"steps": 9} for family in FAMILIES},
    "rows": {family: {} for family in FAMILIES},
    "sweep": {"models": ["ncsn", "edm"], "n": 64, "samplers": ["ddim"], "steps": [3]},
    "energy": {"models": ["ebm"], "n": 64, "chains": [0], "images": 64},
    **{family: {"n_sigmas": 10} for family in FAMILIES},
    **{section: {"batch": 25} for section in ("data", "preprocess", "fid", "likelihood", "probe")},
}
DAG = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
for name in [name for name in DAG["stages"] if name.startswith("train_") and name[6:] not in FAMILIES]:
    del DAG["stages"][name]
STAGES = resolved(DAG["stages"], PARAMS)
SAMPLES, FIDS = ({f"{stage}@{family}" for family in PARAMS["models"]} for stage in ("sample", "fid"))
SWEEPS, ENERGIES = {"sweep@ncsn", "sweep@edm"}, {"energy@ebm"}


class Repository:
    """A copy of the project in which everything is up to date, until it is edited."""

    def __init__(self, folder: Path):
        self.folder = folder

    def dvc(self, *words: str, fails: bool = False) -> str:
        environment = os.environ | {"DVC_SITE_CACHE_DIR": str(self.folder / ".site"), "DVC_NO_ANALYTICS": "1"}
        command = [sys.executable, "-m", "dvc", *words]
        ran = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert bool(ran.returncode) == fails, ran.stdout + ran.stderr
        return ran.stdout

    def ran(self, fails: bool = False) -> set[str]:
        """The stages whose commands `dvc repro` runs."""
        (self.folder / "log").write_text("")
        self.dvc("repro", fails=fails)
        return set((self.folder / "log").read_text().split())

    def stale(self) -> set[str]:
        """The stages of which an input differs, those that follow them left out."""
        return set(json.loads(self.dvc("status", "--json")))

    def put(self, key: str, value: Any) -> None:
        """Set a parameter, or add it."""
        path = self.folder / "params.yaml"
        tree = node = json.loads(path.read_text())
        *parents, last = key.split(".")
        for part in parents:
            node = node[part]
        node[last] = value
        path.write_text(json.dumps(tree))

    def edit(self, path: str, text: str = "EDITED = True") -> None:
        with (self.folder / "src/pofx" / path).open("r+") as file:  # it exists
            file.seek(0, 2)
            file.write(f"{text}\n")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reruns") / "repository"
    for name in ("src", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".dvcignore", folder)
    (folder / "params.yaml").write_text(json.dumps(PARAMS))  # which is YAML too
    (folder / "stub.py").write_text(STUB)
    dag = copy.deepcopy(DAG)
    for name, stage in dag["stages"].items():
        item = "@${item.model}" if "matrix" in stage else ""
        stage["cmd"] = f"{sys.executable} -S -E stub.py {name}{item}"
    with (folder / "dvc.yaml").open("w") as file:
        YAML().dump(dag, file)
    stubs = {
        name: {"deps": stage["deps"], "outs": list(entries(stage))}
        | {"params": [key for key in stage.get("params", []) if isinstance(key, str)]}
        for name, stage in STAGES.items()
    }
    (folder / "stubs.json").write_text(json.dumps(stubs))
    for kept in ("sweep", "energy"):
        (folder / "metrics" / kept).mkdir(parents=True)
    fresh = Repository(folder)
    fresh.dvc("init", "--no-scm", "--quiet")
    assert fresh.ran() == set(STAGES)
    return folder


@pytest.fixture
def repository(prepared, tmp_path) -> Repository:
    shutil.copytree(prepared, tmp_path / "repository")
    return Repository(tmp_path / "repository")


def test_nothing_changed(repository):
    assert not repository.stale()


def test_a_parameter_of_a_family(repository):
    repository.put("ncsn.n_sigmas", 232)
    assert repository.ran() == {"check", "train_ncsn", "sample@ncsn", "fid@ncsn", "sweep@ncsn", "report"}


def test_a_parameter_of_a_sampler(repository):
    repository.put("sample.edm.steps", 8)
    assert repository.ran() == {"check", "sample@edm", "fid@edm", "sweep@edm", "report"}


def test_a_sampler_that_draws_other_images(repository):
    repository.edit("sample/samplers.py")
    assert repository.ran() == {"check", "report"} | SAMPLES | FIDS | SWEEPS | ENERGIES


def test_a_sampler_that_draws_the_same_images(repository):
    repository.edit("sample/samplers.py", "# a comment")
    assert repository.ran() == {"check", "report"} | SAMPLES | SWEEPS | ENERGIES


def test_the_file_of_a_family(repository):
    repository.edit("models/edm.py", "# a comment")
    assert repository.ran() == {"check", "train_edm", "sample@edm", "fid@edm", "sweep@edm", "report"}


def test_a_metric(repository):
    repository.edit("score/measures.py")
    assert repository.ran() == {"check", "reference", "report"} | FIDS | SWEEPS | ENERGIES


def test_the_report(repository):
    repository.edit("report/page.py")
    assert repository.ran() == {"report"}


def test_the_rooms_below_every_training(repository):
    repository.edit("train/loop.py", "# a comment")
    assert repository.stale() == {"check"} | {f"train_{family}" for family in FAMILIES}
    repository.edit("base/rng.py", "# a comment")
    assert repository.stale() == set(STAGES)


def test_a_row_that_is_added(repository):
    repository.put("rows.edm.fast", {"steps": 8})
    assert repository.ran() == {"check", "sample@edm", "fid@edm", "report"}


def test_a_parameter_of_no_training(repository):
    repository.put("fid.batch", 7)
    assert repository.stale() == {"check", "reference"} | FIDS | SWEEPS | ENERGIES


def test_a_mistake_stops_all_before_anything_is_trained(repository):
    repository.put("ncsn.n_sigmas", 232)
    repository.put("fid.bach", 7)
    assert not repository.ran(fails=True)

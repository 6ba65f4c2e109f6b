"""dvc.yaml against the source: what a stage imports, reads and writes is what it declares; who may import whom."""

import ast
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from imports import ROOT, closure, direct, family
from ruamel.yaml import YAML

from pofx.base import config
from pofx.models import store

ITEM = "${item.model}"
DAG = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = DAG["stages"]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
FAMILIES = config.family_names()
TRAININGS = [f"train_{name}" for name in FAMILIES]
CMD = re.compile(r"python -m stages\.(\w+)(?: (\w+|\$\{item\.model\}))?")
# A room may import itself and these.
ROOMS = {
    "base": set(),
    "data": {"base"},
    "models": {"base"},
    "train": {"base", "models"},
    "sample": {"base", "models"},
    "score": {"base", "data", "models", "sample"},
    "report": {"base", "data", "models", "sample", "score"},
}
# Functions that read parameters for a main, and the keys that they read.
READERS = {"settings": {"train", "{}"}, "config.params": {"params.yaml"}}


def main(stage: dict[str, Any]) -> Path:
    return ROOT / "stages" / f"{CMD.fullmatch(stage['cmd'])[1]}.py"


def code(stage: dict[str, Any]) -> list[str]:
    return [dep for dep in stage["deps"] if dep.startswith(("stages/", "src/"))]


def holds(dep: str, path: Path) -> bool:
    """Whether a dep is the file or a folder with it."""
    return path.is_relative_to(ROOT / dep)


def undeclared(paths: set[Path], *deps: str) -> set[Path]:
    return {path for path in paths if not any(holds(dep, path) for dep in deps)}


def imported(name: str) -> set[Path]:
    """The files that a stage's code consists of, but for what a matrix learns by way of its model."""
    names = [name.removeprefix("train_")] if name in TRAININGS else []
    names = FAMILIES if name == "check" else names
    return closure(main(STAGES[name]), *map(family, names))


def entries(stage: dict[str, Any], *kinds: str) -> dict[str, dict[str, Any]]:
    """Paths of the stage's outputs of these kinds with their flags."""
    paths: dict[str, dict[str, Any]] = {}
    for kind in kinds or ("outs", "metrics", "plots"):
        for entry in stage.get(kind, []):
            paths |= entry if isinstance(entry, dict) else {entry: {}}
    return paths


def value(template: str, params: dict[str, Any] = PARAMS) -> Any:
    """What DVC puts in the place of `${dotted.key}`."""
    node = params
    for part in template.removeprefix("${").removesuffix("}").split("."):
        node = node[part]
    return node


def resolved(stages: dict[str, dict[str, Any]] = STAGES, params: dict[str, Any] = PARAMS) -> dict[str, dict[str, Any]]:
    """All stages, the matrices written out for every model."""

    def put(node: Any, model: str) -> Any:
        if isinstance(node, dict):
            return {put(k, model): put(v, model) for k, v in node.items()}
        if isinstance(node, list):
            return [put(v, model) for v in node]
        return node.replace(ITEM, model) if isinstance(node, str) else node

    items = {}
    for name, stage in stages.items():
        models = value(stage["matrix"]["model"], params) if "matrix" in stage else [None]
        items |= {f"{name}@{m}" if m else name: put(stage, m) if m else stage for m in models}
    return items


@pytest.mark.parametrize("name", STAGES)
def test_imports_lie_within_the_deps_and_every_dep_is_imported(name):
    files, deps = imported(name), code(STAGES[name])
    assert not undeclared(files, *deps)
    assert not [dep for dep in deps if not any(holds(dep, path) for path in files)]
    assert len(set(STAGES[name]["deps"])) == len(STAGES[name]["deps"])


def test_a_matrix_gets_the_code_of_a_family_by_way_of_its_model():
    """What only one family imports is a dep of train_<family>, and reaches sample@ and fid@ as a hash in the model."""
    for name, stage in STAGES.items():
        if "matrix" in stage:
            assert f"models/{ITEM}" in stage["deps"], name
    for name in FAMILIES:
        assert not undeclared(closure(family(name)), *STAGES[f"train_{name}"]["deps"])


def test_imports_at_run_time_are_declared():
    """The oracle of the closure: import every main, and every family, and look at what Python has loaded."""
    script = """
import os, sys, importlib
import numpy, torch, matplotlib.pyplot, pandas, jaxtyping, PIL.Image, safetensors.torch, scipy.stats
import stages
for words in sys.argv[1:]:
    if not os.fork():
        for module in words.split(","):
            importlib.import_module(module)
        mine = [m.__file__ for n, m in list(sys.modules.items()) if n.split(".")[0] in ("stages", "pofx")]
        print(words, *mine, flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, words
"""
    cases = {}
    for name, stage in resolved().items():
        item = CMD.fullmatch(stage["cmd"])[2]
        cases[",".join([f"stages.{main(stage).stem}", *([config.family_module(item)] if item else [])])] = name
    environment = os.environ | {"MPLBACKEND": "agg"}
    ran = subprocess.run(
        [sys.executable, "-c", script, *cases], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == len(cases)
    for line in lines:
        words, *loaded = line.split()
        name = cases[words]
        item = name.partition("@")[2]
        deps = resolved()[name]["deps"] + (STAGES[f"train_{item}"]["deps"] if item else [])
        files = {Path(f) for f in loaded if Path(f).name != "__init__.py" or Path(f).parent.name == "stages"}
        assert not undeclared(files, *deps), name


def test_packages_hold_a_docstring_alone():
    """So no stage need list the __init__.py of src/pofx and of src/pofx/models."""
    for path in (ROOT / "src").rglob("__init__.py"):
        assert len(ast.parse(path.read_text()).body) <= 1, path


@pytest.mark.parametrize("room", ROOMS)
def test_who_may_import_whom(room):
    allowed = [ROOT / "src/pofx" / name for name in ROOMS[room] | {room}]
    for path in (ROOT / "src/pofx" / room).rglob("*.py"):
        for other in direct(path) - {ROOT / "src/pofx/__init__.py"}:
            assert any(other.is_relative_to(folder) for folder in allowed), f"{path} imports {other}"


def test_every_file_lies_in_a_room():
    assert {p.name for p in (ROOT / "src/pofx").iterdir() if p.suffix or any(p.glob("*.py"))} == {*ROOMS, "__init__.py"}


def test_no_family_imports_another():
    for name in FAMILIES:
        others = {family(other) for other in FAMILIES} - {family(name)}
        assert not closure(family(name)) & others


def test_one_training_stage_for_every_family_and_only_for_these():
    assert [name for name in STAGES if name.startswith("train_")] == sorted(TRAININGS, key=list(STAGES).index)
    for name in FAMILIES:
        stage = STAGES[f"train_{name}"]
        assert stage["cmd"] == f"python -m stages.train {name}"
        assert f"models/{name}" in stage["outs"] and stage["params"] == ["seed", "train", name]
        needs = store.needs(name)
        assert [d for d in stage["deps"] if d.startswith("models/")] == ([f"models/{needs}"] if needs else [])
        assert "metrics/check.json" in stage["deps"]


def test_the_first_stage_reads_all_parameters():
    (first, *_) = STAGES
    assert first == "check" and STAGES[first]["params"] == [{"params.yaml": None}]
    assert "params.yaml" in read(main(STAGES[first]))
    assert "metrics/check.json" in STAGES["download"]["deps"], "a mistake is said before anything is fetched"


def read(path: Path) -> set[str]:
    """The keys that a main reads, {} for the family's name."""
    keys: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("config.section", "config.value"):
            pieces = node.args[0].values if isinstance(node.args[0], ast.JoinedStr) else [node.args[0]]
            keys.add("".join(p.value if isinstance(p, ast.Constant) else "{}" for p in pieces))
        keys |= READERS.get(called, set())
    return keys


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"check"}))
def test_params_are_those_that_the_main_reads(name):
    stage = STAGES[name]
    declared = stage.get("params", [])
    item = CMD.fullmatch(stage["cmd"])[2] or "*"  # where no family is given the main reads the same key of several
    patterns = {key.replace("{}", item) for key in read(main(stage))}
    assert not [key for key in declared if not any(fnmatch(key, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(fnmatch(key, pattern) for key in declared)]
    assert len(set(declared)) == len(declared)
    for key in declared:
        value(key.replace(ITEM, FAMILIES[0]))  # it exists


def test_only_mains_and_readers_read_parameters():
    readers = {"train/config.py", "base/config.py"}
    for path in (ROOT / "src/pofx").rglob("*.py"):
        if str(path.relative_to(ROOT / "src/pofx")) not in readers:
            assert not read(path), path
    for path in (ROOT / "stages").glob("*.py"):
        assert "params.yaml" not in path.read_text() or path.stem == "check", path


@pytest.mark.parametrize("name", STAGES)
def test_forms(name):
    stage = STAGES[name]
    allowed = {"desc", "matrix", "cmd", "deps", "params", "outs", "metrics", "plots"}
    assert set(stage) <= allowed, "always_changed and its like would switch the run cache off"
    assert stage["desc"]
    assert main(stage).is_file()  # `python -m stages.NAME [item]`: no parameter in the text, which DVC hashes
    lists = [{"model": f"${{{key}}}"} for key in ("models", "sweep.models", "energy.models")]
    assert "matrix" not in stage or stage["matrix"] in lists
    text = str({k: v for k, v in stage.items() if k != "matrix"}).replace(ITEM, "")
    assert "${" not in text, "templates other than the matrix's hide what a stage depends on"
    for path, flags in entries(stage).items():
        assert set(flags) <= {"cache", "x", "y"}, "persist would switch the run cache off"
        assert not Path(path).is_absolute() and ".." not in path and not path.startswith("runs"), path
    assert not any(entries(stage, "outs").values()), "an uncached entry of outs: would switch the run cache off"
    assert all(flags["cache"] is False for flags in entries(stage, "metrics", "plots").values()), "these are for git"


def test_what_is_in_git():
    assert [p for s in STAGES.values() for p in entries(s, "metrics")] == ["metrics/summary.json"]
    assert all(p.startswith("plots/") for s in STAGES.values() for p in entries(s, "plots"))
    assert not any(p.startswith("plots/") for s in STAGES.values() for p in entries(s, "outs"))


def test_every_input_is_made_by_a_stage_and_every_output_by_one():
    stages = resolved()
    outs = [path for stage in stages.values() for path in entries(stage)]
    assert len(set(outs)) == len(outs)
    for name, stage in stages.items():
        for dep in set(stage["deps"]) - set(code(stage)):
            assert any(dep == out or out.startswith(f"{dep}/") for out in outs), f"{name}: nothing makes {dep}"


def test_folders_that_a_matrix_without_models_leaves_empty_are_in_git():
    """The report depends on them: DVC would not run it where one is missing."""
    for name in ("sweep", "energy"):
        for path in entries(STAGES[name]):
            folder = Path(path.replace(ITEM, "x")).parent
            assert str(folder) in STAGES["report"]["deps"] and (ROOT / folder / ".gitkeep").is_file()


def test_a_duration_costs_no_computation():
    """Timings differ in every run, so only the report may depend on them."""
    users = {n for n, s in resolved().items() if any(d.startswith("metrics/time") for d in s["deps"])}
    assert users == {"report"}


def test_ignored_paths():
    git, dvc = ((ROOT / name).read_text().split() for name in (".gitignore", ".dvcignore"))
    scratch, made = ("runs/", ".venv/", "dvc_plots/"), ("data/", "models/", "samples/", "features/", "report/")
    assert {"__pycache__/", *(f"/{name}" for name in scratch + made)} <= set(git)
    assert {"__pycache__/", *scratch} <= set(dvc)
    settings = (ROOT / ".dvc" / "config").read_text()
    for setting in ("analytics = false", "check_update = false", "autostage = true"):
        assert setting in settings

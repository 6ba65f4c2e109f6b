"""dvc.yaml against the source: what a stage imports, reads and writes is what it declares."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pofx.base import config
from pofx.base.errors import UserError
from tools import compose, deps

ROOT = Path(__file__).resolve().parents[1]
ITEM = "${item.model}"
DAG = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
STAGES: dict[str, dict[str, Any]] = DAG["stages"]
PARAMS = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
CODE = ("stages/", "src/")


def entries(stage: dict[str, Any], *kinds: str) -> dict[str, dict[str, Any]]:
    """Paths of the stage's outputs of these kinds with their flags."""
    found: dict[str, dict[str, Any]] = {}
    for kind in kinds or ("outs", "metrics", "plots"):
        for entry in stage.get(kind, []):
            found |= entry if isinstance(entry, dict) else {entry: {}}
    return found


def value(template: str) -> Any:
    """What DVC puts in the place of `${dotted.key}`."""
    node = PARAMS
    for part in template.removeprefix("${").removesuffix("}").split("."):
        node = node[part]
    return node


def resolved() -> dict[str, dict[str, Any]]:
    """All stages, the matrices written out for every model."""

    def put(node: Any, model: str) -> Any:
        if isinstance(node, dict):
            return {put(k, model): put(v, model) for k, v in node.items()}
        if isinstance(node, list):
            return [put(v, model) for v in node]
        return node.replace(ITEM, model) if isinstance(node, str) else node

    found = {}
    for name, stage in STAGES.items():
        models = value(stage["matrix"]["model"]) if "matrix" in stage else [None]
        found |= {f"{name}@{m}" if m else name: put(stage, m) if m else stage for m in models}
    return found


@pytest.mark.parametrize("name", STAGES)
def test_code_deps_are_the_import_closure(name):
    declared = [d for d in STAGES[name]["deps"] if d.startswith(CODE)]
    assert declared == deps.code(STAGES[name]["cmd"]), "run `python -m tools.deps`"


@pytest.mark.parametrize("name", STAGES)
def test_params_are_those_that_the_main_reads(name):
    declared = STAGES[name].get("params", [])
    assert set(declared) == deps.params(STAGES[name]["cmd"]), "run `python -m tools.deps`"
    assert len(set(declared)) == len(declared)
    for key in declared:  # and they exist
        models = value(STAGES[name].get("matrix", {"model": "models"})["model"]) or config.family_names()
        value(key.replace(ITEM, models[0]))


def test_dvc_yaml_is_what_the_tool_would_write():
    text = (ROOT / "dvc.yaml").read_text()
    assert deps.renewed(text) == text, "run `python -m tools.deps`"


def test_a_matrix_gets_the_rest_of_a_family_by_way_of_its_model():
    """What only one family imports is a dep of train_<family>, and reaches sample@ and fid@ as a hash in the model."""
    for name, stage in STAGES.items():
        if "matrix" not in stage or f"src/pofx/families/{ITEM}.py" not in stage["deps"]:
            continue
        assert f"models/{ITEM}" in stage["deps"], name
        for family in config.family_names():
            files = {str(p.relative_to(ROOT)) for p in deps.closure(ROOT / f"src/pofx/families/{family}.py")}
            assert files <= set(STAGES[f"train_{family}"]["deps"])


def test_one_training_stage_for_every_family_and_only_for_these():
    trained = {name.removeprefix("train_"): stage for name, stage in STAGES.items() if name.startswith("train_")}
    assert sorted(trained) == config.family_names()
    for family, stage in trained.items():
        assert stage["cmd"] == f"python -m stages.train {family}"
        assert f"models/{family}" in stage["outs"]
        others = [f"families/{f}.py" for f in config.family_names() if f != family]
        assert not any(d.endswith(tuple(others)) for d in stage["deps"]), "a family imports another"


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
        main, item = deps.parts(stage["cmd"])
        lazy = [f"pofx.families.{item}"] if item else []
        cases[",".join([f"stages.{main.stem}", *lazy])] = name
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
        family = name.partition("@")[2]
        declared = set(resolved()[name]["deps"]) | set(resolved()[f"train_{family}"]["deps"] if family else [])
        assert {str(Path(f).relative_to(ROOT)) for f in loaded} <= declared, name


def test_only_mains_read_parameters():
    for path in (ROOT / "src").rglob("*.py"):
        assert not deps.read_keys(path), path
    for path in (ROOT / "stages").glob("*.py"):
        assert "params.yaml" not in path.read_text(), path


def test_sections_are_read_with_the_class_that_compose_checks():
    kinds = compose.schema()
    for path in (ROOT / "stages").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "config.section"):
                continue
            key, cls = node.args[0], ast.unparse(node.args[1]).rpartition(".")[2]
            if isinstance(key, ast.Constant):
                assert kinds[key.value].__name__ == cls, path
            else:  # a family's own
                assert cls == ("Sample" if "sample." in ast.unparse(key) else "Config"), path


def test_params_yaml_is_valid():
    compose.check(PARAMS)


@pytest.mark.parametrize("name", STAGES)
def test_forms(name):
    stage = STAGES[name]
    known = {"desc", "matrix", "cmd", "deps", "params", "outs", "metrics", "plots"}
    assert set(stage) <= known, "always_changed and its like would switch the run cache off"
    assert stage["desc"]
    main, _ = deps.parts(stage["cmd"])  # `python -m stages.NAME [item]`: no parameter in the text, which DVC hashes
    assert main.is_file()
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
        assert len(set(stage["deps"])) == len(stage["deps"])
        for dep in stage["deps"]:
            if not dep.startswith(CODE):
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


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A little repository with each way to import."""
    sources = {
        "stages/__init__.py": "",
        "stages/draw.py": "from pofx.core import family\nfrom pofx.core.rules import LIMIT\n",
        "stages/look.py": "import os\ndef main():\n    from pofx.eval import page\n",
        "src/pofx/__init__.py": "",
        "src/pofx/core/__init__.py": "",
        "src/pofx/models/family.py": 'import importlib\nlambda n: importlib.import_module(f"pofx.families.{n}")\n',
        "src/pofx/core/rules.py": "LIMIT = 3\n",
        "src/pofx/families/__init__.py": "",
        "src/pofx/families/one.py": "import pofx.nn.net\nfrom pofx.core import family\n",
        "src/pofx/families/two.py": "from . import one\n",
        "src/pofx/nn/__init__.py": "",
        "src/pofx/nn/net.py": "import torch\nfrom pofx.families import one\n",  # a circle
        "src/pofx/eval/__init__.py": "",
        "src/pofx/eval/page.py": 'NAME = "page.html.j2"\n',
        "src/pofx/eval/page.html.j2": "",
        "src/pofx/eval/unused.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(deps, "ROOT", tmp_path)
    return tmp_path


FAMILIES = "src/pofx/families"
CORE = ["src/pofx/__init__.py", "src/pofx/core/__init__.py", "src/pofx/models/family.py", "src/pofx/core/rules.py"]
NET = ["src/pofx/nn/__init__.py", "src/pofx/nn/net.py"]
PAGE = ["src/pofx/__init__.py", *(f"src/pofx/eval/{name}" for name in ("__init__.py", "page.html.j2", "page.py"))]
MAIN = ["stages/__init__.py", "stages/draw.py"]
CLOSURES = [
    ("draw", [*CORE, *MAIN]),
    ("draw one", [*CORE, f"{FAMILIES}/__init__.py", f"{FAMILIES}/one.py", *NET, *MAIN]),
    (f"draw {ITEM}", [*CORE, f"{FAMILIES}/{ITEM}.py", f"{FAMILIES}/__init__.py", *MAIN]),
    ("look", [*PAGE, "stages/__init__.py", "stages/look.py"]),
]


@pytest.mark.parametrize(("cmd", "files"), CLOSURES)
def test_closure_of_a_toy(toy: Path, cmd, files):
    assert deps.code(f"python -m stages.{cmd}") == files


def test_closure_refuses_what_it_cannot_follow(toy: Path):
    with pytest.raises(UserError, match="relative import"):
        deps.code("python -m stages.draw two")
    for cmd in ("python stages/draw.py", "python -m stages.draw one two", "python -m stages.draw ${models}"):
        with pytest.raises(UserError, match=re.escape(cmd)):
            deps.code(cmd)


def test_renewal_keeps_comments_data_and_order(toy: Path):
    (toy / "stages" / "draw.py").write_text('config.section(f"sample.{n}", S)\nconfig.value("n", int)\n')
    before = """# head
stages:
  draw:  # one
    cmd: python -m stages.draw one
    deps:
      - src/pofx/gone.py
      - data/b
      - data/a
    params: [n, gone]
    outs:
      - x: {cache: false}

  # look
  look:
    cmd: python -m stages.look
    deps:
      - data/a
    params: [gone]
"""
    after = deps.renewed(before)
    tree = YAML(typ="safe").load(after)["stages"]
    assert tree["draw"]["deps"][-2:] == ["data/b", "data/a"] and "src/pofx/gone.py" not in after
    assert tree["draw"]["params"] == ["n", "sample.one"] and "params" not in tree["look"]
    assert "# head" in after and "# one" in after and "  # look\n" in after and "- x: {cache: false}" in after

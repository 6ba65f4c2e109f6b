"""Several stages at a time, by DVC, in a repository whose stages only note when they ran."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import networkx as nx
import pytest
import torch
from dvc.repo import Repo
from fake_run import fake_metrics
from ruamel.yaml import YAML

from pofx.base import files
from pofx.base.errors import UserError
from stages import CORES
from tools import parallel

ROOT = Path(__file__).resolve().parents[1]
STAGE = """
import json, os, sys, time
from pathlib import Path
name, out, seconds = sys.argv[1:]
began = time.time()
print(f"{name} is at work", file=sys.stderr, flush=True)
if Path(f"break_{name}").exists():
    sys.exit(f"error: {name} breaks")
time.sleep(float(seconds))
if Path("together").is_dir() and name in ("vae", "edm"):  # each ends only if the other begins while it runs
    Path("together", name).touch()
    while len(list(Path("together").iterdir())) < 2:
        if time.time() > began + 60:
            sys.exit(f"error: {name} is alone")
        time.sleep(0.1)
Path(out).parent.mkdir(exist_ok=True)
told = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
Path(out).write_text(json.dumps(told | {"began": began, "ended": time.time()}))
"""


def entry(name: str, out: str, *deps: str, **more) -> dict:
    return {"cmd": f"{sys.executable} stage.py {name} {out} 0", "deps": list(deps), "outs": [out], **more}


MATRIX = {"matrix": {"model": "${models}"}}
TABLE = "report/index.html"  # its last line
SCORED = ("reference.json", "samples/${item.model}", "models/${item.model}")
DAG = {
    "sample": entry("sample", "samples/${item.model}", "models/${item.model}", **MATRIX),  # in no order that can run
    "preprocess": entry("preprocess", "data.json"),
    "explore": entry("explore", "explore.json", "data.json"),
    "reference": entry("reference", "reference.json", "data.json"),
    "train_vae": entry("vae", "models/vae", "data.json"),
    "train_vqvae": entry("vqvae", "models/vqvae", "data.json"),
    "train_vqprior": entry("vqprior", "models/vqprior", "data.json", "models/vqvae"),
    "train_edm": entry("edm", "models/edm", "data.json"),
    "train_ncsn": entry("ncsn", "models/ncsn", "data.json"),
    "fid": entry("fid", "scores/${item.model}", *SCORED, **MATRIX),
    "report": entry("report", "report.json", "models", "samples", "scores", "reference.json", "explore.json"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "stage.py").write_text(STAGE)
    (folder / "params.yaml").write_text("models: [vae, edm, vqprior]\n")
    with open(folder / "dvc.yaml", "w") as file:
        YAML().dump({"stages": DAG}, file)
    told = json.dumps(fake_metrics()).replace('"ebm"', '"edm"').replace('"ncsn"', '"vqprior"')
    files.write_json(folder / "metrics/reference.json", json.loads(told))
    for part in ("train/{}", "time/train_{}", "time/sample_{}", "fid/{}"):  # what the table is made of
        for model in ("vae", "edm", "vqprior"):
            files.write_json(folder / f"metrics/{part.format(model)}.json", {})
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    return folder


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "CUDA_", "OMP_"))}
    environment |= {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "DVC_SITE_CACHE_DIR": str(folder / "site")}
    command = [sys.executable, "-m", "tools.parallel", *arguments]
    how = {"cwd": folder, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=environment, **how)


def finished(process: subprocess.Popen) -> tuple[str, int]:
    return process.communicate(timeout=300)[0], process.returncode


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


def begun(output: str) -> set[str]:
    return set(re.findall(r"^(\S+) +\| begins", output, re.MULTILINE))


def rewrite(folder: Path, old: str, new: str) -> None:
    """Change the commands of dvc.yaml."""
    dag = YAML(typ="safe").load((folder / "dvc.yaml").read_text())
    for stage in dag["stages"].values():
        stage["cmd"] = re.sub(old, new, stage["cmd"])
    with open(folder / "dvc.yaml", "w") as file:
        YAML().dump(dag, file)


def test_stages_run_at_the_same_time_and_one_that_fails_is_named(repository):
    (repository / "break_vqvae").touch()
    (repository / "together").mkdir()
    output, code = finished(start(repository, "--gpus", "3,1"))
    assert code == 1, output
    failed = "train_vqvae (error: vqvae breaks; see " + str(repository / "runs/parallel/train_vqvae.log")
    lost = {"train_vqprior", "sample@vqprior", "fid@vqprior", "report"}
    assert failed in output and set(output.split("for want of these ")[1].split(". ")[0].split(", ")) == lost, output
    assert not (repository / "report.json").exists()
    vae, edm = (read(repository, f"models/{name}") for name in ("vae", "edm"))
    assert {vae["CUDA_VISIBLE_DEVICES"], edm["CUDA_VISIBLE_DEVICES"]} == {"1", "3"}
    assert vae["OMP_NUM_THREADS"] == str(max(1, CORES // 2))
    scored, reference = read(repository, "scores/vae"), read(repository, "reference.json")
    assert reference["ended"] <= scored["began"], "before what it rests on"

    assert re.search(r"^train_vae +\| vae is at work$", output, re.MULTILINE), "what a stage says, after its name"
    assert re.search(r"^train_vqvae +\| error: vqvae breaks$", output, re.MULTILINE)
    log = (repository / "runs/parallel/train_vae.log").read_text()
    assert log == "vae is at work\n", "what DVC says itself is left out"
    assert not re.search(r"^\S+ +\| *$", output, re.MULTILINE)


def test_a_single_worker_prints_as_it_comes_and_no_change_is_no_work(repository):
    (repository / "break_vqvae").unlink(missing_ok=True)
    shutil.rmtree(repository / "together", ignore_errors=True)
    done = (repository / "models/vae").read_bytes()
    output, code = finished(start(repository, "--workers", "1"))
    assert code == 0 and "\nvqvae is at work\n" in output, output
    assert (repository / "models/vae").read_bytes() == done, "what is up to date runs no more"
    vqvae, vqprior = (read(repository, f"models/{name}") for name in ("vqvae", "vqprior"))
    assert vqvae["ended"] <= vqprior["began"]
    assert vqvae["CUDA_VISIBLE_DEVICES"] is None and vqvae["OMP_NUM_THREADS"] is None
    assert not (repository / "models/ncsn").exists(), "which is none of the models that were asked for"
    assert (repository / "report.json").exists() and "report is at work" in output and TABLE in output

    for workers in ("1", "2"):
        output, code = finished(start(repository, "--workers", workers))
        assert code == 0 and TABLE in output and "at work" not in output and not begun(output), output


def test_what_has_changed_and_what_rests_on_it_runs(repository):
    rewrite(repository, "edm models/edm .*", "edm models/edm 0.1")
    output, code = finished(start(repository, "--workers", "2"))
    assert code == 0 and begun(output) == {"train_edm", "sample@edm", "fid@edm", "report"}, output
    assert "4 of 4" in output and "report is at work" in output
    rewrite(repository, "(report report.json) .*", r"\1 0.0")
    output, code = finished(start(repository, "--workers", "2"))
    assert code == 0 and begun(output) == {"report"} and "report is at work" in output, output
    rewrite(repository, "(report report.json) .*", r"\1 0")
    rewrite(repository, "edm models/edm .*", "edm models/edm 0")
    output, code = finished(start(repository, "--workers", "2"))
    assert code == 0 and "at work" not in output and TABLE in output, f"all is in the cache\n{output}"


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_stops_when_it_is_asked_to(repository, workers):
    rewrite(repository, "(vae|edm) (models/.*) .*", rf"\1 \2 3{workers}.0")
    process = start(repository, "--workers", workers)
    began = time.monotonic()
    for line in process.stdout:
        if "is at work" in line:
            break
    process.send_signal(signal.SIGTERM)
    output, code = finished(process)
    assert code == 1 and time.monotonic() - began < 30 and "the same command goes on" in output, output
    assert "error: stopped with 0 of 11 stages done" in output, output


def test_how_many_workers(monkeypatch):
    for gpus in ("", "0,0", "0,x", "-1", "0,"):
        with pytest.raises(UserError, match="should be different numbers of GPUs, such as 0,1"):
            parallel.workers(gpus, 2)
    with pytest.raises(UserError, match="WORKERS = 0 should be 1 or more"):
        parallel.workers(None, 0)

    for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "NPROC"):
        monkeypatch.delenv(name, raising=False)
    there = 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    for cores, workers, threads in ((1, 1, None), (2, 2, "1"), (4, 4, "1"), (8, 4, "2"), (64, 4, "16")):
        monkeypatch.setattr(parallel, "CORES", cores)
        share = {"OMP_NUM_THREADS": threads} if threads else {}
        assert parallel.workers(None, None) == [share] * workers
    assert parallel.workers(None, 1) == [{}], "all cores, as PyTorch chooses"
    monkeypatch.setenv("NPROC", "2")
    assert parallel.workers(None, None) == [{}], "its processes share the machine"
    monkeypatch.delenv("NPROC")

    there = 1
    assert parallel.workers(None, None) == [{"CUDA_VISIBLE_DEVICES": "0"}]
    there = 2
    two = parallel.workers(None, None)
    assert two == [{"OMP_NUM_THREADS": "32", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8f3a,GPU-77c1,GPU-none")  # PyTorch sees those before a wrong one
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    two = parallel.workers(None, None)
    assert two == [{"OMP_NUM_THREADS": "5", "CUDA_VISIBLE_DEVICES": gpu} for gpu in ("GPU-8f3a", "GPU-77c1")]
    assert parallel.workers("3", None) == [{"CUDA_VISIBLE_DEVICES": "3"}]


@pytest.mark.filterwarnings("ignore:_NoneStep:DeprecationWarning")  # in a library of DVC's
def test_stages_of_the_project_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    parameters = YAML(typ="safe").load((ROOT / "params.yaml").read_text()) | {"models": ["vqprior", "edm"]}
    (tmp_path / "params.yaml").write_text(json.dumps(parameters))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], check=True)
    with Repo() as repo:
        graph = nx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)
    needs = parallel.plan(graph, set(graph))
    assert {"preprocess", "train_vqvae"} <= needs["train_vqprior"] and "train_vae" not in needs
    assert {"preprocess", "reference", "train_edm", "sample@edm"} <= needs["fid@edm"]
    length = parallel.chains(needs)
    assert all(length[need] > length[stage] for stage in needs for need in needs[stage])
    assert length["train_vqprior"] == 4 > length["reference"] > length["explore"] > length["report"] == 1


def test_what_has_changed_and_what_rests_on_it():
    graph = nx.DiGraph([("train_a", "data"), ("train_b", "data"), ("sample@a", "train_a"), ("report", "sample@a")])
    graph.add_edge("report", "train_b")
    assert parallel.plan(graph, set()) == {}
    assert parallel.plan(graph, {"report"}) == {"report": set()}
    assert parallel.plan(graph, {"train_b"}) == {}, "a family that nobody asked for"
    assert parallel.plan(graph, {"train_a"}) == {"train_a": set(), "sample@a": {"train_a"}, "report": {"sample@a"}}
    assert set(parallel.plan(graph, {"data"})) == {"data", "train_a", "sample@a", "report"}

"""Several families at a time, by DVC, in a repository whose stages only note when they ran."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pofx.core import config
from pofx.core.errors import UserError
from tools import parallel

ROOT = Path(__file__).resolve().parents[1]
STAGE = """
import json, os, sys, time
from pathlib import Path
name, out, *seconds = sys.argv[1:]
began = time.time()
if Path(f"break_{name}").exists():
    sys.exit(f"error: {name} breaks")
time.sleep(float(seconds[0]) if seconds else 0)
Path(out).parent.mkdir(exist_ok=True)
told = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
Path(out).write_text(json.dumps(told | {"began": began, "ended": time.time()}))
"""


def entry(name: str, out: str, *deps: str, seconds: float = 0, **more) -> dict:
    return {"cmd": f"{sys.executable} stage.py {name} {out} {seconds}", "deps": list(deps), "outs": [out], **more}


MATRIX = {"matrix": {"model": "${models}"}}
DAG = {
    "preprocess": entry("preprocess", "data.json"),
    "train_vae": entry("vae", "models/vae", "data.json", seconds=3),
    "train_vqvae": entry("vqvae", "models/vqvae", "data.json"),
    "train_vqprior": entry("vqprior", "models/vqprior", "data.json", "models/vqvae"),
    "train_edm": entry("edm", "models/edm", "data.json", seconds=3),
    "sample": entry("sample", "samples/${item.model}", "models/${item.model}", **MATRIX),
    "train_ncsn": entry("ncsn", "models/ncsn", "data.json"),
    "explore": entry("explore", "explore.json", "data.json"),
    "reference": entry("reference", "reference.json", "data.json"),
    "report": entry("report", "report.json", "models", "samples", "reference.json", "explore.json"),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "stage.py").write_text(STAGE)
    (folder / "params.yaml").write_text("models: [vae, edm, vqprior]\n")
    with open(folder / "dvc.yaml", "w") as file:
        YAML().dump({"stages": DAG}, file)
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


def test_families_run_at_the_same_time_and_one_that_fails_is_named(repository):
    (repository / "break_vqvae").touch()
    output, code = finished(start(repository, "--gpus", "3,1"))
    assert code == 1 and "error: vqvae breaks" in output, output
    assert "vqvae (exit code" in output and "vqprior (vqvae, which it needs, failed)" in output
    assert not (repository / "report.json").exists()
    vae, edm = (read(repository, f"models/{name}") for name in ("vae", "edm"))
    assert vae["began"] < edm["ended"] and edm["began"] < vae["ended"], "one after the other"
    assert {vae["CUDA_VISIBLE_DEVICES"], edm["CUDA_VISIBLE_DEVICES"]} <= {"1", "3"}

    (repository / "break_vqvae").unlink()
    output, code = finished(start(repository, "--workers", "1"))
    assert code == 0, output
    assert read(repository, "models/vae") == vae, "what is up to date runs no more"
    vqvae, vqprior = (read(repository, f"models/{name}") for name in ("vqvae", "vqprior"))
    assert vqvae["ended"] <= vqprior["began"] and vqvae["CUDA_VISIBLE_DEVICES"] is None
    assert vqvae["OMP_NUM_THREADS"] == str(os.cpu_count())
    assert (repository / "report.json").exists()
    assert not (repository / "models/ncsn").exists(), "which is none of the models that were asked for"


def test_it_stops_when_it_is_asked_to(repository):
    (repository / "stage.py").write_text(STAGE + "# edited\n")
    dag = YAML(typ="safe").load((repository / "dvc.yaml").read_text())
    for stage in dag["stages"].values():
        stage["cmd"] = re.sub(r" 3$", " 30.0", stage["cmd"])
    with open(repository / "dvc.yaml", "w") as file:
        YAML().dump(dag, file)
    process = start(repository, "--workers", "1")
    began = time.monotonic()
    for line in process.stdout:
        if line.startswith("vae: "):
            break
    process.send_signal(signal.SIGTERM)
    output, code = finished(process)
    assert code == 1 and "edm (stopped before it began)" in output and time.monotonic() - began < 30, output


def test_what_is_no_gpu_or_no_worker_is_refused():
    for gpus in ("", "0,0", "0,x", "-1", "0,"):
        with pytest.raises(UserError, match="should be different numbers of GPUs, such as 0,1"):
            parallel.workers(gpus, 2)
    with pytest.raises(UserError, match="WORKERS = 0 should be 1 or more"):
        parallel.workers(None, 0)


def test_jobs_of_the_project(monkeypatch):
    monkeypatch.chdir(ROOT)
    config.params.cache_clear()
    dag = YAML(typ="safe").load(Path("dvc.yaml").read_text())["stages"]
    found = parallel.jobs(dag, ("vqprior", "edm"), Path("logs"))
    assert found["vqvae"].stages == ["train_vqvae"] and found["vqprior"].needs == {"vqvae"}
    assert found["edm"].stages == ["train_edm", "sample@edm", "fid@edm", "sweep@edm"]
    asked = parallel.targets(dag, ("vqprior", "edm"))
    assert asked[0] == "explore" and {target.partition("@")[0] for target in asked[1:]} == {"fid", "sweep", "energy"}
    assert parallel.targets(dag, ("vae", "vqprior", "ebm", "ncsn", "ddpm", "edm")) == []  # vqprior needs vqvae

"""The whole pipeline under DVC, on 64 smileys in a clone of the working tree: what runs, and what a crash costs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tools import compose

ROOT = Path(__file__).resolve().parents[1]
N = 64
FAMILIES = ("vae", "ebm", "ncsn", "ddpm", "edm", "vqprior")
NET = {"channels": 8, "multipliers": [1, 2], "attention": [], "patch": 4}
TINY = [
    "ebm-igebm", f"data.smileys.n_train={N}", f"data.smileys.n_test={N}", f"sample.n={N}", "sample.seeds=2",
    f"fid.n_reference={N}", "fid.batch=32", "fid.kid_subsets=2", "fid.kid_subset_size=32",
    "vae.channels=[8,8,8]", "vae.latent=8", "vqvae.channels=8", "vqvae.codes=8", "vqvae.dim=4",
    "vqprior.width=8", "vqprior.layers=1",
    "ebm.net.channels=8", "ebm.net.patch=4", "ebm.contrast.buffer=64", "ebm.chain=2",
    *(f"{f}.net.{key}={value}" for f in ("ncsn", "ddpm", "edm") for key, value in NET.items()), "ncsn.n_sigmas=4",
    f"models=[{','.join(FAMILIES)}]", "sweep.models=[ncsn,ddpm,edm]",
    "sample.ebm.chain=2", "sample.ddpm.steps=3", "sample.edm.steps=3",
    "likelihood.images=4", "likelihood.importance=2", "likelihood.terms=3", "likelihood.ode_steps=2",
    "sweep.n=16", "sweep.samplers=[ddim]", "sweep.steps=[2]",
    "energy.n=16", "energy.images=32", "energy.chains=[0,2]",
    "train.save_seconds=0.0",
    *(f"{f}.train.{key}={value}" for f in (*FAMILIES, "vqvae") for key, value in
      {"images": 800 if f == "ebm" else 64, "batch": 16, "rows": 100, "preview_rows": 0,
       "validation": 16 if f == "vqprior" else 0}.items()),
]  # fmt: skip
CHAIN = "check train_{0} sample@{0} fid@{0} report"
DENOISER = f"{CHAIN} sweep@{{0}}"
ENERGY = f"{CHAIN} energy@{{0}}"


class Clone:
    """A repository with the project's files as they are now, and a tiny params.yaml."""

    def __init__(self, folder: Path):
        self.folder = folder / "pofx"
        self.params = self.folder / "params.yaml"
        mine = ("DVC_", "GIT_", "PYTHONPATH", "FRESH")
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(mine)} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",  # tensors are tiny, and threads that wait for each other slow on a busy machine
            "DVC_SITE_CACHE_DIR": str(folder / "site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
        }
        listed = subprocess.check_output(["git", "ls-files", "-coz", "--exclude-standard"], cwd=ROOT, text=True)
        for name in filter(None, listed.split("\0")):
            made = name == "dvc.lock" or name.startswith(("metrics/", "plots/", "results/", "weights/"))
            if not made and (ROOT / name).is_file():  # a file deleted in the working tree is still listed
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        self.params.write_text(compose.text(TINY))
        self("git init -q -b main")
        self("git config user.name test")
        self("git config user.email test@localhost")
        self.commit()

    def __call__(self, command: str, code: int = 0) -> str:
        """Run a command to its end; what it wrote to stdout and stderr."""
        done = subprocess.run(self._words(command), **self._how(), timeout=900)  # a whole pipeline, on a busy machine
        assert (done.returncode == 0) is (code == 0), f"{command}: exit code {done.returncode}\n{done.stdout}"
        return done.stdout

    def kill(self, command: str, state: str) -> None:
        """Start a command, and kill -9 it and its children as soon as a new file matches `state`."""
        old = set(self.folder.glob(state))
        process = subprocess.Popen(self._words(command), **self._how(), start_new_session=True)
        try:
            until = time.monotonic() + 120
            while not set(self.folder.glob(state)) - old:
                assert process.poll() is None, f"{command} ended by itself\n{process.stdout.read()}"
                assert time.monotonic() < until, f"{command} wrote no {state}"
                time.sleep(0.005)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def commit(self) -> None:
        self("git add -A")
        self("git commit -q -m test --allow-empty")

    def restore(self) -> None:
        """Back to the last commit, outputs included."""
        self("git checkout -q -- .")
        self("dvc checkout -q --force")

    def bytes(self, *names: str) -> list[bytes]:
        return [(self.folder / name).read_bytes() for name in names]

    def _words(self, command: str) -> list[str]:
        first, *rest = command.split()
        return [sys.executable, "-m", "dvc", *rest] if first == "dvc" else [first, *rest]

    def _how(self) -> dict:
        return {"cwd": self.folder, "env": self.environment, "text": True,
                "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}  # fmt: skip


def ran(output: str) -> set[str]:
    """Stages that DVC ran, not those that it took from its cache."""
    return set(re.findall(r"Running stage '([^']+)'", output))


def resumed(output: str) -> int:
    """The images seen with which a training stage went on; 0: it began anew."""
    found = re.search(r"^train from ([\d,]+) of", output, re.MULTILINE)
    return int(found[1].replace(",", "")) if found else 0


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The pipeline run once; every test leaves it as it found it."""
    made = Clone(tmp_path_factory.mktemp("pipeline"))
    dag = made.bytes("dvc.yaml")
    made("dvc repro")
    assert made.bytes("dvc.yaml") == dag
    made.commit()
    return made


def test_outputs(clone: Clone):
    for family in FAMILIES:
        for stem in (family, f"{family}.seed1"):
            images = np.load(clone.folder / f"samples/{family}/{stem}.npy")
            assert images.shape == (N, 3, 32, 32) and images.dtype == np.uint8
        card = json.loads((clone.folder / f"models/{family}/model.json").read_text())
        assert card["family"] == family and card["provenance"]["code"], "see the head of dvc.yaml"
    summary = json.loads((clone.folder / "metrics/summary.json").read_text())
    assert set(summary["fd_effnet"]) == {"vae-mixture", "ebm-fresh", "edm-stochastic", *FAMILIES}, "every row"
    scored = [json.loads((clone.folder / f"metrics/fid/{f}.json").read_text())["fd_effnet"] for f in FAMILIES]
    assert {"vae-mixture", "ebm-fresh", *FAMILIES} <= {row for rows in scored for row in rows}
    assert all(np.isfinite(v) for rows in scored for v in rows.values())
    html = (clone.folder / "report/index.html").read_text()
    assert "<html" in html and '<select id="seed">' in html and html.count('data-seed="1"') >= 2 * len(FAMILIES)
    trained = json.loads((clone.folder / "metrics/time/train_vae.json").read_text())["trained"]["vae"]
    assert not trained["changed"] and trained["revision"] in html and trained["data"] in html
    made = [p for p in (clone.folder / "metrics").rglob("*.json")]
    keys = [(k, m) for p in made if p.name != "summary.json" for k, v in json.loads(p.read_text()).items()
            if k not in ("protocol", "config") and isinstance(v, dict) for m in v]  # fmt: skip
    assert len(set(keys)) == len(keys), "a metric is in two files"
    small = subprocess.check_output(["git", "ls-files", "-z"], cwd=clone.folder, text=True).split("\0")[:-1]
    assert max((clone.folder / name).stat().st_size for name in small) < 1_000_000
    assert not [n for n in small if n.startswith(("data/", "models/", "samples/", "features/", "report/", "runs/"))]
    assert [n for n in small if n.startswith("metrics/")] == ["metrics/summary.json"]


def test_again_is_a_no_op(clone: Clone):
    before = clone.bytes("dvc.lock", "params.yaml")
    output = clone("dvc repro")
    assert ran(output) == set() and "up to date" in output and "WARNING" not in output
    assert clone.bytes("dvc.lock", "params.yaml") == before
    assert "up to date" in clone("dvc status")
    assert clone("git status --porcelain") == ""


def test_one_family_and_back(clone: Clone):
    """`dvc exp run` retrains one family; setting the value back restores it from the run cache."""
    kept = ("dvc.lock", "metrics/summary.json", "metrics/time/train_ncsn.json", "plots/samples/ncsn/ncsn.png")
    before = clone.bytes(*kept)
    output = clone("dvc exp run -n more -S ncsn.n_sigmas=6")
    assert ran(output) == set(DENOISER.format("ncsn").split())
    assert clone.bytes(*kept)[0] != before[0]
    table = clone("dvc metrics diff")
    assert "fd_effnet.ncsn" in table and "fd_effnet.vae" not in table
    output = clone("dvc exp run -n back -S ncsn.n_sigmas=4")
    assert ran(output) == set()
    assert clone.bytes(*kept) == before
    clone.restore()


def test_a_row_that_is_added_is_drawn_alone(clone: Clone):
    before = clone.bytes("samples/edm/edm.npy", "metrics/sweep/edm.json")
    output = clone("dvc exp run -n row -S +rows.edm.fast.steps=2")
    assert ran(output) == {"check", "sample@edm", "fid@edm", "report"}
    assert set(re.findall(r"^(sample|features) (\S+):", output, re.MULTILINE)) == {
        (what, f"edm-fast{seed}") for what in ("sample", "features") for seed in ("", ".seed1")
    }
    assert clone.bytes("samples/edm/edm.npy", "metrics/sweep/edm.json") == before
    assert "edm-fast" in json.loads((clone.folder / "metrics/summary.json").read_text())["fd_effnet"]
    clone.restore()


def test_a_typo_stops_before_anything_is_lost(clone: Clone):
    text = clone.params.read_text()
    clone.params.write_text(text.replace("n_sigmas:", "n_sigma:"))
    output = clone("dvc repro", code=1)
    assert "error: unknown key 'n_sigma' in ncsn: did you mean n_sigmas?" in output and "Traceback" not in output
    assert ran(output) == {"check"}
    clone.params.write_text(text)
    assert ran(clone("dvc repro")) == set()
    assert clone("git status --porcelain") == ""


def test_kill_and_resume_is_bitwise(clone: Clone):
    files = "models/ebm/model.safetensors", "plots/curves/ebm.csv"
    undisturbed = clone.bytes(*files)
    shutil.rmtree(clone.folder / "runs" / "train_ebm")
    clone.kill("dvc repro -f -s train_ebm", "runs/train_ebm/*/state.pt")
    assert not any((clone.folder / name).exists() for name in files), "outputs are written at the end"
    assert resumed(clone("dvc repro -f -s train_ebm")) > 0
    assert clone.bytes(*files) == undisturbed
    clone.restore()


def test_temporary_clone(clone: Clone):
    """`dvc exp run --temp` runs its own clone's code, goes on after a crash, and redoes an edited network's family."""
    network = clone.folder / "src/pofx/models/ebm/network.py"
    network.write_text(network.read_text() + '\nprint(f"network: {__file__}")\n')
    command = "dvc exp run --temp -n edited"
    clone.kill(command, "runs/train_ebm/*/state.pt")
    output = clone(command)
    # What the killed clone had ended, such as check, comes from the run cache.
    assert ran(output) - {"check"} == set(ENERGY.format("ebm").split()) - {"check"}
    files = set(re.findall(r"^network: (.*)$", output, re.MULTILINE))
    assert files and all(f.startswith(str(clone.folder / ".dvc" / "tmp" / "exps")) for f in files)
    assert resumed(output) > 0, "the temporary clone that was killed is gone, but not the state"
    clone.restore()

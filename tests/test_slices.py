"""Training in slices: a dry run on a CPU, on a machine without DVC, and what is taken away."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from pofx.base import files, machine
from tools import slices

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "data.smileys.n_train=64", "data.smileys.n_test=64", "sample.n=64", "sample.edm.steps=3",
    "fid.n_reference=64", "fid.batch=32", "fid.kid_subsets=2", "fid.kid_subset_size=32",
    "likelihood.images=4", "likelihood.ode_steps=2", "edm.train.batch=16", "edm.train.images=64",
    "edm.net.channels=8", "edm.net.attention=[]", "edm.net.patch=4",
]  # fmt: skip


@pytest.fixture
def command(tmp_path):
    """The tool as a process, in a machine's own runs/, where an import of DVC fails."""
    (tmp_path / "site/dvc").mkdir(parents=True)
    (tmp_path / "site/dvc/__init__.py").write_text('raise ImportError("no DVC here")')
    mine = {"DVC_ROOT": str(tmp_path), "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def start(minutes: float, *words: str) -> subprocess.Popen:
        line = [sys.executable, "-m", "tools.slices", *TINY, *words, "--minutes", str(minutes)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen([*line, "--out", str(tmp_path / "away")], cwd=ROOT, env=os.environ | mine, **pipes)

    return start


def end(process: subprocess.Popen) -> tuple[int, str]:
    said = process.communicate(timeout=600)[0]
    return process.returncode, said


def unpacked(away: Path) -> tuple[dict, dict[str, bytes]]:
    """The manifest, and the files of the parts joined."""
    told = json.loads((away / "manifest.json").read_text())
    assert {path.name for path in away.iterdir()} == {"manifest.json", *told["files"]}
    assert all(files.digest(away / name) == part["sha256"] for name, part in told["files"].items())
    joined = b"".join((away / name).read_bytes() for name in sorted(told["files"]))
    with tarfile.open(fileobj=io.BytesIO(joined)) as tar:
        return told, {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}


def test_a_training_in_slices(command, tmp_path):
    """First a step of training, whose weights are taken away too; then the rest, from the second step on."""
    code, said = end(command(0))
    assert code == slices.LEFT and "stopped at 16 of 64 images" in said, said
    told, found = unpacked(tmp_path / "away")
    assert told["left"] == ["train edm", "sample edm", "reference", "fid edm"] and told["images"] == 16
    card = json.loads(found["weights/edm/model.json"])
    assert card["provenance"]["unfinished"] == "after 16 of 64 images" and card["kept"]["images"] == 16
    first = load(found["weights/edm/model.safetensors"])

    code, said = end(command(10))
    assert code == 0 and "train from 16 of 64 images" in said, said
    told, found = unpacked(tmp_path / "away")
    assert told["left"] == [] and told["images"] == 64 and told["images_per_second"] > 0
    cpu = torch.device("cpu")  # the precision is the default, auto
    assert told["dtype"] == machine.arithmetic(cpu, machine.precision("auto", cpu))["dtype"]
    assert told["device"] and {"revision", "torch"} <= told.keys()
    card = json.loads(found["weights/edm/model.json"])
    assert "unfinished" not in card["provenance"] and card["kept"]["metrics"]["fd_effnet"] > 0
    assert card["kept"]["protocol"]["N"] == 64 and card["kept"]["data"] == "smileys"
    assert any((first[key] != value).any() for key, value in load(found["weights/edm/model.safetensors"]).items())
    pictures = {"plots/progress/edm.png", "plots/samples/edm/edm.png", "weights/edm/sheet.png"}
    assert {"params.yaml", "plots/curves/edm.csv", "metrics/fid/edm.json", *pictures} <= found.keys()


def test_a_signal_ends_the_training_and_keeps_it(command, tmp_path):
    process = command(10, "edm.train.images=1000000")
    until = time.monotonic() + 120
    while not list(tmp_path.glob("runs/train_edm/*/lock")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 128 + signal.SIGTERM
    told, found = unpacked(tmp_path / "away")
    assert told["left"][0] == "train edm" and told["images"] > 0 and "weights/edm/model.safetensors" in found


def test_parts_are_small_and_join(tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "PART", 10_000)
    (tmp_path / "run/weights").mkdir(parents=True)
    for size in (50_000, 1000):  # the parts of an earlier call, that were more, do not stay
        (tmp_path / "run/weights/model").write_bytes(content := os.urandom(size))
        slices.take_away(tmp_path / "run", tmp_path / "away", {"family": "edm"})
        told, found = unpacked(tmp_path / "away")
        assert found == {"weights/model": content} and told["family"] == "edm"
        assert all(part["bytes"] <= 10_000 for part in told["files"].values())

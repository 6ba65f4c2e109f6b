"""Two processes train, draw and measure what one does. They are started once, and do all that several tests look at."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build, defaults, pool, slot, weights

from pofx.base import config, dist, files, machine, rng
from pofx.base.errors import UserError
from pofx.data.sprites import generate
from pofx.models import store
from pofx.train import loop
from pofx.train.config import Train
from stages import fid, processes, sample

ROOT = Path(__file__).resolve().parents[1]
UNET = {"channels": 8, "attention": [], "patch": 4}
CONTRAST = {"objective": "contrast", "chain": 2}
ICD = {"buffer": 128, "augment": 0.1, "kl": 1.0, "entropy": 0.3}
TINY = {
    "vae": {"channels": [8, 8, 8], "latent": 8, "components": 0},
    "vqvae": {"channels": 8, "codes": 16, "dim": 4},
    "vqprior": {"width": 8, "layers": 1, "heads": 2},
    "ncsn": {"n_sigmas": 4, "net": UNET},
    "ddpm": {"timesteps": 40, "net": UNET},
    "edm": {"net": UNET},
    "ebm": {"net": {"channels": 8}, "recovery": {"levels": 4}},
}
CASES = {  # case -> what differs from a tiny model of the family, and from the budget
    "vae": ({"importance": 3}, {}),
    "vae-free": ({"free_bits": 0.5, "kl_warmup": 40}, {}),
    "vqvae": ({}, {"accumulate": 2}),
    "vqprior": ({}, {"validation": 8, "patience": 2}),
    "ncsn": ({}, {}),
    "ddpm": ({"net": UNET | {"dropout": 0.2}, "guide": 0.5}, {"validation": 8}),
    "edm": ({}, {"accumulate": 2}),
    "edm-muon": ({}, {"optimizer": "muon"}),
    "ebm": ({}, {}),
    "ebm-chain": ({"chain": 2}, {}),
    "ebm-igebm": (CONTRAST | {"net": {"channels": 8, "spectral": True}, "contrast": {"buffer": 128}}, {}),
    "ebm-icd": (CONTRAST | {"net": {"channels": 8, "spectral": True, "scales": 2}, "contrast": ICD}, {}),
}
BUDGET = {"images": 80, "batch": 8, "rows": 10, "lr": 1e-3, "warmup": 0, "save_seconds": 0.0, "preview_rows": 0}
BUDGET |= {"optimizer": "adam", "precision": "fp32"}
STOPPED = "ebm-igebm"  # it has most of what a state can hold
# What counts as rounding in a curve: 1e-4 of a gradient's norm was seen, without AVX. Absolute as well: a loss that is
# a difference of energies may be near zero, and its rounding is relative to the energies, which are of order one.
ROUNDING = {"rel": 1e-3, "abs": 1e-4}


def train(case: str, folder: Path, stop=lambda: False):
    name, (differs, budget) = case.split("-")[0], CASES[case]
    module, settings = store.module(name), Train(**BUDGET | budget)
    model = build(module, config.build(module.Config, TINY[name] | differs, name))
    images = torch.from_numpy(generate(128, seed=7)[0])
    with slot(folder / case) as held:
        curve, *_ = loop.train(model, pool(images, settings), settings, loop.Run(0, held, stop))
    return curve, weights(model)


def stopped(folder: Path, by: int) -> None:
    """Train until the process `by` is asked to stop, after three steps of ten."""
    asked = iter([False, False, dist.rank() == by])
    with pytest.raises(loop.Stopped, match="stopped at 24 of 80 images"):
        train(STOPPED, folder, lambda: next(asked))


def keep(found: tuple, folder: Path, name: str) -> None:
    curve, weights = found
    (folder / f"{name}-{dist.rank()}.json").write_text(json.dumps(curve))
    np.savez(folder / f"{name}-{dist.rank()}.npz", **weights)


def kept(folder: Path, name: str, rank: int = 0) -> tuple:
    with np.load(folder / f"{name}-{rank}.npz") as found:
        return json.loads((folder / f"{name}-{rank}.json").read_text()), dict(found)


def work(folder: Path) -> None:
    """In each of the processes."""
    torch.set_num_threads(1)
    for case in CASES:
        keep(train(case, folder), folder, case)
    stopped(folder / "parts", by=1)
    with dist.in_turn():
        if dist.first():
            shutil.copytree(folder / "parts", folder / "half")
    keep(train(STOPPED, folder / "parts"), folder, "two and two")
    keep(train(STOPPED, folder / "alone"), folder, "one and two")
    os.chdir(folder / "measured")
    sample.main("vae")
    dist.barrier()  # the first process writes, and the stages are two commands elsewhere
    fid.main("vae")


def write(folder: Path, tree: dict) -> None:
    """The parameters as params.yaml, which JSON is too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(json.dumps(tree))
    config.params.cache_clear()


def measurable(folder: Path) -> None:
    """All that sample@vae and fid@vae need, and a last batch that is not full."""
    tree = copy.deepcopy(defaults())
    tree["vae"], tree["rows"]["vae"] = TINY["vae"], {}
    tree["sample"] |= {"n": 96, "vae": {"batch": 64}}
    tree["fid"] |= {"kid_subsets": 2, "kid_subset_size": 32, "batch": 48}
    tree["likelihood"] |= {"images": 4, "importance": 2}
    write(folder, tree)
    module = store.module("vae")
    model = build(module, config.build(module.Config, TINY["vae"], "vae"))
    store.save(folder / "models/vae", "vae", model, asdict(Train(precision="fp32")), {})
    images = generate(96, seed=7)[0]
    files.write_npy(folder / "data/train.npy", images)
    files.write_npy(folder / "data/test.npy", images)
    np.savez(folder / "data/labels.npz", **dict.fromkeys(("train", "test"), np.arange(96) % 3))
    for i, split in enumerate(("train", "test")):
        files.write_npy(folder / f"features/{split}.npy", np.random.default_rng(i).random((96, 1280), np.float32))


def start(*command: str | Path, **variables: str) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("FRESH", "RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"} | variables
    how = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, *command], env=environment, **how)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    measurable(folder / "measured")
    stopped(folder / "alone", by=0)
    process = start(__file__, folder, NPROC="2", DVC_ROOT=str(folder))  # of its own, also what it keeps of rows
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert output.count("train from the beginning") == len(CASES) + 1, "the first alone speaks"
    return folder


def alike(one: tuple, other: tuple) -> None:
    for row, again in zip(one[0], other[0], strict=True):
        assert row == pytest.approx(again, **ROUNDING)
    for key, value in one[1].items():
        again = other[1][key]
        if value.dtype == np.uint8:  # images of a replay buffer: rounding may tip a grey level over here and there
            assert np.allclose(value.astype(int), again.astype(int), rtol=0, atol=1), key
            assert (value != again).mean() < 0.01, key
        else:  # Adam magnifies the rounding of gradients near zero
            assert np.allclose(value, again, rtol=1e-4, atol=2e-3), key


def same(one: tuple, other: tuple) -> None:
    assert one[0] == other[0] and one[1].keys() == other[1].keys()
    assert all(np.array_equal(value, other[1][key]) for key, value in one[1].items())


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, two, tmp_path):
    found = kept(two, case)
    same(found, kept(two, case, rank=1))
    alike(found, train(case, tmp_path))


def test_a_run_goes_on_with_another_number_of_processes(two):
    same(kept(two, "two and two"), kept(two, STOPPED))
    alike(kept(two, "one and two"), kept(two, STOPPED))
    alike(train(STOPPED, two / "half"), kept(two, STOPPED))


@pytest.fixture
def one_thread():
    """As each of the two processes has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_draw_and_measure_as_one(two, tmp_path, monkeypatch, one_thread):
    measurable(tmp_path)
    monkeypatch.chdir(tmp_path)
    for stage in (sample, fid):
        monkeypatch.setattr(stage, "RUNS", tmp_path / "runs")
    config.params.cache_clear()
    sample.main("vae")
    fid.main("vae")
    config.params.cache_clear()
    for name in ("samples/vae/vae.npy", "features/vae/vae.npy", "metrics/fid/vae.json", "plots/samples/vae/vae.png"):
        assert (two / "measured" / name).read_bytes() == Path(name).read_bytes(), name


def finished(process: subprocess.Popen) -> tuple[str, int]:
    return process.communicate(timeout=120)[0], process.returncode


@pytest.mark.parametrize("by", ["SIGTERM to the launcher", "--minutes"])
def test_a_stage_in_two_processes_is_stopped_and_goes_on_alone(by, tmp_path, monkeypatch):
    files.write_npy(tmp_path / "data/train.npy", generate(64, seed=7)[0])
    budget = {"images": 480, "batch": 16, "rows": 10, "save_seconds": 0.0, "preview_rows": 5}
    write(tmp_path, {"seed": 0, "train": budget, "edm": TINY["edm"]})
    monkeypatch.chdir(tmp_path)
    told = {"DVC_ROOT": str(tmp_path)}
    command = "-m", "stages.train", "edm"
    limit = ("--minutes", "0") if by == "--minutes" else ()
    process = start(*command, *limit, NPROC="2", **told)
    if not limit:
        while not list(tmp_path.glob("runs/train_edm/*/state.pt")):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.01)
        process.terminate()
    output, code = finished(process)
    assert code == (75 if limit else 128 + signal.SIGTERM), output
    assert len(re.findall("^stopped at [0-9,]+ of 480 images, state saved in", output, re.MULTILINE)) == 1
    assert not Path("models").exists() and "Traceback" not in output
    output, code = finished(start(*command, **told))
    assert code == 0 and re.search("^train from [1-9]", output, re.MULTILINE), output
    assert len(np.loadtxt("plots/curves/edm.csv", delimiter=",", skiprows=1)) == 10


def test_dropout_drops_of_an_image_what_it_drops_in_the_whole_batch(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    layer, x = rng.Dropout(0.5), torch.ones(6, 4)
    torch.manual_seed(0)
    whole = layer(x)
    torch.manual_seed(0)
    with dist.sharing():
        half = layer(x[3:])
    assert torch.equal(half, whole[3:]) and 0 < (half == 0).sum() < half.numel()


@pytest.mark.parametrize("count", ["0", "two", "-1", "1.5", ""])
def test_a_number_of_processes_is_one(count, monkeypatch, capsys):
    monkeypatch.setenv("NPROC", count)
    with pytest.raises(SystemExit, match=f"error: NPROC = '{count}' should be a number of processes, 1 or more"):
        processes.run(lambda: pytest.fail("ran"))


def test_a_batch_that_processes_cannot_share_is_refused(sprites, tmp_path, monkeypatch):
    module = store.module("edm")
    model = build(module, config.build(module.Config, TINY["edm"], "edm"))
    settings = Train(batch=64, accumulate=2, precision="fp32")
    says = r"train\.batch = 64 should be a multiple of train\.accumulate x processes \(2 x 3\)"
    with slot(tmp_path) as held, pytest.raises(UserError, match=says):
        monkeypatch.setenv("WORLD_SIZE", "3")
        loop.train(model, pool(sprites, settings), settings, loop.Run(0, held))


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes want a GPU each and there are 1: lower NPROC"):
        machine.device()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: torch.empty(1 << 60, dtype=torch.uint8),
        lambda: np.empty(1 << 60, np.uint8),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")),
    ],
)
def test_without_memory_a_stage_says_what_to_lower(ask):
    with pytest.raises(SystemExit) as ended:
        processes.run(ask, memory="lower the batch")
    says = r"error: out of memory \(.+\): lower the batch"
    assert re.fullmatch(says, str(ended.value))


def test_other_errors_are_not_taken_for_lack_of_memory():
    with pytest.raises(RuntimeError, match="another"):
        processes.run(lambda: (_ for _ in ()).throw(RuntimeError("another")))


def test_training_draws_its_random_numbers_by_image():
    """torch's own would be the same ones for the rows of every process."""
    allowed = {"codebook.py": 3, "contrast.py": 3, "perceptual.py": 1, "refinenet.py": 1, "unet.py": 1}
    found = {}
    for path in (ROOT / "src/pofx/models").rglob("*.py"):
        drawn = re.findall(
            r"torch\.rand\w*\(|F\.dropout|nn\.Dropout|bernoulli|multinomial|(?<!init)\.normal_", path.read_text()
        )
        if drawn:
            found[path.name] = len(drawn)
    assert found == allowed, "use pofx.base.rng in forward; what belongs to no image may be added here"


if __name__ == "__main__":
    processes.run(work, Path(sys.argv[1]))

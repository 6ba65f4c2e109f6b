"""Two processes train, draw and measure what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import build, pool, slot, small, weights

from pofx.core import dist, loop
from pofx.data.sprites import generate
from stages import processes

ROOT = Path(__file__).resolve().parents[1]
LIKE = {"images": 80, "batch": 8, "rows": 10, "lr": 1e-3}
CASES = {
    name: ([name.split("-")[0], *words], LIKE | train)
    for name, words, train in (
        ("vae", [], {}),
        ("vae-free", ["vae.free_bits=0.5"], {}),
        ("vae-many", ["vae.importance=3"], {}),
        ("vqvae", [], {"accumulate": 2}),
        ("vqprior", [], {"validation": 8, "patience": 2}),
        ("ncsn", [], {}),
        ("ddpm", ["ddpm.net.dropout=0.2"], {"validation": 8}),
        ("edm", [], {"accumulate": 2}),
        ("ebm", [], {}),
        ("ebm-chain", ["ebm.chain=2"], {}),
        ("ebm-igebm", ["ebm=igebm"], {}),
        ("ebm-icd", ["ebm=icd"], {}),
    )
}


def train(case: str, folder: Path, stop=lambda: False):
    words, budget = CASES[case]
    module, cfg = small(*words, **budget)
    model = build(module, cfg)
    with slot(folder / case) as held:
        curve, *_ = loop.train(model, pool(torch.from_numpy(generate(128, seed=7)[0]), cfg), cfg.train, 0, held, stop)
    return curve, weights(model)


def work(folder: Path) -> None:
    """In each of the processes."""
    torch.set_num_threads(1)
    for case in CASES:
        curve, found = train(case, folder)
        (folder / f"{case}-{dist.rank()}.json").write_text(json.dumps(curve))
        np.savez(folder / f"{case}-{dist.rank()}.npz", **found)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"NPROC": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    done = subprocess.run([sys.executable, __file__, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, two, tmp_path):
    curve, alone = train(case, tmp_path)
    for rank in (0, 1):
        shared = json.loads((two / f"{case}-{rank}.json").read_text())
        for one, other in zip(curve, shared, strict=True):
            print("REL", case, rank, max(abs(v / other[k] - 1) for k, v in one.items() if other[k]))
            assert one == pytest.approx(other, rel=1e-4)
        with np.load(two / f"{case}-{rank}.npz") as found:
            for key in alone:
                print("W", key, abs(alone[key].astype(float) - found[key].astype(float)).max())
                assert np.allclose(alone[key].astype(float), found[key].astype(float), atol=1e-2), key


if __name__ == "__main__":
    processes.run(work, Path(sys.argv[1]))

"""Losses of the first steps, to the last digits that machines agree on.

A change that should not move the numbers of training (a comment, a rename, a faster kernel) is proved here; one that
should move them renews the file, and says why: `GOLDEN=renew python -m pytest tests/test_golden.py`.
"""

import json
import os
from pathlib import Path

import pytest
from conftest import budget, build, pool, slot, small

from pofx.base import config
from pofx.train.loop import Run, train

FILE = Path(__file__).with_name("golden.json")


# Every family at its default, and objectives that no default trains.
CASES = [(name,) for name in config.family_names()] + [("ebm", "ebm-igebm"), ("ebm", "ebm-icd"), ("ebm", "ebm.chain=2")]


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_first_losses(case, sprites, tmp_path):
    name = case[-1]
    plan = budget(*case, images=48, batch=8, rows=6, lr=1e-3)
    with slot(tmp_path) as held:
        curve, *_ = train(build(*small(*case)), pool(sprites, plan), plan, Run(0, held))
    losses = [float(f"{row['loss']:.6g}") for row in curve]
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}
    if os.environ.get("GOLDEN") == "renew":
        FILE.write_text(json.dumps(golden | {name: losses}, indent=1, sort_keys=True) + "\n")
    else:
        assert name in golden, "no golden losses: see the head of this file"
        assert losses == pytest.approx(golden[name], rel=2e-3, abs=5e-4)  # an energy difference may be near zero

"""Draw images from one trained family: models/<family>/ -> samples/<family>/<row>.npy, a grid and the cost of each row.

Rows are the ways to draw that `sample.<family>` and `rows.<family>` ask for; with sample.seeds above 1 each is drawn
again from other noise, into <row>.seed1.npy and so on. samples/<family>/rows.json says what there is and how it was
drawn. A row that was drawn before is not drawn again, and its cost is that of then: FRESH=1 draws all.
"""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge

from stages import FRESH, RUNS, processes
from pofx.base import config, dist, files, machine, provenance
from pofx.base.errors import UserError
from pofx.base.images import save_grid, to_uint8
from pofx.base.memo import Entry, Memo
from pofx.base.progress import Bar
from pofx.base.rng import Noise, fold
from pofx.models import store
from pofx.models.family import Family
from pofx.sample import cost, drawing
from pofx.sample.cost import counted
from pofx.sample.rows import rows, stems

CODE = ("stages", "src/pofx/base", "src/pofx/models", "src/pofx/sample")  # that decides what is drawn


def main(name: str) -> None:
    n, seeds = config.value("sample.n", Annotated[int, Ge(2)]), config.value("sample.seeds", int)
    ways = rows(name, config.value(f"sample.{name}", dict), config.value(f"rows.{name}", dict))
    folder, seed, device = Path(f"models/{name}"), config.value("seed", int), machine.device()
    model = store.load(folder, device)
    weights = [files.digest(folder / file) for file in ("model.safetensors", "model.json")]
    shared = weights, n, machine.name(device), provenance.code_hash(*CODE)
    memo = Memo(RUNS / "memo/sample" / name, *shared, fresh=FRESH)

    record: dict[str, Any] = {}
    costs: dict[str, dict[str, float]] = {}  # metric -> row -> value
    for row, how in ways.items():
        record[row] = {"sample": dataclasses.asdict(how), "stems": stems(row, seeds)}
        spent = []
        for k, stem in enumerate(record[row]["stems"]):
            noise = fold(seed, "sample", name, *([k] if k else []))  # the first is the same, however many follow
            arrays, facts = memo(partial(draw, model, stem, how, n, noise), record[row]["sample"], noise)
            spent.append(facts)
            if dist.first():
                files.write_npy(Path(f"samples/{name}/{stem}.npy"), arrays["images"])
                save_grid(arrays["images"][:80], Path(f"plots/samples/{name}/{stem}.png"), columns=16)
        seconds = sum(facts["sample_seconds_per_1000"] for facts in spent) / seeds
        for key, value in (spent[0] | {"sample_seconds_per_1000": seconds}).items():
            costs.setdefault(key, {})[row] = value
    costs["sample_peak_mib"] = {name: max(costs["sample_peak_mib"].values())}
    if dist.first():
        files.write_json(Path(f"samples/{name}/rows.json"), record)
        files.write_json(Path(f"metrics/time/sample_{name}.json"), costs)
        memo.prune()


def draw(model: Family, row: str, cfg: Any, n: int, seed: int) -> Entry:
    """n images, and what drawing cost: the seconds for 1,000 of them, the evaluations of the network for a batch.

    Several processes draw every so many batches each, the same images as one would; their seconds are added up.

    Raises:
        UserError: an image is not finite.
    """
    device = machine.device()
    drawn, mine = np.zeros((n, *model.shape), np.uint8), range(0, n, cfg.batch)[dist.rank() :: dist.world()]
    began = time.monotonic()
    with torch.no_grad(), counted(model.networks()) as calls:
        for start in Bar(mine, desc=f"sample {row}", unit="batch"):
            noise = Noise(seed, start, min(n, start + cfg.batch), device)
            # Of the network alone: samplers keep images in fp32.
            with torch.autocast(device.type, torch.bfloat16, enabled=model.precision == "bf16"):
                images = drawing.draw(model, noise, cfg)
            if not images.isfinite().all():
                raise UserError(f"{row} drew values that are not finite: train it longer, or change how it draws")
            drawn[start : start + len(noise)] = to_uint8(images).cpu().numpy()
        drawn = dist.assembled(drawn)
    seconds = (time.monotonic() - began) * dist.world()
    facts = {"sample_seconds_per_1000": 1000 * seconds / n, "nfe": calls[0] / max(1, len(mine))}
    facts |= {"sample_peak_mib": round(machine.peak_mib(device), 1)} | cost.gflop(model, cfg, device)
    return {"images": drawn}, facts


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.sample {'|'.join(config.family_names())}")
    processes.run(main, sys.argv[1], memory=f"lower sample.{sys.argv[1]}.batch")

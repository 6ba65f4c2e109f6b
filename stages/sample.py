"""Draw images from one trained family: models/<family>/ -> samples/<family>/<row>.npy, a grid and the cost of each row.

Rows are the ways to draw that `sample.<family>` and `rows.<family>` ask for; with sample.seeds above 1 each is drawn
again from other noise, into <row>.seed1.npy and so on. samples/<family>/rows.json says how each was drawn. A row that
was drawn before is not drawn again, unless FRESH=1.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from stages import FRESH, RUNS, processes
from pofx.base import config, dist, files, machine, provenance
from pofx.base.images import save_grid
from pofx.base.memo import Entry, Memo
from pofx.base.rng import Noise, fold
from pofx.models import store
from pofx.models.family import Family
from pofx.sample import cost, settings
from pofx.sample.rows import rows, stems

CODE = ("stages", "src/pofx/base", "src/pofx/models", "src/pofx/sample")  # that decides what is drawn


def main(name: str) -> None:
    n, seeds = config.value("sample.n", Annotated[int, Ge(2)]), config.value("sample.seeds", int)
    ways = rows(name, config.value(f"sample.{name}", dict), config.value(f"rows.{name}", dict))
    folder, seed, device = Path(f"models/{name}"), config.value("seed", int), machine.device()
    model = store.load(folder, device)
    weights, code = [folder / "model.safetensors", folder / "model.json"], provenance.code_hash(*CODE)
    memo = Memo(RUNS / "memo/sample" / name, weights, n, machine.name(device), model.precision, code, fresh=FRESH)
    noises = [fold(seed, "sample", name), *(fold(seed, "sample", name, k) for k in range(1, seeds))]  # of every draw

    record: dict[str, Any] = {}
    costs: dict[str, dict[str, float]] = {}  # metric -> row -> value
    for row, cfg in ways.items():
        record[row] = {"sample": dataclasses.asdict(cfg), "stems": stems(row, seeds), "precision": model.precision}
        spent = []
        for stem, noise in zip(record[row]["stems"], noises, strict=True):
            arrays, metrics = memo(partial(draw, model, cfg, n, noise, stem), cfg, noise)
            spent.append(metrics)
            if dist.first():
                files.write_npy(Path(f"samples/{name}/{stem}.npy"), arrays["images"])
                save_grid(arrays["images"][:80], Path(f"plots/samples/{name}/{stem}.png"), columns=16)
        seconds = sum(each["sample_seconds_per_1000"] for each in spent) / seeds
        for key, value in (spent[0] | {"sample_seconds_per_1000": seconds}).items():
            costs.setdefault(key, {})[row] = value
    costs["sample_peak_mib"] = {name: max(costs["sample_peak_mib"].values())}
    if dist.first():
        files.write_json(Path(f"samples/{name}/rows.json"), record)
        files.write_json(Path(f"metrics/time/sample_{name}.json"), costs)
        memo.prune()


def draw(model: Family, cfg: Any, n: int, seed: int, stem: str) -> Entry:
    """n images, and the cost of drawing them."""
    device = machine.device()
    images, spent = settings.draw(model, cfg, n, partial(Noise, seed, device=device), f"sample {stem}")
    costs = {"sample_seconds_per_1000": spent["seconds_per_1000"], "nfe": spent["nfe"]}
    costs |= {"sample_peak_mib": round(machine.peak_mib(device), 1)} | cost.gflop(model, cfg, device)
    return {"images": images}, costs


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m stages.sample {'|'.join(config.family_names())}")
    processes.run(main, sys.argv[1], memory=f"lower sample.{sys.argv[1]}.batch")

"""Train one family: data/train.npy -> models/<family>/, its curve, its cost.

The run's state is kept in runs/: a killed run goes on where it stopped when the same command is given again, FRESH=1
starts over. With --minutes the run saves and exits 75 when its time is up, and writes no output. NPROC=2 trains in two
processes (see stages.processes).
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import numpy as np
import torch

from stages import ROOT, RUNS, processes
from pofx.base import config, dist, files, machine, provenance
from pofx.models import family
from pofx.train import loop, state
from pofx.train.pool import Pool
from pofx.base.errors import UserError
from pofx.base.images import save_grid, to_uint8
from pofx.base.rng import Noise, fold


def main(name: str, minutes: float | None) -> None:
    module = family.module(name)
    cfg, seed = config.section(name, module.Config), config.value("seed", int)
    if cfg.train.batch % (cfg.train.accumulate * dist.world()):
        parts = f"{cfg.train.accumulate} x {dist.world()}"
        raise UserError(
            f"{name}.train.batch = {cfg.train.batch} should be a multiple of {parts} parts "
            f"({name}.train.accumulate x processes): change one of them"
        )
    train, device, stop = cfg.train, machine.device(), machine.StopRequest(minutes)
    torch.manual_seed(fold(seed, "init"))
    model = family.create(name, cfg, Path("models")).to(device)
    data = Path("data/train.npy")
    images = torch.from_numpy(np.load(data)).to(device)
    pool = Pool(images, train.batch, seed, train.flip, train.validation)
    with dist.in_turn():
        model.fetch(RUNS / "weights", RUNS.parent)
    noted = model.prepare(images)
    code, content = state.code_hash(), files.digest(data)
    base = files.digest(Path(f"models/{model.needs}/model.safetensors")) if model.needs else None
    harmless = {"save_seconds", "memory_mib", "preview_rows"}  # these decide no weight
    setting = dataclasses.asdict(cfg)
    setting["train"] = {k: v for k, v in setting["train"].items() if k not in harmless}
    draw = config.untracked(f"sample.{name}", module.Sample)  # for previews alone, of which a change reruns nothing

    def bounded() -> bool:
        if 0 < train.memory_mib < (peak := machine.peak_mib(device)):
            bound = f"{name}.train.memory_mib = {train.memory_mib:,}"
            raise UserError(f"training took {peak:,.0f} MiB, more than {bound}: {less_memory(name)}")
        return stop()

    with state.Slot(
        RUNS, f"train_{name}", [setting, seed, code, content, base], fresh=os.environ.get("FRESH") == "1"
    ) as slot:

        def preview(seen: int) -> None:
            drawn = to_uint8(model.sample(Noise(fold(seed, "sample", name), 0, 16, device), draw))
            files.write_npy(slot.folder / f"{seen:012d}.npy", drawn.cpu().numpy())

        try:
            curve, seconds, events = loop.train(model, pool, train, seed, slot, bounded, preview)
        except loop.Stopped as stopped:
            print(f"{stopped}: the same command goes on from there", file=sys.stderr)
            sys.exit(*dist.most(stop.code))
        if not dist.first():
            return
        seen = curve[-1]["images"]
        with torch.no_grad():
            torch.manual_seed(fold(seed, "finish"))
            model.finish(images)
            preview(seen)
        # Of a row that a roll-back undid and early stopping never came to again there may be one that is later.
        rows = [np.load(path) for path in sorted(slot.folder.glob("*.npy")) if int(path.stem) <= seen]
    family.save_model(Path(f"models/{name}"), name, cfg, model, {"seed": seed, "data": content, "code": code})
    files.write_csv(Path(f"plots/curves/{name}.csv"), curve)
    save_grid(np.concatenate(rows), Path(f"plots/progress/{name}.png"), columns=16)
    earlier = {p for net in model.guides() for p in net.parameters()}
    size = sum(p.numel() for p in model.parameters() if p not in earlier)
    files.write_json(
        Path(f"metrics/train/{name}.json"),
        {"train_loss": {name: curve[-1]["loss"]}, "parameters": {name: size}, "images_seen": {name: seen},
         "guards": {name: events}} | {key: {name: value} for key, value in noted.items()},
    )  # fmt: skip
    files.write_json(
        Path(f"metrics/time/train_{name}.json"),
        {"train_seconds": {name: round(seconds, 1)}, "train_images_per_second": {name: round(seen / seconds, 1)},
         "train_peak_mib": {name: round(machine.peak_mib(device), 1)}, "device": {name: machine.name(device)},
         "trained": {name: provenance.here(ROOT) | {"seed": seed, "data": content, "code": code}}},
    )  # fmt: skip


def less_memory(name: str) -> str:
    return f"raise {name}.train.accumulate, or lower {name}.train.batch"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("family", choices=config.family_names())
    parser.add_argument("--minutes", type=float)
    arguments = parser.parse_args()
    processes.run(main, arguments.family, arguments.minutes, memory=less_memory(arguments.family))
